"""The planner's floor as a rule for a cache of prefixes: may a prompt go on from what earlier calls have left?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...denoising.trajectory import Segment, Trajectory
from ...intervals import Array
from .groups import encoded
from .plan import Part, expected
from .planner import check_floor
from .quality import LOW, Forecast


def floor_rule(
    forecast: Forecast,
    quality_floor: float,
    public_guidance_scale: float = 2.0,
    guidance_scale: float = 7.0,
    similarity: Any = None,
) -> Callable[[Any, Trajectory], float]:
    """A rule for `denoising.cache.PrefixCache`: it takes a prefix if the lower bound of quality keeps the floor.

    Args:
        forecast: of the schedule that is run, for these guidance scales.
        similarity: as in `planner.share`.

    Returns:
        A function of a prefix (its `past` is what led to it) and a trajectory: the lower bound of the quality of the
        image that goes on from there, 0 where it lies below the floor, where prompts are less alike than is known, or
        where anything but prompts without negatives at these scales is involved.

    Raises:
        ValueError: unless the floor lies in (0, 1].
    """
    check_floor(quality_floor)
    vectors: dict[str, Array] = {}

    def rule(prefix: Any, trajectory: Trajectory) -> float:
        step = prefix.past.stop
        later = [segment for segment in trajectory.segments if segment.stop > step]
        ahead = [*prefix.past.segments, *later[:-1]]
        plain = all(not s.negative_prompt and s.codec is None and s.thinning is None for s in (*ahead, *later))
        scales = {float(s.guidance_scale) for s in ahead} <= {float(public_guidance_scale)}
        if not later or not plain or not scales or later[-1].guidance_scale != guidance_scale:
            return 0.0
        path = tuple(Part(_texts(s), s.stop, float(s.guidance_scale)) for s in (*ahead, later[-1]))
        if trajectory.stop != forecast.steps or len(path[-1].texts) > 1:
            return 0.0
        if new := sorted({text for part in path for text in part.texts} - vectors.keys()):
            vectors.update(zip(new, encoded(new, similarity), strict=True))
        low = float(expected([path], path[-1].texts, vectors, forecast)[LOW, 0])
        return low if low >= quality_floor else 0.0  # nan, where nothing is known, is not

    return rule


def _texts(segment: Segment) -> tuple[str, ...]:
    """The prompt of a segment, or the prompts that it averages."""
    return (segment.prompt,) if isinstance(segment.prompt, str) else tuple(segment.prompt.prompts)
