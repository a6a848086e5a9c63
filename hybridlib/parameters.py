"""Parameters of the studies: checked in one place, whether they come from a YAML file or a notebook cell."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .prompts import PromptSet, prompt_file
from .study import Settings

Scale = Annotated[float, Field(ge=0, le=50, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Step = Annotated[int, Field(ge=0, le=1000)]
Index = Annotated[int, Field(ge=0)]
Method = Literal["LAD-TS", "D2SAC-B", "D2SAC-A", "SAC-TS", "DQN-TS"]


class Parameters(BaseModel):
    """What every study needs. Unknown names and wrong types are refused, never converted or ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    notebook: ClassVar[str]

    profile: str = Field("smoke", pattern=r"^[\w.-]+$")

    @classmethod
    def from_names(cls, names: dict[str, Any]) -> Self:
        """Parameters from a notebook's variables (`globals()`).

        What papermill injects is checked for unknown names, too: papermill itself only warns of them.

        Raises:
            ValueError: one sentence naming the notebook, the key, its value and what is allowed.
        """
        wanted = {*cls.model_fields, *_assigned_in_parameter_cells(names.get("In", []))}
        return _checked(cls, {name: names[name] for name in names if name in wanted}, cls.notebook)

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        """Parameters from a YAML file; what it leaves out keeps its default.

        Raises:
            ValueError: one sentence naming the file, the key, its value and what is allowed.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as error:
            raise ValueError(f"{path}: cannot be read as YAML ({error})") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected a mapping of parameter names to values, got {type(content).__name__}")
        return _checked(cls, content, str(path))


class PromptParameters(Parameters):
    """What a study of a prompt set needs."""

    prompts: str = "miniature"

    @field_validator("prompts")
    @classmethod
    def _prompt_file_exists(cls, name: str) -> str:
        prompt_file(name)
        return name


class SamplingParameters(PromptParameters):
    """What a study needs that makes images."""

    model: str = "mini-sd3"
    image_size: int = Field(64, ge=16, le=4096, multiple_of=16)
    num_inference_steps: int = Field(28, ge=1, le=1000)
    max_sequence_length: int = Field(1, ge=0, le=512)
    batch_size: int = Field(64, ge=1, le=4096)

    def settings(self) -> Settings:
        """What the sampler needs to know beside the trajectories."""
        return Settings(self.num_inference_steps, self.image_size, self.batch_size, self.max_sequence_length)

    def _check_steps(self, *names: str) -> None:
        """Common steps lie below num_inference_steps, as in the published pipeline."""
        for name in names:
            for step in _as_list(getattr(self, name)):
                if step >= self.num_inference_steps:
                    raise ValueError(f"{name} = {step}: must be below num_inference_steps = {self.num_inference_steps}")

    def _check_prompts(self, kind: Literal["personal", "joint"], *names: str) -> None:
        """Indices of prompts exist in the prompt set."""
        available = len(getattr(PromptSet.load(self.prompts), kind))
        for name in names:
            for index in _as_list(getattr(self, name)):
                if index >= available:
                    raise ValueError(
                        f"{name} = {index}: the prompt set {self.prompts!r} has {available} {kind} prompts"
                    )


class FiguresParameters(SamplingParameters):
    """Study 01: the case study, the SIM sweep and the NPI set.

    Common steps lie in 0..num_inference_steps - 1, as in the published pipeline; `personal_prompts` are indices into
    the prompt set.
    """

    notebook = "01_figures"

    personal_prompts: list[Index] = [0, 8, 10, 17]
    personal_guidance_scale: Scale = 8.0
    case_prompt: Index = 8
    case_seed: Seed = 203
    case_common_step: Step = 8
    case_public_scale: Scale = 2.0
    traditional_steps: int = Field(20, ge=1, le=1000)
    sim_public_scales: list[Scale] = [0.0, 2.0, 7.0]
    sim_seeds: list[Seed] = [1]
    sim_common_steps: list[Step] = [3, 12, 21]
    npi_seeds: list[Seed] = [1, 2]
    npi_common_steps: list[Step] = [3, 12, 21]
    npi_public_scale: Scale = 2.0

    @model_validator(mode="after")
    def _fits_schedule_and_prompts(self) -> Self:
        self._check_steps("case_common_step", "sim_common_steps", "npi_common_steps")
        self._check_prompts("personal", "case_prompt", "personal_prompts")
        return self


class SweepParameters(SamplingParameters):
    """Studies 02 and 03: scores of the SIM sweep, with and without negatives."""

    personal_prompts: list[Index] = Field([0, 5, 8, 10, 13, 17], min_length=2)
    personal_guidance_scale: Scale = 8.0
    public_scales: list[Scale] = Field([1.0, 3.0, 7.0], min_length=1)
    seeds: list[Seed] = Field([1], min_length=1)
    common_steps: list[Step] = Field([3, 12, 21], min_length=1)

    @model_validator(mode="after")
    def _fits_schedule_and_prompts(self) -> Self:
        self._check_steps("common_steps")
        self._check_prompts("personal", "personal_prompts")
        return self


class AlignmentParameters(SweepParameters):
    """Study 02: CLIP alignment of the SIM sweep."""

    notebook = "02_alignment"

    clip_model: str = "mini-clip"


class FidelityParameters(SweepParameters):
    """Study 03: BRISQUE of the same images."""

    notebook = "03_fidelity"

    brisque_weights: Literal["auto", "piq", "shipped"] = "shipped"


class SimilarityParameters(PromptParameters):
    """Study 04: how alike the prompts are."""

    notebook = "04_similarity"

    sentence_model: str = "all-MiniLM-L6-v2"


class QualityParameters(SamplingParameters):
    """Study 05: quality of every pair of prompts. Prompts are joint indices: public prompts first, then personal."""

    notebook = "05_image_quality"

    clip_model: str = "mini-clip"
    sentence_model: str = "all-MiniLM-L6-v2"
    brisque_weights: Literal["auto", "piq", "shipped"] = "shipped"
    joint_prompts: list[Index] = Field([0, 2, 5, 12, 19], min_length=2)
    seeds: list[Seed] = Field([1], min_length=1)
    common_steps: list[Step] = Field([0, 8, 16, 20, 23, 25, 27], min_length=5)
    min_pairs: int = Field(2, ge=1)  # a similarity bin of fewer ordered pairs is left out
    anchored_prompts: list[Index] = Field([0, 3, 10], min_length=2)  # personal ones, of the later protocol
    anchored_seeds: list[Seed] = Field([1], min_length=1)
    anchored_common_steps: list[Step] = [0, 9, 18]
    factorial_prompts: list[Index] = Field([0, 2, 5, 12], min_length=2)
    factorial_seeds: list[Seed] = Field([1], min_length=1)
    factorial_common_steps: list[Step] = [12, 18, 23]

    @model_validator(mode="after")
    def _fits_schedule_and_prompts(self) -> Self:
        self._check_steps("common_steps", "anchored_common_steps", "factorial_common_steps")
        self._check_prompts("joint", "joint_prompts", "factorial_prompts")
        self._check_prompts("personal", "anchored_prompts")
        if 0 not in self.common_steps:
            raise ValueError(f"common_steps = {self.common_steps}: must contain 0, where nothing is shared")
        return self


class HiqmParameters(Parameters):
    """Study 06: curves and a surface fitted to the scores of study 05."""

    notebook = "06_hiqm_fit"

    scores: str = "data/results/05_image_quality.parquet"  # of a study 05, from the project's root
    min_pairs: int = Field(6, ge=1)
    bootstrap_rounds: int = Field(100, ge=20, le=100_000)
    quality_share: float = Field(0.95, gt=0, lt=1)


class SchedulingParameters(Parameters):
    """Study 08: learned edge scheduling beside rules and bounds. Episodes of training for each part, seeds for each."""

    notebook = "08_lad_ts"

    servers: int = Field(5, ge=2, le=200)
    max_tasks: int = Field(50, ge=1, le=200)
    slots: int = Field(20, ge=2, le=1000)
    methods: list[Method] = Field(["LAD-TS", "D2SAC-B", "D2SAC-A", "SAC-TS", "DQN-TS"], min_length=1)
    episodes: int = Field(4, ge=1)
    seeds: list[Seed] = Field([0, 1], min_length=1)
    evaluation_episodes: int = Field(2, ge=1)
    fluid_iterations: int = Field(10, ge=0)
    loads: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = [0.7]
    load_methods: list[Method] = ["LAD-TS", "DQN-TS"]
    load_episodes: int = Field(2, ge=1)
    load_seeds: list[Seed] = Field([0], min_length=1)
    sweep_tasks: list[Annotated[int, Field(ge=1, le=200)]] = [10, 50]
    sweep_quality: list[Annotated[int, Field(ge=2)]] = [5, 15]
    sweep_servers: list[Annotated[int, Field(ge=2, le=200)]] = [3, 5]
    sweep_capacity: list[Annotated[int, Field(ge=10)]] = [20, 50]
    sweep_denoising: list[Annotated[int, Field(ge=1, le=100)]] = [1, 5]
    sweep_episodes: int = Field(2, ge=1)
    sweep_fluid_iterations: int = Field(10, ge=0)
    sweep_seeds: list[Seed] = Field([0], min_length=1)
    quirk_episodes: int = Field(2, ge=1)
    quirk_seeds: list[Seed] = Field([0, 1], min_length=1)

    @model_validator(mode="after")
    def _seeds_differ(self) -> Self:
        for name in ("seeds", "load_seeds", "sweep_seeds", "quirk_seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} = {getattr(self, name)}: must be different")
        return self


STUDIES: dict[str, type[Parameters]] = {
    cls.notebook: cls
    for cls in (
        FiguresParameters,
        AlignmentParameters,
        FidelityParameters,
        SimilarityParameters,
        QualityParameters,
        HiqmParameters,
        SchedulingParameters,
    )
}


def _as_list(value: int | list[int]) -> list[int]:
    return value if isinstance(value, list) else [value]


def _assigned_in_parameter_cells(executed: list[str]) -> set[str]:
    """Names assigned in the executed cells that begin as papermill's parameter cells do."""
    cells = [ast.parse(source) for source in executed if source.startswith("# Parameters")]
    targets = (
        node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        for cell in cells
        for node in cell.body
    )
    return {target.id for target in targets if isinstance(target, ast.Name)}


P = TypeVar("P", bound=Parameters)


def _checked(cls: type[P], values: dict[str, Any], source: str) -> P:
    try:
        return cls(**values)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise ValueError(f"{source}: {message}") from None
        key = "".join(f"[{part}]" if isinstance(part, int) else str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ValueError(f"{source}: {key} is no parameter; known: {', '.join(cls.model_fields)}") from None
        raise ValueError(f"{source}: {key} = {first['input']!r}: {message[0].lower()}{message[1:]}") from None
