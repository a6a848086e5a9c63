"""Figures of edge scheduling: learning curves, the leaderboard over load, sweeps, and how our policy decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from .style import INK, finished, label_ends, plain_logs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..scheduling.rules.fluid import FluidScheduler

# Learners in colour, rules in grey, ours and the bound dark: the same in every figure.
COLOURS = {
    "LAD-TS": "#3b76af",
    "D2SAC-B": "#8d5aa5",
    "D2SAC-A": "#c18bd0",
    "SAC-TS": "#2a7f62",
    "DQN-TS": "#d5752d",
    "fluid split (ours)": "#b3261e",
    "lower bound": INK,
}
RULES = {"capacity-weighted random": "--", "size split": "-.", "Opt-TS (greedy oracle)": "-"}
SHORT = {
    "capacity-weighted random": "capacity-proportional",
    "Opt-TS (greedy oracle)": "Opt-TS",
    "fluid split (ours)": "ours",
    "JSQ(2), speed-weighted": "JSQ(2)",
}
GREY = "#8a929b"


def style(name: str) -> dict[str, Any]:
    """How every figure draws the line of a policy."""
    if name in RULES:
        return {"color": GREY, "linestyle": RULES[name], "linewidth": 1.4}
    width = {"fluid split (ours)": 2.2, "lower bound": 1.6}.get(name, 1.5)
    return {
        "color": COLOURS.get(name, "#cfd4d9"),
        "linestyle": ":" if name == "lower bound" else "-",
        "linewidth": width,
    }


def learning_curves(
    bands: Mapping[str, pd.DataFrame],
    lines: Mapping[str, Mapping[str, float]],
    published: pd.DataFrame | None = None,
    title: str = "",
) -> Figure:
    """Delay while training with its interval, a panel for each run; rules and bound as lines, published points hollow.

    Args:
        bands: panel -> table as `claims.curve_bands` returns it.
        lines: panel -> name -> mean delay in seconds on the same arrivals.
        published: columns method, episode, delay_s; drawn in the last panel.
    """
    figure, axes = plt.subplots(
        1, len(bands), figsize=(3.3 + 4.2 * len(bands), 4.4), squeeze=False, width_ratios=[1] * (len(bands) - 1) + [1.5]
    )
    for ax, (panel, table) in zip(axes[0], bands.items(), strict=True):
        for method, part in table.groupby("method", sort=False):
            ax.plot(part["episode"], part["mean"], **style(str(method)))
            if (part["low"] > 0).all():  # two seeds know their mean to a factor of several: no band
                ax.fill_between(
                    part["episode"], part["low"], part["high"], color=COLOURS[str(method)], alpha=0.18, linewidth=0
                )
        for name, value in lines[panel].items():
            ax.axhline(value, **style(name), zorder=0)
        shown = [*table["mean"], *lines[panel].values()]
        if published is not None and ax is axes[0][-1]:
            shown += _published_points(ax, published)
        last = float(table["episode"].max())
        ax.set(xscale="log", yscale="log", xlabel="episode", title=panel)
        ax.set(xlim=(1, max(last, 2)), ylim=(min(shown) / 1.1, max(shown) * 1.1))
        plain_logs(ax)
        ends = {short(str(m)): (last, part["mean"].iloc[-1], COLOURS[str(m)]) for m, part in table.groupby("method")}
        ends |= {short(n): (max(last, 2), v, style(n)["color"]) for n, v in lines[panel].items()}
        label_ends(ax, ends)
    axes[0][0].set_ylabel("mean delay (s), trailing 20 episodes")
    return finished(figure, title)


def _published_points(ax: Axes, published: pd.DataFrame) -> list[float]:
    """Hollow circles of the published figure; returns their delays."""
    drawn = []
    for method, part in published.groupby("method"):
        colour = COLOURS.get(str(method).replace("D2SAC-TS", "D2SAC-B"))
        if colour:
            ax.plot(part["episode"], part["delay_s"], "o", color=colour, fillstyle="none", markersize=4.5)
            drawn += part["delay_s"].tolist()
    ax.plot([], [], "o", color=GREY, fillstyle="none", markersize=4.5, label="published figure")
    ax.legend(frameon=False, fontsize=8.5, loc="upper right")
    return drawn


def script_curve(table: pd.DataFrame, title: str = "") -> Figure:
    """One training of the one-task-at-a-time script over the 95 % band that our seeds predict for a further seed."""
    figure, ax = plt.subplots(figsize=(5.4, 3.0))
    colour = COLOURS["LAD-TS"]
    ax.fill_between(table["episode"], table["low"], table["high"], color=colour, alpha=0.18, linewidth=0)
    ax.plot(table["episode"], table["ours"], color=colour, label="batched, mean of the seeds")
    ax.plot(table["episode"], table["script"], "o", color=INK, markersize=4.5, label="one task at a time, one seed")
    ax.set(xlabel="episode", ylabel="mean delay (s)")
    ax.set_xticks(table["episode"])
    ax.legend(frameon=False, fontsize=8.5)
    return finished(figure, title)


def over_load(panels: Mapping[str, pd.DataFrame], title: str = "") -> Figure:
    """Mean delay over the proven bound against load, a panel for each run; one line a policy.

    Args:
        panels: panel -> leaderboard (columns policy, load, mean_s).
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(2.6 + 4.6 * len(panels), 5.4), sharey=True, squeeze=False)
    for ax, (panel, table) in zip(axes[0], panels.items(), strict=True):
        bounds = table[table["policy"] == "lower bound"].groupby(["load", "episode"])["mean_s"].mean()
        shown = table[(table["policy"] != "lower bound") & ~table["policy"].str.contains("arg-max")]
        shown = shown.assign(bound=bounds.reindex(pd.MultiIndex.from_frame(shown[["load", "episode"]])).to_numpy())
        means = shown.groupby(["load", "policy"], sort=False)[["mean_s", "bound"]].mean()
        ratio = (means["mean_s"] / means["bound"]).unstack().sort_index()
        others = [p for p in ratio if p not in COLOURS and p not in RULES]
        for policy in [*others, *(p for p in ratio if p not in others)]:
            seen = ratio[policy].dropna()
            marker = {"marker": "o", "markersize": 3} if policy not in others else {"linewidth": 0.9}
            ax.plot(seen.index, seen, **(style(str(policy)) | marker))
        ax.set(yscale="log", xlabel="load (offered work over capacity)", title=panel)
        ax.axvline(1.0, color="#e3e6e9", linewidth=1, zorder=0)
        plain_logs(ax)
        ends = {}
        for policy in ratio:
            seen = ratio[policy].dropna()
            colour = style(str(policy))["color"] if policy not in others else "#aab0b7"
            ends[short(str(policy))] = (float(seen.index[-1]), float(seen.iloc[-1]), colour)
        label_ends(ax, ends, gap=0.04)
    axes[0][0].set_ylabel("mean delay / proven lower bound")
    return finished(figure, title)


