"""The explorer without its widgets: choices in, pictures and their price out; what is shared is not computed again.

Three caches, each bounded. The public run is kept after every update under `Controls.prefix_key`: a new common step,
personal prompt, scale, negative prompt or codec goes on from there. A finished picture is kept under its `Controls`,
its decoded frames beside it. Prompts are encoded once, in one denoiser for all walks.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..denoising.samples import Kept, Samples, rows_of
from ..denoising.sd3 import SD3Denoiser
from ..denoising.solvers import evaluations, noise_levels, prepared_scheduler, write_history
from ..denoising.trajectory import Trajectory
from ..denoising.tree import Cost, Tree
from ..denoising.walk import memory_of_row, walk
from ..noise import initial_noise
from ..prompts import closed_vocabulary, foreign_words
from .controls import Controls

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from ..denoising.pipelines import HybridStableDiffusion3Pipeline
    from ..denoising.state import DenoiseState
    from ..metrics.alignment import ClipAlignment

PREFIXES, PICTURES, TEXTS = 8, 24, 64  # entries of the caches; the least recently used ones leave
V = TypeVar("V")


class Link(NamedTuple):
    """What crosses the link to one user at the handover, in bytes; all 0 at common step 0, where the seed is enough."""

    message: int  # what the codec writes; the state's file where there is no codec
    state: int  # `DenoiseState`: exact latents and all it takes to go on elsewhere
    half: int  # the latents as 16-bit floats


class Prefix:
    """A public run, kept after every update that was ever asked for."""

    def __init__(self) -> None:
        self.parts: list[Samples] = []
        self._frames: dict[int, Image] = {}
        self._states: dict[int, tuple[DenoiseState, int]] = {}

    @property
    def reached(self) -> int:
        """Updates made so far."""
        return max(self.parts[-1].kept) if self.parts else 0

    def kept(self, updates: int) -> Kept:
        """Latents and solver history after 1..reached updates."""
        return self.part(updates).kept[updates]

    def part(self, updates: int) -> Samples:
        """The walk that made this update."""
        return next(part for part in self.parts if updates in part.kept)

    def state(self, updates: int) -> tuple[DenoiseState, int]:
        """The state after 1..reached updates, and its bytes as a file; it holds a fingerprint of all weights."""
        if updates not in self._states:
            state = self.part(updates).state(0, updates)
            self._states[updates] = state, len(state.to_bytes())
        return self._states[updates]

    def frame(self, updates: int) -> Image:
        """The decoded image after 1..reached updates."""
        if updates not in self._frames:
            self._frames[updates] = _decoded(self.part(updates), updates)[0]
        return self._frames[updates]


@dataclass
class Picture:
    """What one choice of controls gives, users in their order."""

    controls: Controls
    images: list[Image]
    cost: Cost
    link: Link
    sigmas: np.ndarray  # (num_inference_steps + 1,) noise levels
    computed: int  # denoiser evaluations made for it; the rest was there
    seconds: float
    personal: Samples
    prefix: Prefix | None  # None at common step 0
    scorer: ClipAlignment | None
    _frames: dict[int, list[Image]] = field(default_factory=dict)

    @cached_property
    def clip(self) -> np.ndarray | None:
        """Cosine of each image with its personal prompt, when it is first asked for; None without a CLIP model."""
        return self.scorer.score(self.images, self.controls.personal_prompts) if self.scorer else None

    def shared_frame(self, updates: int) -> Image:
        """The public image after 1..common_step updates.

        Raises:
            ValueError: at common step 0, where nothing is shared.
        """
        if self.prefix is None:
            raise ValueError("nothing is shared at common step 0")
        return self.prefix.frame(updates)

    def frames(self, updates: int) -> list[Image]:
        """Each user's image after common_step + 1 .. num_inference_steps updates."""
        if updates not in self._frames:
            self._frames[updates] = _decoded(self.personal, updates)
        return self._frames[updates]


