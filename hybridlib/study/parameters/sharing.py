"""Parameters of the study that plans what lists of prompts share."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from .base import SamplingParameters, Scale, Seed, Step


class SharingParameters(SamplingParameters):
    """Study 13: planned trees beside the rules of others.

    Lists are drawn from the scenes: `lists` of each kind, `list_size` prompts each. The quality surface is fitted to
    all pairs of `pair_prompts` prompts of other lists. `floors` are of our plans and of one public prompt, `taus` of
    2508.21032, `sage_shares` of SAGE, `shorter` of fewer steps; `numbers` are lengths of lists that are planned and not
    drawn.
    """

    notebook = "13_planned_trees"

    num_inference_steps: int = Field(14, ge=1, le=1000)
    clip_model: str = "mini-clip"
    judge: str = "mini-judge"  # a folder
    sentence_model: str = "all-MiniLM-L6-v2"
    pair_prompts: int = Field(5, ge=4, le=200)
    pair_seeds: list[Seed] = Field([1], min_length=1)
    pair_common_steps: list[Step] = Field([0, 2, 4, 7, 11], min_length=5)
    bootstrap_rounds: int = Field(20, ge=0, le=100_000)
    lists: int = Field(2, ge=2, le=1000)
    list_size: int = Field(3, ge=2, le=1000)
    seeds: list[Seed] = Field([11], min_length=1)
    floors: list[Annotated[float, Field(gt=0, le=1)]] = Field([0.9], min_length=1)
    taus: list[Annotated[float, Field(ge=0, le=100)]] = Field([0.5], min_length=1)
    sage_threshold: float = Field(0.6, ge=-1, le=1)
    sage_shares: list[Annotated[float, Field(ge=0, lt=1)]] = Field([0.2], min_length=1)
    shorter: list[Annotated[int, Field(ge=1, le=1000)]] = Field([8], min_length=1)
    step_seeds: list[Seed] = Field([1], min_length=1)
    guidance_scale: Scale = 7.0
    numbers: list[Annotated[int, Field(ge=1, le=10_000)]] = Field([10, 30], min_length=1)
    savings_floor: float = Field(0.9, gt=0, le=1)
    figures_from: Literal["shipped", "own"] = "shipped"

    @model_validator(mode="after")
    def _fits_schedule(self) -> Self:
        self._check_steps("pair_common_steps")
        if 0 not in self.pair_common_steps:
            raise ValueError(f"pair_common_steps = {self.pair_common_steps}: must contain 0, where nothing is shared")
        if too_long := [steps for steps in self.shorter if steps >= self.num_inference_steps]:
            raise ValueError(f"shorter = {too_long[0]}: must be below num_inference_steps = {self.num_inference_steps}")
        for name in ("seeds", "pair_seeds", "step_seeds", "floors", "taus", "sage_shares", "shorter"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} = {getattr(self, name)}: must be different")
        return self
