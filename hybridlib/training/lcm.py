"""Latent consistency distillation (Luo et al., arXiv 2310.04378) of a UNet, full or pruned, from a full teacher.

diffusers has this as an example script, not as a function; its classes do their parts here: the scheduler's noise
levels, the pipeline's embedding of the guidance scale. Sampling is diffusers' own `LCMScheduler`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from ..denoising.compact import narrow, widths_of
from .distillation import Batch
from .loop import Draw, History, LossOf, Recipe, fit

HYBRID_SD = Recipe(  # what both published LCM models were distilled with, on two GPUs of 12 images each
    steps=20_000,
    batch_size=48,
    parts=4,
    learning_rate=1e-6,
    seed=1234,
    ema_decay=0.0,
    warmup_steps=0,
    schedule="constant",
    betas=(0.9, 0.999),
    weight_decay=0.0,
    precision="fp16",
)
ADAPTED = [  # layers that LCM-LoRA adapts
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "time_emb_proj"),
    *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"),
]
SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0  # of the boundary condition, as `LCMScheduler` has them by default


class Settings(NamedTuple):
    """Of the consistency loss; as published by default."""

    points: int = 50  # of the DDIM solver, equally spaced, the last at the last timestep
    guidance: tuple[float, float] = (5.0, 15.0)  # the teacher's weight w is uniform between; a scale of 1 + w
    target_decay: float = 0.95
    huber: float = 0.001  # the c of the pseudo-Huber loss; 0 gives the squared error


class Consistency(nn.Module):
    """The student and its slowly following copy, the target network. Both are in a checkpoint."""

    def __init__(self, student: UNet2DConditionModel) -> None:
        super().__init__()
        self.student = student
        self.target = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Move the target network towards the student."""
        for slow, fast in zip(self.target.parameters(), self.student.parameters(), strict=True):
            slow.lerp_(fast, 1 - decay)


def with_guidance_embedding(unet: UNet2DConditionModel, size: int = 256) -> UNet2DConditionModel:
    """A copy of a UNet, pruned or not, that is also told the guidance scale. At first it does not listen: the new
    projection begins with zeros, so the student begins as the UNet it comes from."""
    config = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    with torch.device("meta"):
        student = UNet2DConditionModel.from_config(config | {"time_cond_proj_dim": size})
        narrow(student, widths_of(unet))
    weights = {key: value.detach().clone() for key, value in unet.state_dict().items()}
    shape = student.time_embedding.cond_proj.weight.shape
    weights["time_embedding.cond_proj.weight"] = torch.zeros(shape, dtype=unet.dtype, device=unet.device)
    student.load_state_dict(weights, assign=True)
    return student.requires_grad_(True)


def with_adapter(unet: UNet2DConditionModel, rank: int = 64) -> UNet2DConditionModel:
    """A copy of a UNet, pruned or not, whose weights stay: what learns is a low-rank adapter beside them (LCM-LoRA, Luo
    et al., arXiv 2311.05556), by peft. It begins as the UNet it comes from, and `save_lora_adapter` writes it alone.

    Nothing tells such a student the guidance scale, so `Settings.guidance` should be one number twice.

    Raises:
        ValueError: if peft is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ValueError("an adapter needs the package peft: pip install 'hybridlib[lora]'") from error
    student = copy.deepcopy(unet).requires_grad_(False)
    student.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=ADAPTED))
    return student


def embed_guidance(weights: Tensor, size: int = 256) -> Tensor:
    """The embedding (B, size) of guidance weights w (B,): the scale less one, as pipelines pass it."""
    return StableDiffusionPipeline.get_guidance_scale_embedding(None, weights, embedding_dim=size)


def boundary(timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out (B, 1, 1, 1): one and zero at timestep 0, where the answer is the input."""
    scaled = (TIMESTEP_SCALING * timesteps.float())[:, None, None, None]
    spread = scaled.square() + SIGMA_DATA**2
    return SIGMA_DATA**2 / spread, scaled / spread.sqrt()


