"""Interquartile means and stratified bootstrap intervals over seeds.

Scores are (runs, tasks): one row a seed, one column a task (a system, a load, a sweep point). Source of the method:
Agarwal et al. 2021, Deep reinforcement learning at the edge of the statistical precipice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # (..., runs, tasks) to (...)


def interquartile_mean(scores: ArrayLike) -> NDArray[np.float64]:
    """Mean of the middle half of all scores (..., runs, tasks); a quarter, rounded down, is dropped at each end.

    Raises:
        ValueError: if there is no score or one is not finite.
    """
    values = _checked(scores)
    values = np.sort(values.reshape(*values.shape[:-2], -1), axis=-1)
    drop = values.shape[-1] // 4
    return np.asarray(values[..., drop : values.shape[-1] - drop].mean(axis=-1))


def mean(scores: ArrayLike) -> NDArray[np.float64]:
    """Mean of all scores (..., runs, tasks)."""
    return np.asarray(_checked(scores).mean(axis=(-2, -1)))


class Interval(NamedTuple):
    """A point estimate and its bootstrap interval."""

    estimate: float
    low: float
    high: float


def bootstrap_interval(
    scores: ArrayLike,
    statistic: Statistic = interquartile_mean,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic; runs are drawn with replacement within each task (stratified).

    Raises:
        ValueError: if scores are not (runs, tasks) and finite, or confidence lies outside (0, 1).
    """
    values = _two_axes(scores)
    rows = np.random.default_rng(seed).integers(0, len(values), (resamples, *values.shape))
    return _interval(float(statistic(values)), statistic(np.take_along_axis(values[None], rows, axis=1)), confidence)


def difference_interval(
    first: ArrayLike,
    second: ArrayLike,
    statistic: Statistic = interquartile_mean,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Interval of statistic(first) - statistic(second) over runs that met the same arrivals, row by row.

    Both sides of a pair are drawn together, which removes what the arrivals of a seed have in common.

    Raises:
        ValueError: if shapes differ or are not (runs, tasks), a score is not finite, or confidence is outside (0, 1).
    """
    a, b = _two_axes(first), _two_axes(second)
    if a.shape != b.shape:
        raise ValueError(f"paired scores must have one shape, got {a.shape} and {b.shape}")
    rows = np.random.default_rng(seed).integers(0, len(a), (resamples, *a.shape))
    drawn = [np.take_along_axis(values[None], rows, axis=1) for values in (a, b)]
    return _interval(
        float(statistic(a) - statistic(b)), np.asarray(statistic(drawn[0]) - statistic(drawn[1])), confidence
    )


def _interval(estimate: float, resampled: NDArray[np.float64], confidence: float) -> Interval:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(low), float(high))


def _two_axes(scores: ArrayLike) -> NDArray[np.float64]:
    values = _checked(scores)
    if values.ndim != 2:
        raise ValueError(f"scores must have shape (runs, tasks), got {values.shape}")
    return values


def _checked(scores: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim < 2 or values.shape[-1] == 0 or values.shape[-2] == 0:
        raise ValueError(f"scores must have shape (runs, tasks) with at least one of each, got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"scores must be finite, got {values[~np.isfinite(values)][0]}")
    return values
