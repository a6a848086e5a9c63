"""What splits are worth: scores beside the large denoiser's own images, over seeds, and the best split for a budget.

Intervals are Student's t over seeds: the prompts of one seed are averaged first, and splits are compared seed by seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from ..files import read_image, write_table
from ..intervals import FAILS, HOLDS, UNDECIDED
from ..runs import Interval, t_interval
from ..study import runner
from .costs import check_budgets
from .grids import LARGE_FIRST

if TYPE_CHECKING:
    from ..denoising.hybrid_call import HybridPipeline
    from ..metrics import Metric
    from ..study.parameters import SamplingParameters
    from ..study.runner import Models, Outcome

SPLIT = ["method", "split"]
PAIR = ["personal", "seed"]
Key = tuple[str, str]  # method and split of a division


def run(
    table: pd.DataFrame,
    pipeline: HybridPipeline,
    folder: Path,
    parameters: SamplingParameters,
    metrics: Sequence[Metric],
    models: Models,
    spent: pd.DataFrame,
) -> tuple[pd.DataFrame, Outcome]:
    """Images and scores of a grid, and how far each image is from the large denoiser's; writes `scores.parquet`.

    Args:
        spent: costs of each division, as `costs.cost_table` returns them.

    Returns:
        The scores with columns rmse (0..1) and ssim against the image of the large denoiser alone, same prompt and
        seed, and those of `spent`; `sigma` is the noise level at the first handoff.
    """
    scores, outcome = runner.run(table, pipeline, folder, parameters, metrics, models=models)
    attrs = scores.attrs
    scores = beside_large(scores, folder).merge(spent, on=SPLIT, validate="many_to_one")
    scores.attrs = attrs
    write_table(scores, folder / "scores.parquet")
    return scores, outcome


def costs_of(scores: pd.DataFrame) -> pd.DataFrame:
    """The costs of each division, as `run` wrote them into its table: method, split, and what is computed for them."""
    columns = ["cloud_macs", "edge_macs", "macs", "share"]
    return scores.drop_duplicates(SPLIT)[[*SPLIT, *columns]].reset_index(drop=True)


def beside_large(scores: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The table with rmse and ssim of each image against that of the large denoiser alone, same prompt and seed.

    Raises:
        ValueError: if the table has no split in which the large denoiser runs alone.
    """
    from ..metrics.distortion import psnr, ssim

    references = scores[_is_large_alone(scores)].set_index(PAIR)["path"]
    if references.empty:
        raise ValueError("distances need the split in which the large denoiser runs alone, such as '25,0'")
    partners = references.reindex(pd.MultiIndex.from_frame(scores[PAIR]))
    if partners.isna().any():
        raise ValueError("every prompt and seed needs an image of the large denoiser alone")
    loaded = {path: read_image(folder / path) for path in {*scores["path"], *references}}
    images, others = ([loaded[path] for path in paths] for paths in (scores["path"], partners))
    attrs = scores.attrs
    scores = scores.assign(rmse=10 ** (-psnr(images, others) / 20), ssim=ssim(images, others))
    scores.attrs = attrs
    return scores


def means(scores: pd.DataFrame, value: str) -> pd.DataFrame:
    """Mean of a score for each division, with its interval over seeds.

    Returns:
        One row per division in the order of the table: method, split, large_steps, mean, low, high, seeds.
    """
    wide = by_seed(scores, value)
    steps = scores.groupby(SPLIT)["large_steps"].first()
    rows = [(*key, int(steps[key]), *t_interval(wide[key]), len(wide)) for key in wide.columns]
    return pd.DataFrame(rows, columns=[*SPLIT, "large_steps", "mean", "low", "high", "seeds"])


def changes(scores: pd.DataFrame, value: str, pairs: Mapping[str, tuple[Key, Key]]) -> pd.DataFrame:
    """By how much a score changes from one division to another, seed by seed.

    Args:
        pairs: name -> (division before, division after), each (method, split).

    Returns:
        One row per pair: name, mean, low, high.
    """
    wide = by_seed(scores, value)
    for key in (key for pair in pairs.values() for key in pair):
        if key not in wide:
            raise ValueError(f"there is no division {key}; there are {list(wide.columns)}")
    rows = [(name, *t_interval(wide[after] - wide[before])) for name, (before, after) in pairs.items()]
    return pd.DataFrame(rows, columns=["name", "mean", "low", "high"])


