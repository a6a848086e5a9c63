"""Figures of the quality studies: prompt similarity, fitted curves, the quality surface."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.lines import Line2D

from ..fits import sigmoid
from ..hybrid.hiqm import log_snr
from .style import PERSONAL, PUBLIC, SIMILARITY_COLOURS, VARIANT_COLOURS, finished

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

    from ..hybrid.planning import QualitySurface


def similarity_matrix(matrix: np.ndarray, names: Sequence[str], boundaries: Sequence[int], title: str = "") -> Figure:
    """A heat map of prompt similarity, with lines between groups of prompts."""
    figure, ax = plt.subplots(figsize=(8.6, 6.4))
    sns.heatmap(
        matrix,
        ax=ax,
        cmap=SIMILARITY_COLOURS,
        vmax=1.0,
        annot=len(matrix) <= 24,
        fmt=".2f",
        annot_kws={"size": 5.5},
        square=True,
        linewidths=0.3,
        yticklabels=[textwrap.shorten(name, 42, placeholder=" …") for name in names],
        xticklabels=range(len(names)),
        cbar_kws={"label": "cosine of sentence embeddings", "shrink": 0.7},
    )
    for boundary in boundaries:
        ax.axhline(boundary, color="white", linewidth=2.5)
        ax.axvline(boundary, color="white", linewidth=2.5)
    ax.tick_params(length=0, labelsize=7)
    ax.set_xlabel("prompt")
    ax.set_title(title)
    return finished(figure)


def similarity_histogram(pairs: pd.DataFrame, title: str = "") -> Figure:
    """Ordered pairs of prompts by similarity, same group on top of different groups."""
    figure, ax = plt.subplots(figsize=(7.2, 3.0))
    sns.histplot(
        pairs,
        x="similarity",
        hue="kind",
        hue_order=["same group", "different groups"],
        palette=[PUBLIC, "#c9ced4"],
        multiple="stack",
        binrange=(0, 1),
        binwidth=0.05,
        alpha=1.0,
        ax=ax,
    )
    ax.set(xlabel="cosine of sentence embeddings", ylabel="ordered pairs")
    sns.move_legend(ax, "upper left", frameon=False, title=None)
    return finished(figure, title)


def public_candidates(candidates: pd.DataFrame, title: str = "") -> Figure:
    """Mean (dot) to least (tick) similarity of every candidate for a group's public prompt, best first."""
    groups = [rows for _, rows in candidates.groupby("group")]
    figure, axes = plt.subplots(1, len(groups), figsize=(5.2 * len(groups), 3.6), sharex=True, squeeze=False)
    for ax, rows in zip(axes[0], groups, strict=True):
        places = range(len(rows))
        colours = [PUBLIC if role == "public" else PERSONAL for role in rows["role"]]
        ax.hlines(places, rows["least"], rows["mean"], color=colours, linewidth=1.6)
        ax.scatter(rows["mean"], places, color=colours, s=28, zorder=2)
        ax.scatter(rows["least"], places, color=colours, marker="|", s=46)
        texts = [textwrap.shorten(text, 38, placeholder=" …") for text in rows["text"]]
        ax.set(yticks=places, yticklabels=texts, xlabel="similarity to the group: least, mean")
        ax.tick_params(axis="y", labelsize=7, length=0)
        ax.invert_yaxis()
    handles = [Line2D([], [], color=c, marker="o", linewidth=1.6) for c in (PUBLIC, PERSONAL)]
    figure.legend(
        handles,
        ["written public prompt", "personal prompt"],
        loc="outside lower right",
        ncols=2,
        frameon=False,
        fontsize=8.5,
    )
    return finished(figure, title)