def delay_spread(ranking: pd.DataFrame, title: str = "") -> Figure:
    """Median, mean, 95th and 99th percentile of the delay of each policy, best mean first."""
    table = ranking.dropna(subset=["p50_s"])
    figure, ax = plt.subplots(figsize=(7.4, 0.27 * len(table) + 1.2))
    for row, (name, values) in enumerate(table.iterrows()):
        colour = COLOURS.get(str(name).split(",")[0], GREY)
        ax.plot([values["p50_s"], values["p99_s"]], [row, row], color=colour, linewidth=1.6, alpha=0.5)
        for key, marker in (("p50_s", "|"), ("mean_s", "o"), ("p95_s", "D"), ("p99_s", "x")):
            ax.plot(values[key], row, marker, color=colour, markersize=5 if marker != "|" else 9)
    ax.axvline(float(ranking["mean_s"].loc["lower bound"]), **style("lower bound"), zorder=0)
    for marker, label in (("|", "median"), ("o", "mean"), ("D", "95th percentile"), ("x", "99th percentile")):
        ax.plot([], [], marker, color=INK, markersize=5 if marker != "|" else 9, label=label)
    ax.plot([], [], **style("lower bound"), label="bound on the mean")
    ax.set(xscale="log", xlabel="delay (s)", yticks=range(len(table)), yticklabels=[short(str(n)) for n in table.index])
    plain_logs(ax)
    ax.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=8.5)
    return finished(figure, title)