class Session:
    """A loaded model and what it has drawn so far.

    Args:
        clip: scores each image against its personal prompt; None leaves the scores out.
    """

    def __init__(self, pipeline: HybridStableDiffusion3Pipeline, clip: ClipAlignment | None = None) -> None:
        self.pipeline, self.clip = pipeline, clip
        self.vocabulary = closed_vocabulary(pipeline.tokenizer)
        # A miniature takes one null token for all 256 of the absent T5.
        self.max_sequence_length = 256 if self.vocabulary is None else 1
        self._texts: set[str] = set()
        self._denoiser = SD3Denoiser(pipeline, max_sequence_length=self.max_sequence_length)
        self._prefixes: OrderedDict[Hashable, Prefix] = OrderedDict()
        self._pictures: OrderedDict[Hashable, Picture] = OrderedDict()

    @property
    def own_shift(self) -> float | None:
        """The shift of the model's noise schedule; None where it depends on the image size."""
        config = self.pipeline.scheduler.config
        return None if config.get("use_dynamic_shifting") else config.get("shift", config.get("flow_shift"))

    def picture(self, controls: Controls) -> Picture:
        """The picture of these controls, from what is kept and what is missing.

        Raises:
            ValueError: one sentence naming the words of the prompts that the model does not know.
        """
        return _remembered(self._pictures, controls, lambda: self._draw(controls), PICTURES)

    def _draw(self, controls: Controls) -> Picture:
        began, step, computed = time.perf_counter(), controls.common_step, 0
        if unknown := foreign_words(self.pipeline.tokenizer, controls.texts):
            raise ValueError(f"The model does not know {_listed(unknown)}; use the words listed below the prompts.")
        prefix, link = None, Link(0, 0, 0)
        latents, history = self._noise(controls), {}
        if step:
            prefix = _remembered(self._prefixes, controls.prefix_key, Prefix, PREFIXES)
            computed = self._grow(prefix, controls)
            latents, history = prefix.kept(step).latents, memory_of_row(prefix.kept(step).memory, 0)
            link = _link(*prefix.state(step), controls)
        personal = self._walk(controls.personal_trajectories(), controls, latents, history)
        images = _decoded(personal, controls.num_inference_steps)
        tree = Tree(controls.trajectories(), evaluations(personal.scheduler))
        return Picture(
            controls=controls,
            images=images,
            cost=tree.cost,
            link=link,
            sigmas=noise_levels(personal.scheduler).double().numpy(),
            computed=computed + personal.cost.tree,
            seconds=time.perf_counter() - began,
            personal=personal,
            prefix=prefix,
            scorer=self.clip,
            _frames={controls.num_inference_steps: images},
        )

    def _noise(self, controls: Controls) -> Tensor:
        side = self.pipeline.default_sample_size
        noise = initial_noise(controls.seed, self._denoiser.latent_channels, side, side)
        return noise.to(self._denoiser.device, self._denoiser.dtype)

    def _grow(self, prefix: Prefix, controls: Controls) -> int:
        """Let the public run reach the common step; returns the denoiser evaluations that it took."""
        start = prefix.reached
        if controls.common_step <= start:
            return 0
        latents = prefix.kept(start).latents if start else self._noise(controls)
        history = memory_of_row(prefix.kept(start).memory, 0) if start else {}
        path = [controls.public_trajectory(start, controls.common_step)]
        prefix.parts.append(self._walk(path, controls, latents, history))
        return prefix.parts[-1].cost.tree

    def _walk(
        self, paths: Sequence[Trajectory], controls: Controls, latents: Tensor, history: Mapping[str, Tensor]
    ) -> Samples:
        """What `sampler.sample` does, but keeping every update and the encoded prompts."""
        self._forget_texts(controls)
        size = (latents.shape[-2], latents.shape[-1])
        scheduler = prepared_scheduler(self._denoiser, controls.num_inference_steps, size, shift=controls.shift)
        write_history(scheduler, history)
        tree = Tree(paths, evaluations(scheduler))
        samples = Samples({"": self._denoiser}, paths, scheduler, tree.cost)
        with torch.inference_mode():
            for front in walk(tree, {"": self._denoiser}, scheduler, latents, noise_from_seeds=True):
                samples.kept[front.updates] = Kept(front.latents, rows_of(front.members), front.memory)
        return samples

    def _forget_texts(self, controls: Controls) -> None:
        """The denoiser keeps what it encoded for good; a new one starts empty."""
        self._texts |= {*controls.texts}
        if len(self._texts) > TEXTS:
            self._texts = {*controls.texts}
            self._denoiser = SD3Denoiser(self.pipeline, max_sequence_length=self.max_sequence_length)


def _link(state: DenoiseState, whole: int, controls: Controls) -> Link:
    codec = controls.link_codec
    message = whole if codec is None else len(codec.encode(state.latents, [controls.seed])[0])
    return Link(message, whole, 2 * state.latents.numel())


def _decoded(samples: Samples, updates: int) -> list[Image]:
    with torch.inference_mode():
        return samples.images(updates)


def _listed(words: Sequence[str]) -> str:
    *first, last = map(repr, words)
    return f"{', '.join(first)} and {last}" if first else last


def _remembered(cache: OrderedDict[Hashable, V], key: Hashable, make: Callable[[], V], most: int) -> V:
    if key not in cache:
        cache[key] = make()
    cache.move_to_end(key)
    while len(cache) > most:
        cache.popitem(last=False)
    return cache[key]
