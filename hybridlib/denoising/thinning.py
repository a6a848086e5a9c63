"""Thinning: steps whose model output is extrapolated instead of evaluated, as EC-Diff does (arXiv 2507.11980)."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any


@dataclass(frozen=True)
class Thinning:
    """After `warm_up` evaluated steps of a segment, `skip` steps are extrapolated before each evaluated one.

    The guided output of a skipped step is that of the step before plus a slope. The slope is the last difference of
    outputs in the warm-up, and `alpha` times the difference from the step before, extrapolated or not, at each later
    evaluation: e_i = e_{i-1} + g, as published.

    Raises:
        TypeError: if a value is of another type.
        ValueError: if the warm-up is below 2 steps, which a slope needs, `skip` below 1, or `alpha` negative or not
            finite.
    """

    warm_up: int
    skip: int
    alpha: float

    def __post_init__(self) -> None:
        for name, least in (("warm_up", 2), ("skip", 1)):
            value = getattr(self, name)
            if not isinstance(value, Integral):
                raise TypeError(f"{name} must be a whole number of steps, got {reprlib.repr(value)}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not isinstance(self.alpha, Real):
            raise TypeError(f"alpha must be a number, got {reprlib.repr(self.alpha)}")
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise ValueError(f"alpha must be finite and not negative, got {self.alpha}")

    def slopes(self, steps: int) -> Iterator[float | None]:
        """For each step of a segment: None where it is evaluated, else the factor of the last difference of outputs."""
        factor = 1.0
        for step in range(steps):
            evaluated = step < self.warm_up or (step - self.warm_up) % (self.skip + 1) == self.skip
            if evaluated and step >= self.warm_up:
                factor = float(self.alpha)
            yield None if evaluated else factor

    def evaluated(self, steps: int) -> int:
        """How many steps of a segment are evaluated."""
        return sum(slope is None for slope in self.slopes(steps))

    def as_json(self) -> list[float]:
        """Plain values; `from_json` reads them."""
        return [self.warm_up, self.skip, self.alpha]

    @staticmethod
    def from_json(values: Any) -> Thinning:
        """Inverse of `as_json`.

        Raises:
            TypeError, ValueError: if `as_json` cannot have made these values.
        """
        if not isinstance(values, list) or len(values) != 3:
            raise ValueError(f"thinning must be warm_up, skip and alpha, got {reprlib.repr(values)}")
        return Thinning(*values)
