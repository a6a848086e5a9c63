"""Charts that every study uses: costs as bars, means with intervals as lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.patches import Rectangle

from .style import PUBLIC, STEP_COLOURS, VARIANT_COLOURS, finished

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def cost_bars(costs: dict[str, tuple[float, float]], title: str = "") -> Figure:
    """Denoiser evaluations per set: what the published scripts spend against what the tree needs."""
    figure, ax = plt.subplots(figsize=(6.2, 0.62 * len(costs) + 1.1))
    for row, (published, tree) in enumerate(costs.values()):
        ax.barh(row, published, height=0.62, color="#d9dde1")
        ax.barh(row, tree, height=0.34, color=PUBLIC)
        ax.annotate(
            f"{tree / published:.0%}", (tree, row), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9
        )
    ax.set(yticks=range(len(costs)), yticklabels=list(costs), xlabel="denoiser evaluations (NFE)", title=title)
    ax.invert_yaxis()
    handles = [Rectangle((0, 0), 1, 1, color=c) for c in ("#d9dde1", PUBLIC)]
    ax.legend(handles, ["published scripts", "denoising tree"], frameon=False, fontsize=8.5, loc="lower right")
    return finished(figure)


def interval_lines(
    means: pd.DataFrame,
    x: str,
    lines: str,
    panels: str | None = None,
    labels: Mapping[str, str] | None = None,
    panel_names: Mapping[Any, str] | None = None,
    palette: Any = STEP_COLOURS,
    title: str = "",
) -> Figure:
    """One line with its interval for each value of `lines`, a panel for each value of `panels`.

    `means` is a table as `fits.clustered_means` returns it; `labels` names columns (and `mean`) as a reader would.
    """
    labels, panel_names = labels or {}, panel_names or {}
    keys = [None] if panels is None else [k for k in panel_names or means[panels].unique() if k in set(means[panels])]
    figure, axes = plt.subplots(1, len(keys), figsize=(4.3 * len(keys) + 1.1, 3.5), sharey=True, squeeze=False)
    values = (
        list(dict.fromkeys(means[lines])) if means[lines].dtype.kind not in "iuf" else sorted(means[lines].unique())
    )
    colours = dict(zip(values, sns.color_palette(palette, len(values)), strict=True))
    for ax, key in zip(axes[0], keys, strict=True):
        part = means if key is None else means[means[panels] == key]
        for value in values:
            line = part[part[lines] == value].sort_values(x)
            name = value if isinstance(value, str) else f"{value:g}"
            ax.plot(line[x], line["mean"], "o-", color=colours[value], markersize=3.5, label=name)
            ax.fill_between(line[x], line["low"], line["high"], color=colours[value], alpha=0.15, linewidth=0)
        if means["low"].min() < 0 < means["high"].max():
            ax.axhline(0, color="#9aa1a9", linewidth=1, zorder=0)
        ax.set(xlabel=labels.get(x, x), title=panel_names.get(key, "" if key is None else str(key)))
    axes[0][0].set_ylabel(labels.get("mean", "mean"))
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(
        handles, names, title=labels.get(lines, lines), loc="outside right center", frameon=False, fontsize=8.5
    )
    return finished(figure, title)


def interval_panels(
    means: pd.DataFrame,
    x: str,
    panels: str,
    lines: str,
    line_names: Mapping[Any, str],
    labels: Mapping[str, str],
    title: str = "",
    columns: int = 4,
) -> Figure:
    """A small panel for each value of `panels`, in it a line with its interval for each of `lines`.

    Args:
        means: columns mean, low, high beside those named, as `intervals.changes_from` or `hiqm.curve_table` gives.
        line_names: value of `lines` -> its name, two at most.
        labels: names of the columns `x`, `panels` and `mean` for readers.
    """
    values = sorted(means[panels].unique())
    rows = -(-len(values) // columns)
    across = min(columns, len(values))
    size = (2.45 * across + 0.6, 2.15 * rows + 0.9)
    figure, axes = plt.subplots(rows, across, figsize=size, sharex=True, sharey=True, squeeze=False)
    for ax, value in zip(axes.flat, values, strict=False):
        ax.axhline(0, color="#9aa1a9", linewidth=1, zorder=0)
        for colour, (line, name) in zip(reversed(VARIANT_COLOURS), line_names.items(), strict=False):
            part = means[(means[panels] == value) & (means[lines] == line)].sort_values(x)
            ax.fill_between(part[x], part["low"], part["high"], color=colour, alpha=0.16, linewidth=0)
            ax.plot(part[x], part["mean"], "o-", color=colour, markersize=3, linewidth=1.5, label=name)
        ax.set_title(f"{labels.get(panels, panels)} {value:g}")
    for ax in axes.flat[len(values) :]:
        ax.set_axis_off()
    for column in range(across):  # the lowest panel of each column, the last row may be short
        lowest = max(i for i in range(len(values)) if i % across == column)
        axes.flat[lowest].tick_params(labelbottom=True)
    figure.supxlabel(labels.get(x, x), fontsize=9.5)
    figure.supylabel(labels.get("mean", "mean"), fontsize=9.5)
    handles, names = axes[0][0].get_legend_handles_labels()
    if len(values) < rows * across:
        axes.flat[-1].legend(handles, names, loc="center", frameon=False, fontsize=8.5)
    else:
        figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=8.5)
    return finished(figure, title)
