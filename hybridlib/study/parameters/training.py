"""Parameters of the studies of training."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from .base import Parameters, Seed

NoiseArm = Literal[
    "independent",
    "linear",
    "linear, within condition",
    "linear, caption price",
    "KNN, as published",
    "KNN, condition-centred",
    "semidiscrete",
    "semidiscrete, within condition",
    "farthest (control)",
    "unconditional, independent",
    "unconditional, linear",
]


class ImmiscibleParameters(Parameters):
    """Study 11: noise assignment on images. Trainings for each arm and seed, of a flow and of an epsilon model."""

    notebook = "11_immiscible"

    shapes: int = Field(2, ge=1, le=6)
    colours: int = Field(2, ge=1, le=8)
    images: int = Field(96, ge=2)  # of the training set; `base_images` of the one that fine-tuning starts from
    base_images: int = Field(96, ge=2)
    reference_images: int = Field(160, ge=130)  # more than mini-clip's 128 features
    flow_arms: list[NoiseArm] = ["independent", "linear", "linear, within condition"]
    epsilon_arms: list[NoiseArm] = ["independent", "linear, within condition"]
    finetune_arms: list[NoiseArm] = ["independent"]
    seeds: list[Seed] = Field([0, 1], min_length=1)
    batch_size: int = Field(16, ge=1)
    pool: int = Field(4, ge=1)  # steps whose noise is assigned at once, where it is assigned linearly
    k: int = Field(8, ge=1)
    passes: int = Field(4, ge=1)  # of the semidiscrete fit
    base_steps: int = Field(4, ge=1)
    flow_steps: int = Field(8, ge=1)
    flow_finetune_steps: int = Field(2, ge=1)
    epsilon_steps: int = Field(4, ge=1)
    epsilon_finetune_steps: int = Field(2, ge=1)
    learning_rate: float = Field(2e-3, gt=0, allow_inf_nan=False)
    epsilon_learning_rate: float = Field(4e-3, gt=0, allow_inf_nan=False)
    min_snr_gamma: float = Field(2.0, gt=0, allow_inf_nan=False)  # weights of the loss in noise (Hang et al.)
    finetune_learning_rate: float = Field(5e-4, gt=0, allow_inf_nan=False)
    samples: int = Field(16, ge=2)
    step_counts: list[Annotated[int, Field(ge=1, le=1000)]] = Field([1, 4], min_length=2)  # of sampling, rising
    cost_batch_sizes: list[Annotated[int, Field(ge=2, le=16384)]] = Field([64, 128], min_length=1)
    cost_latent_sizes: list[Annotated[int, Field(ge=4, le=64, multiple_of=4)]] = Field([8], min_length=1)
    figures_from: Literal["shipped", "own"] = "shipped"

    @model_validator(mode="after")
    def _arms_can_be_compared(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {self.seeds}: must be different")
        if sorted(set(self.step_counts)) != self.step_counts or self.step_counts[0] > 4:
            raise ValueError(f"step_counts = {self.step_counts}: must rise, from at most 4 steps")
        for name in ("flow_arms", "epsilon_arms", "finetune_arms"):
            arms = getattr(self, name)
            if len(set(arms)) < len(arms) or (arms and "independent" not in arms):
                raise ValueError(f"{name} = {arms}: must be different and hold 'independent', or none")
        if any(arm.startswith("unconditional") for arm in self.finetune_arms):
            raise ValueError(f"finetune_arms = {self.finetune_arms}: fine-tuning starts from a conditional model")
        return self
