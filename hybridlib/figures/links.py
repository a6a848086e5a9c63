"""Figures of latents on a link: quality against rate, and the quality surface."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from numpy.typing import NDArray

from .style import INK, PUBLIC, SIMILARITY_COLOURS, STEP_COLOURS, finished

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Surface = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


def quality_lines(
    means: Mapping[str, pd.DataFrame], strength: str, labels: Mapping[str, str], title: str = ""
) -> Figure:
    """Each quality against the strength, a line per step, and against the step, a line per strength.

    Args:
        means: name of a quality -> table of step, `strength`, mean, low, high, as `fits.clustered_means` returns it.
        labels: of the columns, as a reader would name them.
    """
    figure, axes = plt.subplots(len(means), 2, figsize=(9.2, 3.1 * len(means)), sharey="row", squeeze=False)
    for row, (quality, table) in zip(axes, means.items(), strict=True):
        for ax, x, lines, palette in (
            (row[0], strength, "step", STEP_COLOURS),
            (row[1], "step", strength, SIMILARITY_COLOURS),
        ):
            values = sorted(table[lines].unique())
            for value, colour in zip(values, sns.color_palette(palette, len(values)), strict=True):
                line = table[table[lines] == value].sort_values(x)
                ax.plot(line[x], line["mean"], "o-", color=colour, markersize=3, linewidth=1.2, label=f"{value:g}")
                ax.fill_between(line[x], line["low"], line["high"], color=colour, alpha=0.15, linewidth=0)
            ax.set(xlabel=labels[x])
            ax.legend(title=labels[lines], fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        row[0].set_ylabel(quality)
    return finished(figure, title)


def rate_distortion(
    rates: pd.DataFrame,
    quality: str,
    ylabel: str,
    raw_bytes: int,
    pictures: pd.DataFrame | None = None,
    title: str = "",
) -> Figure:
    """Mean quality against mean bytes on the link, a panel for each step and a line for each codec family.

    Args:
        rates: one row per image: step, family, codec, message_bytes and `quality`.
        raw_bytes: of the latents as 16-bit floats, drawn as a vertical line.
        pictures: coded final images (columns format, bytes and `quality`), drawn as crosses.
    """
    steps, families = sorted(rates["step"].unique()), list(dict.fromkeys(rates["family"]))
    means = rates.groupby(["step", "family", "codec"], as_index=False)[["message_bytes", quality]].mean()
    columns = min(len(steps), 4)
    rows = -(-len(steps) // columns)
    size = (2.9 * columns + 1.9, 3.0 * rows + 0.4)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    colours = family_colours(families)
    for ax in axes.ravel()[len(steps) :]:
        ax.set_axis_off()
    for ax, step in zip(axes.ravel(), steps, strict=False):
        for family in families:
            line = means[(means["step"] == step) & (means["family"] == family)].sort_values("message_bytes")
            ax.plot(line["message_bytes"], line[quality], "o-", color=colours[family], markersize=3.5, label=family)
        ax.axvline(raw_bytes, color="#9aa1a9", linewidth=1, linestyle="--", label="fp16, uncoded")
        if pictures is not None:
            shown = pictures[np.isfinite(pictures[quality])]
            ax.plot(shown["bytes"], shown[quality], "x", color=INK, markersize=5, label="final image, coded")
        ax.set(xscale="log", title=f"after update {step}")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.xaxis.set_minor_formatter(lambda value, _: "")
    figure.supxlabel("bytes on the link, headers included", fontsize=9.5)
    figure.supylabel(ylabel, fontsize=9.5)
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=8.5)
    return finished(figure, title)


def family_colours(families: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """One colour per codec family, the same in every figure."""
    return dict(zip(families, sns.color_palette("colorblind", len(families)), strict=True))


def bytes_needed(needed: pd.DataFrame, raw_bytes: int, ylabel: str, title: str = "") -> Figure:
    """Bytes that each codec family needs at each step for one quality; `needed` as `rates.bytes_at` returns it."""
    figure, ax = plt.subplots(figsize=(7.4, 3.6))
    for family, colour in family_colours(list(needed.columns)).items():
        ax.plot(needed.index, needed[family], "o-", color=colour, markersize=4, label=family)
    ax.axhline(raw_bytes, color="#9aa1a9", linewidth=1, linestyle="--", label="fp16, uncoded")
    ax.set(xlabel="coded after update", ylabel=ylabel, yscale="log")
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:g}"[0] in "25" else "")
    ax.legend(fontsize=8.5, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return finished(figure, title)


def parabola_fits(scores: pd.DataFrame, parabolas: pd.DataFrame, title: str = "") -> Figure:
    """Mean SSIM of each step (points) and the parabola through them, beside the published parabola; a panel a depth.

    Args:
        scores: bits, step, ssim; one row per image.
        parabolas: as `link_claims.parabolas` returns them.
    """
    depths = list(dict.fromkeys(parabolas.index.get_level_values("bits")))
    figure, axes = plt.subplots(1, len(depths), figsize=(3.3 * len(depths) + 1.2, 3.1), sharey=True, squeeze=False)
    for ax, bits in zip(axes[0], depths, strict=True):
        points = scores[scores["bits"] == bits].groupby("step")["ssim"].mean()
        steps = np.linspace(points.index.min(), points.index.max(), 100)
        for source, colour, style in (("published", INK, "--"), ("measured", PUBLIC, "-")):
            a, b, c = parabolas.loc[(bits, source), ["a", "b", "c"]].astype(float)
            label = f"{source} parabola"
            ax.plot(steps, a * steps**2 + b * steps + c, style, color=colour, linewidth=1.3, label=label)
        ax.plot(points.index, points, "o", color=PUBLIC, markersize=4, label="measured mean")
        ax.set(xlabel="after update", title=f"{bits} bits")
    axes[0][0].set_ylabel("SSIM")
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=8.5)
    return finished(figure, title)


def quality_surface(
    cells: pd.DataFrame, models: Mapping[str, Surface], labels: Sequence[str], title: str = ""
) -> Figure:
    """Fitted surfaces over normalised step and ratio: in three dimensions with the cell means, and as contours.

    Args:
        cells: columns s, r (both normalised to 0..1) and q, one row per cell.
        models: name -> function of (s, r).
        labels: of the axes s, r and q.
    """
    s, r = np.meshgrid(np.linspace(0, 1, 50), np.linspace(0, 1, 50), indexing="ij")
    figure = plt.figure(figsize=(4.2 * len(models), 7.0))
    low, high = cells["q"].min(), cells["q"].max()
    for column, (name, model) in enumerate(models.items(), start=1):
        q = model(s, r)
        ax = figure.add_subplot(2, len(models), column, projection="3d")
        ax.plot_surface(s, r, q, cmap="mako", alpha=0.75, linewidth=0, vmin=low, vmax=high)
        ax.scatter(cells["s"], cells["r"], cells["q"], s=6, color=INK)
        ax.set(xlabel=labels[0], ylabel=labels[1], zlabel=labels[2], title=name)
        ax.view_init(elev=24, azim=125)  # early and coarse, where quality falls, is the near corner
        ax.set_box_aspect((1, 1, 0.8), zoom=0.86)
        ax.tick_params(labelsize=7, pad=0)
        flat = figure.add_subplot(2, len(models), len(models) + column)
        filled = flat.contourf(s, r, q, levels=np.linspace(low, high, 15), cmap="mako", extend="both")
        flat.scatter(
            cells["s"],
            cells["r"],
            c=cells["q"],
            cmap="mako",
            vmin=low,
            vmax=high,
            edgecolor="white",
            s=26,
            linewidth=0.7,
        )
        flat.set(xlabel=labels[0], ylabel=labels[1])
    figure.colorbar(filled, ax=figure.axes[1::2], label=labels[2], shrink=0.8, format="%.2f")
    return finished(figure, title)
