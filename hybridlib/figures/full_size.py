"""Figures of models of true size: what they hold on the device under each memory plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np

from .style import PERSONAL, PUBLIC, finished

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def memory_bars(table: pd.DataFrame, lines_gb: Sequence[float] = (), title: str = "") -> Figure:
    """Weights that stay on the device and what comes on top, stacked, a panel a model and a bar a plan.

    Args:
        table: model, plan, weights_gb, activations_gb.
        lines_gb: sizes of devices, drawn across.
    """
    names = list(table["model"].unique())
    figure, axes = plt.subplots(1, len(names), figsize=(3.1 * len(names) + 0.6, 3.6), squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        part = table[table["model"] == name]
        places = np.arange(len(part))
        ax.bar(places, part["weights_gb"], color=PUBLIC, width=0.62, label="weights (counted)")
        ax.bar(
            places,
            part["activations_gb"],
            bottom=part["weights_gb"],
            color=PERSONAL,
            width=0.62,
            label="activations, passing layers (estimated)",
        )
        for size in lines_gb:
            ax.axhline(size, color="#9aa1a9", linewidth=0.8, linestyle=":", zorder=0)
        ax.set_xticks(places, part["plan"], rotation=20, fontsize=8.5)
        ax.set_title(name, fontsize=10)
    axes[0][0].set_ylabel("GB on the device")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    return finished(figure, title)
