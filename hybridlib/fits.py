"""Curves with standard errors, and intervals that respect what was sampled: prompts, not images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import OptimizeWarning, curve_fit

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

# Columns that may identify an image in a study's table.
DESIGN = ("variant", "public", "personal", "common_step", "seed", "public_scale", "personal_scale", "npi")
_TIGHT = {"ftol": 1e-12, "xtol": 1e-12}


class SigmoidFit(NamedTuple):
    """Least-squares fit of Q(s) = L / (1 + exp(k (s - x0))) + C, the HIQM of the hybrid inference paper.

    L + C and C are the asymptotes, x0 the inflection in steps, k the steepness per step. The `se_` fields are the
    standard errors under independent residuals; residuals of these curves are systematic, so read them as a lower
    bound. R2 flatters for the same reason: `max_abs_residual` stands beside it.
    """

    L: float
    k: float
    x0: float
    C: float
    R2: float
    RMSE: float
    max_abs_residual: float
    se_L: float
    se_k: float
    se_x0: float
    se_C: float
    identified: bool  # the data hold both ends of the curve; else L, C and x0 may run away together

    def __call__(self, common_step: ArrayLike) -> Array:
        """The curve at any common step, fractional ones too."""
        return sigmoid(np.asarray(common_step, dtype=float), self.L, self.k, self.x0, self.C)

    def retained_until(self, share: float) -> float:
        """The common step at which the curve has fallen to `share` of its own value at 0; nan if it never does."""
        level = share * float(self(0.0))
        if not self.C < level < self.L + self.C:
            return float("nan")
        return self.x0 + float(np.log(self.L / (level - self.C) - 1)) / self.k


def sigmoid(s: Array, L: float | Array, k: float | Array, x0: float | Array, C: float | Array) -> Array:
    """L / (1 + exp(k (s - x0))) + C without overflow."""
    return L * np.exp(-np.logaddexp(0.0, k * (s - x0))) + C


def fit_sigmoid(common_step: ArrayLike, score: ArrayLike, start: Sequence[float] | None = None) -> SigmoidFit:
    """Fit one curve by Levenberg-Marquardt from a start read off the data: range, slope, half-way step, minimum.

    Args:
        common_step, score: equally long, five points or more.
        start: L, k, x0, C to start from instead; the published fits began at 0.1, 0.1, 0.1, 0.1.

    Raises:
        ValueError: if there are fewer than five points, or values that are not finite.
    """
    s, q = np.asarray(common_step, dtype=float), np.asarray(score, dtype=float)
    if s.shape != q.shape or s.ndim != 1 or len(s) < 5:
        raise ValueError(f"a sigmoid needs five points or more in two equal columns, got {s.shape} and {q.shape}")
    if not (np.isfinite(s).all() and np.isfinite(q).all()):
        raise ValueError("a sigmoid needs finite common steps and scores")
    p0 = _start(s, q) if start is None else start
    with warnings.catch_warnings():  # said by `identified`
        warnings.simplefilter("ignore", OptimizeWarning)
        parameters, covariance = curve_fit(sigmoid, s, q, p0=p0, jac=_jacobian, method="lm", maxfev=1_000_000, **_TIGHT)
    if parameters[0] < 0:  # the same curve written with L > 0; a rising one then has k < 0
        L, k, x0, C = parameters
        parameters = np.array([-L, -k, x0, C + L])
        turn = np.array([[-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]], dtype=float)
        covariance = turn @ covariance @ turn.T
    residuals = q - sigmoid(s, *parameters)
    spread = float(((q - q.mean()) ** 2).sum())
    quality = (
        1 - float((residuals**2).sum()) / spread if spread else float("nan"),
        float(np.sqrt((residuals**2).mean())),
        float(np.abs(residuals).max()),
    )
    errors = np.sqrt(np.diag(covariance)).tolist()
    identified = bool(errors[0] < parameters[0] / 2 and s.min() <= parameters[2] <= s.max())
    return SigmoidFit._make([*parameters.tolist(), *quality, *errors, identified])


def _start(s: Array, q: Array) -> tuple[float, float, float, float]:
    order = np.argsort(s)
    s, q = s[order], q[order]
    falling = q[0] >= q[-1]
    size = float(np.ptp(q)) or 1e-6
    half_way = float(s[np.abs(q - (q.min() + size / 2)).argmin()])
    steepness = 8 / (float(np.ptp(s)) or 1.0)
    return size, steepness if falling else -steepness, half_way, float(q.min())


def _jacobian(s: Array, L: float, k: float, x0: float, C: float) -> Array:
    unit = sigmoid(s, 1.0, k, x0, 0.0)
    slope = -L * unit * (1 - unit)
    return np.stack([unit, slope * (s - x0), -slope * k, np.ones_like(s)], axis=1)


def interval(replicates: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap replicates; nan ones (a statistic that did not exist) are left out."""
    values = np.asarray(replicates, dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resamples(units: int, rounds: int, seed: int = 0) -> Array:
    """How often each of `units` is drawn in each bootstrap round, (rounds, units)."""
    return np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=rounds).astype(float)


