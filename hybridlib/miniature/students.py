"""What is made from mini-sd: mini-sd-small (pruned and distilled), mini-lcm and mini-lcm-small (few steps)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import DDPMScheduler, LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from ..denoising import models
from ..denoising.compact import load_unet
from ..files import write_atomically
from ..noise import initial_noise
from ..paths import MODELS
from ..training import distillation, lcm, pruning
from ..training.distillation import Batch
from ..training.loop import Draw, History, Recipe
from . import sd
from .corpus import corpus, draw_captions, token_ids
from .scenes import captions, sample_scenes
from .tokens import build_tokenizer

SMALL = Recipe(
    steps=6000, batch_size=32, learning_rate=1e-3, seed=31, ema_decay=0.998, warmup_steps=100, precision=sd.PRECISION
)
LCM = SMALL._replace(steps=3000, learning_rate=3e-4, seed=32, ema_decay=0.0)
LCM_SMALL = LCM._replace(seed=33)
LCM_SETTINGS = lcm.Settings(guidance=(1.0, 7.0))  # around the scales at which mini-sd is used
SCORED_IMAGES, SCORED_STEPS = 32, 25
# The least significant of 27 groups, as many as it takes to get below half of mini-sd's parameters. All keep the same:
# by the published rules a quarter or a half of groups this narrow would be too few, and they would stay whole.
PRUNED, KEEP = 16, 0.75


class Made(NamedTuple):
    """A UNet made from mini-sd, and how."""

    unet: UNet2DConditionModel
    recipe: Recipe
    history: History


def mini_sd() -> StableDiffusionPipeline:
    """mini-sd as it ships, in float32."""
    return models.load("mini-sd", "cpu", "float32")


def lcm_scheduler() -> LCMScheduler:
    """That of mini-lcm and mini-lcm-small: the timesteps of the solver they were distilled with."""
    return LCMScheduler(
        trained_betas=sd.trained_betas(),
        original_inference_steps=LCM_SETTINGS.points,
        steps_offset=1,  # has no effect, but stock pipelines of Stable Diffusion insist on it
    )


def train_small(folder: Path) -> Made:
    """Remove blocks as BK-SDM-Tiny, prune by significance, distil. The scores stay in `folder`."""
    pipeline = mini_sd()
    teacher = pipeline.unet
    student = pruning.remove_blocks(teacher, "tiny")
    pruning.prune(student, kept(_scores(pipeline, student, folder / "scores.json")))
    history = distillation.distil(teacher, student, _noise_levels(), _batches(pipeline, folder), folder, SMALL)
    return Made(student, SMALL, history)


def kept(scores: Mapping[str, float]) -> dict[str, float]:
    """The share that each pruned group of mini-sd-small keeps, the least significant first."""
    return dict.fromkeys(sorted(scores, key=lambda name: scores[name])[:PRUNED], KEEP)


def train_lcm(folder: Path, small: bool = False) -> Made:
    """Consistency distillation of mini-sd, or of mini-sd-small; the teacher is mini-sd both times, as published."""
    pipeline = mini_sd()
    start = load_unet(MODELS / "mini-sd-small" / "unet", torch.float32) if small else pipeline.unet
    student = lcm.with_guidance_embedding(start)
    recipe = LCM_SMALL if small else LCM
    empty = pipeline.text_encoder(token_ids(build_tokenizer())([""])).last_hidden_state.detach()
    history = lcm.distil(
        pipeline.unet,
        student,
        _noise_levels(),
        _batches(pipeline, folder),
        empty,
        folder,
        recipe,
        LCM_SETTINGS,
        name="lcm-small" if small else "lcm",
    )
    return Made(student, recipe, history)


def _noise_levels() -> DDPMScheduler:
    return DDPMScheduler(trained_betas=sd.trained_betas())


def _batches(pipeline: StableDiffusionPipeline, folder: Path) -> Callable[[Draw], Batch]:
    """Cached latents of the corpus under captions of changing detail, embedded by the text encoder that ships."""
    scenes, latents = corpus(folder, pipeline.vae, sd.CORPUS_SCENES, lone=True)
    tokenize, encoder = token_ids(build_tokenizer()), pipeline.text_encoder.requires_grad_(False)

    def batch_of(draw: Draw) -> Batch:
        rows = torch.randint(len(latents), (draw.size,), generator=draw.generator)
        ids = tokenize(draw_captions(scenes[rows], draw))
        return Batch(latents[rows].float(), encoder(ids).last_hidden_state)

    return batch_of


def _scores(pipeline: StableDiffusionPipeline, student: UNet2DConditionModel, path: Path) -> dict[str, float]:
    """Significance of each group of the student before it learns, remembered in `path`."""
    if path.exists():
        return json.loads(path.read_text())
    prompts = captions(sample_scenes(SCORED_IMAGES, seed=34))
    noise = torch.cat([initial_noise(seed, *_latent_shape(student)) for seed in range(SCORED_IMAGES)])
    teacher, pipeline.unet = pipeline.unet, student

    def final_latents() -> Tensor:
        return pipeline(
            prompts, num_inference_steps=SCORED_STEPS, guidance_scale=7.5, latents=noise.clone(), output_type="latent"
        ).images

    try:
        scores = pruning.significance(student, final_latents, KEEP)
    finally:
        pipeline.unet = teacher
    write_atomically(path, (json.dumps(scores, indent=1) + "\n").encode())
    return scores


def _latent_shape(unet: UNet2DConditionModel) -> tuple[int, int, int]:
    return unet.config.in_channels, unet.config.sample_size, unet.config.sample_size
