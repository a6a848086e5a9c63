"""Figures of what a low mean delay costs, and how that price can be chosen."""

from __future__ import annotations

from itertools import pairwise

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from .scheduling import COLOURS, short, style
from .style import INK, finished, label_ends, plain_logs

OURS = "fluid split (ours)"


def prices(table: pd.DataFrame, title: str = "") -> Figure:
    """What each policy's mean costs: its delays beside those of Opt-TS on the same tasks, with the change in per cent.

    Args:
        table: as `price.summary` returns it, of one number of slots, without the rows of Opt-TS itself.
    """
    seconds, shares = table.dropna(subset=["ratio"]), table[table["measure"] == "slower_share"]
    policies = list(dict.fromkeys(table["policy"]))
    figure, axes = plt.subplots(1, len(policies), figsize=(2.2 + 4.4 * len(policies), 3.8), sharey=True, squeeze=False)
    for ax, policy in zip(axes[0], policies, strict=True):
        rows = seconds[seconds["policy"] == policy].reset_index(drop=True)
        colour = COLOURS.get(policy, COLOURS[OURS])
        for at, row in rows.iterrows():
            ax.plot([row["opt_ts"], row["estimate"]], [at, at], color=colour, linewidth=1.2, alpha=0.35, zorder=1)
            ax.plot([row["low"], row["high"]], [at, at], color=colour, linewidth=3, zorder=2)
            change = f"{100 * (row['ratio'] - 1):+.0f} %"
            ax.annotate(change, (1.02, at), xycoords=("axes fraction", "data"), va="center", fontsize=8.5)
        ax.plot(rows["estimate"], rows.index, "o", color=colour, markersize=5.5, label=short(policy), zorder=3)
        ax.plot(rows["opt_ts"], rows.index, "|", color=INK, markersize=11, markeredgewidth=1.6, label="Opt-TS")
        ax.set(xscale="log", yticks=rows.index, yticklabels=rows["what"])
        share = shares.loc[shares["policy"] == policy, "estimate"].iloc[0]
        ax.set_xlabel(f"delay (s); right: change against Opt-TS\n{100 * share:.0f} % of tasks slower than under Opt-TS")
        plain_logs(ax)
        ax.legend(frameon=False, fontsize=8.5, loc="lower left")
    axes[0][0].invert_yaxis()
    return finished(figure, title)


def front(fronts: pd.DataFrame, horizons: pd.DataFrame, title: str = "") -> Figure:
    """Left: mean delay against tail, our settings joined in order of their deadline. Right: mean against horizon.

    Args:
        fronts: as `price.summary` returns it, of one number of slots.
        horizons: the same at several numbers of slots played; drawn as multiples of Opt-TS.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.4, 4.0), width_ratios=[1.15, 1])
    both = fronts[fronts["measure"].isin(["mean_s", "p99_s"])]
    points = both.pivot(index="policy", columns="measure", values="estimate")
    ours = points[points.index.str.startswith("fluid")].sort_values("p99_s")
    left.plot(ours["p99_s"], ours["mean_s"], color=COLOURS[OURS], linewidth=1.2, alpha=0.5)
    beneath = _beneath(ours) | _beneath(points.drop(ours.index).sort_values("p99_s"))
    for policy, row in points.iterrows():
        mine = str(policy).startswith("fluid")
        colour = COLOURS[OURS] if mine else INK
        left.plot(row["p99_s"], row["mean_s"], "o", color=colour, markersize=6)
        label = f"ours, {_deadline(policy) or 'no deadline'}" if mine else short(str(policy))
        beside = (6, -13 if policy in beneath else 6)
        at = (row["p99_s"], row["mean_s"])
        left.annotate(label, at, beside, textcoords="offset points", ha="left", fontsize=8.5, color=colour)
    left.set(xlabel="99th percentile of the delay (s)", ylabel="mean delay (s)")
    left.margins(x=0.2, y=0.14)
    means, ends = horizons[horizons["measure"] == "mean_s"], {}
    for policy, part in means.groupby("policy", sort=False):
        look = style(OURS if str(policy).startswith("fluid") else str(policy))
        if _deadline(policy):
            look |= {"linestyle": (0, (4, 2))}
        right.plot(part["slots"], part["ratio"], **look)
        ends[_deadline(policy) or short(str(policy))] = (
            float(part["slots"].iloc[-1]),
            float(part["ratio"].iloc[-1]),
            look["color"],
        )
    right.set(xscale="log", yscale="log", xlabel="slots played", ylabel="mean delay, multiple of Opt-TS")
    right.set_ylim(means["ratio"].min() / 1.06, means["ratio"].max() * 1.06)
    right.yaxis.set_major_locator(FixedLocator([0.5, 0.6, 0.7, 0.8, 0.9, 1.0]))
    right.yaxis.set_major_formatter("{x:.1f}")
    right.yaxis.set_minor_locator(NullLocator())
    right.set_xticks(sorted(set(means["slots"])), [str(s) for s in sorted(set(means["slots"]))], minor=False)
    right.xaxis.set_minor_locator(NullLocator())
    label_ends(right, ends)
    return finished(figure, title)


def _beneath(points: pd.DataFrame, near_s: tuple[float, float] = (5.0, 0.4)) -> set[str]:
    """Of two points that lie close to each other, the lower one, whose label goes beneath it."""
    found: set[str] = set()
    for (left, a), (right, b) in pairwise(points.iterrows()):
        if b["p99_s"] - a["p99_s"] < near_s[0] and abs(b["mean_s"] - a["mean_s"]) < near_s[1]:
            found.add(str(left if a["mean_s"] < b["mean_s"] else right))
    return found


def _deadline(policy: object) -> str:
    """The setting of our scheduler's knob, such as "deadline 13 s"; empty where it has none."""
    return str(policy).partition(", ")[2] if str(policy).startswith(OURS) else ""
