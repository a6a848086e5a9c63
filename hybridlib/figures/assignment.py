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

ARM_COLOURS = {  # warm: ignores the condition, cool: minds it; grey: controls
    "independent": "#9aa1a9",
    "linear": "#b3261e",
    "linear, within condition": "#2a7f62",
    "linear, caption price": "#3b76af",
    "KNN, as published": "#d5752d",
    "KNN, condition-centred": "#1c9aa0",
    "semidiscrete": "#c2649a",
    "semidiscrete, within condition": "#6b55b5",
    "farthest (control)": "#22262b",
    "unconditional, linear": "#8a7a55",
}


def changes_over_steps(changes: pd.DataFrame, measure: str, unit: str = "%", title: str = "") -> Figure:
    """How far each arm lies from independent noise over the steps of sampling; a panel for each network and start.

    Args:
        changes: model, start, arm, measure, steps, change, low, high; arms are moved apart so that bars do not hide.
    """
    part = changes[changes["measure"] == measure]
    panels = list(part.groupby(["model", "start"], sort=False))
    figure, axes = plt.subplots(1, len(panels), figsize=(3.4 * len(panels) + 2.2, 3.6), sharey=True, squeeze=False)
    names = [arm for arm in ARM_COLOURS if arm in set(part["arm"])]
    steps = sorted(part["steps"].unique())
    for ax, ((model, start), rows) in zip(axes[0], panels, strict=True):
        ax.axhline(0, color="#9aa1a9", linewidth=0.8)
        for i, arm in enumerate(names):
            line = rows[rows["arm"] == arm].sort_values("steps")
            if line.empty:
                continue
            places = [steps.index(s) + (i - (len(names) - 1) / 2) * 0.6 / len(names) for s in line["steps"]]
            spans = [line["change"] - line["low"], line["high"] - line["change"]]
            bars = spans if line["low"].notna().all() else None
            ax.errorbar(
                places, line["change"], bars, fmt="o-", color=ARM_COLOURS[arm], ms=3, lw=1, elinewidth=0.8, label=arm
            )
        ax.set(xticks=range(len(steps)), xticklabels=[f"{s:g}" for s in steps], xlabel="steps of sampling")
        ax.set_title(f"{model}, {start}")
        ax.set_xlim(-0.5, len(steps) - 0.5)
    _signed_ticks(axes[0][0])  # all panels share the axis
    axes[0][0].set_ylabel(f"change of {measure} ({unit})")
    handles = [Line2D([], [], marker="o", ms=3, lw=1, color=ARM_COLOURS[arm], label=arm) for arm in names]
    figure.legend(handles=handles, frameon=False, fontsize=8, loc="outside right center")
    return finished(figure, title)


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
