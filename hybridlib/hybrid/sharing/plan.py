"""A plan: which prompts run together, under what and until which step, and what to expect of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from ...denoising.blend import Blend
from ...denoising.trajectory import Conditioning, Segment, Trajectory
from ...intervals import Array
from .groups import unit
from .quality import EXPECTED, Forecast, Rule, Window, added

if TYPE_CHECKING:
    from PIL.Image import Image

LEVEL_TOLERANCE = 1e-4  # by which noise levels may differ between plan and pipeline


class Part(NamedTuple):
    """A stretch of a prompt's way: under which texts (several are averaged), until which step, how guided."""

    texts: tuple[str, ...]
    stop: int
    guidance_scale: float

    @property
    def nfe(self) -> int:
        """Denoiser evaluations a step."""
        return Conditioning(self.texts[0], "", self.guidance_scale).nfe


Path = tuple[Part, ...]  # of one prompt, from the first step to the last


class Node(NamedTuple):
    """Prompts (numbers among the different ones) that run from `start` to `part.stop` together."""

    members: tuple[int, ...]
    part: Part
    start: int
    children: tuple[Node, ...]

    @property
    def nfe(self) -> int:
        """Of this node and all below it."""
        return self.part.nfe * (self.part.stop - self.start) + sum(child.nfe for child in self.children)


@dataclass(frozen=True, repr=False, eq=False)
class SharingPlan:
    """A tree of any depth over the steps of one schedule, whose leaves are prompts.

    Attributes:
        prompts: as they were given, repeated ones too.
        paths: the way of each different prompt, in the order of `texts`.
        sigmas: (steps,) noise levels before each update.
        quality: (3, texts) expected quality of each different prompt with its lower and upper bound, as a share of what
            nothing shared gives; nan where nothing is known.
        each: whether the bounds are for single prompts, or for the mean over a list.
        one_public_nfe: what the best single public prompt takes for the same quality.
        model: identity of the denoiser that the quality was measured on; "" where it is not told.
        longest: steps that nothing shared is told for, where the plan was free to have fewer; else its own.
    """

    prompts: tuple[str, ...]
    paths: tuple[Path, ...]
    sigmas: Array
    quality: Array
    each: bool = False
    one_public_nfe: int | None = None
    model: str = ""
    longest: int | None = None

    def __repr__(self) -> str:
        return (
            f"SharingPlan({len(self.prompts)} prompts, {self.nfe} of {self.one_at_a_time} NFE, "
            f"mean quality {self.quality[EXPECTED].mean():.3f})"
        )

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The different prompts, in the order of their first use."""
        return tuple(dict.fromkeys(self.prompts))

    @property
    def num_inference_steps(self) -> int:
        """Length of the schedule."""
        return len(self.sigmas)

    @cached_property
    def roots(self) -> tuple[Node, ...]:
        """The trees: prompts whose ways begin alike begin in one node, and so on along the way."""
        return grown(self.paths)

    @cached_property
    def nfe(self) -> int:
        """Denoiser evaluations for one seed, each shared step counted once, a repeated prompt not at all."""
        return sum(root.nfe for root in self.roots)

    @property
    def one_at_a_time(self) -> int:
        """Evaluations for one seed if each prompt given, repeated ones too, were run alone."""
        return len(self.prompts) * self.paths[0][-1].nfe * (self.longest or self.num_inference_steps)

    @property
    def shares(self) -> bool:
        """Whether any two different prompts run a step together."""
        return any(len(root.members) > 1 for root in self.roots)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per different prompt: prompt, copies, quality, low, high, shared (the last shared step), nodes."""
        copies = pd.Series(self.prompts).value_counts()
        rows = {
            "prompt": self.texts,
            "copies": [int(copies[text]) for text in self.texts],
            **dict(zip(("quality", "low", "high"), self.quality, strict=True)),
            "shared": [path[-2].stop if len(path) > 1 else 0 for path in self.paths],
            "nodes": [len(path) for path in self.paths],
        }
        return pd.DataFrame(rows)

    def trajectories(self, seeds: int | Sequence[int]) -> list[Trajectory]:
        """The way of every different prompt from every seed, seed by seed; the denoising tree shares what is alike."""
        wanted = [seeds] if isinstance(seeds, int) else list(seeds)
        ways = [_segments(path) for path in self.paths]
        return [Trajectory(seed, way) for seed in wanted for way in ways]

    def run(
        self, pipeline: Any, seeds: int | Sequence[int] = 0, cache: Any = None, **sampling: Any
    ) -> list[list[Image]]:
        """Images of every prompt given, in their order, one for each seed; repeated prompts are drawn once.

        Args:
            cache: a `denoising.cache.PrefixCache` to go on from and to fill; `reuse.floor_rule` makes its rule.
            sampling: for `denoising.sampler.sample`, such as `shift`, `batch_size` or `max_sequence_length`.

        Raises:
            ValueError: before any denoising, if the pipeline holds another model than the plan's quality was measured
                on, or its schedule has other noise levels.
        """
        from ...denoising.sampler import sample

        self.check(pipeline, sampling.get("shift"), sampling.get("height"), sampling.get("width"))
        draw = sample if cache is None else cache.sample
        samples = draw(pipeline, self.trajectories(seeds), **sampling)
        images = samples.images()
        by_text = {text: images[i :: len(self.texts)] for i, text in enumerate(self.texts)}
        return [list(by_text[prompt]) for prompt in self.prompts]

    def check(
        self, pipeline: Any, shift: float | None = None, height: int | None = None, width: int | None = None
    ) -> None:
        """Refuse a pipeline that the plan was not made for; see `run`."""
        from ...denoising.arguments import latent_size
        from ...denoising.families import denoiser_of
        from ...denoising.solvers import noise_levels, prepared_scheduler

        denoiser = denoiser_of(pipeline)
        if self.model and denoiser.identity != self.model:
            raise ValueError(
                f"the surface was fitted to images of {self.model}, this pipeline holds {denoiser.identity}; pass "
                f"share a surface of this model"
            )
        size = latent_size(denoiser, height, width)
        scheduler = prepared_scheduler(denoiser, self.num_inference_steps, size, shift=shift)
        levels = noise_levels(scheduler)[:-1].double().numpy()
        if np.abs(levels - self.sigmas).max() > LEVEL_TOLERANCE:
            raise ValueError(
                f"the plan was made for noise levels {self.sigmas[0]:.4f} .. {self.sigmas[-1]:.4f}, this pipeline has "
                f"{levels[0]:.4f} .. {levels[-1]:.4f}, or others between: pass share its shift or its sigmas"
            )


