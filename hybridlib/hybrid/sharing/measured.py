"""What the scores of study 13 say: quality against saved work, promises against what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ...runs import t_interval
from .quality import RULES, kept_by_steps

ALONE, SHORTER, PUBLIC = "nothing shared", "fewer steps", "one public prompt"
OURS, EACH = "ours", "ours, each prompt"  # free to have fewer steps
SHARING, PROMPTS = "ours, full length", "ours, full length, no blends"
REUSE, SAGE = "2508.21032", "SAGE"
CELL = ["list", "prompt", "seed"]
EQUAL = 0.01  # within which two qualities count as equal


def steps_table(scores: pd.DataFrame, prompts: int, value: str = "clip") -> pd.DataFrame:
    """steps, the mean of the value and what is kept of it: mean, and both lower ends of `kept_by_steps`."""
    mean = scores.groupby("num_inference_steps")[value].mean().sort_index(ascending=False)
    table = pd.DataFrame({value: mean, "kept": mean / mean.iloc[0]})
    for name, each in (("list", False), ("each", True)):
        table[f"kept, {name}, at least"] = pd.Series(kept_by_steps(scores, prompts, each, value=value))
    return table.rename_axis("steps").reset_index()


def beside_alone(scores: pd.DataFrame, value: str = "clip") -> pd.DataFrame:
    """The table with `retained`: the score as a share of what nothing shared gives, same prompt and seed.

    As in `hiqm.Cube.retained`, the prompt's own score is subtracted before the list's mean level divides.

    Raises:
        ValueError: if a prompt and seed have no image with nothing shared, or the level of a list is not above 0.
    """
    reference = scores[scores["method"] == ALONE].set_index(CELL)[value]
    if not reference.index.is_unique:
        raise ValueError("every prompt and seed of a list needs one image with nothing shared, some have several")
    own = reference.reindex(pd.MultiIndex.from_frame(scores[CELL])).to_numpy()
    if np.isnan(own).any():
        raise ValueError("every prompt and seed of a list needs an image with nothing shared")
    level = scores["list"].map(reference.groupby("list").mean()).to_numpy()
    if not (level > 0).all():
        raise ValueError(f"retained quality is a share of a level above 0, one list has {level.min():g}")
    return scores.assign(retained=(scores[value] - own + level) / level)


def by_list(scores: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """Means of each plan over its prompts and seeds: kind, list, method, setting, nfe_share, and the values."""
    keys = ["kind", "list", "method", "setting"]
    return scores.groupby(keys, sort=False)[["nfe_share", *values]].mean().reset_index()


def summary(scores: pd.DataFrame, values: Sequence[str], confidence: float = 0.95) -> pd.DataFrame:
    """Means of each method and setting over the lists of a kind, with Student's t intervals over lists.

    Returns:
        kind, method, setting, lists, nfe_share, and for each value its mean, `<value>_low` and `<value>_high`.
    """
    rows = []
    for (kind, method, setting), part in by_list(scores, values).groupby(["kind", "method", "setting"], sort=False):
        row: dict[str, Any] = {"kind": kind, "method": method, "setting": setting, "lists": len(part)}
        row["nfe_share"] = part["nfe_share"].mean()
        for value in values:
            row[value], row[f"{value}_low"], row[f"{value}_high"] = t_interval(part[value], confidence)
        rows.append(row)
    return pd.DataFrame(rows)


def calibration(scores: pd.DataFrame) -> pd.DataFrame:
    """Expected beside measured quality of every plan that shares, for each rule, over its prompts and seeds.

    Returns:
        rule, kind, list, method, setting, predicted, measured, low, high (t interval of the measured mean over
        prompts), prompts. Plans of which nothing is expected, as their prompts are less alike than was fitted, are
        left out.
    """
    rows = []
    sharing = scores[(scores["nfe_share"] < 1) & (scores["method"] != SHORTER)]
    for (kind, name, method, setting), part in sharing.groupby(["kind", "list", "method", "setting"], sort=False):
        means = part.groupby("prompt")[["retained", *RULES]].mean()
        for rule in RULES:
            if means[rule].notna().all():
                told = dict(zip(("measured", "low", "high"), t_interval(means["retained"]), strict=True))
                cell: dict[str, Any] = {"rule": rule, "kind": kind, "list": name, "method": method, "setting": setting}
                rows.append(cell | {"predicted": means[rule].mean()} | told | {"prompts": len(means)})
    return pd.DataFrame(rows)


def calibration_errors(table: pd.DataFrame) -> pd.DataFrame:
    """For each rule: plans, mean of measured minus predicted (below 0: promised too much) and root mean square."""
    error = (table["measured"] - table["predicted"]).groupby(table["rule"], sort=False)
    squares = lambda values: float(np.sqrt((values**2).mean()))  # noqa: E731
    return pd.DataFrame({"plans": error.size(), "mean": error.mean(), "rms": error.agg(squares)})


def promises(scores: pd.DataFrame) -> pd.DataFrame:
    """How often a floor was kept: by single prompts (means over seeds) and by lists, for each method that has a floor.

    Returns:
        kind, method, floor, prompts, prompts_above, lists, lists_above (shares).
    """
    rows = []
    floors = scores[scores["method"].isin([OURS, EACH, SHARING, PROMPTS, PUBLIC])]
    for (kind, method, floor), part in floors.groupby(["kind", "method", "setting"], sort=False):
        single, whole = (part.groupby(keys)["retained"].mean() for keys in (["list", "prompt"], "list"))
        kept: dict[str, Any] = {"prompts": len(single), "prompts_above": (single >= floor).mean()}
        kept |= {"lists": len(whole), "lists_above": (whole >= floor).mean()}
        rows.append({"kind": kind, "method": method, "floor": floor} | kept)
    return pd.DataFrame(rows)


def at_equal_quality(scores: pd.DataFrame, value: str = "retained", method: str = OURS) -> pd.DataFrame:
    """NFE that each rival needs to come within `EQUAL` of the quality of our plans, minus what ours need, list by list.

    Between two settings of a method, ours too, the straight line is taken, and nothing shared closes its line. Of each
    list the mean over our settings is taken first.

    Returns:
        kind, rival, mean, low, high (share of the NFE of nothing shared; above 0: ours needs less), lists.
    """
    means = by_list(scores, [value])
    rows = []
    for (kind, name), part in means.groupby(["kind", "list"], sort=False):
        alone = part[part["method"] == ALONE]
        lines = {
            m: pd.concat([part[part["method"] == m], alone]) for m in (method, PUBLIC, REUSE, SAGE, SHORTER, ALONE)
        }
        wanted = part.loc[part["method"] == method, value] - EQUAL
        needed = {m: np.array([_nfe_for(line, value, quality) for quality in wanted]) for m, line in lines.items()}
        rows += [(kind, name, m, float((nfe - needed[method]).mean())) for m, nfe in needed.items() if m != method]
    table = pd.DataFrame(rows, columns=["kind", "list", "rival", "difference"])
    groups = table.groupby(["kind", "rival"], sort=False)["difference"]
    found = [(*key, *t_interval(values), len(values)) for key, values in groups]
    return pd.DataFrame(found, columns=["kind", "rival", "mean", "low", "high", "lists"])


def planning_cost(growth: pd.DataFrame, seconds_per_nfe: float) -> pd.DataFrame:
    """The table of `study.savings` with the seconds of denoising that a plan saves (`saved_s`), and planning in per
    cent of them."""
    saved = growth["nfe"] * (1 / growth["nfe_share"] - 1) * seconds_per_nfe
    return growth.assign(saved_s=saved, **{"planning, % of saved": 100 * growth["planning_s"] / saved})


def _nfe_for(line: pd.DataFrame, value: str, wanted: float) -> float:
    """Least share of NFE at which a line of plans reaches a quality; all of them where it never does."""
    points = line.sort_values("nfe_share")
    nfe, quality = points["nfe_share"].to_numpy(), np.maximum.accumulate(points[value].to_numpy())
    if quality[0] >= wanted:
        return float(nfe[0])
    reached = np.flatnonzero(quality >= wanted)
    if not len(reached):
        return 1.0
    at = reached[0]
    share_of = (wanted - quality[at - 1]) / (quality[at] - quality[at - 1])
    return float(nfe[at - 1] + share_of * (nfe[at] - nfe[at - 1]))
