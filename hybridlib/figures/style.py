"""The house plot style: colours that mean the same in every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#22262b"
PUBLIC, PERSONAL = "#3b76af", "#d5752d"  # the two phases, wherever they appear
STEP_COLOURS, SIMILARITY_COLOURS = "flare", "crest"  # sequential, one for common steps, one for similarity
VARIANT_COLOURS = ("#2a7f62", "#8d5aa5")  # with SIM and NPI, without


def use_house_style() -> None:
    """Set defaults for every figure of the project, and let tables show their sentences whole."""
    pd.set_option("display.max_colwidth", None)
    sns.set_theme(
        context="notebook",
        style="ticks",
        palette="colorblind",
        rc={
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titleweight": "bold",
            "axes.titlesize": 10.5,
            "axes.labelsize": 9.5,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": "#9aa1a9",
            "xtick.labelsize": 8.5,
            "ytick.labelsize": 8.5,
            "xtick.color": INK,
            "ytick.color": INK,
            "legend.title_fontsize": 9,
            "figure.dpi": 96,
            "savefig.bbox": "tight",
            "figure.constrained_layout.use": True,
        },
    )


def finished(figure: Figure, title: str = "") -> Figure:
    """Give the figure its title and close it; the notebook shows what is returned, once."""
    if title:
        figure.suptitle(title, fontsize=11, fontweight="bold")
    plt.close(figure)
    return figure


def plain_logs(ax: Axes) -> None:
    """Plain numbers on logarithmic axes, at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import LogLocator

    for which, scale in ((ax.xaxis, ax.get_xscale()), (ax.yaxis, ax.get_yscale())):
        if scale == "log":
            which.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            which.set_major_formatter(lambda value, _: f"{value:g}")
            which.set_minor_formatter(lambda value, _: "")


def label_ends(ax: Axes, ends: Mapping[str, tuple[float, float, str]], gap: float = 0.052) -> None:
    """Names right of the axes, moved apart where they would overlap, each tied to the end of its line by a leader.

    Args:
        ends: name -> x and y of the end, and colour. The y axis is logarithmic and its limits are final.
    """
    low, high = np.log(ax.get_ylim())
    names = sorted(ends, key=lambda n: ends[n][1])
    wanted = [(float(np.log(ends[n][1])) - low) / (high - low) for n in names]
    for name, place in zip(names, _apart(wanted, gap), strict=True):
        x, y, colour = ends[name]
        ax.annotate(
            name,
            (x, y),
            xytext=(1.06, place),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=colour,
            fontweight="bold" if name == "ours" else "normal",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0}
            | {"relpos": (0.0, 0.5)},
        )


def _apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Ascending places at least `gap` apart, each group centred on what its members want."""
    groups: list[list[float]] = []
    for place in wanted:
        groups.append([place])
        while len(groups) > 1:
            upper, lower = groups[-1], groups[-2]
            reach = (len(upper) + len(lower)) / 2 * gap
            if np.mean(upper) - np.mean(lower) >= reach:
                break
            groups[-2:] = [lower + upper]
    return [float(np.mean(g)) + (i - (len(g) - 1) / 2) * gap for g in groups for i in range(len(g))]
