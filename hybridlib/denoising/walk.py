"""Walks the denoising tree from noise to images, one step at a time, every live row of a step in one batch."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from ..noise import twin
from .denoisers import Denoiser, scaled
from .solvers import (
    begin_at,
    draws_noise,
    forget,
    history_of_rows,
    read_history,
    timesteps_of,
    write_history,
)
from .tree import Edge, Tree

HANDOFFS = ("keep", "reset")
Memory = list[tuple[list[int], dict[str, Tensor]]]  # rows, and what their solver remembers


@dataclass
class Front:
    """The live rows of the tree after a denoising step. A consumer of `walk` may replace `latents` in place."""

    updates: int  # updates made so far; the latents sit at sigmas[updates]
    timestep: Tensor  # that the last update started from
    latents: Tensor  # (rows, channels, height, width)
    members: tuple[tuple[int, ...], ...]  # trajectories of each row
    nfe: int  # denoiser evaluations of this step
    memory: Memory  # what the solver remembers

    def __repr__(self) -> str:
        return f"Front(after {self.updates} updates, {len(self.latents)} rows, {self.nfe} NFE)"


def walk(
    tree: Tree,
    denoisers: Mapping[str, Denoiser],
    scheduler: Any,
    latents: Tensor,
    *,
    noise_from_seeds: bool = False,
    generators: Mapping[int, Generator] | None = None,
    handoff: str = "keep",
    made_by: str | Sequence[str] | None = None,
) -> Iterator[Front]:
    """Denoise every edge of the tree once, yielding the front after each step.

    Where an edge has a codec, its row goes on from what the codec makes of the latents. The rows of a step are
    evaluated denoiser by denoiser.

    Args:
        tree: grown with the `evaluations` of the scheduler.
        denoisers: by the names that the segments use; "" is the one of segments that name none.
        scheduler: a diffusers scheduler with its timesteps set. Its solver history belongs to the rows: where a row
            forks, so does its history.
        latents: (roots, channels, height, width) at noise level `sigmas[tree.start]`, one row per root of the tree.
        noise_from_seeds: whether the latents began as `initial_noise` of the trajectories' seeds, so that a codec may
            rely on the receiver knowing it.
        generators: seed -> where its rows draw the noise of their updates, for a solver that adds noise. Rows of one
            seed draw the same. They are advanced.
        handoff: what a multistep solver remembers of the denoiser before, where another one takes over: "keep" as
            published for Hybrid SD, whose models share one scheduler, or "reset", which begins anew at first order.
        made_by: the denoiser that made the latents, where a walk goes on from a state; one for all rows or one each.

    Raises:
        ValueError: if a denoiser is unknown, or noise is needed and no generators are given.
    """
    check_walk(tree, denoisers, scheduler, generators, handoff)
    begin_at(scheduler, tree.start)
    solver, outputs = RowSolver(scheduler, len(latents)), RowOutputs(tree.is_thinned)
    last = [made_by] * len(latents) if made_by is None or isinstance(made_by, str) else list(made_by)
    for updates, level in enumerate(tree.levels, start=tree.start + 1):
        parents = [edge.parent for edge in level]
        if parents != list(range(len(latents))):
            latents = latents[torch.tensor(parents)]
            solver.fork(parents)
            outputs.fork(parents)
        if handoff == "reset":
            before = [last[parent] for parent in parents]
            solver.restart([i for i, edge in enumerate(level) if before[i] not in (None, edge.denoiser)])
        last = [edge.denoiser for edge in level]
        if any(edge.codec for edge in level):
            from ..codecs import quantise

            seeds = [tree.seed_of(edge) for edge in level] if noise_from_seeds else None
            latents = quantise(latents, [edge.codec for edge in level], seeds)
        timesteps = timesteps_of(scheduler, updates - 1)
        for timestep in timesteps:
            ask = functools.partial(_evaluate, denoisers, latents, timestep, level)
            output = outputs.next([edge.slope for edge in level], ask)
            noise = [twin(generators[tree.seed_of(edge)]) for edge in level] if generators else None
            latents = solver.step(output, timestep, latents, noise)
            for edge, drawn in zip(level, noise or (), strict=False):
                (generators or {})[tree.seed_of(edge)].set_state(drawn.get_state())
        nfe = len(timesteps) * sum(edge.nfe for edge in level)
        front = Front(updates, timesteps[0], latents, tuple(edge.members for edge in level), nfe, solver.memory())
        yield front
        latents = front.latents


def check_walk(tree: Tree, denoisers: Mapping[str, Denoiser], scheduler: Any, generators: object, handoff: str) -> None:
    """Raise ValueError where `walk` cannot begin."""
    if unknown := [name for name in tree.denoisers if name not in denoisers]:
        raise ValueError(f"a segment asks for denoiser {unknown[0]!r}; there are {', '.join(map(repr, denoisers))}")
    if handoff not in HANDOFFS:
        raise ValueError(f"handoff must be one of {HANDOFFS}, got {handoff!r}")
    if draws_noise(scheduler) and not generators:
        raise ValueError(f"{type(scheduler).__name__} draws noise at every step: generators must say from where")
    if tree.is_thinned and scheduler.order > 1:
        raise ValueError(f"{type(scheduler).__name__} evaluates {scheduler.order} times an update: thinning needs one")


def _evaluate(
    denoisers: Mapping[str, Denoiser],
    latents: Tensor,
    timestep: Tensor,
    level: Sequence[Edge],
    chosen: Sequence[int] | None = None,
) -> Tensor:
    """Guided model output of every row, or of the chosen ones, from its own denoiser, where and as the latents are."""
    if chosen is not None:
        latents, level = latents[list(chosen)], [level[row] for row in chosen]
    rows_of: dict[str, list[int]] = {}
    for row, edge in enumerate(level):
        rows_of.setdefault(edge.denoiser, []).append(row)
    outputs, order = [], []
    for name, rows in rows_of.items():
        denoiser, mine = denoisers[name], latents if len(rows_of) == 1 else latents[rows]
        mine = mine.to(denoiser.device, denoiser.dtype)
        output = denoiser(mine, timestep.to(denoiser.device), [level[row].conditioning for row in rows])
        outputs.append(output.to(latents.device, latents.dtype))
        order += rows
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)[torch.tensor(order).argsort()]


class RowOutputs:
    """What thinned rows remember: the last model output of each and how it changed, forked with the row.

    The change is that of the last evaluation, from the output before it, extrapolated or not.
    """

    def __init__(self, remember: bool) -> None:
        self._remember = remember
        self._last: Tensor | None = None
        self._change: Tensor | None = None

    def fork(self, parents: Sequence[int]) -> None:
        """Go on with rows that come from these."""
        if self._last is not None and self._change is not None:
            self._last, self._change = self._last[list(parents)], self._change[list(parents)]

    def next(self, slopes: Sequence[float | None], evaluate: Callable[..., Tensor]) -> Tensor:
        """Model output of every row: evaluated where it has no slope, else the last plus slope times its change."""
        if not self._remember:
            return evaluate()
        if self._last is None or self._change is None:  # every thinned segment begins with evaluations
            self._last = evaluate()
            self._change = torch.zeros_like(self._last)
            return self._last
        output = self._last + scaled(self._change, [slope or 0.0 for slope in slopes])
        if asked := [row for row, slope in enumerate(slopes) if slope is None]:
            output[asked] = evaluate(asked)
            self._change[asked] = output[asked] - self._last[asked]
        self._last = output
        return output


class RowSolver:
    """A diffusers scheduler for the live rows of a walk, whose memory forks with its row.

    Diffusers counts the updates of all rows together. So rows whose solver began anew have a scheduler of their own.
    """

    def __init__(self, scheduler: Any, rows: int) -> None:
        self._groups: list[tuple[Any, list[int]]] = [(scheduler, list(range(rows)))]

    def fork(self, parents: Sequence[int]) -> None:
        """Go on with rows that come from these."""
        groups = []
        for scheduler, rows in self._groups:
            mine = [row for row, parent in enumerate(parents) if parent in rows]
            if mine:
                _keep(scheduler, [rows.index(parents[row]) for row in mine])
                groups.append((scheduler, mine))
        self._groups = groups

    def restart(self, chosen: Sequence[int]) -> None:
        """Let these rows forget and begin anew at first order."""
        groups = []
        for scheduler, rows in self._groups:
            leaving, staying = [r for r in rows if r in chosen], [r for r in rows if r not in chosen]
            anew = copy.deepcopy(scheduler) if leaving and staying else scheduler
            if leaving:
                forget(anew)
                groups.append((anew, leaving))
            if leaving and staying:
                _keep(scheduler, [rows.index(row) for row in staying])
            if staying:
                groups.append((scheduler, staying))
        self._groups = groups

    def step(self, output: Tensor, timestep: Tensor, latents: Tensor, generators: list[Generator] | None) -> Tensor:
        """Latents of every row after the update; noise is drawn from the generator of each row."""
        stepped, order = [], []
        for scheduler, rows in self._groups:
            mine = slice(None) if len(self._groups) == 1 else rows
            options = {"generator": [generators[row] for row in rows]} if generators else {}
            result = scheduler.step(output[mine], timestep, latents[mine], return_dict=False, **options)
            stepped.append(result[0])
            order += rows
        return stepped[0] if len(stepped) == 1 else torch.cat(stepped)[torch.tensor(order).argsort()]

    def memory(self) -> Memory:
        """What is remembered of every row."""
        return [(rows, read_history(scheduler)) for scheduler, rows in self._groups]


def memory_of_row(memory: Memory, row: int) -> dict[str, Tensor]:
    """What a solver remembers of one row."""
    return next(history_of_rows(history, [rows.index(row)]) for rows, history in memory if row in rows)


def _keep(scheduler: Any, rows: Sequence[int]) -> None:
    write_history(scheduler, history_of_rows(read_history(scheduler), rows))