def by_seed(scores: pd.DataFrame, value: str) -> pd.DataFrame:
    """Mean over prompts of a score: a row per seed, a column per (method, split).

    Raises:
        ValueError: if a seed lacks a prompt that another has.
    """
    counts = scores.groupby([*SPLIT, "seed"], sort=False).size()
    if counts.nunique() != 1 or len(counts) != scores.groupby(SPLIT).ngroups * scores["seed"].nunique():
        raise ValueError("every division needs the same prompts and seeds")
    return scores.groupby(["seed", *SPLIT], sort=False)[value].mean().unstack(SPLIT)


# --- is more of the large denoiser better, all the way?


class Trend(NamedTuple):
    """Whether a score rises with the updates of the large denoiser, over paired seeds."""

    p_value: float  # of Page's test: no trend, against a rise in this order
    rise: Interval  # from the smallest to the largest
    deepest_drop: Interval  # the step from one split to the next that falls most, simultaneous over all steps
    verdict: str

    def __repr__(self) -> str:
        return f"Trend({self.verdict}: rise {self.rise.estimate:.4f}, p {self.p_value:.4f})"


def monotone(scores: pd.DataFrame, value: str, method: str = LARGE_FIRST, confidence: float = 0.95) -> Trend:
    """Test whether a score rises with the updates of the large denoiser along the splits of one method.

    It holds if Page's test (1963) finds the trend and no step between neighbouring splits is surely down; it does not
    if a step is, or the whole surely falls. The intervals of the steps are Bonferroni's.

    Raises:
        ValueError: if there are fewer than three splits or two seeds.
    """
    return _trend(_runs(scores, value, method), confidence)


def _runs(scores: pd.DataFrame, value: str, method: str) -> np.ndarray:
    """(seeds, splits) of one method, by rising updates of the large denoiser."""
    part = scores[scores["method"] == method]
    order = part.groupby("split")["large_steps"].first().sort_values().index
    wide = by_seed(part, value)[method]
    if len(order) < 3 or len(wide) < 2:
        raise ValueError(f"a trend needs three splits and two seeds, got {len(order)} and {len(wide)}")
    return wide[order].to_numpy(float)


def _trend(runs: np.ndarray, confidence: float) -> Trend:
    from scipy.stats import page_trend_test

    p_value = float(page_trend_test(runs).pvalue)
    rise = t_interval(runs[:, -1] - runs[:, 0], confidence)
    each = 1 - (1 - confidence) / (runs.shape[1] - 1)
    steps = [t_interval(step, each) for step in np.diff(runs, axis=1).T]
    drop = min(steps, key=lambda step: step.estimate)
    if drop.high < 0 or rise.high < 0 or any(step.high < 0 for step in steps):
        verdict = FAILS
    else:
        verdict = HOLDS if p_value < 1 - confidence and rise.estimate > 0 else UNDECIDED
    return Trend(p_value, rise, drop, verdict)


def null_control(
    scores: pd.DataFrame, value: str, method: str = LARGE_FIRST, rounds: int = 100, seed: int = 0
) -> float:
    """Share of shuffles, in each of which the splits of every seed change places, that `monotone` says holds.

    There is no trend then, so this must be near 0.05 or below.
    """
    runs, rng = _runs(scores, value, method), np.random.default_rng(seed)
    return float(np.mean([_trend(rng.permuted(runs, axis=1), 0.95).verdict == HOLDS for _ in range(rounds)]))


# --- budgets


def best(quality: pd.DataFrame, costs: pd.DataFrame, budget: float, compute: str = "share") -> pd.Series:
    """The division of best mean score whose cost is within a budget, the cheapest of several that are equal.

    Args:
        quality: as `means` returns it.
        costs: as `costs.cost_table` returns it.
        compute: which of its columns the budget is of: "share", "macs", "cloud_macs" or "edge_macs".

    Raises:
        ValueError: if nothing is that cheap.
    """
    check_budgets(costs, [budget], compute)
    both = quality.merge(costs, on=SPLIT, validate="one_to_one")
    within = both[both[compute] <= budget]
    return within.sort_values(["mean", compute], ascending=[False, True]).iloc[0]


def best_for(
    quality: pd.DataFrame, costs: pd.DataFrame, budgets: Sequence[float], compute: str = "share"
) -> pd.DataFrame:
    """`best` for several budgets, one row each."""
    rows = [best(quality, costs, budget, compute) for budget in budgets]
    columns = [*SPLIT, compute, "mean", "low", "high"]
    return pd.DataFrame([row[columns] for row in rows], index=pd.Index(list(budgets), name="budget"))


def _is_large_alone(scores: pd.DataFrame) -> pd.Series:
    total = scores["split"].str.split(",").str[1]
    return (scores["method"] == LARGE_FIRST) & (total == "0")