def consistency_loss(
    teacher: UNet2DConditionModel,
    model: Consistency,
    scheduler: DDPMScheduler,
    batch_of: Callable[[Draw], Batch],
    unconditional: Tensor,
    settings: Settings = Settings(),  # noqa: B008 - a frozen value
) -> LossOf:
    """The loss of one draw, for `loop.fit`: what student and target say at the two ends of one guided solver step.

    Args:
        unconditional: the embedding (1, L, D) of the empty prompt.

    Raises:
        ValueError: if the points do not divide the schedule, or the prediction type is another.
    """
    total, kind = scheduler.config.num_train_timesteps, scheduler.config.prediction_type
    if total % settings.points:
        raise ValueError(f"points must divide the {total} timesteps of the scheduler, got {settings.points}")
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(f"prediction_type must be 'epsilon' or 'v_prediction' to be distilled, got {kind!r}")
    stride, kept = total // settings.points, scheduler.alphas_cumprod
    teacher.requires_grad_(False).eval()
    size = model.student.config.time_cond_proj_dim
    updated = -1

    def loss_of(draw: Draw) -> Tensor:
        nonlocal updated
        if draw.step not in (0, updated):  # once a step, also where a step has several parts
            model.follow(settings.target_decay)
        updated = draw.step
        clean, text = batch_of(draw)
        rows, generator, device = len(clean), draw.generator, clean.device
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        start = stride * (torch.randint(settings.points, (rows,), generator=generator) + 1) - 1
        low, high = settings.guidance
        weights = low + (high - low) * torch.rand(rows, generator=generator)
        start, end, weights = start.to(device), (start - stride).clamp(min=0).to(device), weights.to(device)
        told = embed_guidance(weights, size).to(clean.dtype) if size else None
        noisy = scheduler.add_noise(clean, noise, start)
        mine = _answer(model.student, noisy, start, text, told, kept, kind)
        with torch.no_grad():
            texts = torch.cat([text, unconditional.expand_as(text)])
            twice = _both(teacher, torch.cat([noisy] * 2), torch.cat([start] * 2), texts, None, kept, kind)
            by = weights[:, None, None, None]
            image, residue = (yes + by * (yes - no) for yes, no in (part.chunk(2) for part in twice))
            left = kept.to(device)[end][:, None, None, None]
            stepped = left.sqrt() * image + (1 - left).sqrt() * residue
            theirs = _answer(model.target, stepped, end, text, told, kept, kind)
        if not settings.huber:
            return (mine - theirs).square().mean()
        return ((mine - theirs).square() + settings.huber**2).sqrt().sub(settings.huber).mean()

    return loss_of


def _both(
    unet: UNet2DConditionModel, noisy: Tensor, steps: Tensor, text: Tensor, told: Tensor | None, kept: Tensor, kind: str
) -> tuple[Tensor, Tensor]:
    """The clean latents and the noise that a UNet sees in noisy ones, float32."""
    dtype = next(unet.parameters()).dtype
    told = None if told is None else told.to(dtype)
    output = unet(noisy.to(dtype), steps, text.to(dtype), timestep_cond=told, return_dict=False)[0].float()
    left = kept.to(noisy.device)[steps][:, None, None, None]
    alpha, sigma = left.sqrt(), (1 - left).sqrt()
    if kind == "epsilon":
        return (noisy - sigma * output) / alpha, output
    return alpha * noisy - sigma * output, alpha * output + sigma * noisy


def _answer(
    unet: UNet2DConditionModel, noisy: Tensor, steps: Tensor, text: Tensor, told: Tensor | None, kept: Tensor, kind: str
) -> Tensor:
    """The consistency function: clean latents, bound to the input at timestep 0."""
    skip, out = boundary(steps)
    return skip * noisy + out * _both(unet, noisy, steps, text, told, kept, kind)[0]


def distil(
    teacher: UNet2DConditionModel,
    student: UNet2DConditionModel,
    scheduler: DDPMScheduler,
    batch_of: Callable[[Draw], Batch],
    unconditional: Tensor,
    folder: Path,
    recipe: Recipe = HYBRID_SD,
    settings: Settings = Settings(),  # noqa: B008 - a frozen value
    name: str = "lcm",
) -> History:
    """Turn `student`, a UNet with a guidance embedding or an adapter, in place into one that draws in a few steps.

    With `ema_decay` 0 the student itself is the result, as published, not its target network.
    """
    if not student.config.time_cond_proj_dim and not hasattr(student, "peft_config"):
        raise ValueError("the student must have a guidance embedding or an adapter; see with_guidance_embedding")
    model = Consistency(student)
    loss_of = consistency_loss(teacher, model, scheduler, batch_of, unconditional, settings)
    return fit(name, model, loss_of, recipe, folder)
