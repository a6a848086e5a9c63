"""What was published about splits, beside what is counted and measured here.

Hybrid SD's table of FID, IS and CLIP by split is not among it: it could not be had, and nothing is quoted unread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..intervals import FAILS, HOLDS, POSITIVE, verdict
from ..runs import t_interval
from . import costs, grids, quality

if TYPE_CHECKING:
    from .costs import Network

KEPT = 0.85  # share of the large model's attribute correctness that the small one has to keep
MARGIN = 0.05  # loss of attribute correctness that still counts as the same quality

_PAIR = ("SD-v1.4", "Hybrid SD 224M")
_COUNTED: tuple[tuple[str, str, str, Callable[[dict[str, Network]], float]], ...] = (
    ("parameters of SD-v1.4 (M)", "BK-SDM", "859.52", lambda n: n["SD-v1.4"].parameters / 1e6),
    ("parameters of BK-SDM-Tiny (M)", "BK-SDM", "323.38", lambda n: n["BK-SDM-Tiny"].parameters / 1e6),
    ("parameters of the pruned UNet (M)", "Hybrid SD", "225.8", lambda n: n["Hybrid SD 224M"].parameters / 1e6),
    ("GMACs of SD-v1.4", "BK-SDM", "338.6", lambda n: n["SD-v1.4"].work.macs / 1e9),
    ("GMACs of BK-SDM-Tiny", "BK-SDM", "205.0", lambda n: n["BK-SDM-Tiny"].work.macs / 1e9),
    ("cloud steps saved by 10,15 (%)", "Hybrid SD", "60", lambda n: _saved(n, "10,15")),
    ("cloud steps saved by 5,20 (%)", "Hybrid SD", "80", lambda n: _saved(n, "5,20")),
    ("cloud cost saved (%), nearest released split 10,15", "Hybrid SD", "66", lambda n: _saved(n, "10,15")),
    ("evaluations of 37 cloud steps, SD1.4", "EC-Diff", "17", lambda _: _evaluated("SD1.4 and BK-SDM-Tiny")),
    ("evaluations of 36 cloud steps, SDXL", "EC-Diff", "11", lambda _: _evaluated("SDXL and SSD-1B")),
    ("evaluations of 38 cloud steps, CogVideoX", "EC-Diff", "17", lambda _: _evaluated("CogVideoX 5B and 2B")),
)


def counted() -> pd.DataFrame:
    """Published numbers that follow from configurations, counted again. No weights, no images.

    Returns:
        One row each: claim, source, published, counted, verdict ("holds" where the count rounds to the published
        digits).
    """
    networks = {name: costs.published_network(name) for name in ("SD-v1.4", "BK-SDM-Tiny", "Hybrid SD 224M")}
    rows = []
    for claim, source, published, count in _COUNTED:
        digits = len(published.partition(".")[2])
        value = round(float(count(networks)), digits)
        rows.append((claim, source, published, f"{value:.{digits}f}", HOLDS if value == float(published) else FAILS))
    return pd.DataFrame(rows, columns=["claim", "source", "published", "counted", "verdict"])


def _saved(networks: dict[str, Network], split: str) -> float:
    made = [grids.large_first(split), grids.large_first("25,0")]
    cloud = costs.cost_table(made, *(networks[name] for name in _PAIR))["cloud_macs"]
    return float(100 * (1 - cloud[0] / cloud[1]))


def _evaluated(pair: str) -> int:
    return grids.thinned(grids.PUBLISHED_THINNED[pair], 50).large_evaluated


def measured(scores: pd.DataFrame, value: str = "correct") -> pd.DataFrame:
    """What the publications say of quality, tested on rows of a study, with 95 % intervals over seeds.

    Args:
        scores: as `quality.run` returns them, with both ends and splits of both orders; `value` is in 0..1.

    Returns:
        One row per claim: claim, source, statistic, measured, low, high, verdict.
    """
    wide = quality.by_seed(scores, value)
    first, second, thin = (_of(wide, method) for method in (grids.LARGE_FIRST, grids.SMALL_FIRST, grids.THINNED))
    steps = scores[scores["method"] == grids.LARGE_FIRST].groupby("split")["large_steps"].first().sort_values()
    large, small = first[steps.index[-1]], first[steps.index[0]]
    rows = [
        _row(
            f"the small model keeps {KEPT:.0%} of the large one's quality",
            "Hybrid SD",
            f"small - {KEPT:g} large",
            small - KEPT * large,
        )
    ]
    trend = quality.monotone(scores, value)
    rows.append(
        (
            "each update more of the large model helps, or at least costs nothing",
            "Hybrid SD",
            f"large - small; Page's test p = {trend.p_value:.2g}",
            *trend.rise,
            trend.verdict,
        )
    )
    if both := [split for split in second if split in first]:
        rows.append(
            _row(
                "the early steps need the large model (T-Stitch: the late ones do)",
                "Hybrid SD",
                "large first - small first, same cost",
                (first[both] - second[both]).mean(axis=1),
            )
        )
    for split in thin:
        change = thin[split] - large
        claim = f"thinned {split} keeps the large model's quality within {MARGIN:g}"
        rows.append(_row(claim, "EC-Diff", "thinned - large", change, (-MARGIN, np.inf)))
    return pd.DataFrame(rows, columns=["claim", "source", "statistic", "measured", "low", "high", "verdict"])


def _of(wide: pd.DataFrame, method: str) -> pd.DataFrame:
    """The columns of one method by split; none where it was not run."""
    return pd.DataFrame({key[1]: wide[key] for key in wide.columns if key[0] == method}, index=wide.index)


def _row(
    claim: str, source: str, statistic: str, runs: pd.Series, allowed: tuple[float, float] = POSITIVE
) -> tuple[str, str, str, float, float, float, str]:
    found = t_interval(runs)
    return claim, source, statistic, *found, verdict(found.low, found.high, allowed)
