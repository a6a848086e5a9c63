"""Distillation of a pruned UNet: the three losses of BK-SDM (Kim et al., arXiv 2305.15798), as Hybrid SD uses them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from .loop import Draw, History, LossOf, Recipe, fit

HYBRID_SD = Recipe(  # what the published 224 M model was finetuned with
    steps=50_000,
    batch_size=64,
    parts=4,
    learning_rate=5e-5,
    seed=1234,
    ema_decay=0.0,
    warmup_steps=0,
    schedule="constant",
    betas=(0.9, 0.999),
    precision="fp16",
)


class Batch(NamedTuple):
    """What one forward pass learns from."""

    latents: Tensor  # (B, C, H, W), normalised
    text: Tensor  # (B, L, D) embeddings of the prompts


class Weights(NamedTuple):
    """Of the three losses."""

    task: float = 1.0
    output: float = 1.0
    feature: float = 1.0


PUBLISHED_WEIGHTS = Weights()


def feature_points(teacher: UNet2DConditionModel, student: UNet2DConditionModel) -> list[tuple[str, str]]:
    """Names of the modules whose outputs are compared, teacher's and student's.

    Where both have the same stages, those are all of them, downwards and upwards. Where the student lacks the
    innermost stage (BK-SDM-Tiny and what is pruned from it), its last downward stage has no downsampling, and the
    teacher's is tapped before it, at the output projection of its last attention; upward stages are those further out.

    Raises:
        ValueError: if the student has other stages than that.
    """
    down, own = len(teacher.down_blocks), len(student.down_blocks)
    if own == down:
        return [(f"{side}_blocks.{i}", f"{side}_blocks.{i}") for side in ("down", "up") for i in range(down)]
    if own != down - 1:
        raise ValueError(f"the student must have {down} or {down - 1} downward stages for this teacher, got {own}")
    last = own - 1
    teacher_last, student_last = (len(unet.down_blocks[last].attentions) - 1 for unet in (teacher, student))
    proj_out = f"down_blocks.{last}.attentions.{{}}.proj_out"
    points = [(f"down_blocks.{i}", f"down_blocks.{i}") for i in range(last)]
    points.append((proj_out.format(teacher_last), proj_out.format(student_last)))
    return points + [(f"up_blocks.{i + 1}", f"up_blocks.{i}") for i in range(own)]


@contextlib.contextmanager
def tapped(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """A dictionary that holds the latest output of each named module, while the context lasts."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            outputs[name] = output[0] if isinstance(output, tuple) else output  # downward stages add their residuals

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def losses(
    teacher: UNet2DConditionModel,
    student: UNet2DConditionModel,
    noisy: Tensor,
    timesteps: Tensor,
    text: Tensor,
    target: Tensor,
    weights: Weights = PUBLISHED_WEIGHTS,
) -> dict[str, Tensor]:
    """The weighted terms "task", "output" and "feature", mean squared errors in float32, the teacher's side detached.

    Args:
        noisy: latents (B, C, H, W) at `timesteps` (B,), under `text` (B, L, D).
        target: what the task asks for: the noise, or v, of the same shape as `noisy`.
    """
    points = feature_points(teacher, student)
    with torch.no_grad(), tapped(teacher, [name for name, _ in points]) as theirs:
        dtype = next(teacher.parameters()).dtype
        expected = teacher(noisy.to(dtype), timesteps, text.to(dtype), return_dict=False)[0]
    with tapped(student, [name for _, name in points]) as ours:
        predicted = student(noisy, timesteps, text, return_dict=False)[0]
    features = [F.mse_loss(ours[mine].float(), theirs[its].float()) for its, mine in points]
    return {
        "task": weights.task * F.mse_loss(predicted.float(), target.float()),
        "output": weights.output * F.mse_loss(predicted.float(), expected.float()),
        "feature": weights.feature * torch.stack(features).sum(),
    }


def distillation_loss(
    teacher: UNet2DConditionModel,
    student: UNet2DConditionModel,
    scheduler: DDPMScheduler,
    batch_of: Callable[[Draw], Batch],
    weights: Weights = PUBLISHED_WEIGHTS,
    assign: Callable[[Tensor, Tensor], Tensor] | None = None,
    timesteps: range | None = None,
) -> LossOf:
    """The loss of one draw, for `loop.fit`: fresh noise at a uniform timestep of the scheduler.

    Args:
        scheduler: tells the noise levels and whether noise ("epsilon") or "v_prediction" is asked for.
        assign: reorders the noise of a batch, given latents and noise, right after it is drawn.
        timesteps: those that the student will serve; all of them by default, as published. Hybrid SD's small model
            runs only the last steps of a generation, so that the first half of the schedule can be left out.

    Raises:
        ValueError: if the scheduler asks for something else, or the two models disagree about latents.
    """
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(f"prediction_type must be 'epsilon' or 'v_prediction' to be distilled, got {kind!r}")
    for name in ("in_channels", "out_channels", "cross_attention_dim"):
        if teacher.config[name] != student.config[name]:
            raise ValueError(f"{name} must agree, got {teacher.config[name]} and {student.config[name]}")
    served = timesteps or range(scheduler.config.num_train_timesteps)
    teacher.requires_grad_(False).eval()

    def loss_of(draw: Draw) -> dict[str, Tensor]:
        batch = batch_of(draw)
        noise = torch.randn(batch.latents.shape, generator=draw.generator).to(batch.latents)
        if assign is not None:
            noise = assign(batch.latents, noise)
        steps = torch.randint(served.start, served.stop, (len(noise),), generator=draw.generator).to(noise.device)
        noisy = scheduler.add_noise(batch.latents, noise, steps)
        target = noise if kind == "epsilon" else scheduler.get_velocity(batch.latents, noise, steps)
        return losses(teacher, student, noisy, steps, batch.text, target, weights)

    return loss_of


def distil(
    teacher: UNet2DConditionModel,
    student: UNet2DConditionModel,
    scheduler: DDPMScheduler,
    batch_of: Callable[[Draw], Batch],
    folder: Path,
    recipe: Recipe = HYBRID_SD,
    **options: Any,
) -> History:
    """Finetune a pruned student in place; `options` are those of `distillation_loss`."""
    loss_of = distillation_loss(teacher, student, scheduler, batch_of, **options)
    return fit("distillation", student, loss_of, recipe, folder)
