"""The explorer's charts, as PNG: quality and rates of a picture, queues and delays of an episode."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from ..figures.links import family_colours
from ..figures.style import INK, PERSONAL, PUBLIC, SIMILARITY_COLOURS, use_house_style
from .curves import QUALITY_FLOOR

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from .curves import Quality, Rates
    from .edge import Episode
    from .session import Picture

GREY, DPI = "#9aa1a9", 110


def png(figure: Figure) -> bytes:
    """The figure as PNG; it belongs to no window, so nothing keeps it."""
    buffer = io.BytesIO()
    with plt.rc_context({"savefig.bbox": "standard"}):  # "tight" draws everything twice
        figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def quality_and_rates(picture: Picture, quality: Sequence[Quality], rates: Rates) -> Figure:
    """Expected quality over common steps with the picture on it, and quality against bytes with its message.

    Drawn after every move, so its margins are given: finding them would double the time.
    """
    use_house_style()
    with plt.rc_context({"figure.constrained_layout.use": False}):
        figure = Figure(figsize=(9.2, 2.75))
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.07, right=0.795, bottom=0.19, top=0.9, wspace=0.27)
    _quality(left, picture, quality)
    _rates(right, rates)
    return figure


def _quality(ax: Axes, picture: Picture, quality: Sequence[Quality]) -> None:
    at = picture.controls.common_step
    steps = np.arange(len(picture.sigmas) - 1)
    colours = sns.color_palette(SIMILARITY_COLOURS, len(quality))
    for user, (curve, colour) in enumerate(zip(quality, colours, strict=True), start=1):
        label = f"user {user}: {curve.similarity:.2f}" + ("" if curve.fitted else " (outside the fit)")
        ax.plot(steps, curve.mean, "-" if curve.fitted else "--", color=colour, linewidth=1.8, label=label)
        ax.plot(at, curve.mean[at], "o", color=colour, markersize=8, markeredgecolor=INK, zorder=3)
    ax.axhline(QUALITY_FLOOR, color=GREY, linewidth=1, linestyle=":")
    ax.axvspan(0, min(curve.safe_step for curve in quality), color=PUBLIC, alpha=0.10, linewidth=0)
    ax.set(xlabel="common step", ylabel="CLIP kept", ylim=(-0.1, 1.25), xlim=(0, steps[-1]))
    ax.set_title("Expected quality (HIQM, study 06)", loc="left")
    ax.legend(
        title="similarity to the public prompt",
        fontsize=7.5,
        title_fontsize=7.5,
        loc="upper right",  # curves end low
        framealpha=1,
        edgecolor="none",
        borderaxespad=0,
    )


def _rates(ax: Axes, rates: Rates) -> None:
    for (family, (sizes, psnr)), colour in zip(
        rates.lines.items(), family_colours(list(rates.lines)).values(), strict=True
    ):
        ax.plot(sizes, psnr, "o-", color=colour, markersize=3.5, label=family)
    ax.axvline(rates.raw_bytes, color=GREY, linewidth=1, linestyle="--", label="fp16, uncoded")
    if rates.message is not None and rates.psnr is not None:
        top = ax.get_ylim()[1]
        ax.plot(rates.message, min(rates.psnr, top), "o", color=PERSONAL, markersize=9, markeredgecolor=INK, zorder=3)
        ax.annotate(
            f"yours: {rates.message} bytes, {rates.psnr:.1f} dB",
            (rates.message, min(rates.psnr, top)),
            xytext=(8, -12),
            textcoords="offset points",
            fontsize=8.5,
        )
    ax.set(xscale="log", xlabel="bytes on the link", ylabel="PSNR (dB)")
    ax.set_title(f"Coded after update {rates.step} (study 07)", loc="left")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_minor_formatter(lambda value, _: "")
    ax.legend(fontsize=7.5, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def episode_charts(episode: Episode, rivals: Mapping[str, Episode]) -> Figure:
    """Queues of the servers over slots with what arrives above, delays against the bound, and all policies tried."""
    use_house_style()
    figure = Figure(figsize=(9.2, 5.6), layout="constrained")
    grid = figure.add_gridspec(3, 2, width_ratios=[1.35, 1], height_ratios=[0.8, 2.0, 1.4])
    top = figure.add_subplot(grid[0, 0])
    queues = figure.add_subplot(grid[1:, 0])
    _arrivals(top, episode)
    _queues(figure, queues, episode)
    _delays(figure.add_subplot(grid[:2, 1]), episode)
    _ranking(figure.add_subplot(grid[2, 1]), episode, rivals)
    return figure


def _arrivals(ax: Axes, episode: Episode) -> None:
    slots = np.arange(len(episode.arriving))
    ax.bar(slots, episode.arriving, width=0.8, color=PUBLIC, alpha=0.75)
    ax.axhline(episode.served, color=INK, linewidth=1)
    ax.set(xlim=(-0.5, len(slots) - 0.5), xticks=[], ylabel="Gcycles", ylim=(0, None))
    load = episode.arriving.mean() / episode.served
    ax.set_title(f"Work arriving, {load:.0%} of what the servers can do (line)", loc="left")


def _queues(figure: Figure, ax: Axes, episode: Episode) -> None:
    most = max(1.0, float(np.quantile(episode.wait_s, 0.99)))
    shown = ax.imshow(episode.wait_s.T, aspect="auto", origin="lower", cmap="mako_r", vmin=0, vmax=most)
    servers = len(episode.capacity)
    ticks = np.linspace(0, servers - 1, 6).round().astype(int)
    ax.set(xlabel="slot", yticks=ticks, yticklabels=[f"{episode.capacity[i]:.0f}" for i in ticks])
    ax.set_ylabel("server, by capacity (Gcycles/s)")
    ax.set_title("Queues: seconds a new task would wait", loc="left")
    figure.colorbar(shown, ax=ax, pad=0.01, extend="max")


def _delays(ax: Axes, episode: Episode) -> None:
    p99 = float(np.percentile(episode.delay_s, 99))
    ax.hist(episode.delay_s, bins=np.linspace(0, p99, 45).tolist(), color=PERSONAL, alpha=0.8)
    for value, label, colour, style in (
        (episode.bound_s, "bound on the mean", INK, "--"),
        (episode.mean_s, "mean", PERSONAL, "-"),
    ):
        ax.axvline(value, color=colour, linewidth=1.8, linestyle=style, label=f"{label}: {value:.2f} s")
    ax.plot([], [], " ", label=f"99th percentile: {p99:.1f} s")
    ax.set(xlabel="delay of a task (s)", yticks=[], xlim=(0, p99), ylim=(0, 1.35 * ax.get_ylim()[1]))
    ax.set_title("Delays", loc="left")
    ax.legend(fontsize=8.5, frameon=False, loc="upper right")


def _ranking(ax: Axes, episode: Episode, rivals: Mapping[str, Episode], most: int = 6) -> None:
    names = list(rivals)
    own = names.index(episode.play.policy)
    names = names[:most] if own < most else [*names[: most - 1], names[own]]
    for row, name in enumerate(names):
        mine = name == episode.play.policy
        ax.barh(row, rivals[name].mean_s, height=0.66, color=PERSONAL if mine else "#d9dde1")
        ax.text(0.02, row, f" {name}: {rivals[name].mean_s:.2f} s", va="center", fontsize=8, color=INK)
    ax.axvline(episode.bound_s, color=INK, linewidth=1.5, linestyle="--")
    ax.set(yticks=[], xlabel="mean delay (s)", xlim=(0, None), ylim=(max(4, len(names)) - 0.5, -0.5))
    ax.set_title("Tried on these arrivals", loc="left")
