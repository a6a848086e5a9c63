"""Replay buffers of all agents as one ring: first in, first out, uniform sampling without replacement."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Replay:
    """`capacity` transitions for each of G groups, a transition being one row of named fields.

    Whole numbers (actions, memory keys) are kept as floats; below 2**24 that is exact.
    """

    def __init__(self, groups: int, capacity: int, fields: Mapping[str, int], dtype: torch.dtype) -> None:
        self.capacity, self.fields = capacity, dict(fields)
        self.rows = torch.zeros(groups, capacity, sum(fields.values()), dtype=dtype)
        self.written = torch.zeros(groups, dtype=torch.int64)  # since the beginning; the ring keeps the latest

    @property
    def filled(self) -> Tensor:
        """Transitions held by each group, shape (G,)."""
        return self.written.clamp(max=self.capacity)

    def append(self, values: Mapping[str, Tensor], present: Tensor) -> None:
        """Add the rows of each group where `present` (G, K) is true, in order; fields are (G, K) or (G, K, width).

        Raises:
            ValueError: if a field is missing, unknown or of another width, or more rows come than the ring holds.
        """
        if values.keys() != self.fields.keys():
            raise ValueError(f"transition must have fields {list(self.fields)}, got {list(values)}")
        if present.shape[1] > self.capacity:
            raise ValueError(f"one append must bring at most {self.capacity} rows a group, got {present.shape[1]}")
        parts = [value if value.dim() == 3 else value[..., None] for value in values.values()]
        widths = [part.shape[2] for part in parts]
        if widths != list(self.fields.values()):
            raise ValueError(f"transition fields must have widths {self.fields}, got {widths}")
        group, column = present.nonzero(as_tuple=True)
        place = (self.written[:, None] + present.cumsum(1) - 1)[group, column] % self.capacity
        new = torch.cat([part.to(self.rows.dtype) for part in parts], dim=2)
        self.rows[group, place] = new[group, column]
        self.written += present.sum(1)

    def sample(self, batch: int, uniforms: Tensor) -> Tensor:
        """Places (G, batch) drawn without replacement: those of the largest of uniforms (G, capacity).

        Groups that hold fewer than `batch` rows get places that hold none; the caller masks them.
        """
        keys = uniforms.masked_fill(torch.arange(self.capacity) >= self.filled[:, None], -1.0)
        return keys.topk(batch, dim=1).indices

    def newer(self, place: Tensor) -> Tensor:
        """How many rows each group has written after those at places (G, K)."""
        return (self.written[:, None] - 1 - place) % self.capacity

    def read(self, place: Tensor) -> dict[str, Tensor]:
        """The fields of rows at places (G, K): (G, K) for fields of width 1, else (G, width, K)."""
        offset = torch.arange(len(self.rows))[:, None] * self.capacity
        rows = self.rows.flatten(0, 1)[(place + offset).flatten()].view(*place.shape, -1)
        parts = rows.mT.contiguous().split(list(self.fields.values()), dim=1)
        return {name: part[:, 0] if part.shape[1] == 1 else part for name, part in zip(self.fields, parts, strict=True)}
