"""One quality surface over common step and prompt similarity, and what a planner asks it: how many steps to share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import curve_fit

from ..fits import fit_sigmoid, sigmoid
from ..intervals import Array, Integers, resamples
from .hiqm import Cube, binned


class Plan(NamedTuple):
    """The latest common step that keeps the wanted quality, and its interval over redrawn prompts."""

    common_step: int
    low: int
    high: int


@dataclass(frozen=True)
class QualitySurface:
    """Q(s, m) = (U - C) / (1 + exp(k (s - x0))) + C with C = c0 + c1 m and x0 = a0 + a1 m, m the similarity.

    Six parameters replace four for each bin. U does not depend on m: with nothing shared, the public prompt cannot
    matter. `replicates` (rounds, 6) are the parameters refitted to redrawn prompts.
    """

    parameters: Array  # U, c0, c1, k, a0, a1
    replicates: Array
    similarity_range: tuple[float, float]
    last_step: int
    RMSE: float

    def __call__(self, common_step: Array | float, similarity: Array | float) -> Array:
        """Quality at common steps and similarities (broadcast against each other)."""
        s, m = np.broadcast_arrays(np.asarray(common_step, dtype=float), np.asarray(similarity, dtype=float))
        return _surface((s, m), *self.parameters)

    def latest_step(self, similarity: Array | float, quality_floor: float, level: float = 0.95) -> tuple[Array, ...]:
        """Where the surface falls to `quality_floor`: best estimate, low and high, in fractional steps.

        0 where even the first step is below the floor, `last_step` where no step is.
        """
        m = np.asarray(similarity, dtype=float)
        answers = np.stack(
            [_crossing(m, quality_floor, p).clip(0, self.last_step) for p in (self.parameters, *self.replicates)]
        )
        if len(answers) == 1:
            return answers[0], answers[0], answers[0]
        low, high = np.quantile(answers[1:], [(1 - level) / 2, (1 + level) / 2], axis=0)
        return answers[0], low, high

    def max_common_step(self, similarity: float, quality_floor: float, level: float = 0.95) -> Plan:
        """The latest whole common step at which quality is still at least `quality_floor`.

        Common step 0 shares nothing and is always allowed, so it is the answer where no other is.

        Args:
            similarity: of public and personal prompt; within the range that the surface was fitted to.
            quality_floor: in the units of the fitted scores (a share of 1 for retained quality).

        Raises:
            ValueError: if the similarity lies outside the fitted range, or the floor is not finite.
        """
        low, high = self.similarity_range
        if not low <= similarity <= high:
            raise ValueError(f"similarity must lie in the fitted range {low:.2f}..{high:.2f}, got {similarity}")
        if not np.isfinite(quality_floor):
            raise ValueError(f"quality_floor must be finite, got {quality_floor}")
        return Plan(*(int(np.floor(float(step) + 1e-9)) for step in self.latest_step(similarity, quality_floor, level)))


def _crossing(m: Array, quality_floor: float, parameters: Array) -> Array:
    U, c0, c1, k, a0, a1 = parameters
    floor = c0 + c1 * m
    with np.errstate(all="ignore"):
        crossing = a0 + a1 * m + np.log((U - floor) / (quality_floor - floor) - 1) / k
    return np.where(quality_floor <= floor, np.inf, np.where(quality_floor >= U, -np.inf, crossing))


def fit_surface(cube: Cube, rounds: int = 200, seed: int = 0) -> QualitySurface:
    """Fit one surface to every cell off the diagonal, by least squares; replicates redraw the prompts."""
    public, personal, step = _cells(cube)
    s, m = cube.common_steps[step], cube.similarity[public, personal]
    q = cube.quality[public, personal, step]
    best = _fit_surface(s, m, q)
    replicates = []
    for draw in resamples(len(cube.similarity), rounds, seed):
        weights = draw[public] * draw[personal]
        if np.unique(m[weights > 0]).size > 3:
            replicates.append(_fit_surface(s, m, q, weights, best))
    rmse = float(np.sqrt(((q - _surface((s, m), *best)) ** 2).mean()))
    return QualitySurface(
        best, np.array(replicates).reshape(-1, 6), (float(m.min()), float(m.max())), int(s.max()), rmse
    )


def plan_table(surfaces: Mapping[str, QualitySurface], quality_floor: float, rows: int = 6) -> pd.DataFrame:
    """The latest common step that keeps `quality_floor`, for similarities over the fitted range."""
    plans = []
    for name, surface in surfaces.items():
        low, high = surface.similarity_range
        for similarity in np.linspace(np.ceil(10 * low) / 10, np.floor(10 * high) / 10, rows):
            plan = surface.max_common_step(float(similarity), quality_floor)
            plans.append({"variant": name, "similarity": round(float(similarity), 2), **plan._asdict()})
    return pd.DataFrame(plans)


def cross_validate(cube: Cube, min_pairs: int = 6) -> pd.DataFrame:
    """Prediction error on left-out prompts: the surface against one sigmoid per bin.

    Each prompt in turn is left out in both of its roles; its cells are predicted from the others' cells.

    Returns:
        One row per prompt: prompt, cells, and the root mean squared errors `surface` and `per_bin` over the cells
        whose bin the remaining prompts still fill.
    """
    public, personal, step = _cells(cube)
    s, m = cube.common_steps[step], cube.similarity[public, personal]
    q, bin_of = cube.quality[public, personal, step], np.round(m, 1)
    start, rows = _fit_surface(s, m, q), []
    for prompt in np.unique(np.concatenate([public, personal])):
        out = (public == prompt) | (personal == prompt)
        surface = _fit_surface(s[~out], m[~out], q[~out], start=start)
        quality = cube.quality.copy()
        quality[prompt], quality[:, prompt] = np.nan, np.nan
        kept = binned(cube._replace(quality=quality), min_pairs=min_pairs, rounds=0)
        fits = {
            value: fit_sigmoid(kept.common_steps, mean) for value, mean in zip(kept.similarity, kept.mean, strict=True)
        }
        test = out & np.isin(bin_of, kept.similarity)
        per_bin = np.concatenate([q[test & (bin_of == v)] - fit(s[test & (bin_of == v)]) for v, fit in fits.items()])
        errors = q[test] - _surface((s[test], m[test]), *surface)
        rows.append((int(prompt), int(test.sum()), *(float(np.sqrt((e**2).mean())) for e in (errors, per_bin))))
    return pd.DataFrame(rows, columns=["prompt", "cells", "surface", "per_bin"])


def _cells(cube: Cube) -> tuple[Integers, Integers, Integers]:
    measured = np.isfinite(cube.quality) & ~np.eye(len(cube.similarity), dtype=bool)[:, :, None]
    public, personal, step = np.nonzero(measured)
    return public, personal, step


def _surface(x: Any, U: float, c0: float, c1: float, k: float, a0: float, a1: float) -> Array:
    s, m = x  # common steps and similarities, equally long
    floor = c0 + c1 * m
    return sigmoid(s, U - floor, k, a0 + a1 * m, floor)


def _surface_jacobian(x: Any, U: float, c0: float, c1: float, k: float, a0: float, a1: float) -> Array:
    s, m = x
    centre = a0 + a1 * m
    unit = sigmoid(s, 1.0, k, centre, 0.0)
    slope = -(U - c0 - c1 * m) * unit * (1 - unit)
    return np.stack([unit, 1 - unit, m * (1 - unit), slope * (s - centre), -k * slope, -k * m * slope], axis=1)


def _fit_surface(s: Array, m: Array, q: Array, weights: Array | None = None, start: Array | None = None) -> Array:
    if start is None:
        mean = fit_sigmoid(*_mean_curve(s, q))
        start = np.array([mean.L + mean.C, mean.C, 0.0, mean.k, mean.x0, 0.0])
    sigma = None
    if weights is not None:
        s, m, q, sigma = s[weights > 0], m[weights > 0], q[weights > 0], weights[weights > 0] ** -0.5
    parameters, _ = curve_fit(
        _surface, np.stack([s, m]), q, p0=start, sigma=sigma, jac=_surface_jacobian, maxfev=10_000
    )
    return parameters


def _mean_curve(s: Array, q: Array) -> tuple[Array, Array]:
    steps, index = np.unique(s, return_inverse=True)
    return steps, np.bincount(index, q) / np.bincount(index)
