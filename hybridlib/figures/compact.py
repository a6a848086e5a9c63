"""Compact models: what pruning found important and left, how training went, what decoders cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import seaborn as sns

from .style import INK, finished, plain_logs

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

KINDS = {"resnet": "residual block", "selfattn": "self-attention", "crossattn": "cross-attention"}
SHARES = {0.25: "keeps 1/4", 0.5: "keeps 1/2", 0.75: "keeps 3/4", 1.0: "kept whole"}


def significance(scores: Mapping[str, float], keep: Mapping[str, float], title: str = "") -> Figure:
    """Significance of each group, the least first, coloured by what it keeps.

    Args:
        scores: name of a group (kind_i) to its score.
        keep: name to the share that it keeps; 1 where none is named.
    """
    ranked = sorted(scores, key=lambda name: scores[name])
    colours = dict(zip(SHARES, [*sns.color_palette("flare_r", len(SHARES) - 1), "#c3c8ce"], strict=True))
    figure, ax = plt.subplots(figsize=(6.4, 0.2 * len(ranked) + 0.9))
    if min(scores.values()) > 0:  # they span orders of magnitude; a group that the rules leave whole scores 0
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    used: dict[str, Any] = {}
    for row, name in enumerate(ranked):
        share = keep.get(name, 1.0)
        used[SHARES[share]] = ax.barh(row, scores[name], height=0.72, color=colours[share])
    names = [f"{KINDS[kind]} {i}" for kind, i in (name.split("_") for name in ranked)]
    ax.set(yticks=range(len(ranked)), yticklabels=names, xlabel="change of the final latents, ‖Δmean‖ + ‖Δstd‖")
    ax.set_ylim(-0.7, len(ranked) - 0.3)
    ax.legend([used[k] for k in SHARES.values() if k in used], [k for k in SHARES.values() if k in used], frameon=False)
    return finished(figure, title)


def kept_shares(tables: Mapping[str, pd.DataFrame], title: str = "") -> Figure:
    """What share of its width each block keeps, a panel for each kind, a line for each model.

    Args:
        tables: model to columns kind, block and kept, as `sizes.kept_shares` gives.
    """
    kinds = list(dict.fromkeys(next(iter(tables.values())).kind))
    figure, axes = plt.subplots(1, len(kinds), figsize=(3.2 * len(kinds) + 0.6, 2.9), sharey=True, squeeze=False)
    for ax, kind in zip(axes[0], kinds, strict=True):
        for marker, (model, table) in zip("osD^", tables.items(), strict=False):
            part = table[table.kind == kind]
            ax.plot(part.block, part.kept, f"{marker}-", markersize=4.5, linewidth=1.2, label=model)
        ax.set(title=kind, xlabel="block, in running order", ylim=(0, 1.08), xticks=sorted(set(part.block)))
    axes[0][0].set_ylabel("share kept")
    axes[0][0].legend(frameon=False, fontsize=8.5, loc="lower left")
    return finished(figure, title)


def loss_curves(runs: Mapping[str, Mapping[str, Sequence[float]]], steps: Mapping[str, int], title: str = "") -> Figure:
    """A panel for each training, a line for each term of its loss, on a logarithmic scale.

    Args:
        runs: training to its curves by term; each value is a mean over an equal part of the run. A term that is not
            positive throughout, as an adversarial one, is left out.
        steps: training to its number of steps.
    """
    columns = min(3, len(runs))
    rows = -(-len(runs) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.6 * columns + 0.4, 2.6 * rows + 0.3), squeeze=False)
    for ax, (name, terms) in zip(axes.flat, runs.items(), strict=False):
        for term, values in sorted(terms.items()):
            if min(values) > 0:
                at = [steps[name] * (i + 0.5) / len(values) for i in range(len(values))]
                ax.plot(at, values, linewidth=1.3, label=term)
        ax.set(title=name, xlabel="step", yscale="log")
        if len(terms) > 1:
            ax.legend(edgecolor="none", framealpha=0.7, borderpad=0.1, fontsize=8)
        plain_logs(ax)
    for ax in axes.flat[len(runs) :]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel("training loss")
    return finished(figure, title)


def decoders(table: pd.DataFrame, title: str = "") -> Figure:
    """Fidelity of autoencoders against what decoding costs.

    Args:
        table: columns model, decode_ms, psnr (dB) and decoder_parameters.
    """
    figure, ax = plt.subplots(figsize=(5.4, 3.4))
    largest = table.decoder_parameters.max()
    columns = (table[name] for name in ("model", "decode_ms", "psnr", "decoder_parameters"))
    for model, milliseconds, psnr, size in zip(*columns, strict=True):
        ax.scatter(milliseconds, psnr, s=60 + 420 * size / largest, alpha=0.75, zorder=3)
        text = f"{model}\n{size / 1e3:,.0f} k in the decoder"
        ax.annotate(
            text,
            (milliseconds, psnr),
            (0, -17),
            textcoords="offset points",
            fontsize=8.5,
            color=INK,
            ha="center",
            va="top",
        )
    ax.set(xlabel="decoding, ms of processor time an image", ylabel="PSNR of the latents' scene (dB)", xlim=(0, None))
    ax.margins(0.25, 0.35)
    ax.set_xlim(0, ax.get_xlim()[1])
    ax.grid(alpha=0.3)
    return finished(figure, title)
