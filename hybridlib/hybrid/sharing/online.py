"""Prompts that arrive over time: each joins the running tree at the latest noise level that its floor allows.

Time is counted in updates: a row of the tree makes one a tick. What a request shares is the way of an earlier one, as
far as that was chosen already, so nobody's image changes by who comes later.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ...intervals import Array, Integers
from ..planning import QualitySurface
from .groups import encoded
from .plan import Part, Path, SharingPlan, expected
from .planner import check_floor, check_numbers, checked, schedule
from .quality import LOW, Forecast, forecast, shipped_surface


class Fork(NamedTuple):
    """Where a request leaves the way of an earlier one."""

    host: int | None  # number of that request; None where it shares nothing
    step: int  # updates that both have in common; all of them for a repeated prompt
    begins: int  # tick at which its own updates begin
    ends: int  # tick at which its image is there


@dataclass
class OnlineTree:
    """A tree of one seed that grows with every request.

    Every request runs at one guidance scale, so each is a public prompt for those after it, and the quality surface is
    that of equal scales.

    Args:
        forecast: what a handover costs, of `quality.forecast` with `same_scale`.
        quality_floor: that the lower bound of each request's quality keeps, in (0, 1].
        keeps: whether the states after every update are kept. Else a request can only ride along from now on: it joins
            where the host has not yet passed the step of its fork.
        similarity: as in `share`.
    """

    forecast: Forecast
    sigmas: Array
    quality_floor: float = 0.95
    guidance_scale: float = 7.0
    keeps: bool = True
    similarity: Any = None
    model: str = ""
    prompts: list[str] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    vectors: dict[str, Array] = field(default_factory=dict)
    arrivals: list[int] = field(default_factory=list)
    ticks: list[Integers] = field(
        default_factory=list
    )  # of each request, (steps + 1,): when it has made so many updates

    @staticmethod
    def start(
        quality_floor: float = 0.95,
        *,
        level: float = 0.9,
        each: bool = False,
        guidance_scale: float = 7.0,
        num_inference_steps: int = 28,
        shift: float | None = None,
        sigmas: ArrayLike | None = None,
        surface: QualitySurface | None = None,
        similarity: Any = None,
        keeps: bool = True,
    ) -> OnlineTree:
        """An empty tree; for the arguments see `planner.share`.

        Raises:
            ValueError: one sentence, if an argument lies outside its range.
        """
        check_floor(quality_floor)
        check_numbers(level, guidance_scale)
        levels = schedule(num_inference_steps, shift, sigmas)
        surface = surface or shipped_surface(guidance_scale, guidance_scale)
        view = forecast(surface, levels, level, each, same_scale=True)
        return OnlineTree(view, levels, quality_floor, float(guidance_scale), keeps, similarity, surface.model)

    def join(self, prompt: str, now: int = 0) -> Fork:
        """Let a request in at tick `now`, not before the ones already here.

        Of the earlier requests whose way it may share longest it takes the first.

        Raises:
            ValueError: if the prompt is empty, or `now` lies before the last request.
        """
        (text,) = checked([prompt], "prompt")
        if now < (last := max(self.arrivals, default=now)):
            raise ValueError(f"now must not lie before the last request, at tick {last}, got {now}")
        if text not in self.vectors:
            self.vectors[text] = encoded([text], self.similarity)[0]
        steps = self.forecast.steps
        host, step = self._latest(text, now)
        ticks: Integers = np.arange(steps + 1, dtype=np.int64) + now
        if host is not None:
            ticks[: step + 1] = self.ticks[host][: step + 1]
            ticks[step + 1 :] = max(now, ticks[step]) + np.arange(1, steps + 1 - step)
        self.arrivals.append(now)
        self.prompts.append(text)
        self.paths.append(self._way(text, host, step))
        self.ticks.append(ticks)
        begins = now if host is None else max(now, int(ticks[step]))
        return Fork(host, step, begins, max(now, int(ticks[-1])))

    @property
    def plan(self) -> SharingPlan:
        """The tree of all requests so far."""
        first = [self.prompts.index(text) for text in dict.fromkeys(self.prompts)]
        paths = tuple(self.paths[i] for i in first)
        texts = [self.prompts[i] for i in first]
        quality = expected(paths, texts, self.vectors, self.forecast)
        return SharingPlan(tuple(self.prompts), paths, self.sigmas, quality, self.forecast.each, model=self.model)

    def allowed(self, text: str, path: Path) -> int:
        """The latest step at which a prompt may leave this way with its floor kept."""
        table, spent, start, latest = self.forecast.table[LOW], 0.0, 0, 0
        for part in path:
            stop = min(part.stop, self.forecast.steps - 1)
            row = self._row(text, part)
            kept = 1 - spent - (table[row, start] - table[row, start + 1 : stop + 1])
            good = kept >= self.quality_floor - 1e-12  # nan, where nothing is known, is not
            latest = start + (len(good) if good.all() else int(np.argmin(good)))
            if latest < stop:
                break
            spent, start = 1 - float(kept[-1]) if len(kept) else spent, stop
        return latest

    def _latest(self, text: str, now: int) -> tuple[int | None, int]:
        if text in self.prompts:
            return self.prompts.index(text), self.forecast.steps
        best: tuple[int | None, int] = (None, 0)
        for host, path in enumerate(self.paths):
            step = self.allowed(text, path)
            if step > best[1] and (self.keeps or self.ticks[host][step] >= now):
                best = host, step
        return best

    def _row(self, text: str, part: Part) -> int:
        if part.texts == (text,):
            return self.forecast.own
        return int(self.forecast.rows(self.vectors[part.texts[0]] @ self.vectors[text]))

    def _way(self, text: str, host: int | None, step: int) -> Path:
        own = Part((text,), self.forecast.steps, self.guidance_scale)
        if host is None:
            return (own,)
        if step == self.forecast.steps:
            return self.paths[host]
        shared: list[Part] = []
        for part in self.paths[host]:
            shared.append(part._replace(stop=min(part.stop, step)))
            if part.stop >= step:
                break
        return (*shared, own)
