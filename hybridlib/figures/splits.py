"""Figures of splits between a large and a small denoiser: quality against compute, and mixtures of all savings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.lines import Line2D

from .style import INK, PERSONAL, PUBLIC, STEP_COLOURS, VARIANT_COLOURS, finished

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS = {  # method -> colour, marker, line
    "large first": (PUBLIC, "o", "-"),
    "small first": (PERSONAL, "s", "-"),
    "thinned": (VARIANT_COLOURS[0], "^", ""),
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
                ax.annotate(row["split"], at, (4, 5), textcoords="offset points", fontsize=7.5, color=INK)
        ax.set(xlabel=name)
        ax.margins(y=0.15)
    axes[0][0].set_ylabel(ylabel)
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=8.5)
    return finished(figure, title)


def mixture_front(summary: pd.DataFrame, ylabel: str, title: str = "") -> Figure:
    """Quality of every mixture against compute in the cloud, compute at the edge, and bytes on the link.

    Colour is the number of shared updates, the marker is the codec. Filled points are those that no other beats in
    quality and all three costs together; the line joins those that none beats in the panel's cost alone.

    Args:
        summary: as `mixtures.summary` returns it.
    """
    figure, axes = plt.subplots(1, 3, figsize=(13.2, 4.0), sharey=True)
    shared = sorted(summary["common_step"].unique())
    colours = dict(zip(shared, sns.color_palette(STEP_COLOURS, len(shared)), strict=True))
    markers = dict(zip(dict.fromkeys(summary["codec"]), "os^Dvp*", strict=False))
    shown = summary.assign(cloud=summary["cloud_macs"] / 1e6, edge=summary["edge_macs"] / 1e6)
    names = {
        "cloud": "multiply-adds in the cloud (millions)",
        "edge": "multiply-adds at the edge (millions)",
        "message_bytes": "bytes on the link",
    }
    if (sent := summary.loc[summary["message_bytes"] > 0, "message_bytes"]).size:
        axes[2].set_xscale("symlog", linthresh=float(2 ** np.floor(np.log2(sent.min()))))
        axes[2].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes[2].xaxis.set_minor_formatter(lambda value, _: "")
    for ax, (column, name) in zip(axes, names.items(), strict=True):
        for _, row in shown.iterrows():
            colour, marker = colours[row["common_step"]], markers[row["codec"]]
            face = colour if row["front_with_cloud"] else "none"
            at = (row[column], row["quality"])
            ax.scatter(*at, s=34, marker=marker, facecolors=face, edgecolors=[colour], linewidths=1.2, zorder=3)
        ordered = shown.sort_values([column, "quality"], ascending=[True, False])
        best = ordered[ordered["quality"] > ordered["quality"].cummax().shift(fill_value=-np.inf)]
        ax.step(best[column], best["quality"], where="post", color="#9aa1a9", linewidth=1, zorder=1)
        ax.set(xlabel=name)
        ax.margins(x=0.1, y=0.12)
        _name_points(ax, best[column], best["quality"], best["split"])
    axes[0].set_ylabel(ylabel)
    handles = [
        Line2D([], [], color=c, marker="o", linestyle="", label=f"{n} shared updates") for n, c in colours.items()
    ]
    handles += [
        Line2D([], [], marker=marker, label=codec, color=INK, linestyle="", markerfacecolor="none")
        for codec, marker in markers.items()
    ]
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8.5)
    return finished(figure, title)


def _name_points(ax: Axes, x: Iterable[float], y: Iterable[float], names: Iterable[str]) -> None:
    """Names above and left of the points of a front, where nothing can lie; the best first, and none on another."""
    placed: list[np.ndarray] = []
    for across, up, name in sorted(zip(x, y, names, strict=True), key=lambda point: -point[1]):
        where = ax.transAxes.inverted().transform(ax.transData.transform((across, up)))
        if all((abs(where - other) > (0.14, 0.05)).any() for other in placed):
            placed.append(where)
            ax.annotate(name, (across, up), (-3, 3), textcoords="offset points", fontsize=7.5, color=INK, ha="right")