def sweeps(table: pd.DataFrame, axes_names: Mapping[str, str], title: str = "") -> Figure:
    """Mean delay along the published axes, a panel each; LAD-TS with the range of its seeds."""
    keys = [key for key in axes_names if key in set(table["axis"])]
    figure, axes = plt.subplots(1, len(keys), figsize=(2.55 * len(keys) + 0.6, 3.7), squeeze=False)
    names = [
        "Opt-TS (greedy oracle)",
        "capacity-weighted random",
        "size split",
        "LAD-TS",
        "fluid split (ours)",
        "lower bound",
    ]
    for ax, key in zip(axes[0], keys, strict=True):
        part = table[table["axis"] == key]
        means = part.pivot_table(index="value", columns="policy", values="mean_s")
        for name in names:
            ax.plot(means.index, means[name], marker="o", markersize=3, label=short(name), **style(name))
        seeds = part[part["policy"] == "LAD-TS"].groupby(["value", "seed"])["mean_s"].mean().unstack()
        ax.vlines(seeds.index, seeds.min(axis=1), seeds.max(axis=1), color=COLOURS["LAD-TS"], linewidth=3, alpha=0.4)
        ax.set(yscale="log", xlabel=axes_names[key], xticks=means.index)
        plain_logs(ax)
    axes[0][0].set_ylabel("mean delay (s)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize=8.5)
    return finished(figure, title)


def split_map(scheduler: FluidScheduler, backlogs: Mapping[str, np.ndarray], title: str = "") -> Figure:
    """Where our policy sends each task: probability by task (smallest first) and server (slowest first).

    The mean over the places of stations in the order of the slot.

    Args:
        backlogs: panel -> waiting work of every server, Gcycles (B,).
    """
    import torch

    model = scheduler.model
    tasks, servers = np.argsort(model.work, kind="stable"), np.argsort(model.capacity, kind="stable")
    figure, axes = plt.subplots(
        2, len(backlogs), figsize=(4.4 * len(backlogs) + 0.6, 4.8), sharex=True, squeeze=False, height_ratios=[1, 3]
    )
    for column, (panel, backlog) in enumerate(backlogs.items()):
        with torch.no_grad():
            share = scheduler.logits(torch.from_numpy(backlog[None])).softmax(3)[0].mean(0).numpy()
        top, ax = axes[0][column], axes[1][column]
        top.bar(range(len(servers)), (backlog / model.capacity)[servers], color=COLOURS["fluid split (ours)"])
        top.set(title=panel, ylim=(0, max(1.0, 1.05 * max((b / model.capacity).max() for b in backlogs.values()))))
        shown = ax.imshow(share[tasks][:, servers], aspect="auto", origin="lower", cmap="mako_r", vmin=0, vmax=0.6)
        ticks = np.arange(0, len(servers), max(1, len(servers) // 7))
        ax.set(xticks=ticks, xticklabels=[f"{model.capacity[servers[i]]:.0f}" for i in ticks])
        ax.set_xlabel("server, by capacity (Gcycles/s)")
        rows = np.linspace(0, len(tasks) - 1, 6).round().astype(int)
        ax.set(yticks=rows, yticklabels=[f"{model.work[tasks[i]]:.1f}" for i in rows])
    axes[0][0].set_ylabel("wait (s)")
    axes[1][0].set_ylabel("task, by work (Gcycles)")
    figure.colorbar(shown, ax=axes[1].tolist(), label="probability", shrink=0.9, extend="max")
    return finished(figure, title)


def effects(table: pd.DataFrame, label: str, value: str, xlabel: str, title: str = "") -> Figure:
    """A forest plot: one row per entry of column `label`, its `value` with interval (columns low, high)."""
    figure, ax = plt.subplots(figsize=(6.6, 0.32 * len(table) + 1.0))
    for row, (_, entry) in enumerate(table.iterrows()):
        settled = entry["low"] > 0 or entry["high"] < 0
        colour = INK if settled else GREY
        ax.plot([entry["low"], entry["high"]], [row, row], color=colour, linewidth=1.6)
        ax.plot(entry[value], row, "o", color=colour, markersize=5)
    ax.axvline(0, color="#9aa1a9", linewidth=1, zorder=0)
    ax.set(yticks=range(len(table)), yticklabels=table[label], xlabel=xlabel)
    if max(abs(table["low"].min()), table["high"].max()) > 20:  # one runaway must not hide the rest
        ax.set_xscale("symlog", linthresh=1, linscale=1.5)
        ax.margins(x=0.06)
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    ax.invert_yaxis()
    return finished(figure, title)


def short(name: str) -> str:
    """A name of a policy as a figure writes it."""
    return SHORT.get(name, name)
