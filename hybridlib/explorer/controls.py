"""What the explorer's user has chosen, as one frozen value: the key of every cache, and what "copy as code" tells."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..codecs import Adaptive, DecimalRounding, MinMax
from ..denoising.trajectory import Conditioning, Segment, Trajectory

if TYPE_CHECKING:
    from ..codecs import Codec

MOST_USERS = 6
NO_CODEC = "none"
STEPS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)  # quantisation steps, finest first
STRENGTHS: dict[str, tuple[float, ...]] = {  # codec family, named as in study 07 -> its strengths, weakest first
    NO_CODEC: (0,),
    "adaptive (ours)": STEPS,
    "rounding, range coder": STEPS,
    "min-max, range coder": (8, 7, 6, 5, 4, 3, 2, 1),
}


def codec_of(family: str, strength: float) -> Codec | None:
    """The codec of a family of `STRENGTHS`: a quantisation step, or bits for min-max; None for "none"."""
    match family:
        case "adaptive (ours)":
            return Adaptive(float(strength))
        case "rounding, range coder":
            return DecimalRounding.from_ratio(float(strength))
        case "min-max, range coder":
            return MinMax(int(strength))
        case _:
            return None


@dataclass(frozen=True)
class Controls:
    """One picture: a public prompt, a personal prompt for each user, and how they are denoised.

    At common step 0 nothing is shared and nothing crosses a link, so no codec acts.

    Raises:
        ValueError: one sentence a user can act on, if a prompt is empty or a number is out of its range.
    """

    public_prompt: str
    personal_prompts: tuple[str, ...]
    common_step: int = 8
    public_guidance_scale: float = 2.0
    guidance_scale: float = 8.0
    negative_prompt: str = ""
    num_inference_steps: int = 28
    shift: float | None = None  # the model's own where None
    seed: int = 1
    codec: Codec | None = None

    def __post_init__(self) -> None:
        if not self.public_prompt.strip():
            raise ValueError("The public prompt is empty; write what the users have in common, such as 'a circle'.")
        if not 1 <= len(self.personal_prompts) <= MOST_USERS:
            raise ValueError(f"There must be 1 to {MOST_USERS} personal prompts, got {len(self.personal_prompts)}.")
        for number, prompt in enumerate(self.personal_prompts, start=1):
            if not prompt.strip():
                raise ValueError(f"The prompt of user {number} is empty; write one or remove the user.")
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {self.num_inference_steps}.")
        if not 0 <= self.common_step < self.num_inference_steps:
            last = self.num_inference_steps - 1
            raise ValueError(f"common_step must lie in 0..{last} (num_inference_steps - 1), got {self.common_step}.")
        for name in ("public_guidance_scale", "guidance_scale", "shift"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and not negative, got {value}.")

    @property
    def link_codec(self) -> Codec | None:
        """The codec where it acts."""
        return self.codec if self.common_step > 0 else None

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text that a denoiser reads."""
        negative = (self.negative_prompt,) if self.guidance_scale > 1 else ()
        public = (self.public_prompt,) if self.common_step > 0 else ()
        return tuple(text for text in (*public, *self.personal_prompts, *negative) if text)

    @property
    def public(self) -> Conditioning:
        """What the shared steps ask of the denoiser."""
        return Segment(self.public_prompt, 0, 1, self.public_guidance_scale).conditioning

    @property
    def prefix_key(self) -> tuple[object, ...]:
        """Everything that decides the public latents after any number of updates."""
        return self.public, self.seed, self.num_inference_steps, self.shift

    def trajectories(self) -> list[Trajectory]:
        """A whole trajectory for each user, from noise to image."""
        paths = [
            Trajectory.hybrid(
                self.public_prompt,
                prompt,
                self.common_step,
                self.seed,
                self.public_guidance_scale,
                self.guidance_scale,
                self.negative_prompt,
                self.num_inference_steps,
            )
            for prompt in self.personal_prompts
        ]
        codec = self.link_codec
        return paths if codec is None else [path.with_codec(self.common_step, codec) for path in paths]

    def personal_trajectories(self) -> list[Trajectory]:
        """What each user does after the handover."""
        return [Trajectory(path.seed, path.segments[-1:]) for path in self.trajectories()]

    def public_trajectory(self, start: int, stop: int) -> Trajectory:
        """The shared steps from `start` up to, not including, `stop`."""
        return Trajectory(self.seed, (Segment(self.public_prompt, start, stop, self.public_guidance_scale),))

    def without_codec(self) -> Controls:
        """The same picture with latents that are handed over as they are."""
        return replace(self, codec=None)