def fitted_curves(
    curves: pd.DataFrame,
    fits: pd.DataFrame,
    panel_names: dict[str, str],
    ylabel: str,
    title: str = "",
) -> Figure:
    """Mean scores by similarity with intervals (where the table has `low` and `high`) and their fitted sigmoids.

    Points without a curve are those whose fit is not identified.
    """
    variants = [v for v in panel_names if v in set(curves["variant"])]
    figure, axes = plt.subplots(1, len(variants), figsize=(4.5 * len(variants) + 0.9, 3.7), sharey=True, squeeze=False)
    similarities = sorted(curves["similarity"].unique())
    colours = dict(zip(similarities, sns.color_palette(SIMILARITY_COLOURS, len(similarities)), strict=True))
    for ax, variant in zip(axes[0], variants, strict=True):
        for similarity in similarities:
            points = curves[(curves["variant"] == variant) & (curves["similarity"] == similarity)]
            fit = fits[(fits["variant"] == variant) & (fits["similarity"] == similarity)]
            if points.empty or fit.empty:
                continue
            colour = colours[similarity]
            ax.plot(
                points["common_step"], points["score"], "o", color=colour, markersize=2.8, label=f"{similarity:.1f}"
            )
            if "low" in points:
                ax.fill_between(
                    points["common_step"], points["low"], points["high"], color=colour, alpha=0.13, linewidth=0
                )
            s, parameters = (
                np.linspace(0, points["common_step"].max(), 200),
                fit[["L", "k", "x0", "C"]].to_numpy(float)[0],
            )
            if np.isfinite(parameters).all():
                ax.plot(s, sigmoid(s, *parameters), color=colour, linewidth=1.4)
        ax.set(xlabel="common step", title=panel_names[variant])
    axes[0][0].set_ylabel(ylabel)
    handles, names = max((ax.get_legend_handles_labels() for ax in axes[0]), key=lambda pair: len(pair[1]))
    figure.legend(handles, names, title="similarity", loc="outside right center", frameon=False, fontsize=8.5)
    return finished(figure, title)


def fit_parameters(fits: dict[str, pd.DataFrame], names: dict[str, str], title: str = "") -> Figure:
    """The four sigmoid parameters against similarity, with standard errors, for several tables of fits.

    A line breaks where a fit is not identified.
    """
    figure, axes = plt.subplots(1, 4, figsize=(12.4, 3.1))
    meanings = {"L": "L, range", "C": "C, floor", "x0": "x0, inflection (steps)", "k": "k, steepness (1/step)"}
    for (source, table), style, filled in zip(fits.items(), ("-", "--", ":"), (True, False, False), strict=False):
        for colour, (variant, name) in zip(VARIANT_COLOURS, names.items(), strict=False):
            rows = table[table["variant"] == variant]
            rows = rows.assign(**{name: rows[name].where(rows["identified"]) for name in meanings})
            for ax, parameter in zip(axes, meanings, strict=True):
                ax.errorbar(
                    rows["similarity"],
                    rows[parameter],
                    rows[f"se_{parameter}"],
                    fmt="o" + style,
                    color=colour,
                    markersize=4,
                    linewidth=1.2,
                    markerfacecolor=colour if filled else "white",
                    label=f"{name}, {source}",
                )
    for ax, meaning in zip(axes, meanings.values(), strict=True):
        ax.set(xlabel="similarity", title=meaning)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    return finished(figure, title)


def quality_contours(
    surfaces: dict[str, QualitySurface], share: float, label: str, schedule: ArrayLike, title: str = ""
) -> Figure:
    """Quality over handover noise level and similarity; the white line is where the mean falls to `share`.

    Left of the dotted line a fresh list of prompts keeps `share` with 90 % confidence. The upper axis counts the common
    steps of `schedule` (noise levels before each update).
    """
    figure, axes = plt.subplots(1, len(surfaces), figsize=(4.4 * len(surfaces) + 0.9, 3.9), squeeze=False, sharey=True)
    x = np.linspace(-4.5, 7.5, 121)
    sigma = 1 / (1 + np.exp(x / 2))
    for ax, (name, surface) in zip(axes[0], surfaces.items(), strict=True):
        m = np.linspace(*surface.similarity_range, 40)
        expected = surface.predict(sigma[None, :], m[:, None])
        filled = ax.contourf(x, m, expected.mean, levels=np.linspace(0, 1.05, 22), cmap="mako", extend="both")
        ax.contour(x, m, expected.mean, levels=[share], colors="white", linewidths=2.4)
        ax.contour(x, m, expected.low, levels=[share], colors="white", linewidths=1.2, linestyles="dotted")
        _noise_level_axis(ax)
        ax.set(title=name, xlim=(x[0], x[-1]))
        _step_axis(ax, schedule)
    axes[0][0].set_ylabel("similarity of public and personal prompt")
    figure.colorbar(filled, ax=axes[0].tolist(), label=label, shrink=0.9)
    return finished(figure, title)


