"""The published mobile-edge-computing (MEC) model of LAD-TS: edge servers, image tasks, slots; many episodes at once.

Everything is NumPy float64. A batch of E episodes advances slot by slot; all tasks of all base stations of a slot are
served by one call. Inside a slot nothing drains and no agent sees what others placed, so this is the published
one-task-at-a-time loop, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrivals import Arrivals
from .model import Floats, Ints, Model, check_model


class View(NamedTuple):
    """A slot as it starts. An agent at base station b of the published system sees `size[:, b]`, the work of its
    tasks and `backlog`; not the capacities, links, results or what others place. Rules that use more say so."""

    model: Model
    slot: int
    size: Floats  # Mbit, (E, B, N), 0 where there is no task
    present: NDArray[np.bool_]  # (E, B, N)
    backlog: Floats  # Gcycles, (E, B)
    tasks_before: Ints  # tasks served in earlier slots, (E,)

    def __repr__(self) -> str:
        return f"View({self.model!r}, slot {self.slot}, {len(self.size)} episodes, {self.present.sum()} tasks)"

    @property
    def work(self) -> Floats:
        """Gcycles of each task, 0 where there is none, shape (E, B, N)."""
        return np.where(self.present, self.model.work, 0.0)


class Decision(NamedTuple):
    """Servers, and in which order the tasks of the slot queue: by `priority` (lowest first) instead of as published.

    The order is a freedom the published system does not have; only yardsticks use it.
    """

    actions: Ints  # (E, B, N)
    priority: Floats | None = None  # (E, B, N)


Policy = Callable[[View, np.random.Generator], NDArray[np.integer[Any]] | Decision]


class Environment:
    """A batch of episodes of the published system, slot by slot.

    **Actions**, integer (E, B, N): the server of each task, 0..B-1; entries without a task are ignored.

    **Observation** (`view()`), per task of base station b:

    | entry     | quantity                              | unit    | range      |
    |-----------|---------------------------------------|---------|------------|
    | 0         | input size d of the task              | Mbit    | 2..5       |
    | 1         | its work w                            | Gcycles | 0.10..4.30 |
    | 2..B+1    | backlog L of every server, slot start | Gcycles | 0..inf     |

    **Delay** of a task sent from b to j, seconds, with A the work already placed on j in this slot by tasks earlier
    in the order (b ascending, then n ascending):

        [j != b] * d / R_j + w / C_j + o / R_j + (L_j + A_j) / C_j

    **Reward** is minus that delay. **Start**: L = 0. **Transition**: L <- max(L + A - C * slot, 0).
    **Truncation** after T - 1 slots; nothing terminates. Backlog left at the end costs nothing more, since delays are
    charged in full when a task is placed.

    Source: the public DEdgeAI repository (2025 state) and arXiv 2412.18212.

    Raises:
        TypeError: if model is no Model or arrivals no Arrivals.
        ValueError: if the arrivals are of another size.
    """

    def __init__(self, model: Model, arrivals: Arrivals) -> None:
        check_model(model)
        if not isinstance(arrivals, Arrivals):
            raise TypeError(
                f"arrivals must be Arrivals, as Arrivals.draw(config, ...) returns them, got {type(arrivals).__name__}"
            )
        expected = (model.config.slots, model.config.servers, model.config.max_tasks)
        if arrivals.size.shape[1:] != expected:
            raise ValueError(f"arrivals must have shape (E, T, B, N) = (E, *{expected}), got {arrivals.size.shape}")
        self.model, self.arrivals = model, arrivals
        self.episodes, self.slots = len(arrivals.count), model.config.slots - 1
        self._present = np.arange(model.config.max_tasks) < arrivals.count[..., None]
        self.reset()

    def __repr__(self) -> str:
        return f"Environment({self.model!r}, {self.episodes} episodes, slot {self.slot} of {self.slots})"

    def reset(self) -> View:
        """Back to the first slot with empty queues."""
        self.slot = 0
        self.backlog = np.zeros((self.episodes, self.model.config.servers))
        self._before = np.zeros(self.episodes, np.int64)
        return self.view()

    def view(self, slot: int | None = None) -> View:
        """This slot as it starts; with `slot`, the arrivals of another one beside the present backlog."""
        t = self.slot if slot is None else slot
        return View(self.model, t, self.arrivals.size[:, t], self._present[:, t], self.backlog, self._before)

    def step(self, actions: ArrayLike, priority: Floats | None = None) -> Floats:
        """Serve the slot; returns the delay of each task in seconds, shape (E, B, N), 0 where there is no task.

        Raises:
            ValueError: if the episode is over, or an action is not a whole number in 0..B-1.
        """
        if self.slot >= self.slots:
            raise ValueError(f"the episode ended after {self.slots} slots, call reset() first")
        present = self._present[:, self.slot]
        server = self._checked(actions, present)
        delay, placed = serve(self.model, self.arrivals.size[:, self.slot], present, self.backlog, server, priority)
        drained = self.backlog + placed - self.model.capacity * self.model.config.slot_s
        self.backlog = np.maximum(drained, 0.0)
        self._before = self._before + self.arrivals.count[:, self.slot].sum(axis=1)
        self.slot += 1
        return delay

    def _checked(self, actions: ArrayLike, present: NDArray[np.bool_]) -> Ints:
        server = np.asarray(actions)
        if server.shape != present.shape or not np.issubdtype(server.dtype, np.integer):
            raise ValueError(
                f"actions must be whole numbers of shape {present.shape}, got {server.dtype} of shape {server.shape}"
            )
        server = np.where(present, server, 0)
        if server.min() < 0 or server.max() >= present.shape[1]:
            worst = server.min() if server.min() < 0 else server.max()
            raise ValueError(f"actions must lie in 0..{present.shape[1] - 1}, got {worst}")
        return server


def serve(
    model: Model,
    size: Floats,
    present: NDArray[np.bool_],
    backlog: Floats,
    server: Ints,
    priority: Floats | None = None,
) -> tuple[Floats, Floats]:
    """Delay of every task of one slot (E, B, N) in seconds, and the work placed on each server (E, B) in Gcycles.

    The work before a task on its server is an exclusive cumulative sum over tasks of one-hot work; adding the zeros
    of other servers is exact, so the result is that of the sequential loop to the last bit.
    """
    episodes, stations, _ = server.shape
    episode, station, task = np.nonzero(present)  # in the published order
    chosen, work = server[present], model.work[task]
    count = present.sum(axis=(1, 2))
    place = np.arange(len(episode)) - np.repeat(np.cumsum(count) - count, count)
    if priority is not None:
        place[np.lexsort((priority[present], episode))] = place.copy()
    # Row (episode, server), column k: work of the first k tasks of the slot that went to this server.
    queue = np.zeros((episodes, stations, count.max(initial=0) + 1))
    cell = (episode * stations + chosen) * queue.shape[2] + place
    queue.reshape(-1)[cell + 1] = work
    np.cumsum(queue, axis=2, out=queue)
    waiting = backlog[episode, chosen] + queue.reshape(-1)[cell]
    capacity, rate = model.capacity[chosen], model.rate[chosen]
    upload = np.where(chosen == station, 0.0, size[present] / rate)
    delay = np.zeros(server.shape)
    delay[present] = upload + work / capacity + model.result[task] / rate + waiting / capacity  # the published order
    return delay, queue[:, :, -1]


class Result(NamedTuple):
    """Delays of whole episodes."""

    delay_s: Floats  # (E, T-1, B, N), 0 where there is no task
    present: NDArray[np.bool_]  # same shape
    backlog: Floats  # Gcycles left at the end, (E, B)

    def __repr__(self) -> str:
        means = ", ".join(f"{m:.3f}" for m in self.mean_s[:5]) + (", ..." if len(self.delay_s) > 5 else "")
        return f"Result({len(self.delay_s)} episodes, {self.present.sum()} tasks, mean_s {means})"

    @property
    def mean_s(self) -> Floats:
        """Mean delay over the tasks of each episode, the published metric, shape (E,)."""
        return self.delay_s.sum(axis=(1, 2, 3)) / self.present.sum(axis=(1, 2, 3))

    def percentile_s(self, q: float | Sequence[float]) -> Floats:
        """Percentiles of the delay over all tasks of all episodes."""
        return np.asarray(np.percentile(self.delay_s[self.present], q))


def simulate(model: Model, policy: Policy, arrivals: Arrivals, seed: int = 0) -> Result:
    """Play every episode under one policy."""
    environment, generator = Environment(model, arrivals), np.random.default_rng(seed)
    delays = []
    for _ in range(environment.slots):
        decision = policy(environment.view(), generator)
        delays.append(environment.step(*(decision if isinstance(decision, Decision) else (decision, None))))
    return Result(np.stack(delays, axis=1), environment._present[:, :-1], environment.backlog)
