"""What a group of prompts runs under while it shares, and what that costs its members."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ...intervals import Array, Integers
from .quality import LOW, Forecast

KINDS = ("prompt", "blend", "public")
EXACT_CENTRE = 64  # members up to which each is tried as the group's prompt

Encoder = Callable[[Sequence[str]], Array]  # texts to vectors, a row each


@dataclass(frozen=True)
class Conditioner:
    """Finds the conditioning of any group of prompts.

    "prompt": the member closest to the others; up to `EXACT_CENTRE` members each is tried, in larger groups the one
    closest to their mean is taken. "blend": the mean of all members' embeddings. "public": the best of the public
    prompts. Closest is by mean similarity, and by least similarity where the forecast is for single prompts.

    How like a blend is to a prompt is the cosine of the mean sentence embedding with the prompt's: what the mean
    conditioning *means* to the network is not measured by it, study 13 compares. The mean of unrelated prompts lies
    near all of them, so a blend is known only where the member closest to the others would be, too.
    """

    texts: tuple[str, ...]  # different ones
    vectors: Array  # (texts, dimensions), norm 1
    forecast: Forecast
    kind: str = "prompt"
    public: tuple[str, ...] = ()
    public_vectors: Array = field(default_factory=lambda: np.empty((0, 0)))

    def of(self, members: Integers) -> tuple[tuple[str, ...], Integers]:
        """The texts that steer a group, several if they are to be averaged, and the forecast's row of each member."""
        points = self.vectors[members]
        if self.kind == "public":
            cosines = self.public_vectors @ points.T
            best = int(self._closeness(cosines).argmax())
            own = [self.texts[i] == self.public[best] for i in members]
            return (self.public[best],), self._rows(own, cosines[best])
        if len(members) <= EXACT_CENTRE:
            cosines = points @ points.T
            np.fill_diagonal(cosines, np.inf if self.forecast.each else 0.0)  # nobody is compared with itself
            best = int(self._closeness(cosines).argmax())
        else:
            best = int((points @ points.mean(axis=0)).argmax())
        rows = self._rows(members == members[best], points @ points[best])
        if self.kind == "prompt":
            return (self.texts[members[best]],), rows
        near = self.forecast.rows(points @ unit(points.mean(axis=0)))
        return tuple(self.texts[i] for i in members), np.where(rows == 0, 0, near)

    def _closeness(self, cosines: Array) -> Array:
        return cosines.min(axis=1) if self.forecast.each else cosines.sum(axis=1)

    def _rows(self, own: ArrayLike, cosines: Array) -> Integers:
        return np.where(own, self.forecast.own, self.forecast.rows(cosines))

    @cached_property
    def _worst(self) -> Array:
        """(rows, steps, steps) the most that a prompt at least this alike loses from step to step."""
        table = self.forecast.table[LOW, :-1]
        losses = table[:, :, None] - table[:, None, :]
        return np.maximum.accumulate(losses[::-1], axis=0)[::-1]

    def charge(self, members: Integers, latest: int) -> Array | None:
        """(latest + 1, latest + 1) what a group pays for sharing from step to step; None if nobody knows.

        It is the mean of its members' losses, at the lower bound. Charges of groups along the ways then add up to the
        mean loss of the list. Where the forecast is for single prompts it is the most that a member can lose that is
        at least as alike as the least alike one.
        """
        rows = self.of(members)[1]
        if not rows.min():
            return None
        if self.forecast.each:
            return self._worst[min(rows.min(), self.forecast.own - 1), : latest + 1, : latest + 1]
        kept = self.forecast.table[LOW, rows, : latest + 1].mean(axis=0)
        return kept[:, None] - kept[None, :]

    def latest(self, slack: float) -> int:
        """No step after this one can be shared: even if every step were the cheapest of all rows, it would cost more.

        A prompt that shares its own steps loses nothing, which may halve the mean of its group.
        """
        table = self.forecast.table[LOW, 1:-1]
        least = np.cumsum((table[:, :-1] - table[:, 1:]).min(axis=0))
        mean = 1.0 if self.forecast.each or self.forecast.table[LOW, -1, -1] < 1 else 0.5
        return int(np.searchsorted(mean * least, slack + 1e-12, side="right"))


def unit(vector: Array) -> Array:
    """At norm 1."""
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def encoded(texts: Sequence[str], similarity: Any) -> Array:
    """Vectors of norm 1 by an object with `vectors`, such as `SentenceSimilarity`, or a function; MiniLM where None.

    Raises:
        ValueError: if what comes back are not finite vectors, one for each text.
    """
    if similarity is None:
        from ...metrics.similarity import SentenceSimilarity

        similarity = SentenceSimilarity.load(device="cpu")
    encode: Encoder = getattr(similarity, "vectors", similarity)
    rows = np.asarray(encode(list(texts)), dtype=float)
    if rows.ndim != 2 or len(rows) != len(texts) or not np.isfinite(rows).all():
        raise ValueError(f"similarity must give a finite vector for each of {len(texts)} texts, got shape {rows.shape}")
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def remembered(texts: Sequence[str], similarity: Any = None) -> Encoder:
    """A comparison of these texts that encodes each of them once, now."""
    different = list(dict.fromkeys(texts))
    known = dict(zip(different, encoded(different, similarity), strict=True))
    return lambda wanted: np.array([known[text] for text in wanted])
