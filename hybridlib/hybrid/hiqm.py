"""HIQM: how good a hybrid image is, from the common step and the similarity of its public and personal prompt.

Scores of single images become a `Cube`, cubes become binned curves, as published or without the undocumented smoothing,
and curves get their sigmoids. `planning` turns cubes into one surface over noise levels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ..fits import SigmoidFit, fit_sigmoid
from ..intervals import Array, Integers, interval, resamples

SCORE_COLUMNS = ("variant", "public", "personal", "common_step", "seed", "similarity")
LOWER_IS_BETTER = frozenset({"brisque"})  # metrics of which less is better


def log_snr(sigma: ArrayLike) -> Array:
    """2 log((1 - sigma) / sigma): the log signal-to-noise ratio at flow-matching noise levels in [0, 1].

    Clipped to +-32, where a latent is all noise or all picture. (A variance-preserving model whose noise level is
    sigma' in "epsilon" terms has the ratio of sigma = sigma' / (1 + sigma').)
    """
    level = np.asarray(sigma, dtype=float).clip(1e-7, 1 - 1e-7)
    return 2 * np.log((1 - level) / level)


class Cube(NamedTuple):
    """Quality of every (public, personal, common step), mean over seeds; nan where there is no image."""

    quality: Array  # (prompts, prompts, steps)
    similarity: Array  # (prompts, prompts) of public and personal prompt
    common_steps: Array  # (steps,) ascending
    sigmas: Array  # (steps,) noise levels at the handover, falling; nan where the scores do not tell

    def retained(self, reference: Cube | None = None) -> Cube:
        """Quality as a share of the quality at common step 0 of `reference`, where nothing is shared.

        Prompts differ in how well they can be drawn at all. So each personal prompt's own level at 0 is subtracted
        before the common level divides; dividing by each prompt's own level would let the weakest ones dominate.

        Args:
            reference: what users have today, by default these same scores. Variants that are to be compared need one
                reference between them, else a variant that loses quality at step 0 is forgiven the loss.

        Raises:
            ValueError: if the reference lacks common step 0, or its level there is not above 0.
        """
        base = self if reference is None else reference
        if base.common_steps[0] != 0:
            raise ValueError(f"retained quality needs common step 0, the first is {base.common_steps[0]:g}")
        with warnings.catch_warnings():  # a prompt that was never a personal one has no images
            warnings.simplefilter("ignore", RuntimeWarning)
            alone = np.nanmean(base.quality[:, :, 0], axis=0)
        level = np.nanmean(alone)
        if not level > 0:
            raise ValueError(f"retained quality is a share of a level above 0, the level at common step 0 is {level:g}")
        return self._replace(quality=(self.quality - alone[None, :, None] + level) / level)

    def of(self, prompts: ArrayLike) -> Cube:
        """The cells whose two prompts are both among `prompts` (joint indices)."""
        chosen = np.ix_(np.asarray(prompts), np.asarray(prompts))
        return self._replace(quality=self.quality[chosen], similarity=self.similarity[chosen])

    def without(self, prompts: ArrayLike) -> Cube:
        """The same cube with no quality where either prompt is among `prompts`."""
        quality = self.quality.copy()
        quality[np.asarray(prompts)], quality[:, np.asarray(prompts)] = np.nan, np.nan
        return self._replace(quality=quality)

    @property
    def measured(self) -> NDArray[np.bool_]:
        """(prompts, prompts, steps): where there is a score of two different prompts."""
        return np.isfinite(self.quality) & ~np.eye(len(self.similarity), dtype=bool)[:, :, None]


def cube(scores: pd.DataFrame, variant: str, value: str = "clip", higher_is_better: bool | None = None) -> Cube:
    """Collect one variant's scores; `public` and `personal` are indices into one list of prompts.

    Args:
        higher_is_better: False turns the scores' sign, so that more is better in every cube (BRISQUE 40 becomes -40);
            by default what is known of `value` (`LOWER_IS_BETTER`).

    Raises:
        ValueError: if a column or the variant is missing, or one common step has several noise levels.
    """
    if missing := sorted({*SCORE_COLUMNS, value} - set(scores.columns)):
        raise ValueError(f"the scores lack the column {missing[0]!r}; they have {list(scores.columns)}")
    own = scores[scores["variant"] == variant]
    if own.empty:
        raise ValueError(f"no scores of variant {variant!r}; there are {sorted(scores['variant'].unique())}")
    prompts = 1 + int(own[["public", "personal"]].to_numpy().max())
    steps = np.sort(own["common_step"].unique())
    quality, similarity = np.full((prompts, prompts, len(steps)), np.nan), np.full((prompts, prompts), np.nan)
    similarity[own["public"], own["personal"]] = own["similarity"]
    means = own.groupby(["public", "personal", "common_step"])[value].mean()
    if higher_is_better is False or (higher_is_better is None and value in LOWER_IS_BETTER):
        means = -means
    public, personal, step = (means.index.get_level_values(i).to_numpy() for i in range(3))
    quality[public, personal, np.searchsorted(steps, step)] = means.to_numpy()
    return Cube(quality, similarity, steps.astype(float), _handover_levels(own))


def _handover_levels(scores: pd.DataFrame) -> Array:
    if "sigma" not in scores:
        return np.full(scores["common_step"].nunique(), np.nan)
    levels = scores.groupby("common_step")["sigma"].agg(["min", "max"])
    if (mixed := levels["max"] - levels["min"] > 1e-6).any():
        step = int(levels.index[mixed][0])
        raise ValueError(f"common step {step} has several noise levels: select one schedule before making a cube")
    return levels["min"].to_numpy(float)


class Curves(NamedTuple):
    """Mean quality by similarity bin and common step, with replicates that redraw the prompts."""

    similarity: Array  # (bins,) rounded to one decimal
    pairs: Integers  # (bins,) ordered pairs of different prompts
    common_steps: Array  # (steps,)
    mean: Array  # (bins, steps)
    replicates: Array  # (rounds, bins, steps); nan where a draw left a bin empty

    def table(self, variant: str, level: float = 0.95) -> pd.DataFrame:
        """Tidy: variant, similarity, pairs, common_step, score, low, high."""
        rows = []
        for b, similarity in enumerate(self.similarity):
            for s, step in enumerate(self.common_steps):
                bounds = interval(self.replicates[:, b, s], level)
                rows.append((variant, similarity, int(self.pairs[b]), int(step), self.mean[b, s], *bounds))
        return pd.DataFrame(rows, columns=["variant", "similarity", "pairs", "common_step", "score", "low", "high"])


def binned(cube: Cube, smooth: bool = False, min_pairs: int = 6, rounds: int = 1000, seed: int = 0) -> Curves:
    """Average the cells of each similarity bin, as the published evaluation does.

    The diagonal is dropped and a cell's bin is its similarity rounded to one decimal. `smooth` adds the published,
    undocumented step: each curve becomes the plain mean of its bin and its neighbours. Bins of fewer than `min_pairs`
    ordered pairs are left out before that. Replicates draw prompts with replacement in both of their roles, so a pair
    counts as often as the product of its prompts' draws.
    """
    off_diagonal = ~np.eye(len(cube.similarity), dtype=bool)
    measured = np.isfinite(cube.quality).all(axis=2) & off_diagonal
    bin_of = np.round(cube.similarity, 1)
    values, counts = np.unique(bin_of[measured], return_counts=True)
    values, counts = values[counts >= min_pairs], counts[counts >= min_pairs]
    if not len(values):
        raise ValueError(f"no similarity bin holds min_pairs = {min_pairs} pairs of different prompts")
    draws = np.vstack([np.ones(len(cube.similarity)), resamples(len(cube.similarity), rounds, seed)])
    means = np.empty((rounds + 1, len(values), len(cube.common_steps)))
    for b, value in enumerate(values):
        public, personal = np.nonzero(measured & (bin_of == value))
        weights = draws[:, public] * draws[:, personal]
        with np.errstate(invalid="ignore"):
            means[:, b] = weights @ cube.quality[public, personal] / weights.sum(axis=1, keepdims=True)
    if smooth:
        means = smoothed(means, values)
    return Curves(values, counts, cube.common_steps, means[0], means[1:])


def smoothed(curves: Array, similarity: Array) -> Array:
    """Mean of each curve (..., bins, steps) and those of the bins 0.1 below and above, where there are such."""
    near = np.abs(similarity[:, None] - similarity[None]) < 0.15
    return (near / near.sum(axis=1, keepdims=True)) @ curves


def fit_curves(curves: pd.DataFrame) -> pd.DataFrame:
    """One sigmoid per variant and similarity of a tidy table (variant, similarity, common_step, score).

    Where a fit is not `identified`, its parameters and their errors are missing: many quite different ones would fit
    as well. R2, RMSE and the largest residual are of the curve, which is determined all the same.
    """
    rows = []
    for (variant, similarity), curve in curves.groupby(["variant", "similarity"], sort=True):
        fit = fit_sigmoid(curve["common_step"], curve["score"])
        rows.append({"variant": variant, "similarity": similarity, **fit._asdict(), "n_points": len(curve)})
    fits = pd.DataFrame(rows)
    parameters = [name for name in SigmoidFit._fields if name.removeprefix("se_") in ("L", "k", "x0", "C")]
    fits.loc[~fits["identified"].astype(bool), parameters] = np.nan
    return fits


def curve_table(scores: pd.DataFrame, variants: Iterable[str], value: str = "clip", min_pairs: int = 6) -> pd.DataFrame:
    """Unsmoothed curves of several variants: variant, similarity, pairs, common_step, mean, low, high."""
    tables = [binned(cube(scores, variant, value), min_pairs=min_pairs).table(variant) for variant in variants]
    return pd.concat(tables, ignore_index=True).rename(columns={"score": "mean"})


def largest_differences(fits: pd.DataFrame, reference: pd.DataFrame) -> pd.Series:
    """Largest relative difference of every quantity that two tables of fits have in common."""
    key = ["variant", "similarity"]
    both = fits.merge(reference, on=key, suffixes=("", "_reference"), validate="one_to_one")
    quantities = [column for column in fits if column in reference and column not in (*key, "n_points", "identified")]
    differences = {name: (both[name] / both[f"{name}_reference"] - 1).abs().max() for name in quantities}
    return pd.Series(differences, name="largest relative difference")


def fit_replicates(curves: Curves, rounds: int, max_evaluations: int = 300) -> list[list[SigmoidFit | None]]:
    """Sigmoids of the mean curves first, then of `rounds` replicates, each a list over bins; None for an empty bin.

    Fits that are not identified stay: to leave them out would choose the replicates that look like sigmoids. A search
    that needs more than `max_evaluations` is one of them (others end after some twenty) and would take minutes.
    """
    return [
        [
            fit_sigmoid(curves.common_steps, mean, max_evaluations=max_evaluations) if np.isfinite(mean).all() else None
            for mean in means
        ]
        for means in (curves.mean, *curves.replicates[:rounds])
    ]
