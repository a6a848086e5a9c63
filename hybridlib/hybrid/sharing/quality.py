"""What a chain of handovers is expected to cost: the quality surface, tabulated, and the rules that add handovers up.

The surface knows one handover, from a public to a personal prompt. In a tree an image passes through several nodes
before its own prompt takes over, and nobody has fitted a surface to chains. Three rules say what a chain keeps, from
what each node would keep alone; `ADDED` is the planner's, and the others stand beside it where plans are tried (study
13). With q(s, m) for the quality after one handover at step s and similarity m:

added    1 - sum of [q(start, m) - q(stop, m)] over the nodes: each node costs what its own window costs.
worst    the least q(stop, m): the nearest miss decides, whatever came before.
product  the product of q(stop, m): every node costs as much as if it had run from the start.

`ADDED` is the simplest rule that is right wherever the answer is known: for one handover it is the surface; a node cut
in two costs what it cost whole, which `product` denies; a node under the prompt itself costs nothing. It is what
superposition of small errors gives, and where the nodes come nearer to the prompt one after the other it promises less
than `worst`, which forgives the early, unlike nodes altogether.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ...intervals import Array, Integers
from ...study import results
from .. import hiqm
from ..planning import QualitySurface, fit_surface

BINS = 128  # of similarity, within the fitted range
EXPECTED, LOW, HIGH = 0, 1, 2  # first axis of a forecast's table
SHIPPED = "05_anchored"  # SIM alone and without, every pair of the miniature prompts
SHIPPED_STEPS = "13_steps"  # every prompt alone, at full length and shorter
_VARIANTS = {(2.0, 7.0): "wSIM", (7.0, 7.0): "woSIM"}  # scales of public and personal phase -> variant


class Window(NamedTuple):
    """A prompt's stay in a node: row of the forecast's table (how alike they are), first and last step."""

    row: int
    start: int
    stop: int


class Forecast(NamedTuple):
    """Quality that is kept after one handover, by similarity and step, as a share of what nothing shared gives.

    Rows of `table` are similarities: the first is that of prompts less alike than any that was fitted, of which
    nothing is known (nan, but for step 0); the last is the prompt itself. Between them a similarity counts as the
    lower end of its bin, and one above the fitted range as the top of the range: nobody measured that it keeps more.
    Quality never rises with the step, and is at most 1, which is its value at step 0, where nothing was shared yet.
    """

    edges: Array  # (BINS,) lower ends of the bins of similarity
    table: Array  # (3, BINS + 2, steps): expected, low, high
    each: bool  # whether the bounds are for single prompts, or for the mean over a list

    def rows(self, similarity: ArrayLike) -> Integers:
        """Rows of the table for similarities of different texts."""
        return np.searchsorted(self.edges, np.asarray(similarity, dtype=float), side="right")

    @property
    def own(self) -> int:
        """The row of a prompt that runs under itself."""
        return self.table.shape[1] - 1

    @property
    def steps(self) -> int:
        """Length of the schedule; a handover is possible after 0..steps - 1 updates."""
        return self.table.shape[2]


def forecast(
    surface: QualitySurface, sigmas: ArrayLike, level: float = 0.9, each: bool = False, same_scale: bool = False
) -> Forecast:
    """Tabulate a surface of retained quality for one schedule; once, as it takes longer than planning for 100 prompts.

    Args:
        sigmas: (steps,) flow-matching noise levels before each update, falling.
        level: of the bounds, each right with this confidence.
        each: bounds for single prompts instead of for the mean over a fresh short list.
        same_scale: whether shared and own steps are guided alike. Then a prompt that shares its own steps loses
            nothing; else it was shared under another scale, and counts as the most alike that was fitted.

    Raises:
        ValueError: if `each` is asked of a surface that does not know how single prompts scatter.
    """
    return _tabulated(surface, tuple(np.asarray(sigmas, dtype=float).tolist()), level, each, same_scale)


@functools.lru_cache(maxsize=64)
def _tabulated(
    surface: QualitySurface, sigmas: tuple[float, ...], level: float, each: bool, same_scale: bool
) -> Forecast:
    levels, edges = np.array(sigmas), np.linspace(*surface.similarity_range, BINS)
    predict = surface.predict_each if each else surface.predict_list
    known = np.stack(predict(levels[None, :], edges[:, None], level))  # (3, BINS, steps)
    known[:, :, 0] = 1.0
    known = np.minimum.accumulate(np.minimum(known, 1.0), axis=2)
    unknown = np.full((3, 1, len(levels)), np.nan)
    unknown[:, :, 0] = 1.0
    own = np.ones((3, 1, len(levels))) if same_scale else known[:, -1:]
    table = np.concatenate([unknown, known, own], axis=1)
    table.flags.writeable = False
    return Forecast(edges, table, each)


def added(table: Array, windows: Sequence[Window]) -> Array:
    """The planner's rule, see the head of this module; (3, rows, steps) -> (3,); nan where nothing is known."""
    losses = [table[:, w.row, w.start] - table[:, w.row, w.stop] for w in windows]
    return 1.0 - np.sum([np.zeros(len(table)), *losses], axis=0)


