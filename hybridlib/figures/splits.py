"""Figures of splits between a large and a small denoiser: quality against compute, and mixtures of all savings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.lines import Line2D

from .style import INK, PERSONAL, PUBLIC, STEP_COLOURS, VARIANT_COLOURS, finished

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

LOOKS = {  # method -> colour, marker, line
    "large first": (PUBLIC, "o", "-"),
    "small first": (PERSONAL, "s", "-"),
    "thinned": (VARIANT_COLOURS[0], "^", "--"),
    "mask": (VARIANT_COLOURS[1], "D", ""),
}


def quality_against_compute(
    table: pd.DataFrame,
    compute: Mapping[str, str],
    ylabel: str,
    reference: tuple[float, float] | None = None,
    title: str = "",
) -> Figure:
    """Mean quality with its interval against compute, one line a method, a panel for each column of compute.

    Args:
        table: method, split, mean, low, high, and the columns of compute.
        compute: column -> its name for readers.
        reference: band of the large denoiser alone, drawn across.
    """
    figure, axes = plt.subplots(1, len(compute), figsize=(4.6 * len(compute) + 1.4, 3.8), sharey=True, squeeze=False)
    for ax, (column, name) in zip(axes[0], compute.items(), strict=True):
        if reference is not None:
            ax.axhspan(*reference, color="#9aa1a9", alpha=0.18, linewidth=0, label="large alone, 95 %")
        for method, (colour, marker, line) in LOOKS.items():
            part = table[table["method"] == method].sort_values(column)
            if part.empty:
                continue
            shape = f"{marker}{line}" if line else marker
            ax.plot(part[column], part["mean"], shape, color=colour, markersize=4.5, linewidth=1.3, label=method)
            ax.vlines(part[column], part["low"], part["high"], color=colour, linewidth=1, alpha=0.5)
            for _, row in part.iterrows() if method == "large first" else ():
                at = (row[column], row["mean"])
                ax.annotate(row["split"], at, (0, 7), textcoords="offset points", ha="center", fontsize=7.5, color=INK)
        ax.set(xlabel=name)
        ax.margins(y=0.15)
    axes[0][0].set_ylabel(ylabel)
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=8.5)
    return finished(figure, title)


def mixture_front(summary: pd.DataFrame, ylabel: str, title: str = "") -> Figure:
    """Quality of every mixture against edge compute and against bytes on the link.

    Colour is the number of shared updates, the marker is the codec; filled points are on the Pareto front of quality,
    edge compute and bytes together, and carry their split.

    Args:
        summary: as `mixtures.summary` returns it.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10.6, 4.2), sharey=True)
    shared = sorted(summary["common_step"].unique())
    colours = dict(zip(shared, sns.color_palette(STEP_COLOURS, len(shared)), strict=True))
    markers = dict(zip(dict.fromkeys(summary["codec"]), "os^Dvp*", strict=False))
    jumps = summary.assign(edge=summary["edge_macs"] / 1e6)
    for ax, column, name in (
        (axes[0], "edge", "multiply-adds at the edge (millions)"),
        (axes[1], "message_bytes", "bytes on the link"),
    ):
        for _, row in jumps.iterrows():
            colour = colours[row["common_step"]]
            face = colour if row["front"] else "none"
            marker = markers[row["codec"]]
            at = (row[column], row["quality"])
            ax.scatter(*at, s=34, marker=marker, facecolors=face, edgecolors=[colour], linewidths=1.2, zorder=3)
        front = jumps[jumps["front"]].sort_values([column, "quality"])
        best = front[front["quality"] >= front["quality"].cummax()]
        ax.step(best[column], best["quality"], where="post", color="#9aa1a9", linewidth=1, zorder=1)
        for _, row in front.drop_duplicates([column, "quality"]).iterrows():
            at = (row[column], row["quality"])
            ax.annotate(row["split"], at, (5, 4), textcoords="offset points", fontsize=7.5, color=INK)
        ax.set(xlabel=name)
        ax.margins(x=0.1, y=0.12)
    if (summary["message_bytes"] > 0).any():
        smallest = summary.loc[summary["message_bytes"] > 0, "message_bytes"].min()
        axes[1].set_xscale("symlog", linthresh=float(2 ** np.floor(np.log2(smallest))))
        axes[1].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes[1].xaxis.set_minor_formatter(lambda value, _: "")
    axes[0].set_ylabel(ylabel)
    handles = [Line2D([], [], color=c, marker="o", linestyle="", label=f"{n} shared") for n, c in colours.items()]
    handles += [
        Line2D([], [], marker=marker, label=codec, color=INK, linestyle="", markerfacecolor="none")
        for codec, marker in markers.items()
    ]
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8.5)
    return finished(figure, title)
