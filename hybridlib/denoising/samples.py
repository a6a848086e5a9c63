"""What a walk leaves behind: latents of every trajectory, images, and states to go on from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .denoisers import GuidedDenoiser
from .state import DenoiseState
from .trajectory import Trajectory
from .tree import Cost
from .walk import Memory, memory_of_row

if TYPE_CHECKING:
    from PIL.Image import Image


@torch.no_grad()
def decode(denoiser: GuidedDenoiser, latents: Tensor, batch_size: int = 16, output_type: str = "pil") -> Any:
    """One image per row of final or intermediate latents, as stock diffusers returns them.

    A list of PIL images ("pil"), an array (B, H, W, 3) ("np") or a tensor (B, 3, H, W) ("pt"), both in 0..1.
    A memory plan may allow fewer images at a time than `batch_size`.
    """
    plan = getattr(denoiser.pipeline, "memory_plan", None)
    most = min(batch_size, plan.decode_batch_size) if plan else batch_size
    parts = [denoiser.decode(batch, output_type) for batch in latents.split(most)]
    if output_type == "np":
        return np.concatenate(parts)
    return torch.cat(parts) if output_type == "pt" else [image for part in parts for image in part]


@dataclass
class Kept:
    """Latents of every row after a given number of updates, and which row each trajectory runs in."""

    latents: Tensor
    rows: list[int]
    memory: Memory

    def __repr__(self) -> str:
        return f"Kept({len(self.rows)} trajectories in {len(self.latents)} rows of {tuple(self.latents.shape[1:])})"


@dataclass
class Samples:
    """Outcome of `sample`, in the order of its trajectories."""

    denoisers: Mapping[str, GuidedDenoiser]  # by name, the pipeline's own under ""
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
            images = decode(self.denoisers[""], kept.latents[batch], self.decode_batch_size)
            for image, indices in zip(images, members[batch], strict=True):
                yield from ((index, image) for index in indices)

    def state(self, index: int, updates: int) -> DenoiseState:
        """Everything needed to go on with trajectory `index` elsewhere after `updates` updates."""
        kept = self._kept(updates)
        row = kept.rows[index]
        history = memory_of_row(kept.memory, row)
        return DenoiseState.capture(
            self.denoisers, self.scheduler, kept.latents[row : row + 1], updates, self.trajectories[index], history
        )

    def _kept(self, updates: int | None) -> Kept:
        wanted = max(self.kept) if updates is None else updates
        if wanted not in self.kept:
            raise ValueError(f"nothing was kept after {wanted} updates; kept: {sorted(self.kept)}")
        return self.kept[wanted]


def rows_of(members: Sequence[Sequence[int]]) -> list[int]:
    """The row of every trajectory, from the trajectories of every row."""
    row_of = {index: row for row, indices in enumerate(members) for index in indices}
    return [row_of[index] for index in range(len(row_of))]
