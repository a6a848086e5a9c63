"""Trajectories: what each generation does at each step, under which prompts and by which denoiser.

A trajectory is a seed and a list of segments over one noise schedule. It holds no tensors and no paths, so a study
is simply a table of them. Trajectories that begin alike share that work; `tree.Tree` finds out where.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import pairwise, repeat
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NamedTuple

from .blend import Blend, Prompt
from .thinning import Thinning

if TYPE_CHECKING:
    from ..codecs import Codec

_OPTIONAL = {"codec", "denoiser", "thinning"}  # of a segment: told in JSON only where they are not the default


def check_type(name: str, value: object, kind: type | tuple[type, ...], wanted: str) -> None:
    """Raise TypeError, naming the parameter, unless `value` is an instance of `kind`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {wanted}, got {reprlib.repr(value)} ({type(value).__name__})")


class Conditioning(NamedTuple):
    """What steers one denoiser evaluation, in canonical form: without guidance neither scale nor negative matter."""

    prompt: Prompt
    negative_prompt: str = ""
    guidance_scale: float = 1.0

    @property
    def nfe(self) -> int:
        """Denoiser evaluations per step: two under classifier-free guidance, else one."""
        return 2 if self.guidance_scale > 1 else 1


class Move(NamedTuple):
    """One step of a trajectory: what steers it, the codec that the latents pass before it, who denoises.

    Where there is a `slope` nobody is asked: the last output plus this many times its last change stands in.
    """

    conditioning: Conditioning
    codec: Codec | None = None
    denoiser: str = ""
    slope: float | None = None


@dataclass(frozen=True, slots=True)  # a study holds a million of them
class Segment:
    """Denoising steps `start` up to, not including, `stop` under one prompt by one denoiser.

    The prompt is a text, or the mean of several (`Blend`).
    A guidance scale of 1 or less means no guidance: one evaluation a step, the negative prompt is ignored, and 0 and
    1 are the same thing, as in diffusers. Where the latents cross a link to get here, `codec` says how they are coded:
    they are what it decodes when the segment begins. `denoiser` names the model that runs it, among those that the
    sampler is given; "" is the pipeline's own. Where it changes from one segment to the next is a handoff. `thinning`
    says which steps are extrapolated.

    Raises:
        TypeError: if a value is of another type.
        ValueError: if not 0 <= start < stop, or if the scale is negative or not finite.
    """

    prompt: Prompt
    start: int
    stop: int
    guidance_scale: float = 7.0
    negative_prompt: str = ""
    codec: Codec | None = None
    denoiser: str = ""
    thinning: Thinning | None = None

    def __post_init__(self) -> None:
        check_type("prompt", self.prompt, (str, Blend), "text or a Blend")
        for name in ("negative_prompt", "denoiser"):
            check_type(name, getattr(self, name), str, "text")
        for name in ("start", "stop"):
            check_type(name, getattr(self, name), Integral, "a whole number of steps")
        check_type("guidance_scale", self.guidance_scale, Real, "a number")
        if self.codec is not None:
            check_codec(self.codec)
        check_type("thinning", self.thinning, (Thinning, type(None)), "a Thinning")
        if not 0 <= self.start < self.stop:
            raise ValueError(f"segment needs 0 <= start < stop, got start={self.start}, stop={self.stop}")
        if not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            raise ValueError(f"guidance_scale must be finite and not negative, got {self.guidance_scale}")

    @property
    def conditioning(self) -> Conditioning:
        """What this segment asks of the denoiser, in canonical form."""
        if self.guidance_scale > 1:
            return Conditioning(self.prompt, self.negative_prompt, float(self.guidance_scale))
        return Conditioning(self.prompt)

    @property
    def evaluated(self) -> int:
        """Steps that are not extrapolated."""
        steps = self.stop - self.start
        return steps if self.thinning is None else self.thinning.evaluated(steps)

    def part(self, start: int, stop: int, **changes: Any) -> Segment:
        """The same between two steps of it.

        Raises:
            ValueError: if that would cut a thinned segment, whose warm-up would begin anew.
        """
        if self.thinning is not None and (start, stop) != (self.start, self.stop):
            raise ValueError(
                f"a thinned segment cannot be cut: it runs from {self.start} to {self.stop}, not {start}..{stop}"
            )
        return replace(self, start=start, stop=stop, **changes)


