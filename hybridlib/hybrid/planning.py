"""One quality surface over noise level and prompt similarity, and what a planner asks it: how many steps to share.

The common step counts updates of one schedule. What a shared start costs depends on the noise level at the handover,
and that carries over between schedules: one surface serves every shift, number of steps and solver (`validation` tests
this). So `QualitySurface` lives in log-SNR, and a schedule enters only when steps are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import curve_fit

from ..fits import fit_sigmoid, sigmoid
from ..intervals import Array, Integers, resamples
from .hiqm import Cube, log_snr
from .spread import Spread, of_cells, of_lists


class Plan(NamedTuple):
    """How many updates to share, and what to expect.

    `common_step` is the safe end: with the asked-for confidence, the mean quality over a fresh list of prompts (as many
    as the surface was fitted to) keeps the floor. It says nothing about a single pair, whose quality scatters widely.
    """

    common_step: int
    quality: float  # expected mean quality at `common_step`
    low: float  # its lower bound at the asked-for confidence
    estimate: int  # where the expected mean itself still keeps the floor: right about half of the time


class Prediction(NamedTuple):
    """Mean quality over a fresh list of prompts, with the interval that holds it."""

    mean: Array
    low: Array
    high: Array


@dataclass(frozen=True, repr=False, eq=False)
class QualitySurface:
    """Q(x, m) = (U - C) / (1 + exp(k (x - x0))) + C with C = c0 + c1 m and x0 = a0 + a1 m.

    x is the log signal-to-noise ratio at the handover (`hiqm.log_snr`), m the similarity of public and personal prompt.
    Six parameters replace four for each bin and schedule. U does not depend on m: with nothing shared, the public
    prompt cannot matter. `replicates` (rounds, 6) are the parameters refitted to redrawn prompts.
    """

    parameters: Array  # U, c0, c1, k, a0, a1
    replicates: Array
    similarity_range: tuple[float, float]
    common_steps: Array  # measured ones of the (first) schedule it was fitted to
    sigmas: Array  # their noise levels at the handover
    RMSE: float
    spread: Spread | None = None  # of single prompts; None where nobody measured it
    model: str = ""  # identity of the denoiser whose images were scored; "" where it is not told
    list_spread: Spread | None = None  # of means over short lists; None where too few prompts were measured

    def __repr__(self) -> str:
        low, high = self.similarity_range
        return f"QualitySurface(similarity {low:.2f}..{high:.2f}, RMSE={self.RMSE:.3f}, {len(self.replicates)} redraws)"

    def __call__(self, sigma: ArrayLike, similarity: ArrayLike) -> Array:
        """Expected quality at handover noise levels in [0, 1] and similarities (broadcast against each other)."""
        x, m = np.broadcast_arrays(log_snr(sigma), np.asarray(similarity, dtype=float))
        return _surface((x, m), *self.parameters)

    def predict(self, sigma: ArrayLike, similarity: ArrayLike, level: float = 0.9) -> Prediction:
        """Mean quality over a fresh list of prompts, as many as the surface was fitted to.

        `low` and `high` are one-sided bounds, each right with confidence `level`. Both the fitted list and the fresh
        one scatter around all prompts there are, so the scatter of the redraws counts twice.
        """
        x, m = np.broadcast_arrays(log_snr(sigma), np.asarray(similarity, dtype=float))
        mean = _surface((x, m), *self.parameters)
        if not len(self.replicates):
            return Prediction(mean, mean, mean)
        redrawn = np.stack([_surface((x, m), *parameters) for parameters in self.replicates])
        scatter = redrawn - mean
        twice = mean + np.concatenate([scatter + np.roll(scatter, lag, axis=0) for lag in (1, 2, 3)])
        low, high = np.quantile(twice, [1 - level, level], axis=0)
        return Prediction(mean, low, high)

    def predict_list(self, sigma: ArrayLike, similarity: ArrayLike, level: float = 0.9) -> Prediction:
        """Mean quality over a short list that shares under one of its prompts: the wider of `predict` and of how such
        lists scattered (`spread.of_lists`)."""
        found = self.predict(sigma, similarity, level)
        if self.list_spread is None:
            return found
        x, m = np.broadcast_arrays(log_snr(sigma), np.asarray(similarity, dtype=float))
        low, high = (found.mean + self.list_spread.at(x, m, share) for share in (1 - level, level))
        return Prediction(found.mean, np.minimum(found.low, low), np.maximum(found.high, high))

    def predict_each(self, sigma: ArrayLike, similarity: ArrayLike, level: float = 0.9) -> Prediction:
        """Quality of a single prompt: one-sided bounds that each hold for a further prompt with confidence `level`.

        Wider than `predict`, which is about means over a list, in which the scatter of single prompts averages out.

        Raises:
            ValueError: if the surface does not know how single prompts scatter.
        """
        if self.spread is None:
            raise ValueError("this surface does not know how single prompts scatter; fit_surface measures it")
        x, m = np.broadcast_arrays(log_snr(sigma), np.asarray(similarity, dtype=float))
        mean = _surface((x, m), *self.parameters)
        low, high = (mean + self.spread.at(x, m, share) for share in (1 - level, level))
        return Prediction(mean, low, high)

    def max_common_step(
        self, similarity: float, quality_floor: float, sigmas: ArrayLike | None = None, level: float = 0.9
    ) -> Plan:
        """The latest common step that keeps `quality_floor`; see `Plan` for what that promises.

        Common step 0 shares nothing and is always allowed, so it is the answer where no other is.

        Args:
            similarity: of public and personal prompt; within the range that the surface was fitted to.
            quality_floor: in the units of the fitted scores (a share of 1 for retained quality).
            sigmas: flow-matching noise levels of the schedule asked about, falling, one before each update
                (`scheduler.sigmas`; a last 0 is ignored). By default the fitted schedule, and the answer is then one
                of the common steps that were measured.
            level: confidence of the safe end, between .5 and 1.

        Raises:
            ValueError: if the similarity lies outside the fitted range, the floor is not finite, the level is not
                between .5 and 1, or the noise levels do not fall within [0, 1].
        """
        low, high = self.similarity_range
        if not low <= similarity <= high:
            raise ValueError(f"similarity must lie in the fitted range {low:.2f}..{high:.2f}, got {similarity}")
        if not np.isfinite(quality_floor):
            raise ValueError(f"quality_floor must be finite, got {quality_floor}")
        if not 0.5 <= level < 1:
            raise ValueError(f"level must lie between .5 and 1, got {level}")
        schedule = self.sigmas if sigmas is None else noise_levels_of(sigmas)
        steps = self.common_steps if sigmas is None else np.arange(len(schedule))
        expected = self.predict(schedule, similarity, level)
        safe, estimate = (_last_kept(quality >= quality_floor) for quality in (expected.low, expected.mean))
        return Plan(int(steps[safe]), float(expected.mean[safe]), float(expected.low[safe]), int(steps[estimate]))


def fit_surface(
    *cubes: Cube, rounds: int = 200, seed: int = 0, model: str = "", by_spread: bool = False
) -> QualitySurface:
    """Fit one surface to every cell off the diagonal, by least squares; replicates redraw the prompts.

    Args:
        cubes: one, or several of one prompt list under several schedules; quality on one scale (`Cube.retained`).
        model: identity of the denoiser that made the images, where a plan must not be run with another one.
        by_spread: fit a second time, each cell weighted by the inverse variance of the first residuals at its handover.
            Early handovers, at which single prompts scatter little, then count most: it is there that plans of a high
            floor are made, and plain least squares, which late handovers rule, misjudges what similarity does there.

    Raises:
        ValueError: if a cube lacks its noise levels, or quality rises as more is shared: then lower scores are better
            (`hiqm.cube` turns the ones it knows), or there is nothing to plan.
    """
    x, m, q, public, personal = _pooled(cubes)
    best = _fit_surface(x, m, q)
    certainty = _certainty(x, q - _surface((x, m), *best)) if by_spread else np.ones(len(x))
    if by_spread:
        best = _fit_surface(x, m, q, certainty, best)
    ends = _surface((np.array([x.min(), x.max()]), np.full(2, m.mean())), *best)
    if ends[1] >= ends[0]:
        raise ValueError(
            f"quality must fall as more is shared, these scores go from {ends[0]:.3g} to {ends[1]:.3g}: "
            "a planner needs scores of which more is better (hiqm.cube(..., higher_is_better=False) turns them)"
        )
    replicates = []
    for draw in resamples(len(cubes[0].similarity), rounds, seed):
        weights = draw[public] * draw[personal] * certainty
        if np.unique(m[weights > 0]).size > 3:
            replicates.append(_fit_surface(x, m, q, weights, best))
    residuals = q - _surface((x, m), *best)
    rmse = float(np.sqrt((residuals**2).mean()))
    span = float(m.min()), float(m.max())
    redrawn = np.array(replicates).reshape(-1, 6)
    steps, sigmas = cubes[0].common_steps, cubes[0].sigmas
    cells = of_cells(x, m, residuals, len(np.unique(personal)))
    lists = of_lists(cubes[0], lambda x, m: _surface((x, m), *best))
    return QualitySurface(best, redrawn, span, steps, sigmas, rmse, cells, model, lists)


def plan_table(
    surfaces: Mapping[str, QualitySurface], quality_floor: float, sigmas: ArrayLike | None = None, rows: int = 4
) -> pd.DataFrame:
    """Plans that keep `quality_floor`, for similarities over the fitted range: variant, similarity, and `Plan`."""
    plans = []
    for name, surface in surfaces.items():
        low, high = surface.similarity_range
        for similarity in np.linspace(np.ceil(10 * low) / 10, np.floor(10 * high) / 10, rows):
            plan = surface.max_common_step(float(similarity), quality_floor, sigmas)
            plans.append({"variant": name, "similarity": round(float(similarity), 2), **plan._asdict()})
    return pd.DataFrame(plans)


def noise_levels_of(sigmas: ArrayLike) -> Array:
    """Noise levels of a schedule, one before each update; a last 0, which is no handover, is left out.

    Raises:
        ValueError: if they do not fall within [0, 1].
    """
    levels = np.asarray(sigmas, dtype=float).ravel()
    levels = levels[:-1] if len(levels) > 1 and levels[-1] == 0 else levels
    if not len(levels) or not np.all((levels >= 0) & (levels <= 1)) or np.any(np.diff(levels) > 0):
        raise ValueError(
            f"sigmas must be flow-matching noise levels that fall within [0, 1], got {levels.tolist()[:4]}"
        )
    return levels


def _certainty(x: Array, residuals: Array, largest: float = 1000.0) -> Array:
    """Inverse variance at each handover, from 1; at most `largest`, as at step 0 nothing scatters at all."""
    index = np.unique(x, return_inverse=True)[1]
    variance = np.bincount(index, residuals**2) / np.bincount(index)
    return (variance.max() / np.maximum(variance, variance.max() / largest))[index]


def _last_kept(kept: NDArray[np.bool_]) -> int:
    """Index of the last of the leading True values; 0 if there is none."""
    return max(int(np.argmin(np.append(kept, False))) - 1, 0)


def _pooled(cubes: tuple[Cube, ...]) -> tuple[Array, Array, Array, Integers, Integers]:
    """log-SNR, similarity and quality of every measured cell off the diagonal, with its two prompts."""
    if not cubes:
        raise ValueError("a surface needs at least one cube")
    parts = []
    for cube in cubes:
        if not np.isfinite(cube.sigmas).all():
            raise ValueError("a surface needs the noise level at each handover: the scores lack the column 'sigma'")
        public, personal, step = np.nonzero(cube.measured)
        cells = cube.quality[public, personal, step]
        parts.append((log_snr(cube.sigmas)[step], cube.similarity[public, personal], cells, public, personal))
    x, m, q, public, personal = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return x, m, q, public, personal


def _surface(x: Any, U: float, c0: float, c1: float, k: float, a0: float, a1: float) -> Array:
    s, m = x  # log-SNR and similarity, equally shaped
    floor = c0 + c1 * m
    return sigmoid(s, U - floor, k, a0 + a1 * m, floor)


def _surface_jacobian(x: Any, U: float, c0: float, c1: float, k: float, a0: float, a1: float) -> Array:
    s, m = x
    centre = a0 + a1 * m
    unit = sigmoid(s, 1.0, k, centre, 0.0)
    slope = -(U - c0 - c1 * m) * unit * (1 - unit)
    return np.stack([unit, 1 - unit, m * (1 - unit), slope * (s - centre), -k * slope, -k * m * slope], axis=1)


def _fit_surface(x: Array, m: Array, q: Array, weights: Array | None = None, start: Array | None = None) -> Array:
    if start is None:
        mean = fit_sigmoid(*_mean_curve(x, q))
        start = np.array([mean.L + mean.C, mean.C, 0.0, mean.k, mean.x0, 0.0])
    sigma = None
    if weights is not None:
        x, m, q, sigma = x[weights > 0], m[weights > 0], q[weights > 0], weights[weights > 0] ** -0.5
    parameters, _ = curve_fit(
        _surface, np.stack([x, m]), q, p0=start, sigma=sigma, jac=_surface_jacobian, maxfev=10_000
    )
    return parameters


def _mean_curve(x: Array, q: Array) -> tuple[Array, Array]:
    places, index = np.unique(x, return_inverse=True)
    return places, np.bincount(index, q) / np.bincount(index)
