"""The published mobile-edge-computing (MEC) model of LAD-TS: edge servers, image tasks, slots; many episodes at once.

Everything is NumPy float64. A batch of E episodes advances slot by slot; all tasks of all base stations of a slot are
served by one call. Inside a slot nothing drains and no agent sees what others placed, so this is the published
one-task-at-a-time loop, bit for bit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class MecConfig:
    """Size and ranges of the system; the defaults are the published ones.

    | parameter  | unit             | default          | drawn as                                           |
    |------------|------------------|------------------|----------------------------------------------------|
    | servers B  |                  | 20               | one edge server at each base station               |
    | max_tasks N|                  | 50               | tasks of a base station in a slot: integers 1..N   |
    | slots T    |                  | 60               | T - 1 are played, the last only supplies next state|
    | capacity C | Gcycles/s        | 10..50           | integers, both ends included, one per server       |
    | rate R     | Mbit/s           | 400..500         | integers, both ends included, one per server       |
    | density    | Gcycles per step | 0.1024..0.3072   | uniform, one per task index n                      |
    | quality z  | denoising steps  | 1..14            | integers, one per task index n                     |
    | result o   | Mbit             | 0.6..1.0         | uniform, one per task index n                      |
    | size d     | Mbit             | 2..5             | uniform, one per task and episode                  |
    | slot       | s                | 1                | constant                                           |

    The published quality is documented as 1..15, but 15 is never drawn. Ranges are (low, high) pairs.

    Raises:
        ValueError: one sentence naming the parameter, its value and what is allowed.
    """

    servers: int = 20
    max_tasks: int = 50
    slots: int = 60
    capacity_gcycles_s: tuple[int, int] = (10, 50)
    rate_mbit_s: tuple[int, int] = (400, 500)
    density_gcycles: tuple[float, float] = (0.1024, 0.3072)
    quality_steps: tuple[int, int] = (1, 14)
    result_mbit: tuple[float, float] = (0.6, 1.0)
    size_mbit: tuple[float, float] = (2.0, 5.0)
    slot_s: float = 1.0
    capacity_seed: int = 2
    rate_seed: int = 5
    task_seed: int = 1

    def __post_init__(self) -> None:
        for name, low in (("servers", 1), ("max_tasks", 1), ("slots", 2)):
            _whole(name, getattr(self, name), low, None)
        for name in ("capacity_seed", "rate_seed", "task_seed"):
            _whole(name, getattr(self, name), 0, 2**32 - 1)
        for name in ("capacity_gcycles_s", "rate_mbit_s", "quality_steps"):
            _ordered(name, getattr(self, name), Integral, "two whole numbers")
        for name in ("density_gcycles", "result_mbit", "size_mbit"):
            _ordered(name, getattr(self, name), Real, "two finite numbers")
        if not (isinstance(self.slot_s, Real) and math.isfinite(self.slot_s) and self.slot_s > 0):
            raise ValueError(f"slot_s must be finite and above 0, got {self.slot_s!r}")

    def at_load(self, load: float) -> MecConfig:
        """The same system with every workload scaled so that the offered load becomes `load`.

        Raises:
            ValueError: unless load is finite and above 0.
        """
        if not (math.isfinite(load) and load > 0):
            raise ValueError(f"load must be finite and above 0, got {load!r}")
        scale = load / Model.draw(self).load
        low, high = self.density_gcycles
        return dataclasses.replace(self, density_gcycles=(low * scale, high * scale))


def _whole(name: str, value: Any, low: int, high: int | None) -> None:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not (whole and low <= value and (high is None or value <= high)):
        allowed = f"at least {low}" if high is None else f"in {low}..{high}"
        raise ValueError(f"{name} must be a whole number {allowed}, got {value!r}")


def _ordered(name: str, value: Any, kind: Any, words: str) -> None:
    pair = isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, kind) for v in value)
    if not (pair and all(math.isfinite(v) for v in value) and 0 < value[0] <= value[1]):
        raise ValueError(f"{name} must be {words} with 0 < low <= high, got {value!r}")


@dataclass(frozen=True, eq=False)
class Model:
    """The fixed draws: servers, links and task types. A task's work depends on its index n alone, everywhere.

    Attributes:
        capacity: Gcycles/s, shape (B,).
        rate: Mbit/s of the link to each server, shape (B,).
        work: Gcycles of task index n, shape (N,).
        result: Mbit of its result, shape (N,).

    Raises:
        ValueError: if a shape is wrong, or a value is not finite and above 0.
    """

    config: MecConfig
    capacity: Floats
    rate: Floats
    work: Floats
    result: Floats

    def __post_init__(self) -> None:
        sizes = {"capacity": self.config.servers, "rate": self.config.servers}
        sizes |= {"work": self.config.max_tasks, "result": self.config.max_tasks}
        for name, size in sizes.items():
            values = np.array(getattr(self, name), dtype=np.float64)
            if values.shape != (size,):
                raise ValueError(f"{name} must have shape ({size},), got {values.shape}")
            if not (np.isfinite(values) & (values > 0)).all():
                worst = values[~(np.isfinite(values) & (values > 0))][0]
                raise ValueError(f"{name} must be finite and above 0 everywhere, got {worst}")
            values.flags.writeable = False
            object.__setattr__(self, name, values)

    @classmethod
    def draw(cls, config: MecConfig | None = None) -> Model:
        """The published draws: each quantity restarts NumPy's legacy generator at its seed, so work and result
        come from the same uniforms."""
        c = config or MecConfig()
        low, high = c.capacity_gcycles_s
        capacity = np.random.RandomState(c.capacity_seed).randint(low, high + 1, c.servers, dtype=np.int64)
        low, high = c.rate_mbit_s
        rate = np.random.RandomState(c.rate_seed).randint(low, high + 1, c.servers, dtype=np.int64)
        density = np.random.RandomState(c.task_seed).uniform(*c.density_gcycles, c.max_tasks)
        low, high = c.quality_steps
        quality = np.random.RandomState(c.task_seed).randint(low, high + 1, c.max_tasks, dtype=np.int64)
        result = np.random.RandomState(c.task_seed).uniform(*c.result_mbit, c.max_tasks)
        return cls(c, capacity.astype(np.float64), rate.astype(np.float64), density * quality, result)

    @property
    def offered_gcycles(self) -> float:
        """Expected work arriving per slot at all base stations, Gcycles: index n is present with P(m > n)."""
        n = np.arange(self.config.max_tasks)
        return float(self.config.servers * (self.work * (1 - n / self.config.max_tasks)).sum())

    @property
    def load(self) -> float:
        """Offered work over what all servers can do in a slot. Above 1 the backlog grows without end."""
        return self.offered_gcycles / (float(self.capacity.sum()) * self.config.slot_s)


@dataclass(frozen=True, eq=False)
class Arrivals:
    """What arrives in a batch of episodes.

    Attributes:
        count: tasks of each base station in each slot, 1..N (0 is allowed in hand-made cases), shape (E, T, B).
        size: Mbit of each input, shape (E, T, B, N); entries from `count` on are 0.

    Raises:
        ValueError: if shapes disagree, a count lies outside 0..N, or a size is not finite and above 0.
    """

    count: Ints
    size: Floats

    def __post_init__(self) -> None:
        count, size = np.asarray(self.count), np.array(self.size, dtype=np.float64)
        if count.ndim != 3 or size.ndim != 4 or size.shape[:3] != count.shape:
            raise ValueError(
                f"count and size must have shapes (E, T, B) and (E, T, B, N), got {count.shape}, {size.shape}"
            )
        if not np.issubdtype(count.dtype, np.integer) or count.min() < 0 or count.max() > size.shape[3]:
            raise ValueError(f"count must be whole numbers in 0..{size.shape[3]}, got {count.min()}..{count.max()}")
        present = np.arange(size.shape[3]) < count[..., None]
        good = np.isfinite(size) & (size > 0)
        if not good[present].all():
            raise ValueError(f"size must be finite and above 0 for every task, got {size[present & ~good][0]}")
        size[~present] = 0.0
        object.__setattr__(self, "count", count.astype(np.int64))
        object.__setattr__(self, "size", size)

    @classmethod
    def draw(cls, config: MecConfig, episodes: Sequence[int], seed: int = 0) -> Arrivals:
        """Episodes by number: episode e of a seed is the same whatever else is drawn, and for every method."""
        counts, sizes = [], []
        for episode in episodes:
            generator = np.random.default_rng((seed, episode))
            counts.append(generator.integers(1, config.max_tasks + 1, (config.slots, config.servers)))
            sizes.append(generator.uniform(*config.size_mbit, (config.slots, config.servers, config.max_tasks)))
        return cls(np.stack(counts), np.stack(sizes))

    @classmethod
    def published(cls, config: MecConfig, episodes: int, after_latents: bool = False) -> Arrivals:
        """The first episodes of the published scripts, whose arrivals continue the stream of the task draws (Q5).

        Args:
            after_latents: the stream of the LAD-TS script, which draws its latent memory first; otherwise that of the
                Opt-TS and SAC-TS scripts.
        """
        return cls.join(list(islice(published_stream(config, after_latents), episodes)))

    @classmethod
    def join(cls, batches: Sequence[Arrivals]) -> Arrivals:
        """One batch of all their episodes."""
        return cls(np.concatenate([a.count for a in batches]), np.concatenate([a.size for a in batches]))

    @property
    def tasks(self) -> Ints:
        """Tasks played in each episode, shape (E,): those of the last slot are not."""
        return self.count[:, :-1].sum(axis=(1, 2))


def published_stream(config: MecConfig, after_latents: bool = False) -> Iterator[Arrivals]:
    """The episodes of the published scripts, one at a time and without end; see `Arrivals.published`."""
    stream = np.random.RandomState(config.task_seed)
    stream.uniform(size=config.max_tasks)
    if after_latents:
        stream.normal(size=(config.slots, config.servers, config.max_tasks, config.servers))
    while True:
        count = np.zeros((1, config.slots, config.servers), np.int64)
        size = np.zeros((*count.shape, config.max_tasks))
        for t in range(config.slots):
            count[0, t] = stream.randint(1, config.max_tasks + 1, config.servers, dtype=np.int64)
            for b, m in enumerate(count[0, t]):
                size[0, t, b, :m] = stream.uniform(*config.size_mbit, m)
        yield Arrivals(count, size)


class View(NamedTuple):
    """A slot as it starts. An agent at base station b of the published system sees `size[:, b]`, the work of its
    tasks and `backlog`; not the capacities, links, results or what others place. Rules that use more say so."""

    model: Model
    slot: int
    size: Floats  # Mbit, (E, B, N), 0 where there is no task
    present: NDArray[np.bool_]  # (E, B, N)
    backlog: Floats  # Gcycles, (E, B)
    tasks_before: Ints  # tasks served in earlier slots, (E,)

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
    """

    def __init__(self, model: Model, arrivals: Arrivals) -> None:
        expected = (model.config.slots, model.config.servers, model.config.max_tasks)
        if arrivals.size.shape[1:] != expected:
            raise ValueError(f"arrivals must have shape (E, T, B, N) = (E, *{expected}), got {arrivals.size.shape}")
        self.model, self.arrivals = model, arrivals
        self.episodes, self.slots = len(arrivals.count), model.config.slots - 1
        self._present = np.arange(model.config.max_tasks) < arrivals.count[..., None]
        self.reset()

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