_remembered = lru_cache(maxsize=16384, typed=True)(Segment)  # typed: a scale of 2 and one of 2.0 are told differently


def _segment(*values: Any) -> Segment:
    """The segment of these values, one object for all trajectories that have it."""
    try:
        return _remembered(*values)
    except TypeError:
        pass
    return Segment(*values)  # which refuses by name what cannot be remembered


@dataclass(frozen=True, slots=True)  # a study holds a million of them
class Trajectory:
    """A seed and the contiguous segments that lead from its initial noise towards an image.

    Raises:
        TypeError: if the seed is no whole number or the segments are no tuple of `Segment`.
        ValueError: if there is no segment, or one does not start where the one before stops.
    """

    seed: int
    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        check_type("seed", self.seed, Integral, "a whole number")
        check_type("segments", self.segments, tuple, "a tuple of Segment")
        for segment in self.segments:
            check_type("a segment", segment, Segment, "a Segment")
        if not self.segments:
            raise ValueError(f"trajectory of seed {self.seed} needs at least one segment, got none")
        for before, after in pairwise(self.segments):
            if after.start != before.stop:
                raise ValueError(
                    f"segments of a trajectory must be contiguous: one stops at {before.stop}, "
                    f"the next starts at {after.start}"
                )

    @property
    def start(self) -> int:
        """Updates already made when this trajectory begins."""
        return self.segments[0].start

    @property
    def stop(self) -> int:
        """Updates made when it ends."""
        return self.segments[-1].stop

    @property
    def nfe(self) -> int:
        """Denoiser evaluations when this trajectory runs alone under a solver that evaluates once an update."""
        return sum(s.conditioning.nfe * s.evaluated for s in self.segments)

    def moves(self) -> Iterator[Move]:
        """Every step from `start` to `stop`."""
        for segment in self.segments:
            steps, move = segment.stop - segment.start, Move(segment.conditioning, segment.codec, segment.denoiser)
            then = move._replace(codec=None)
            if segment.thinning is None:
                yield move
                yield from repeat(then, steps - 1)
            else:
                for i, slope in enumerate(segment.thinning.slopes(steps)):
                    yield (then if i else move)._replace(slope=slope)

    def since(self, step: int) -> Trajectory:
        """What is left of it after `step` updates, to go on with from a state.

        Raises:
            ValueError: unless start <= step < stop, or if the step lies inside a thinned segment.
        """
        if not self.start <= step < self.stop:
            raise ValueError(f"what is left begins after {self.start}..{self.stop - 1} updates, got {step}")
        left = [segment for segment in self.segments if segment.stop > step]
        if left[0].start < step:  # its codec has been passed
            left[0] = left[0].part(step, left[0].stop, codec=None)
        return Trajectory(self.seed, tuple(left))

    def with_codec(self, step: int, codec: Codec) -> Trajectory:
        """The same trajectory whose latents pass `codec` after `step` updates, at noise level sigmas[step].

        Raises:
            ValueError: unless start <= step < stop, or if the step lies inside a thinned segment.
        """
        if not self.start <= step < self.stop:
            raise ValueError(f"latents can pass a codec after {self.start}..{self.stop - 1} updates, got {step}")
        segments = []
        for segment in self.segments:
            if segment.start < step < segment.stop:
                segments += [segment.part(segment.start, step), segment.part(step, segment.stop, codec=codec)]
            else:
                segments.append(replace(segment, codec=codec) if segment.start == step else segment)
        return Trajectory(self.seed, tuple(segments))

    def with_denoisers(self, parts: Sequence[tuple[str, int]]) -> Trajectory:
        """The same trajectory whose schedule is split between denoisers, each named with its number of updates.

        Raises:
            ValueError: if the parts end before the trajectory does, or cut a thinned segment.
        """
        segments, begin = [], 0
        for name, number in parts:
            end = begin + number
            for segment in self.segments:
                start, stop = max(segment.start, begin), min(segment.stop, end)
                if start < stop:
                    codec = segment.codec if start == segment.start else None
                    segments.append(segment.part(start, stop, codec=codec, denoiser=name))
            begin = end
        if begin < self.stop:
            raise ValueError(f"the parts end after {begin} updates, the trajectory after {self.stop}")
        return Trajectory(self.seed, tuple(segments))

    def as_json(self) -> dict[str, Any]:
        """Plain values that say all of it, for ledgers and metadata; `from_json` reads them."""
        segments = []
        for segment in self.segments:
            values = {f.name: getattr(segment, f.name) for f in fields(segment) if f.name not in _OPTIONAL}
            values |= {"prompt": segment.prompt.as_json()} if isinstance(segment.prompt, Blend) else {}
            values |= {"codec": segment.codec.specification} if segment.codec else {}
            values |= {"thinning": segment.thinning.as_json()} if segment.thinning else {}
            segments.append(values | ({"denoiser": segment.denoiser} if segment.denoiser else {}))
        return {"seed": self.seed, "segments": segments}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Trajectory:
        """Inverse of `as_json`.

        Raises:
            TypeError, ValueError: if `as_json` cannot have made these values.
        """
        if not isinstance(values, dict) or set(values) != {"seed", "segments"}:
            raise ValueError(f"a trajectory must have a seed and segments, got {reprlib.repr(values)}")
        check_type("segments", values["segments"], list, "a list")
        required, segments = {f.name for f in fields(Segment)} - _OPTIONAL, []
        for entry in values["segments"]:
            if not isinstance(entry, dict) or set(entry) - _OPTIONAL != required:
                raise ValueError(f"a segment must have {', '.join(sorted(required))}, got {reprlib.repr(entry)}")
            if isinstance(entry["prompt"], dict):
                entry = entry | {"prompt": Blend.from_json(entry["prompt"])}
            if "codec" in entry:
                from ..codecs import parse

                entry = entry | {"codec": parse(entry["codec"])}
            if "thinning" in entry:
                entry = entry | {"thinning": Thinning.from_json(entry["thinning"])}
            segments.append(Segment(**entry))
        return Trajectory(values["seed"], tuple(segments))

    @staticmethod
    def plain(
        prompt: Prompt, seed: int, guidance_scale: float = 7.0, negative_prompt: str = "", num_inference_steps: int = 28
    ) -> Trajectory:
        """One prompt from noise to image."""
        return Trajectory(seed, (_segment(prompt, 0, num_inference_steps, guidance_scale, negative_prompt),))

    @staticmethod
    def hybrid(
        public_prompt: Prompt,
        personal_prompt: Prompt,
        common_step: int,
        seed: int,
        public_guidance_scale: float = 2.0,
        personal_guidance_scale: float = 8.0,
        negative_prompt: str = "",
        num_inference_steps: int = 28,
    ) -> Trajectory:
        """The public prompt for `common_step` updates, then the personal (and negative) prompt.

        At `common_step` 0 the personal prompt starts from the initial noise; at `num_inference_steps` the image is
        the public one.

        Raises:
            ValueError: unless 0 <= common_step <= num_inference_steps.
        """
        check_common_step(common_step, num_inference_steps)
        segments = []
        if common_step > 0:
            segments.append(_segment(public_prompt, 0, common_step, public_guidance_scale))
        if common_step < num_inference_steps:
            personal = (common_step, num_inference_steps, personal_guidance_scale, negative_prompt)
            segments.append(_segment(personal_prompt, *personal))
        return Trajectory(seed, tuple(segments))


def check_codec(codec: object) -> None:
    """Raise TypeError unless this is a codec."""
    if not isinstance(getattr(codec, "specification", None), str) or isinstance(codec, type):
        raise TypeError(f"codec must be one of those in hybridlib.codecs, got {reprlib.repr(codec)}")


def check_common_step(common_step: int, num_inference_steps: int) -> None:
    """Raise ValueError unless common_step is a whole number in 0..num_inference_steps."""
    check_type("num_inference_steps", num_inference_steps, Integral, "a whole number")
    if not isinstance(common_step, Integral) or not 0 <= common_step <= num_inference_steps:
        raise ValueError(f"common_step must lie in 0..{num_inference_steps} (num_inference_steps), got {common_step!r}")