def worst(table: Array, windows: Sequence[Window]) -> Array:
    """The least that any node alone would keep."""
    return np.min([np.ones(len(table)), *(table[:, w.row, w.stop] for w in windows)], axis=0)


def product(table: Array, windows: Sequence[Window]) -> Array:
    """Every node as if it had run from the start."""
    return np.prod([np.ones(len(table)), *(table[:, w.row, w.stop] for w in windows)], axis=0)


Rule = Callable[[Array, Sequence[Window]], Array]
RULES: dict[str, Rule] = {"added": added, "worst": worst, "product": product}


@functools.cache
def shipped_surface(
    public_guidance_scale: float = 2.0, guidance_scale: float = 7.0, rounds: int = 200
) -> QualitySurface:
    """The surface of mini-sd3 for these guidance scales, fitted once to the scores that ship (`SHIPPED`).

    Raises:
        ValueError: if no images were scored at these scales.
    """
    scales = float(public_guidance_scale), float(guidance_scale)
    if scales not in _VARIANTS:
        known = " or ".join(f"{public:g} and {own:g}" for public, own in _VARIANTS)
        raise ValueError(
            f"the shipped surface is for public_guidance_scale and guidance_scale {known}, got {scales[0]:g} and "
            f"{scales[1]:g}; pass a surface that was fitted to these"
        )
    scores = results.load(SHIPPED)
    shared, alone = (hiqm.cube(scores, variant) for variant in (_VARIANTS[scales], "woSIM"))
    return fit_surface(shared.retained(alone), rounds=rounds, model=results.model_of(SHIPPED), by_spread=True)


def kept_by_steps(
    scores: pd.DataFrame, prompts: int, each: bool = False, level: float = 0.9, value: str = "clip"
) -> dict[int, float]:
    """What each number of steps keeps when nothing is shared, of the longest: the lower end, for `planner.share`.

    Args:
        scores: num_inference_steps, personal, seed and the value, the longest among them.
        prompts: of the lists that it is for, whose means scatter, too.
        each: for single images instead of for the mean over such a list.
    """
    from scipy.stats import t

    one = ["personal", "seed"] if each else ["personal"]
    means = scores.pivot_table(index=one, columns="num_inference_steps", values=value)
    longest = means[means.columns.max()]
    kept = 1 + means.sub(longest, axis=0) / longest.mean()
    if each:
        low = kept.quantile(1 - level, interpolation="lower")
    else:
        spread = kept.std() * np.sqrt(1 / len(kept) + 1 / prompts)
        low = kept.mean() - t.ppf(level, len(kept) - 1) * spread
    return dict(zip(means.columns.astype(int).tolist(), low.clip(upper=1.0).tolist(), strict=True))


@functools.cache
def shipped_steps(prompts: int, level: float = 0.9, each: bool = False) -> Mapping[int, float]:
    """`kept_by_steps` of mini-sd3 on its own noise schedule at guidance scale 7, from the scores that ship."""
    return MappingProxyType(kept_by_steps(results.load(SHIPPED_STEPS), prompts, each, level))
