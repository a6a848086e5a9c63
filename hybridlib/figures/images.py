"""Images side by side: grids and filmstrips."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.lines import Line2D

from .style import PERSONAL, PUBLIC, finished

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


def image_grid(
    images: Sequence[Sequence[Image | None]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    title: str = "",
    row_axis: str = "",
    column_axis: str = "",
    cell: float = 1.05,
) -> Figure:
    """Images in rows and columns with labels outside; `None` leaves a cell empty. `cell` is its size in inches."""
    rows, columns = len(images), max(len(row) for row in images)
    label_width = 1.9 if row_labels else 0.1
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(columns * cell + label_width, rows * cell + (0.75 if title or column_labels else 0.1)),
        squeeze=False,
    )
    figure.set_layout_engine("constrained", w_pad=0.015, h_pad=0.015, wspace=0.0, hspace=0.0)
    for r, row in enumerate(images):
        for c in range(columns):
            ax = axes[r, c]
            ax.set(xticks=[], yticks=[])
            sns.despine(ax=ax, left=True, bottom=True)
            if c < len(row) and (image := row[c]) is not None:
                ax.imshow(image, interpolation="lanczos" if image.width < 256 else "antialiased")
    for c, label in enumerate(column_labels):
        axes[0, c].set_title(textwrap.fill(label, 16), fontsize=8.5, fontweight="normal", pad=4)
    for r, label in enumerate(row_labels):
        axes[r, 0].set_ylabel(textwrap.fill(label, 26), rotation=0, ha="right", va="center", fontsize=8.5, labelpad=8)
    if column_axis:
        figure.supxlabel(column_axis, fontsize=9)
    if row_axis:
        figure.supylabel(row_axis, fontsize=9)
    return finished(figure, title)


def filmstrip(
    strips: dict[str, Sequence[Image]],
    steps: Sequence[int],
    handovers: Sequence[int],
    title: str = "",
    cell: float = 0.78,
) -> Figure:
    """One row of intermediate images per trajectory, underlined in the colour of the prompt that made them.

    `steps` are the numbers of updates made when each image was decoded; `handovers` the common step of each row.
    """
    figure = image_grid(
        list(strips.values()), list(strips), [str(step) for step in steps], title, column_axis="updates made", cell=cell
    )
    for index, ax in enumerate(figure.axes):
        row, column = divmod(index, len(steps))
        colour = PUBLIC if steps[column] <= handovers[row] else PERSONAL
        ax.axhline(ax.get_ylim()[0], color=colour, linewidth=5, clip_on=False)
    handles = [Line2D([], [], color=c, linewidth=5) for c in (PUBLIC, PERSONAL)]
    figure.legend(
        handles, ["public prompt", "own prompt"], loc="outside lower right", ncols=2, frameon=False, fontsize=8.5
    )
    return figure
