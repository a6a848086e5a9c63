"""How measured quality scatters around a fitted surface: of single prompts, and of means over short lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ..intervals import Array, Integers
from .hiqm import Cube, log_snr

SHARES = np.linspace(0.01, 0.99, 99)  # quantiles that are kept
LISTS = 100  # drawn in each of three ways
MOST_BANDS, PAIRS_OF_A_BAND = 5, 40  # bands of similarity, and how many pairs one needs


class Spread(NamedTuple):
    """Quantiles of measured minus fitted quality at each handover, for prompts that are more and less alike.

    What is measured is a mean over the seeds of the scores, so this is the scatter of such means.
    """

    log_snr: Array  # (places,) rising
    shares: Array  # (quantiles,) rising, in 0..1
    residuals: Array  # (bands, places, quantiles)
    similarity: Array  # (bands,) rising: the middle of each band

    def at(self, log_snr: Array, similarity: Array, share: float) -> Array:
        """The quantile `share` at any log-SNR and similarity, which are equally shaped.

        Between measured handovers and between the middles of bands a straight line, beyond them the nearest.
        """
        bands = [
            np.interp(log_snr, self.log_snr, [np.interp(share, self.shares, row) for row in band])
            for band in self.residuals
        ]
        if len(bands) == 1:
            return bands[0]
        place = np.interp(similarity, self.similarity, np.arange(len(bands)))
        below = np.minimum(place.astype(int), len(bands) - 2)
        lower, upper = (np.take_along_axis(np.stack(bands), i[None], axis=0)[0] for i in (below, below + 1))
        return lower + (place - below) * (upper - lower)


def of_cells(x: Array, m: Array, residuals: Array, prompts: int) -> Spread:
    """Of single prompts: residuals of cells at the log-SNR x of their handovers and the similarities m.

    How widely they scatter depends on how alike the prompts are, and half alike ones scatter most; hence bands of
    similarity, each of equally many pairs. A band is known from few pairs, so every quantile is the outer one of its
    band and of all pairs. And all pairs are of few prompts, beyond which a further one lies a little more often: as in
    conformal prediction, the k-th lowest of n is passed with probability k / (n + 1).

    Args:
        prompts: how many the cells are of.
    """
    places, index = np.unique(x, return_inverse=True)
    number = int(np.clip(len(x) // len(places) // PAIRS_OF_A_BAND, 1, MOST_BANDS))
    edges = np.quantile(m, np.linspace(0, 1, number + 1)[1:-1])
    found, band = np.unique(np.searchsorted(edges, m, side="right"), return_inverse=True)
    middles = np.array([np.median(m[band == b]) for b in range(len(found))])
    low = np.maximum((np.minimum(SHARES, 1 - SHARES) * (prompts + 1) - 1) / max(prompts - 1, 1), 0)
    shares = np.where(SHARES < 0.5, low, 1 - low)

    def scattered(b: int, i: int) -> Array:
        here = index == i
        everyone = np.quantile(residuals[here], shares)
        if not (own := here & (band == b)).any():
            return everyone
        alike = np.quantile(residuals[own], shares)
        return np.where(SHARES < 0.5, np.minimum(alike, everyone), np.maximum(alike, everyone))

    quantiles = [[scattered(b, i) for i in range(len(places))] for b in range(len(found))]
    return Spread(places, SHARES, np.array(quantiles), middles)


def of_lists(cube: Cube, fitted: Callable[[Array, Array], Array], seed: int = 0) -> Spread | None:
    """Of the mean of a list whose prompts share under the one that is closest to the others, as a planner lets them.

    Such a list scatters more than the whole list that a surface is fitted to: one prompt steers all, and choosing it
    by similarity picks what the similarity overrates. Lists of a third of the prompts are drawn in three ways: alike (a
    prompt and those nearest to it), at random, and unlike (each least like those before it). The list to come may be
    of any kind, so every quantile is the outermost of the three.

    Args:
        fitted: the surface, of log-SNR and similarity.

    Returns:
        None where fewer than six prompts were measured both as public and as personal prompt.
    """
    measured = cube.measured
    both = np.flatnonzero(measured.any(axis=(1, 2)) & measured.any(axis=(0, 2)))
    if len(both) < 6:
        return None
    x = log_snr(cube.sigmas)
    among = np.ix_(both, both)
    quality, similarity = cube.quality[among], np.nan_to_num(cube.similarity[among])  # nan where no image tells it
    errors = np.where(measured[among], quality - fitted(x[None, None, :], similarity[:, :, None]), np.nan)
    quantiles = []
    for lists in _drawn(similarity, np.random.default_rng(seed)):
        means = [np.nanmean(errors[head, rest], axis=0) for head, rest in lists]
        quantiles.append(np.nanquantile(means, SHARES, axis=0).T)
    outermost = np.where(SHARES < 0.5, np.min(quantiles, axis=0), np.max(quantiles, axis=0))
    order = np.argsort(x)
    return Spread(x[order], SHARES, outermost[order][None], np.array([0.0]))  # for lists of any similarity


def _drawn(similarity: Array, rng: np.random.Generator) -> Iterator[list[tuple[int, Integers]]]:
    """Lists, each as the prompt that steers and the others: alike ones, random ones, unlike ones."""
    number = len(similarity)
    size = max(number // 3, 2)
    near = [np.argsort(-row)[:size] for row in similarity]
    any_ = [rng.choice(number, size, replace=False) for _ in range(LISTS)]
    far = [_unlike(similarity, first, size) for first in range(number)]
    for lists in (near, any_, far):
        yield [_steered(similarity, members) for members in lists]


def _unlike(similarity: Array, first: int, size: int) -> Integers:
    chosen = [first]
    while len(chosen) < size:
        closest = similarity[:, chosen].max(axis=1)
        closest[chosen] = np.inf
        chosen.append(int(closest.argmin()))
    return np.array(chosen)


def _steered(similarity: Array, members: Integers) -> tuple[int, Integers]:
    """The member closest to the others, and these."""
    among = similarity[np.ix_(members, members)]
    best = int((among.sum(axis=1) - among.diagonal()).argmax())
    return int(members[best]), np.delete(members, best)
