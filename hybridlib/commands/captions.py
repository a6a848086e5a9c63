"""`hybridlib captions`: a file of captions in, images and a table of delays out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..study import captions
from ..study.parameters import Settings


@dataclass(frozen=True)
class Asked:
    """What the command is told."""

    file: Path
    folder: Path
    model: str
    steps: str
    guidance_scale: float
    image_size: int
    batch_size: int
    max_sequence_length: int
    count: int | None
    seed: int
    budget_gb: float | None


def run(asked: Asked) -> int:
    """Make the images; what is wrong is refused before the model is loaded."""
    found, steps = captions.read_captions(asked.file), captions.parse_steps(asked.steps)
    if asked.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {asked.batch_size}")

    def job_of(side: int) -> captions.Job:
        settings = Settings(steps[1], side, asked.batch_size, asked.max_sequence_length)
        return captions.Job(settings, steps, asked.guidance_scale, asked.seed)

    captions.tasks(found, job_of(asked.image_size), asked.count)
    from ..denoising import models
    from ..denoising.families import denoiser_of

    pipeline = models.load(asked.model, budget_gb=asked.budget_gb)
    if plan := getattr(pipeline, "memory_plan", None):
        print(plan)
    job = job_of(asked.image_size or denoiser_of(pipeline).default_size)
    delays = captions.run(captions.tasks(found, job, asked.count), pipeline, asked.folder, job)
    print(captions.by_steps(delays).round(3).to_string(index=False))
    print(f"{len(delays)} images and {captions.DELAYS}.parquet are in {asked.folder}: ", end="")
    print(f"{delays['seconds_an_image'].mean():.3f} s an image, denoised up to {delays['together'].max()} together")
    return 0
