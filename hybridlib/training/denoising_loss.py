"""The loss of denoising training for any diffusers network, with noise assignment as one parameter.

    loss_of = denoising_loss(unet, scheduler, examples, Assignment("linear", condition="groups", pool=16))
    fit("unet", unet, loss_of, recipe, folder)

The scheduler says what is learnt: a `DDPMScheduler` the noise (epsilon) or v, a `FlowMatchEulerDiscreteScheduler` the
velocity of a straight path. The network is a UNet, an SD3 transformer, or a module of one's own; it starts from what it
is given, new or trained. Everything random comes from the draw, always in this order: rows, what the examples draw,
noise, noise levels, which conditioning is dropped. Assignment only rearranges the noise (or the rows, where it is
semidiscrete), so two trainings that differ in it alone share all of this; with none, or with one row, the loss is that
of the plain recipe bit for bit.

Sources: diffusers' example scripts of text-to-image and SD3 training; min-SNR is Hang et al., arXiv 2303.09556.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, get_args

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_snr
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from ..noise import twin
from .assignment import assign_noise
from .loop import Draw, LossOf
from .matching import Cost, match_noise
from .semidiscrete import SemidiscreteCoupling

Mode = Literal["none", "linear", "knn", "semidiscrete", "farthest"]
Condition = Literal["groups", "captions"]
Scheduler: TypeAlias = Any  # a DDPMScheduler or a FlowMatchEulerDiscreteScheduler


class Batch(NamedTuple):
    """What one forward pass learns from, all on the device of the draw."""

    latents: Tensor  # (B, C, H, W), scaled and shifted as the network sees them
    conditioning: Mapping[str, Tensor] = {}
    groups: Tensor | None = None  # (B,) the class or prompt of each row, for the assignment alone
    captions: Tensor | None = None  # (B, E) embeddings of the captions, for the assignment alone


class Examples(Protocol):
    """A training set: a length, and batches of chosen rows."""

    def __len__(self) -> int:
        """How many examples there are."""

    def batch(self, rows: Tensor, draw: Draw) -> Batch:
        """The rows (B,) of one draw; what is random in them (crops, posterior samples) comes from its generator."""


class Assignment(NamedTuple):
    """Which noise a latent is sent towards; see `assignment` and `semidiscrete` for what each mode does.

    "farthest" is a control that pushes noise away: linear assignment of the negative latents.
    """

    mode: Mode = "none"
    condition: Condition | None = None  # "linear": what noise may not leave, or pays for leaving
    condition_weight: float | None = None  # the price, for captions
    pool: int = 1  # "linear" and "farthest": steps assigned at once
    k: int = 8  # "knn": candidates for each latent
    cost: Cost = "inner"
    means: Tensor | None = None  # "knn": (G, C, H, W) what is subtracted from latents of each group; (1, ...) from all
    coupling: SemidiscreteCoupling | None = None  # "semidiscrete": fitted to the latents of all examples

    def check(self, examples: int) -> None:
        """Refuse what does not fit together with a ValueError, before anything is computed."""
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {self.mode!r}")
        if self.condition not in (None, *get_args(Condition)):
            raise ValueError(f"condition must be None, groups or captions, got {self.condition!r}")
        if isinstance(self.pool, bool) or not isinstance(self.pool, int) or self.pool < 1:
            raise ValueError(f"pool must be a positive number of steps, got {self.pool!r}")
        for name, modes in USED_BY.items():
            value, default = getattr(self, name), self._field_defaults[name]
            if value is not default and value != default and self.mode not in modes:
                raise ValueError(f"{name} serves mode {' and '.join(modes)} only, got mode {self.mode!r}")
        if (self.condition == "captions") != (self.condition_weight is not None):
            raise ValueError(f"condition_weight goes with condition 'captions', got {self.condition_weight}")
        if (self.mode == "semidiscrete") != (self.coupling is not None):
            raise ValueError("mode 'semidiscrete' needs a coupling: pass SemidiscreteCoupling.fit(latents, groups)")
        if self.coupling is not None and len(self.coupling.latents) != examples:
            raise ValueError(f"coupling must cover all {examples} examples, got {len(self.coupling.latents)} latents")


USED_BY: dict[str, tuple[Mode, ...]] = {
    "condition": ("linear",),
    "pool": ("linear", "farthest"),
    "k": ("knn",),
    "means": ("knn",),
    "cost": ("linear", "knn"),
}
NONE = Assignment()


class Pair(NamedTuple):
    """A batch with its noise, and the draw that the noise levels come from."""

    batch: Batch
    noise: Tensor
    draw: Draw


class Pairs:
    """Batches and their noise, one call a draw. A function of the draw: a training may be resumed at any step.

    Pools begin at steps that are multiples of their size, and hold their batches, so none is made twice.
    """

    def __init__(self, examples: Examples, assignment: Assignment = NONE) -> None:
        assignment.check(len(examples))
        self.examples, self.assignment = examples, assignment
        self._pool: dict[int, Pair] = {}

    def __call__(self, draw: Draw) -> Pair:
        """The pair of one draw.

        Raises:
            ValueError: if a batch lacks the condition that the assignment asks for, or as `assign_noise`.
        """
        if draw.key not in self._pool:
            size = self.assignment.pool
            first = draw.step - draw.step % size
            others = {key: pair for key, pair in self._pool.items() if pair.draw.step >= first}  # of the other parts
            draws = [draw] if size == 1 else [draw.at(first + i) for i in range(size)]
            self._pool = others | {pair.draw.key: pair for pair in self._assigned(draws)}
        return self._pool.pop(draw.key)

    def _assigned(self, draws: list[Draw]) -> list[Pair]:
        mode = self.assignment.mode
        pairs = [self._semidiscrete(draw) if mode == "semidiscrete" else self._single(draw) for draw in draws]
        if mode not in ("linear", "farthest"):
            return pairs
        latents, noise = (torch.cat(parts) for parts in zip(*[(p.batch.latents, p.noise) for p in pairs], strict=True))
        if mode == "farthest":
            order = match_noise(-latents, noise)
        else:
            condition = self._condition([pair.batch for pair in pairs])
            order = match_noise(latents, noise, condition, self.assignment.condition_weight, self.assignment.cost)
        parts = noise[order].split([len(pair.noise) for pair in pairs])
        return [pair._replace(noise=part) for pair, part in zip(pairs, parts, strict=True)]

    def _single(self, draw: Draw) -> Pair:
        """Plain noise, or the best of k, which costs the draw no further random numbers."""
        rows = torch.randint(len(self.examples), (draw.size,), generator=draw.generator)
        batch = self.examples.batch(rows, draw)
        before = twin(draw.generator)
        noise = _plain(batch.latents, draw)
        if self.assignment.mode == "knn":
            means, center = self.assignment.means, None
            if means is not None:
                groups = batch.groups if len(means) > 1 else torch.zeros(len(noise), dtype=torch.int64)
                center = means.to(noise)[_present(groups, "groups").to(noise.device)]
            noise = assign_noise(
                batch.latents,
                "knn",
                k=self.assignment.k,
                center=center,
                cost=self.assignment.cost,
                generator=before,
            )
        return Pair(batch, noise, draw)

    def _semidiscrete(self, draw: Draw) -> Pair:
        """Noise as ever, and the rows that it is meant for."""
        assert self.assignment.coupling is not None
        rows, noise = self.assignment.coupling.draw(draw.size, draw.generator)
        batch = self.examples.batch(rows.cpu(), draw)
        return Pair(batch, noise.to(batch.latents), draw)

    def _condition(self, batches: list[Batch]) -> Tensor | None:
        name = self.assignment.condition
        return None if name is None else torch.cat([_present(getattr(batch, name), name) for batch in batches])


def denoising_loss(
    model: nn.Module,
    scheduler: Scheduler,
    examples: Examples,
    assignment: Assignment = NONE,
    *,
    empty: Mapping[str, Tensor] | None = None,
    caption_dropout: float = 0.0,
    min_snr_gamma: float | None = None,
    logit_normal: tuple[float, float] | None = None,
) -> LossOf:
    """The mean squared error of one draw, for `loop.fit`.

    Args:
        model: called as `model(noisy, timestep=..., return_dict=False, **conditioning)[0]`, as diffusers' networks are.
        scheduler: noise levels and target. Timesteps are uniform; of a flow, the timestep is 1000 sigma, and
            sigma is shifted by `scheduler.config.shift`.
        empty: what conditioning is replaced by where it is dropped, (1, ...) for each of its names: the embedding of
            the empty prompt, or the number of a class that stands for none. Noise is assigned by the true condition.
        caption_dropout: share of rows without conditioning, needed for guidance. Published: 0, sampled with guidance
            all the same; 0.1 is usual.
        min_snr_gamma: for epsilon and v: weights of Hang et al., 5 is usual. None: all levels count alike.
        logit_normal: for a flow: mean and deviation of the logit of sigma before the shift; None draws uniformly.

    Raises:
        ValueError: one sentence about options that do not fit together.
    """
    flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    kind = "flow" if flow else scheduler.config.prediction_type
    if kind not in ("flow", "epsilon", "v_prediction"):
        raise ValueError(f"prediction_type must be 'epsilon' or 'v_prediction', got {kind!r}")
    if not 0 <= caption_dropout < 1:
        raise ValueError(f"caption_dropout must lie in [0, 1), got {caption_dropout}")
    if caption_dropout and not empty:
        raise ValueError("caption_dropout needs what stands for no caption: pass empty")
    if min_snr_gamma is not None and (flow or not (math.isfinite(min_snr_gamma) and min_snr_gamma > 0)):
        raise ValueError(f"min_snr_gamma must be above 0 and is for epsilon and v only, got {min_snr_gamma} for {kind}")
    if logit_normal is not None and not (flow and logit_normal[1] > 0):
        raise ValueError(f"logit_normal must have a positive deviation and is for flows only, got {logit_normal}")
    pairs = Pairs(examples, assignment)

    def loss_of(draw: Draw) -> Tensor:
        batch, noise, own = pairs(draw)
        if flow:
            timesteps, noisy, target = _flow(scheduler, batch.latents, noise, own, logit_normal)
        else:
            timesteps, noisy, target = _diffusion(scheduler, batch.latents, noise, own)
        conditioning = batch.conditioning
        if caption_dropout:
            dropped = (torch.rand(len(noise), generator=own.generator) < caption_dropout).to(noise.device)
            conditioning = {name: _without(value, dropped, empty, name) for name, value in conditioning.items()}
        predicted = model(noisy, timestep=timesteps, return_dict=False, **conditioning)[0]
        if min_snr_gamma is None:
            return F.mse_loss(predicted.float(), target.float())
        snr = compute_snr(scheduler, timesteps)
        weight = snr.clamp(max=min_snr_gamma) / (snr if kind == "epsilon" else snr + 1)
        return (weight * (predicted.float() - target.float()).square().flatten(1).mean(dim=1)).mean()

    return loss_of


def _flow(
    scheduler: Any, latents: Tensor, noise: Tensor, draw: Draw, logit_normal: tuple[float, float] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Timesteps (B,), noisy latents and velocity of the straight path."""
    scheme, (mean, std) = ("logit_normal", logit_normal) if logit_normal else ("none", (0.0, 1.0))
    u = compute_density_for_timestep_sampling(scheme, len(noise), mean, std, generator=draw.generator).to(noise)
    shift = scheduler.config.shift
    sigmas = shift * u / (1 + (shift - 1) * u)
    noisy = torch.lerp(latents, noise, sigmas.view(-1, *[1] * (noise.dim() - 1)))
    return scheduler.config.num_train_timesteps * sigmas, noisy, noise - latents


def _diffusion(scheduler: Any, latents: Tensor, noise: Tensor, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    """Timesteps (B,), noisy latents, and noise or v."""
    steps = torch.randint(scheduler.config.num_train_timesteps, (len(noise),), generator=draw.generator)
    steps = steps.to(noise.device)
    noisy = scheduler.add_noise(latents, noise, steps)
    if scheduler.config.prediction_type == "epsilon":
        return steps, noisy, noise
    return steps, noisy, scheduler.get_velocity(latents, noise, steps)


def _plain(latents: Tensor, draw: Draw) -> Tensor:
    return randn_tensor(latents.shape, generator=draw.generator, device=latents.device, dtype=latents.dtype)


def _without(value: Tensor, dropped: Tensor, empty: Mapping[str, Tensor] | None, name: str) -> Tensor:
    if empty is None or name not in empty:
        raise ValueError(f"empty must say what replaces {name!r} where a caption is dropped")
    return torch.where(dropped.view(-1, *[1] * (value.dim() - 1)), empty[name].to(value), value)


def _present(condition: Tensor | None, name: str) -> Tensor:
    if condition is None:
        raise ValueError(f"the assignment asks for {name}, and the batches of these examples have none")
    return condition