def clustered_means(
    table: pd.DataFrame,
    value: str,
    by: list[str],
    unit: str = "personal",
    within: bool = False,
    rounds: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean of `value` in each group of `by`, with a bootstrap interval over whole prompts.

    Images of one prompt resemble each other, so the prompt (`unit`) is drawn with all its images. `within` takes
    each prompt's own level out first (means stay, if all prompts have the same images): the intervals then serve to
    compare groups, and not to say what another set of prompts would score.

    Returns:
        One row per group: the columns of `by`, then mean, low, high, images, prompts.

    Raises:
        ValueError: if a column is missing.
    """
    if missing := {value, unit, *by} - set(table.columns):
        raise ValueError(f"the table lacks the columns {sorted(missing)}; it has {list(table.columns)}")
    if within:
        own = table.groupby(unit)[value].transform("mean")
        table = table.assign(**{value: table[value] - own + table[value].mean()})
    groups = table.groupby([*by, unit], sort=True)[value]
    sums, counts = groups.sum().unstack(unit).fillna(0.0), groups.count().unstack(unit).fillna(0)
    draws = resamples(sums.shape[1], rounds, seed)
    with np.errstate(invalid="ignore"):
        replicates = (draws @ sums.to_numpy().T) / (draws @ counts.to_numpy().T)
    result = (sums.sum(axis=1) / counts.sum(axis=1)).rename("mean").to_frame()
    result[["low", "high"]] = [interval(column, level) for column in replicates.T]
    result["images"], result["prompts"] = counts.sum(axis=1), (counts > 0).sum(axis=1)
    return result.reset_index()


def paired_changes(
    table: pd.DataFrame,
    value: str,
    factor: str,
    before: object,
    after: object,
    by: Sequence[str] = (),
    unit: str = "personal",
    rounds: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean change of `value` from `factor` = before to after, within cells that agree in everything else.

    Returns:
        One row per group of `by`: its columns, then mean, low, high (bootstrap over prompts), images, prompts.

    Raises:
        ValueError: if no cell has both settings.
    """
    cell = [column for column in DESIGN if column in table and column != factor]
    wide = table[table[factor].isin([before, after])].pivot(index=cell, columns=factor, values=value)
    if {before, after} - set(wide.columns):
        raise ValueError(
            f"no cell has {factor} = {before!r} and = {after!r}; there are {table[factor].unique().tolist()}"
        )
    change = (wide[after] - wide[before]).dropna().rename("change").reset_index()
    if change.empty:
        raise ValueError(f"no cell has both {factor} = {before!r} and = {after!r}")
    groups = list(by) or ["everything"]
    means = clustered_means(change.assign(everything=""), "change", groups, unit, rounds=rounds, seed=seed)
    return means if by else means.drop(columns="everything")


def factorial_effects(
    table: pd.DataFrame,
    value: str,
    factors: dict[str, tuple[str, object, object]],
    by: list[str],
    cell: list[str],
    unit: str = "personal",
    rounds: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Main effects and interactions of two-level factors, with bootstrap intervals over prompts.

    Args:
        factors: name -> (column, low level, high level). The main effect is the mean change of `value` from low to
            high over all settings of the other factors; an interaction of two is half the difference of the effect of
            one between the levels of the other.
        by: columns within which effects are estimated, such as the common step.
        cell: columns that identify what is repeated under all settings (prompts, seed, and those of `by`).

    Returns:
        One row per effect and group: effect, the columns of `by`, mean, low, high, images, prompts.

    Raises:
        ValueError: if a cell lacks one of the settings.
    """
    columns = [column for column, _, _ in factors.values()]
    wide = table.pivot(index=cell, columns=columns, values=value)
    if wide.shape[1] != 2 ** len(factors) or wide.isna().any().any():
        raise ValueError(f"every cell needs all {2 ** len(factors)} settings of {columns}")
    signs = {
        name: np.array([1.0 if setting[i] == high else -1.0 for setting in wide.columns])
        for i, (name, (_, _, high)) in enumerate(factors.items())
    }
    signs |= {f"{a} x {b}": signs[a] * signs[b] for a, b in combinations(factors, 2)}
    results = []
    for name, sign in signs.items():
        change = pd.Series(wide.to_numpy() @ sign / (wide.shape[1] / 2), index=wide.index, name="change")
        effect = change.reset_index()
        means = clustered_means(effect, "change", by, unit, rounds=rounds, seed=seed)
        results.append(means.assign(effect=name))
    return pd.concat(results, ignore_index=True)
