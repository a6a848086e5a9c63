"""Walks the denoising tree from noise to images, one step at a time, every live row of a step in one batch."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..noise import initial_noise
from ..progress import bar
from ..prompts import warn_of_foreign_words
from .arguments import check_sampling, latent_size
from .denoisers import Denoiser, SD3Denoiser
from .solvers import (
    begin_at,
    check_scheduler,
    evaluations,
    history_of_rows,
    read_history,
    timesteps_of,
    write_history,
)
from .state import DenoiseState
from .trajectory import Cost, Trajectory, Tree, check_type

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline
    from PIL.Image import Image


@dataclass
class Front:
    """The live rows of the tree after a denoising step. A consumer of `walk` may replace `latents` in place."""

    updates: int  # updates made so far; the latents sit at sigmas[updates]
    timestep: Tensor  # that the last update started from
    latents: Tensor  # (rows, channels, height, width)
    members: tuple[tuple[int, ...], ...]  # trajectories of each row
    nfe: int  # denoiser evaluations of this step

    def __repr__(self) -> str:
        return f"Front(after {self.updates} updates, {len(self.latents)} rows, {self.nfe} NFE)"


def walk(
    tree: Tree, denoiser: Denoiser, scheduler: Any, latents: Tensor, noise_from_seeds: bool = False
) -> Iterator[Front]:
    """Denoise every edge of the tree once, yielding the front after each step.

    Where an edge has a codec, its row goes on from what the codec makes of the latents.

    Args:
        latents: (roots, channels, height, width) at noise level `sigmas[tree.start]`, one row per root of the tree.
        tree: grown with the `evaluations` of the scheduler.
        scheduler: a diffusers scheduler with its timesteps set. Its solver history belongs to the rows: where a row
            forks, so does its history.
        noise_from_seeds: whether the latents began as `initial_noise` of the trajectories' seeds, so that a codec may
            rely on the receiver knowing it.
    """
    begin_at(scheduler, tree.start)
    for updates, level in enumerate(tree.levels, start=tree.start + 1):
        parents = torch.tensor([edge.parent for edge in level])
        if len(level) != len(latents) or not torch.equal(parents, torch.arange(len(latents))):
            latents = latents[parents]
            write_history(scheduler, history_of_rows(read_history(scheduler), parents))
        if any(edge.codec for edge in level):
            from ..codecs import quantise

            seeds = [tree.seed_of(edge) for edge in level] if noise_from_seeds else None
            latents = quantise(latents, [edge.codec for edge in level], seeds)
        timesteps = timesteps_of(scheduler, updates - 1)
        for timestep in timesteps:
            output = denoiser(latents, timestep, [edge.conditioning for edge in level])
            latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
        nfe = len(timesteps) * sum(edge.conditioning.nfe for edge in level)
        front = Front(updates, timesteps[0], latents, tuple(edge.members for edge in level), nfe)
        yield front
        latents = front.latents


def prepared_scheduler(
    pipeline: StableDiffusion3Pipeline,
    num_inference_steps: int,
    latent_size: tuple[int, int],
    sigmas: list[float] | None = None,
    mu: float | None = None,
    shift: float | None = None,
) -> Any:
    """A fresh copy of the pipeline's scheduler with its timesteps set, as the stock pipeline sets them.

    `shift` of the noise schedule replaces the scheduler's own: noise levels become shift u / (1 + (shift - 1) u) of
    evenly spaced u in 0..1, so that more of the steps are spent on strong noise where it is large.

    Raises:
        ValueError: if a tree cannot be walked with the scheduler, or it has no fixed shift to replace, or it takes no
            `sigmas` or `mu`, or another number of them.
    """
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift, retrieve_timesteps

    check_scheduler(pipeline.scheduler)
    scheduler = copy.deepcopy(pipeline.scheduler) if shift is None else _shifted(pipeline.scheduler, shift)
    config = scheduler.config
    if mu is None and config.get("use_dynamic_shifting"):
        patch = pipeline.transformer.config.patch_size
        mu = calculate_shift(
            (latent_size[0] // patch) * (latent_size[1] // patch),
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.16),
        )
    options = {} if mu is None else {"mu": mu}
    if unknown := options.keys() - inspect.signature(scheduler.set_timesteps).parameters:
        raise ValueError(f"{type(scheduler).__name__} takes no {unknown.pop()}; leave it out")
    retrieve_timesteps(scheduler, num_inference_steps, pipeline._execution_device, sigmas=sigmas, **options)
    if (updates := len(evaluations(scheduler))) != num_inference_steps:
        raise ValueError(
            f"{type(scheduler).__name__} makes {updates} updates of num_inference_steps={num_inference_steps}; "
            f"as many are needed"
        )
    return scheduler


def _shifted(scheduler: Any, shift: float) -> Any:
    check_type("shift", shift, Real, "a number")
    if not (math.isfinite(shift) and shift > 0):
        raise ValueError(f"shift must be finite and above 0, got {shift}")
    name = next((name for name in ("shift", "flow_shift") if name in scheduler.config), None)
    if name is None or scheduler.config.get("use_dynamic_shifting"):
        raise ValueError(f"shift = {shift}: {type(scheduler).__name__} has no fixed shift to replace; leave it out")
    return type(scheduler).from_config(scheduler.config, **{name: shift})


@torch.no_grad()
def decode(pipeline: StableDiffusion3Pipeline, latents: Tensor, batch_size: int = 16, output_type: str = "pil") -> Any:
    """One image per row of final or intermediate latents, as stock diffusers returns them.

    A list of PIL images ("pil"), an array (B, H, W, 3) ("np") or a tensor (B, 3, H, W) ("pt"), both in 0..1.
    """
    parts, vae = [], pipeline.vae
    for batch in latents.split(batch_size):
        batch = batch.to(pipeline._execution_device, vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        picture = vae.decode(batch, return_dict=False)[0]
        parts.append(pipeline.image_processor.postprocess(picture, output_type=output_type))
    if output_type == "np":
        return np.concatenate(parts)
    return torch.cat(parts) if output_type == "pt" else [image for part in parts for image in part]


@dataclass
class Kept:
    """Latents of every row after a given number of updates, and which row each trajectory runs in."""

    latents: Tensor
    rows: list[int]
    history: dict[str, Tensor]

    def __repr__(self) -> str:
        return f"Kept({len(self.rows)} trajectories in {len(self.latents)} rows of {tuple(self.latents.shape[1:])})"


@dataclass
class Samples:
    """Outcome of `sample`, in the order of its trajectories."""

    pipeline: StableDiffusion3Pipeline
    trajectories: Sequence[Trajectory]
    scheduler: Any
    cost: Cost
    kept: dict[int, Kept] = field(default_factory=dict)  # by number of updates; the last holds the final latents
    decode_batch_size: int = 16

    def __repr__(self) -> str:
        return f"Samples({len(self.trajectories)} trajectories, kept after {sorted(self.kept)} updates, {self.cost})"

    def latents(self, updates: int | None = None) -> Tensor:
        """Latents (trajectories, channels, height, width) after `updates` updates; the final ones by default."""
        kept = self._kept(updates)
        return kept.latents[kept.rows]

    def images(self, updates: int | None = None) -> list[Image]:
        """Decoded images after `updates` updates; the final ones by default. Shared rows are decoded once."""
        images = dict(self.each_image(updates))
        return [images[index] for index in range(len(self.trajectories))]

    def each_image(self, updates: int | None = None) -> Iterator[tuple[int, Image]]:
        """The same images one by one with the index of their trajectory, as fast as they are decoded."""
        kept = self._kept(updates)
        members: list[list[int]] = [[] for _ in kept.latents]
        for index, row in enumerate(kept.rows):
            members[row].append(index)
        for first in range(0, len(members), self.decode_batch_size):
            batch = slice(first, first + self.decode_batch_size)
            images = decode(self.pipeline, kept.latents[batch], self.decode_batch_size)
            for image, indices in zip(images, members[batch], strict=True):
                yield from ((index, image) for index in indices)

    def state(self, index: int, updates: int) -> DenoiseState:
        """Everything needed to go on with trajectory `index` elsewhere after `updates` updates."""
        kept = self._kept(updates)
        row = kept.rows[index]
        history = history_of_rows(kept.history, [row])
        return DenoiseState.capture(
            self.pipeline, self.scheduler, kept.latents[row : row + 1], updates, self.trajectories[index], history
        )

    def _kept(self, updates: int | None) -> Kept:
        wanted = max(self.kept) if updates is None else updates
        if wanted not in self.kept:
            raise ValueError(f"nothing was kept after {wanted} updates; kept: {sorted(self.kept)}")
        return self.kept[wanted]


@torch.no_grad()
def sample(
    pipeline: StableDiffusion3Pipeline,
    trajectories: Sequence[Trajectory],
    *,
    num_inference_steps: int | None = None,
    shift: float | None = None,
    height: int | None = None,
    width: int | None = None,
    batch_size: int = 64,
    max_sequence_length: int = 256,
    keep: Collection[int] = (),
    resume: DenoiseState | None = None,
    progress: bool | tqdm = True,
) -> Samples:
    """Run trajectories as one tree.

    Args:
        trajectories: all over the same steps. Without `resume` they start at 0 from the noise of their seed.
        num_inference_steps: length of the noise schedule; where the trajectories stop, by default.
        shift: of the noise schedule; the model's own by default. It belongs to a resolution: large latents bear more.
        height, width: image size in pixels; the model's own by default.
        batch_size: most denoiser evaluations in one forward.
        keep: numbers of updates after which to keep latents (0 = initial noise), beside the final ones.
        resume: a state to go on from; every trajectory then starts at its step and has its seed.
        progress: whether to show a bar, or a bar to advance by the evaluations made.

    Warns:
        UserWarning: once, naming the words of the prompts that a model with a small closed vocabulary does not know.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: before any denoising, if trajectories, sizes or `keep` do not fit the schedule or the state, or if
            the pipeline's scheduler is none that a tree can be walked with.
    """
    check_sampling(pipeline, keep, resume, progress, num_inference_steps, batch_size)
    tree = Tree(trajectories)
    steps = tree.stop if num_inference_steps is None else num_inference_steps
    if tree.stop > steps:
        raise ValueError(f"trajectories run to step {tree.stop}, beyond num_inference_steps={steps}")
    outside = [n for n in keep if not tree.start <= n <= tree.stop]
    if outside:
        raise ValueError(f"keep must lie in {tree.start}..{tree.stop}, got {outside[0]}")
    size = latent_size(pipeline, height, width)
    denoiser = SD3Denoiser(pipeline, batch_size, max_sequence_length)
    scheduler = prepared_scheduler(pipeline, steps, size, shift=shift)
    tree = Tree(trajectories, evaluations(scheduler))
    if resume is not None:
        resume.check(pipeline, scheduler, trajectories, (denoiser.latent_channels, *size))
        write_history(scheduler, {name: rows.to(denoiser.device) for name, rows in resume.history.items()})
        latents = resume.latents
    elif tree.start > 0:
        raise ValueError(f"trajectories start at step {tree.start}; pass the state to resume from, or start at 0")
    else:
        latents = torch.cat([initial_noise(seed, denoiser.latent_channels, *size) for seed in tree.seeds])
    latents = latents.to(denoiser.device, denoiser.dtype)
    warn_of_foreign_words(pipeline.tokenizer, tree.texts, stacklevel=4)

    samples = Samples(pipeline, trajectories, scheduler, tree.cost, decode_batch_size=max(1, batch_size // 4))
    wanted = {*keep, tree.stop}
    if tree.start in wanted:
        samples.kept[tree.start] = Kept(latents, rows_of(tree.roots), read_history(scheduler))
    with progress_bar(tree.cost.tree, "denoise", progress is True) as own_bar:
        shown = progress if isinstance(progress, tqdm) else own_bar
        for front in walk(tree, denoiser, scheduler, latents, noise_from_seeds=True):
            if front.updates in wanted:
                samples.kept[front.updates] = Kept(front.latents, rows_of(front.members), read_history(scheduler))
            shown.update(front.nfe)
    return samples


def progress_bar(total: int, description: str, show: bool, unit: str = "NFE") -> tqdm:
    """A bar over denoiser evaluations or another unit. TQDM_DISABLE in the environment hides it, too."""
    return bar(total=total, unit=unit, unit_scale=True, desc=description, show=show)


def rows_of(members: Sequence[Sequence[int]]) -> list[int]:
    """The row of every trajectory, from the trajectories of every row."""
    row_of = {index: row for row, indices in enumerate(members) for index in indices}
    return [row_of[index] for index in range(len(row_of))]
