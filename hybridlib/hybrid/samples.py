"""What claims about hybrid inference are tested on: curves of both variants, as measured and for redrawn prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..fits import SigmoidFit
from ..intervals import Array, resamples
from .hiqm import Cube, binned, fit_replicates

SPLITS = 20  # of the prompts into halves; their mean does not hang on the luck of one split


class Sample(NamedTuple):
    """Mean curves of both variants in the same, filled similarity bins: as measured, or one bootstrap replicate."""

    similarity: Array  # (bins,)
    common_steps: Array  # (steps,)
    modulated: Array  # (bins, steps), with SIM and NPI
    plain: Array  # (bins, steps), without
    halves: Array  # (splits, 2, steps), mean gain over the pairs within each half of the prompts
    modulated_fits: Sequence[SigmoidFit]  # (bins,); none where no claim asks for them
    plain_fits: Sequence[SigmoidFit]

    @property
    def gain(self) -> Array:
        """What SIM and NPI add at each common step, mean over bins."""
        return (self.modulated - self.plain).mean(axis=0)

    @property
    def fits(self) -> list[SigmoidFit]:
        """Of both variants, all bins."""
        return [*self.modulated_fits, *self.plain_fits]


def samples(modulated: Cube, plain: Cube, min_pairs: int, rounds: int, seed: int, fitted: bool) -> list[Sample]:
    """The measured sample first, then `rounds` replicates, each with the bins that it fills; `fitted`: with sigmoids.

    Raises:
        ValueError: if the cubes differ in prompts or common steps, or have fewer than two bins in common.
    """
    modulated, plain = _common(modulated, plain)
    with_sim, without = (binned(cube, min_pairs=min_pairs, rounds=rounds, seed=seed) for cube in (modulated, plain))
    if len(with_sim.similarity) < 2:
        raise ValueError(
            f"claims about similarity need two bins of min_pairs = {min_pairs} pairs or more that both variants have, "
            f"got {with_sim.similarity.tolist()}"
        )
    halves = _half_gains(modulated.quality - plain.quality, rounds, seed)
    no_fits: list[list[SigmoidFit | None]] = [[]] * (rounds + 1)
    fits_with, fits_without = (fit_replicates(c, rounds) if fitted else no_fits for c in (with_sim, without))
    drawn = []
    for i, (mean_with, mean_without) in enumerate(
        zip((with_sim.mean, *with_sim.replicates), (without.mean, *without.replicates), strict=True)
    ):
        filled = np.isfinite(mean_with).all(axis=1)
        found = [[fit for fit in fits[i] if fit is not None] for fits in (fits_with, fits_without)]
        drawn.append(
            Sample(
                with_sim.similarity[filled],
                with_sim.common_steps,
                mean_with[filled],
                mean_without[filled],
                halves[i],
                *found,
            )
        )
    return drawn


def _common(modulated: Cube, plain: Cube) -> tuple[Cube, Cube]:
    """Both cubes with nan wherever one of them has no score."""
    if modulated.quality.shape != plain.quality.shape or (modulated.common_steps != plain.common_steps).any():
        raise ValueError(
            "modulated and plain must have the same prompts and common steps, got (prompts, prompts, steps) = "
            f"{modulated.quality.shape} and {plain.quality.shape}"
        )
    both = np.isfinite(modulated.quality) & np.isfinite(plain.quality)
    kept = [cube._replace(quality=np.where(both, cube.quality, np.nan)) for cube in (modulated, plain)]
    return kept[0], kept[1]


def _scored(gain: Array) -> NDArray[np.bool_]:
    """Pairs of different prompts with scores at every common step, (prompts, prompts)."""
    return np.isfinite(gain).all(axis=2) & ~np.eye(len(gain), dtype=bool)


def taking_part(gain: Array) -> NDArray[np.bool_]:
    """Prompts of at least one such pair, (prompts,)."""
    scored = _scored(gain)
    return np.logical_or(scored.any(axis=0), scored.any(axis=1))


def _half_gains(gain: Array, rounds: int, seed: int) -> Array:
    """Mean gain over the pairs within each half of the prompts, (1 + rounds, splits, 2, steps); nan without pairs.

    Halves share no prompt, neither as drawn nor as redrawn, so what one says of the best step is news to the other.
    """
    prompts, _, steps = gain.shape
    known = _scored(gain)
    draws = np.vstack([np.ones(prompts), resamples(prompts, rounds, seed)])
    whole = np.flatnonzero(taking_part(gain))
    generator = np.random.default_rng(seed)
    halves = np.empty((rounds + 1, SPLITS, 2, steps))
    for split in range(SPLITS):
        for side, half in enumerate(np.array_split(generator.permutation(whole), 2)):
            drawn, block = draws[:, half], np.ix_(half, half)
            cells = np.where(known[block][..., None], gain[block], 0.0)
            with np.errstate(invalid="ignore"):
                weight = np.einsum("ri,ij,rj->r", drawn, known[block].astype(float), drawn)
                rows = (drawn @ cells.reshape(len(half), -1)).reshape(len(drawn), len(half), steps)
                halves[:, split, side] = (rows * drawn[..., None]).sum(axis=1) / weight[:, None]
    return halves
