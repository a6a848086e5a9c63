"""Charts of noise assignment: changes over sampling steps and of single measures, and what assigning costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.lines import Line2D

from .style import INK, finished

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GROUPS = {  # row of panels -> its arms and their colours
    "ignores the condition": {
        "independent": "#9aa1a9",
        "linear": "#b3261e",
        "KNN, as published": "#d5752d",
        "semidiscrete": "#c2649a",
        "farthest (control)": "#22262b",
        "unconditional, linear": "#8a7a55",
    },
    "minds the condition": {
        "linear, within condition": "#2a7f62",
        "linear, caption price": "#3b76af",
        "KNN, condition-centred": "#1c9aa0",
        "semidiscrete, within condition": "#6b55b5",
    },
}
ARM_COLOURS = {arm: colour for arms in GROUPS.values() for arm, colour in arms.items()}


def changes_over_steps(changes: pd.DataFrame, measure: str, unit: str = "%", title: str = "") -> Figure:
    """How far each arm lies from independent noise over the steps of sampling.

    Args:
        changes: model, start, arm, measure, steps, change, low, high. A column of panels for each network and start, a
            row for each group of arms; within a panel arms are moved apart so that bars do not hide.
    """
    part = changes[changes["measure"] == measure]
    columns = list(part.groupby(["model", "start"], sort=False))
    groups = {group: [arm for arm in arms if arm in set(part["arm"])] for group, arms in GROUPS.items()}
    groups = {group: arms for group, arms in groups.items() if arms}
    size = (2.5 * len(columns) + 2.6, 2.5 * len(groups) + 0.7)
    figure, axes = plt.subplots(len(groups), len(columns), figsize=size, sharex=True, sharey=True, squeeze=False)
    steps = sorted(part["steps"].unique())
    for row, (group, arms) in zip(axes, groups.items(), strict=True):
        for ax, ((model, start), rows) in zip(row, columns, strict=True):
            _lines(ax, rows, arms, steps)
            if ax in axes[0]:
                ax.set_title(f"{model}, {start}")
            if ax in axes[-1]:
                ax.set_xlabel("steps of sampling")
        handles = [Line2D([], [], marker="o", ms=3, lw=1, color=ARM_COLOURS[arm], label=arm) for arm in arms]
        place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "alignment": "left"}
        row[-1].legend(handles=handles, title=group, frameon=False, fontsize=8, title_fontsize=8, **place)
    _signed_ticks(axes[0][0])  # all panels share the axis
    figure.supylabel(f"change of {measure} ({unit})", fontsize=9)
    return finished(figure, title)


def _lines(ax: Axes, rows: pd.DataFrame, arms: list[str], steps: list[int]) -> None:
    """One panel: a line with bars for each arm."""
    ax.axhline(0, color="#9aa1a9", linewidth=0.8)
    for i, arm in enumerate(arms):
        line = rows[rows["arm"] == arm].sort_values("steps")
        places = [steps.index(s) + (i - (len(arms) - 1) / 2) * 0.6 / len(arms) for s in line["steps"]]
        spans = [line["change"] - line["low"], line["high"] - line["change"]]
        bars = spans if line["low"].notna().all() else None
        ax.errorbar(places, line["change"], bars, fmt="o-", color=ARM_COLOURS[arm], ms=3, lw=1, elinewidth=0.8)
    ax.set(xticks=range(len(steps)), xticklabels=[f"{s:g}" for s in steps], xlim=(-0.5, len(steps) - 0.5))


def changes_by_arm(changes: pd.DataFrame, measure: str, unit: str = "%", title: str = "") -> Figure:
    """One measure of every arm against independent noise, a panel for each network and start."""
    part = changes[changes["measure"] == measure]
    panels = list(part.groupby(["model", "start"], sort=False))
    names = [arm for arm in ARM_COLOURS if arm in set(part["arm"])]
    size = (2.6 * len(panels) + 2.2, 0.3 * len(names) + 1.2)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for ax, ((model, start), rows) in zip(axes[0], panels, strict=True):
        ax.axvline(0, color="#9aa1a9", linewidth=0.8)
        for _, row in rows.iterrows():
            place, colour = names.index(row["arm"]), ARM_COLOURS[row["arm"]]
            ax.plot([row["low"], row["high"]], [place, place], color=colour, lw=1.4)
            ax.plot(row["change"], place, "o", color=colour, ms=4)
        ax.set(title=f"{model}, {start}", xlabel=f"change ({unit})", yticks=range(len(names)), yticklabels=names)
    axes[0][0].set_ylim(len(names) - 0.5, -0.5)
    return finished(figure, title or measure)


def cost_shares(costs: pd.DataFrame, title: str = "") -> Figure:
    """Share of a training step that assigning takes, over batch size; a panel for each network and latent size."""
    panels = list(costs.groupby(["model", "side"], sort=False))
    figure, axes = plt.subplots(1, len(panels), figsize=(2.5 * len(panels) + 2.0, 3.2), sharey=True, squeeze=False)
    arms = list(costs["arm"].unique())
    colours = dict(zip(arms, sns.color_palette("colorblind", len(arms)), strict=True))
    for ax, ((model, side), rows) in zip(axes[0], panels, strict=True):
        for arm in arms:
            line = rows[rows["arm"] == arm]
            ax.plot(line["batch"], 100 * line["share"], "o-", ms=3, lw=1, color=colours[arm], label=arm)
        ax.axhline(5, color=INK, linewidth=0.6, linestyle=":")
        _plain_batches(ax, sorted(costs["batch"].unique()))
        ax.set_title(f"{model}, {side} x {side}")
    axes[0][0].set(ylabel="share of the step (%)", ylim=(0, None))
    axes[0][-1].legend(frameon=False, fontsize=7.5)
    return finished(figure, title)


def _signed_ticks(ax: Axes) -> None:
    """Linear to 10 and logarithmic beyond, with ticks at 1, 2 and 5 of each decade on both sides of 0."""
    low, high = ax.get_ylim()
    ax.set_yscale("symlog", linthresh=10)
    places = [0, *([1, 2] if max(-low, high) < 10 else []), 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]
    ticks = [sign * place for sign in (-1, 1) for place in places if low <= sign * place <= high]
    ax.set_yticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
    ax.minorticks_off()
    ax.set_ylim(low, high)


def _plain_batches(ax: Axes, batches: list[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(batches, [f"{b:,}" for b in batches])
    ax.minorticks_off()
    ax.set_xlabel("rows assigned at once")