def collapse(curves: pd.DataFrame, reference: str, resolution_gap: float, title: str = "") -> Figure:
    """Scaled quality over the share of steps taken, and over the noise level at the handover, a line a schedule.

    Args:
        curves: schedule, similarity, common_step (of 28), score, log_snr, as `schedules.curves_beside` returns them;
            drawn is the mean over similarities.
        reference: the schedule drawn in black.
        resolution_gap: how far the reference is moved in log-SNR for the dashed line, which is the latents' own rule:
            twice the log of the ratio of their sides.
    """
    means = curves.groupby(["schedule", "common_step"], sort=False)[["score", "log_snr"]].mean().reset_index()
    names = [name for name in dict.fromkeys(means["schedule"]) if name != reference]
    colours = dict(zip(names, sns.color_palette("viridis", len(names)), strict=True))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11.4, 4.0), sharey=True, width_ratios=(1, 1.25))
    for name, colour in colours.items():
        line = means[means["schedule"] == name]
        left.plot(
            line["common_step"] / 28,
            line["score"],
            "o-",
            color=colour,
            markersize=3,
            linewidth=1.3,
            label=_spoken(name),
        )
        right.plot(line["log_snr"], line["score"], "o", color=colour, markersize=4, alpha=0.85)
    published = means[means["schedule"] == reference]
    left.plot(published["common_step"] / 28, published["score"], color="black", linewidth=2, label=reference)
    right.plot(published["log_snr"], published["score"], color="black", linewidth=2)
    moved = f"{reference}, moved by the rule of sizes"
    left.plot([], [], color="black", linewidth=1.4, linestyle="dashed", label=moved)
    right.plot(
        published["log_snr"] + resolution_gap, published["score"], color="black", linewidth=1.4, linestyle="dashed"
    )
    left.set(xlabel="share of the steps taken together", ylabel="CLIP alignment, scaled to 0..1")
    _noise_level_axis(right)
    right.set_xlim(-7.5, 8)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8.5)
    return finished(figure, title)


def _spoken(schedule: str) -> str:
    """ "28/0.35/euler" as a legend says it; other names as they are."""
    steps, shift, solver = schedule.split("/") if schedule.count("/") == 2 else ("", schedule, "")
    return f"{steps} steps, shift {shift}" + ("" if solver == "euler" else ", DPM-Solver++") if steps else schedule


def _noise_level_axis(ax: Axes) -> None:
    """Log-SNR, labelled with the noise levels that it stands for."""
    levels = (0.98, 0.95, 0.9, 0.8, 0.65, 0.5, 0.35, 0.2, 0.1, 0.05, 0.02)
    ax.set_xticks(log_snr(levels), [f"{level:g}" for level in levels])
    ax.tick_params(axis="x", labelsize=8)
    ax.set_xlabel("noise level at the handover (log-SNR scale)")


def _step_axis(ax: Axes, schedule: ArrayLike) -> None:
    """An upper axis with the common steps of a schedule, given by its noise levels before each update."""
    sigmas = np.asarray(schedule, dtype=float)
    low, high = ax.get_xlim()
    places = log_snr(sigmas)
    shown = [s for s in range(0, len(sigmas), 4) if low <= places[s] <= high]
    upper = ax.secondary_xaxis("top")
    upper.set_xticks(places[shown], [str(s) for s in shown])
    upper.tick_params(labelsize=8, length=3)
    upper.set_xlabel(f"common step of {len(sigmas)}", fontsize=8.5)


def schedule_curves(curves: pd.DataFrame, reference: str, title: str = "") -> Figure:
    """Scaled quality by common step, a panel for each similarity bin, a line for each schedule, `reference` in black.

    Args:
        curves: schedule, similarity, common_step, score, as `schedules.curves_beside` returns them.
    """
    names = [name for name in dict.fromkeys(curves["schedule"]) if name != reference]
    colours = dict(zip(names, sns.color_palette("crest", len(names)), strict=True)) | {reference: "black"}
    lines = curves.groupby("similarity")["schedule"].nunique()
    bins = lines.index[lines > 1]
    figure, axes = plt.subplots(1, len(bins), figsize=(2.7 * len(bins) + 1.4, 3.2), sharey=True, squeeze=False)
    for ax, similarity in zip(axes[0], bins, strict=True):
        panel = curves[curves["similarity"] == similarity].sort_values("common_step")
        for name, colour in colours.items():
            line, width = panel[panel["schedule"] == name], 2.2 if name == reference else 1.4
            ax.plot(line["common_step"], line["score"], color=colour, linewidth=width, label=_spoken(name))
        ax.set(title=f"similarity {similarity:.1f}", xlabel="common step")
    axes[0][0].set_ylabel("CLIP alignment, scaled to 0..1")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8.5)
    return finished(figure, title)
