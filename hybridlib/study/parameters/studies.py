"""The parameters of every study, with the bounds that can be told before anything is computed."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from .base import Index, Parameters, PromptParameters, SamplingParameters, Scale, Seed, Step
from .sharing import SharingParameters
from .training import ImmiscibleParameters

QuantisationStep = Annotated[float, Field(gt=0, le=64, allow_inf_nan=False)]
NoiseSchedule = Annotated[str, Field(pattern=r"^\d+/\d+(\.\d+)?/(euler|dpm-solver\+\+)$")]  # steps/shift/solver
Split = Annotated[str, Field(pattern=r"^\d+,\d+$")]  # updates of the large denoiser, of the small one
ThinnedSplit = Annotated[str, Field(pattern=r"^\d+,\d+,\d+(\.\d+)?,\d+$")]  # EC-Diff's p, k, alpha, s
Method = Literal["LAD-TS", "D2SAC-B", "D2SAC-A", "SAC-TS", "DQN-TS"]


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
    common_steps: list[Step] = Field([0, 4, 8, 12, 16, 21, 27], min_length=5)
    min_pairs: int = Field(2, ge=1)  # a similarity bin of fewer ordered pairs is left out
    anchored_prompts: list[Index] = Field([0, 3, 10], min_length=2)  # personal ones, of the later protocol
    anchored_seeds: list[Seed] = Field([1], min_length=1)
    anchored_common_steps: list[Step] = [0, 9, 18]
    factorial_prompts: list[Index] = Field([0, 2, 5, 12], min_length=2)
    factorial_seeds: list[Seed] = Field([1], min_length=1)
    factorial_common_steps: list[Step] = [6, 12, 18]
    noise_schedules: list[NoiseSchedule] = ["28/0.35/euler", "28/3/euler", "14/0.35/dpm-solver++"]
    schedule_prompts: list[Index] = Field([0, 2, 5, 12, 19], min_length=2)
    schedule_seeds: list[Seed] = Field([1], min_length=1)
    schedule_shares: list[Annotated[float, Field(ge=0, lt=1)]] = Field([0.0, 0.21, 0.36, 0.5, 0.71, 0.97], min_length=5)

    @model_validator(mode="after")
    def _fits_schedule_and_prompts(self) -> Self:
        self._check_steps("common_steps", "anchored_common_steps", "factorial_common_steps")
        self._check_prompts("joint", "joint_prompts", "factorial_prompts", "schedule_prompts")
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
    promise_splits: int = Field(20, ge=4, le=10_000)


class CompressionParameters(SamplingParameters):
    """Study 07: the two published compression grids, and codecs at measured rates.

    Steps are 0-based: the latents are coded right after update `step`, and at least one update must remain.
    """

    notebook = "07_compression_surface"

    ratio_prompts: list[Index] = Field([0], min_length=1)
    ratio_seeds: list[Seed] = Field([42, 43], min_length=2)
    ratio_steps: list[Step] = Field([2, 10, 18, 24], min_length=3)
    ratios: list[QuantisationStep] = Field([0.25, 0.5, 1.0], min_length=3)
    rate_prompts: list[Index] = Field([0], min_length=1)
    rate_seeds: list[Seed] = Field([42], min_length=1)
    rate_steps: list[Step] = Field([2, 14, 26], min_length=3)
    rates: list[Annotated[float, Field(ge=0, lt=1)]] = Field([0.0, 0.5, 0.625, 0.75, 0.875], min_length=2)
    link_prompts: list[Index] = Field([0], min_length=1)
    link_seeds: list[Seed] = Field([42, 43], min_length=2)
    link_steps: list[Step] = Field([2, 14, 24], min_length=1)
    rounding_steps: list[QuantisationStep] = Field([0.25, 0.5, 1.0], min_length=1)
    min_max_bits: list[Annotated[int, Field(ge=1, le=8)]] = Field([3, 5], min_length=1)
    adaptive_steps: list[QuantisationStep] = Field([0.25, 0.75, 2.0], min_length=1)
    psnr_floor: float = Field(35.0, gt=0, allow_inf_nan=False)
    byte_budget: int = Field(400, ge=1)
    figures_from: Literal["shipped", "own"] = "shipped"

    @model_validator(mode="after")
    def _fits_schedule_and_prompts(self) -> Self:
        for name in ("ratio_steps", "rate_steps", "link_steps"):
            for step in getattr(self, name):
                if step > self.num_inference_steps - 2:
                    raise ValueError(
                        f"{name} = {step}: an update must remain, so at most num_inference_steps - 2 ="
                        f" {self.num_inference_steps - 2}"
                    )
        self._check_prompts("personal", "ratio_prompts", "rate_prompts", "link_prompts")
        return self


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


class SplitParameters(SamplingParameters):
    """Study 09: a generation split between a large and a small denoiser, and mixtures of all savings.

    Splits are "a,b": the large denoiser makes a updates. `budgets` are shares of the multiply-adds of the large one
    alone; `cloud_speedup` says how much faster the cloud is than this machine, which stands for the edge device.
    """

    notebook = "09_hybrid_sd"

    model: str = "mini-sd"
    small_model: str = "mini-sd-small"
    num_inference_steps: int = Field(25, ge=1, le=1000)
    solver: Literal["model", "dpm-solver++", "ddim", "lcm"] = "model"
    handoff: Literal["keep", "reset"] = "keep"
    guidance_scale: Scale = 7.0
    clip_model: str = "mini-clip"
    judge: str = "mini-judge"  # a folder; "" where prompts are not those of the scenes
    personal_prompts: list[Index] = Field([0, 10], min_length=1)
    seeds: list[Seed] = Field([1, 2], min_length=2)
    splits: list[Split] = Field(["0,25", "10,15", "25,0"], min_length=3)
    small_first: list[Split] = ["10,15"]
    thinned: list[ThinnedSplit] = ["4,2,0.3,18"]
    masks: list[Annotated[str, Field(pattern=r"^[LS]+$")]] = []
    budgets: list[Annotated[float, Field(gt=0, le=1)]] = [0.75, 1.0]
    megabits_per_second: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field([1.0, 100.0], min_length=1)
    delay_s: float = Field(0.02, ge=0, allow_inf_nan=False)
    cloud_speedup: float = Field(10.0, gt=0, allow_inf_nan=False)
    codecs: list[str] = ["adaptive:1.0,1.0"]
    public_guidance_scale: Scale = 2.0
    mixture_common_steps: list[Step] = Field([0, 5], min_length=1)
    mixture_splits: list[Split] = Field(["0,25", "10,15", "25,0"], min_length=1)
    mixture_seeds: list[Seed] = Field([1, 2], min_length=2)
    figures_from: Literal["shipped", "own"] = "shipped"

    @model_validator(mode="after")
    def _fits_schedule_and_prompts(self) -> Self:
        from ...codecs import parse

        self._check_prompts("personal", "personal_prompts")
        for name in ("splits", "small_first", "mixture_splits"):
            for split in getattr(self, name):
                if (total := sum(map(int, split.split(",")))) != self.num_inference_steps:
                    steps = self.num_inference_steps
                    raise ValueError(f"{name} = {split!r}: must sum to num_inference_steps = {steps}, makes {total}")
        for end in (f"{self.num_inference_steps},0", f"0,{self.num_inference_steps}"):
            if end not in self.splits:
                raise ValueError(f"splits = {self.splits}: must contain {end!r}, one denoiser alone")
        for codec in self.codecs:
            try:
                parse(codec)
            except ValueError as error:
                raise ValueError(f"codecs = {codec!r}: {error}") from None
        return self


class CompactModelsParameters(Parameters):
    """Study 10: how the compact models were made, and what the autoencoders are worth."""

    notebook = "10_compact_models"

    scenes: int = Field(64, ge=8, le=100_000)  # held-out, for the PSNR of the autoencoders
    rounds: int = Field(8, ge=3, le=1000)  # of timing


class FullSizeParameters(PromptParameters):
    """Study 12: memory plans of models of true size, and a job of captions on a model that is here."""

    notebook = "12_full_size"

    budgets_gb: list[Annotated[float, Field(gt=0, le=1000)]] = Field([8.0, 16.0, 24.0, 48.0, 80.0], min_length=1)
    model: str = "mini-sd3"  # that draws the captions
    image_size: int = Field(64, ge=16, le=4096, multiple_of=16)
    max_sequence_length: int = Field(1, ge=0, le=512)
    batch_size: int = Field(4, ge=1, le=4096)
    tasks: int = Field(12, ge=2, le=20)  # personal prompts that are drawn, of 20
    least_steps: int = Field(10, ge=1, le=1000)  # of a task; 10 to 19 as published
    most_steps: int = Field(12, ge=1, le=1000)
    guidance_scale: Scale = 5.0

    @model_validator(mode="after")
    def _steps_are_a_range(self) -> Self:
        if self.least_steps > self.most_steps:
            raise ValueError(f"least_steps = {self.least_steps}: must be at most most_steps = {self.most_steps}")
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
        CompressionParameters,
        SchedulingParameters,
        SplitParameters,
        CompactModelsParameters,
        ImmiscibleParameters,
        FullSizeParameters,
        SharingParameters,
    )
}
