"""The house plot style: colours that mean the same in every figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

if TYPE_CHECKING:
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