def expected(
    paths: Sequence[Path], texts: Sequence[str], vectors: dict[str, Array], forecast: Forecast, rule: Rule = added
) -> Array:
    """(3, texts) quality of each prompt at the end of its way, with its bounds.

    Args:
        vectors: of every text that occurs, at norm 1.
    """
    means: dict[tuple[str, ...], Array] = {}
    found = []
    for path, text in zip(paths, texts, strict=True):
        windows, start = [], 0
        for part in path[:-1]:
            if part.texts not in means:
                means[part.texts] = unit(np.mean([vectors[t] for t in part.texts], axis=0))
            alike = part.texts == (text,)
            row = forecast.own if alike else int(forecast.rows(means[part.texts] @ vectors[text]))
            windows.append(Window(row, start, part.stop))
            start = part.stop
        found.append(rule(forecast.table, windows))
    return np.array(found).reshape(-1, 3).T


def grown(paths: Sequence[Path]) -> tuple[Node, ...]:
    """The trees that ways form."""
    return _grown(paths, tuple(range(len(paths))), [0] * len(paths), 0)


def _grown(paths: Sequence[Path], members: tuple[int, ...], places: list[int], start: int) -> tuple[Node, ...]:
    """Nodes that begin at `start`; `places` says in which part of its path each prompt is there."""
    groups: dict[tuple[tuple[str, ...], float], list[int]] = {}
    for i in members:
        part = paths[i][places[i]]
        groups.setdefault((part.texts, part.guidance_scale), []).append(i)
    nodes = []
    for (texts, scale), found in groups.items():
        stop = min(paths[i][places[i]].stop for i in found)
        for i in found:
            places[i] += paths[i][places[i]].stop == stop
        ended = places[found[0]] == len(paths[found[0]])
        children = () if ended else _grown(paths, tuple(found), places, stop)
        nodes.append(Node(tuple(found), Part(texts, stop, scale), start, children))
    return tuple(nodes)


def _segments(path: Path) -> tuple[Segment, ...]:
    segments, start = [], 0
    for part in path:
        segments.append(Segment(Blend.of(part.texts), start, part.stop, part.guidance_scale))
        start = part.stop
    return tuple(segments)
