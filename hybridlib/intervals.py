"""Intervals that respect what was sampled (prompts, not images), and what they say about a published claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

# Columns that may identify an image in a study's table.
DESIGN = ("variant", "public", "personal", "common_step", "seed", "public_scale", "personal_scale", "npi")

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "cannot be told"
POSITIVE, NEGATIVE = (np.nextafter(0, 1), np.inf), (-np.inf, np.nextafter(0, -1))  # what a claim may allow


def verdict(low: float, high: float, allowed: tuple[float, float]) -> str:
    """Whether an interval lies wholly inside what a claim allows, wholly outside, or neither."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return UNDECIDED
    if allowed[0] <= low and high <= allowed[1]:
        return HOLDS
    return FAILS if high < allowed[0] or low > allowed[1] else UNDECIDED


def interval(replicates: ArrayLike, level: float = 0.95, units: int | None = None) -> tuple[float, float]:
    """Percentile interval of bootstrap replicates; nan ones (a statistic that did not exist) are left out.

    Percentiles of few redrawn `units` are too narrow: the spread of n values is too small by sqrt((n - 1) / n), and a
    normal quantile stands where one of Student's t belongs. Where `units` is given, the percentiles are moved out by
    both factors (Hesterberg 2015, "expanded percentile interval").
    """
    values = np.asarray(replicates, dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    tail = tail_share(level, units)
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def tail_share(level: float, units: int | None = None) -> float:
    """Share of the replicates beyond each end of an interval, see `interval`."""
    if units is None:
        return (1 - level) / 2
    quantile = stats.t.ppf((1 - level) / 2, units - 1) * np.sqrt(units / (units - 1))
    return float(stats.norm.cdf(quantile))


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


def changes_from(
    table: pd.DataFrame, value: str, reference: Mapping[str, object], by: Sequence[str] = (), unit: str = "personal"
) -> pd.DataFrame:
    """Mean change of `value` from one setting of some factors to every other, as `paired_changes` does for two.

    Args:
        reference: factor -> its level at the setting that the others are compared with.
        by: columns within which changes are averaged, such as the common step.

    Returns:
        One row per group and setting, the reference itself with zeros: `by`, the factors, mean, low, high, images,
        prompts.

    Raises:
        ValueError: if a column is missing, or no cell has the reference setting.
    """
    factors = list(reference)
    if missing := [column for column in (value, unit, *factors, *by) if column not in table]:
        raise ValueError(f"the table lacks the column {missing[0]!r}; it has {list(table.columns)}")
    at_reference = table[(table[factors] == pd.Series(reference)).all(axis=1)]
    if at_reference.empty:
        raise ValueError(f"no cell has the reference setting {dict(reference)}")
    cell = [column for column in DESIGN if column in table and column not in factors]
    both = table.merge(at_reference[[*cell, value]], on=cell, suffixes=("", "_reference"), validate="many_to_one")
    changes = both.assign(change=both[value] - both[f"{value}_reference"])
    return clustered_means(changes, "change", [*by, *factors], unit)


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
