"""Figures of planned trees: the tree itself, saved work against quality, predicted against measured, growth."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D

from .style import INK, PERSONAL, PUBLIC, VARIANT_COLOURS, finished

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..hybrid.sharing.plan import Node, SharingPlan

LOOKS = {  # method -> colour, marker
    "ours": (PUBLIC, "o"),
    "ours, each prompt": (PUBLIC, "^"),
    "ours, full length": (PUBLIC, "s"),
    "ours, full length, no blends": (PUBLIC, "x"),
    "one public prompt": (PERSONAL, "D"),
    "2508.21032": (VARIANT_COLOURS[0], "v"),
    "SAGE": (VARIANT_COLOURS[1], "P"),
    "fewer steps": (INK, "X"),
    "nothing shared": ("#9aa1a9", "*"),
}


def planned_tree(plan: SharingPlan, most: int = 40, title: str = "") -> Figure:
    """The tree of a plan over its steps: shared stretches, then each prompt's own, with what is expected of it.

    Args:
        most: prompts that are drawn; of longer lists the first ones.
    """
    order: list[int] = []
    _leaves(plan.roots, order)
    order = [i for i in order if i < most]
    place = {member: row for row, member in enumerate(order)}
    figure, ax = plt.subplots(figsize=(9.6, 0.9 + 0.27 * len(order)))
    for root in plan.roots:
        _branch(ax, root, place)
    quality, low, _ = plan.quality
    for member, row in place.items():
        text = textwrap.shorten(plan.texts[member], 56, placeholder=" …")
        told = "" if np.isnan(quality[member]) else f"  {quality[member]:.2f} (at least {low[member]:.2f})"
        ax.text(plan.num_inference_steps + 0.3, row, text + told, va="center", fontsize=7.5)
    ax.set(xlim=(0, plan.num_inference_steps), ylim=(len(order) - 0.4, -0.6), yticks=[], xlabel="step")
    ax.spines["left"].set_visible(False)
    handles = [Line2D([], [], color=colour, linewidth=3) for colour in (PUBLIC, PERSONAL)]
    figure.legend(handles, ["shared", "own prompt"], loc="outside upper left", ncols=2, frameon=False, fontsize=8.5)
    told = f"{plan.nfe:,} of {plan.one_at_a_time:,} NFE"
    return finished(figure, f"{title}: {told}" if title else told)


def _leaves(nodes: tuple[Node, ...], order: list[int]) -> None:
    for node in nodes:
        if node.children and len(node.members) > 1:
            _leaves(node.children, order)
        else:
            order.extend(node.members)


def _branch(ax: Axes, node: Node, place: dict[int, int]) -> float | None:
    """Draw a node and what is below it; returns its height, None where none of its prompts is drawn."""
    rows = [place[member] for member in node.members if member in place]
    if not rows:
        return None
    shared = len(node.members) > 1
    heights = [h for child in node.children if (h := _branch(ax, child, place)) is not None]
    height = float(np.mean(heights or rows))
    colour, width = (PUBLIC, 1.6 + 0.5 * np.log2(len(node.members))) if shared else (PERSONAL, 1.6)
    ax.plot([node.start, node.part.stop], [height, height], color=colour, linewidth=width, solid_capstyle="butt")
    if len(heights) > 1:
        ax.plot([node.part.stop] * 2, [min(heights), max(heights)], color=PUBLIC, linewidth=1)
    return height


def quality_against_nfe(summary: pd.DataFrame, value: str, ylabel: str, title: str = "") -> Figure:
    """Measured quality over the share of evaluations that are left, a panel for each kind of list.

    Args:
        summary: kind, method, nfe_share, and `value` with `<value>_low`, `<value>_high`, as `study.summary` returns it.
    """
    kinds = list(dict.fromkeys(summary["kind"]))
    figure, axes = plt.subplots(1, len(kinds), figsize=(4.3 * len(kinds) + 1.6, 3.8), sharey=True, squeeze=False)
    for ax, kind in zip(axes[0], kinds, strict=True):
        panel = summary[summary["kind"] == kind]
        for method, (colour, marker) in LOOKS.items():
            line = panel[panel["method"] == method].sort_values("nfe_share")
            ax.plot(
                line["nfe_share"], line[value], color=colour, marker=marker, markersize=5, linewidth=1, label=method
            )
            ax.vlines(line["nfe_share"], line[f"{value}_low"], line[f"{value}_high"], color=colour, linewidth=0.8)
        ax.set(title=f"{kind} prompts", xlabel="NFE, share of nothing shared")
    # Intervals of a few lists end outside of what a share can be; they are cut there.
    ends = max(0.0, summary[f"{value}_low"].min()), min(1.1, summary[f"{value}_high"].max())
    axes[0][0].set_ylim(ends[0] - 0.03, ends[1] + 0.03)
    axes[0][0].set_ylabel(ylabel)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8.5)
    return finished(figure, title)


def calibration(table: pd.DataFrame, title: str = "") -> Figure:
    """Measured over predicted quality of plans, a panel for each rule that adds handovers up.

    Args:
        table: rule, predicted, measured, low, high, prompts, as `study.calibration` returns it.
    """
    rules = list(dict.fromkeys(table["rule"]))
    figure, axes = plt.subplots(
        1, len(rules), figsize=(3.4 * len(rules) + 0.6, 3.5), sharex=True, sharey=True, squeeze=False
    )
    for ax, rule in zip(axes[0], rules, strict=True):
        points = table[table["rule"] == rule]
        ends = [points["predicted"].min(), 1.0]
        ax.plot(ends, ends, color="#9aa1a9", linewidth=1)
        ax.vlines(points["predicted"], points["low"], points["high"], color=PUBLIC, linewidth=1, alpha=0.6)
        ax.scatter(points["predicted"], points["measured"], s=8 + points["prompts"], color=PUBLIC)
        ax.set(title=rule, xlabel="predicted quality")
    axes[0][0].set_ylabel("measured quality")
    return finished(figure, title)


def savings(table: pd.DataFrame, title: str = "") -> Figure:
    """Share of evaluations that planned trees take, over the number of prompts, a line for each kind of list.

    Args:
        table: kind, prompts, nfe_share, as `study.savings` returns it.
    """
    figure, ax = plt.subplots(figsize=(6.2, 3.6))
    kinds = table.groupby("kind", sort=False)
    for (kind, line), colour, width in zip(kinds, (PERSONAL, PUBLIC, INK), (7.0, 4.0, 1.2), strict=False):
        # Where lines coincide the thinner one lies on the thicker one.
        ax.plot(line["prompts"], line["nfe_share"], "o-", color=colour, linewidth=width, markersize=width, label=kind)
    ax.set(xscale="log", xlabel="prompts", ylabel="NFE, share of nothing shared", ylim=(0, 1.02))
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return finished(figure, title)
