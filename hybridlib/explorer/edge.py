"""The edge of study 08 to play: one episode of arrivals under a policy, its queues and delays, beside the bound."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..scheduling.rules.heuristics import YARDSTICKS, scaled_size_split
from ..scheduling.study import shipped
from ..scheduling.study.front import DEADLINES_S, name_of
from ..scheduling.study.pieces import LEARNERS, OURS, SLOW
from ..scheduling.system.arrivals import Arrivals
from ..scheduling.system.bounds import lower_bound
from ..scheduling.system.environment import Decision, Environment, Policy
from ..scheduling.system.model import Floats, Ints, MecConfig, Model

PLAYED = 64  # episodes that are remembered


@dataclass(frozen=True)
class Play:
    """What the user chose: a policy, and the arrivals that it meets.

    Raises:
        ValueError: one sentence, if the policy is unknown or a number is out of its range.
    """

    policy: str
    busiest: int = 50  # most tasks of a station in a slot; counts are uniform on 1..busiest, 50 as published
    episode: int = 0

    def __post_init__(self) -> None:
        if self.policy not in policies():
            raise ValueError(f"There is no policy {self.policy!r}; there are {', '.join(policies())}.")
        if not 1 <= self.busiest <= MecConfig().max_tasks:
            raise ValueError(f"busiest must lie in 1..{MecConfig().max_tasks} tasks, got {self.busiest}.")
        if self.episode < 0:
            raise ValueError(f"episode must not be negative, got {self.episode}.")

    @property
    def arrivals_key(self) -> tuple[int, int]:
        """What decides the arrivals."""
        return self.busiest, self.episode


@dataclass(frozen=True, eq=False)
class Episode:
    """What a policy made of the arrivals."""

    play: Play
    wait_s: Floats  # (slots, servers) waiting work over capacity at the start of each slot, slowest server first
    capacity: Floats  # (servers,) Gcycles/s, in the same order
    arriving: Floats  # (slots,) Gcycles
    served: float  # Gcycles that all servers can do in a slot
    delay_s: Floats  # (tasks,)
    bound_s: float  # proven: no policy has a lower mean on these arrivals

    @property
    def mean_s(self) -> float:
        """Mean delay over the tasks."""
        return float(self.delay_s.mean())


def policies() -> dict[str, Callable[[Model], Policy]]:
    """Every policy that plays an episode in about a second: the rules, then the schedulers that ship."""
    made: dict[str, Callable[[Model], Policy]] = {}
    for name, yardstick in YARDSTICKS.items():
        if name not in SLOW:
            made[name] = partial(_rule, yardstick.policy)
    made["size split"] = scaled_size_split
    for name in LEARNERS:
        made[name] = partial(_shipped, name, math.inf)
    for deadline_s in DEADLINES_S:
        made[name_of(deadline_s)] = partial(_shipped, OURS, deadline_s)
    return made


def _rule(policy: Policy, model: Model) -> Policy:
    return policy


def _shipped(name: str, deadline_s: float, model: Model) -> Policy:
    return shipped.load(name, model=model, deadline_s=deadline_s)


class Edge:
    """The published system and the episodes played on it."""

    def __init__(self) -> None:
        self.model = Model.draw()
        self._played: OrderedDict[Play, Episode] = OrderedDict()

    def play(self, play: Play) -> Episode:
        """The episode, played now or remembered; policies with a memory of their own start afresh."""
        if play not in self._played:
            self._played[play] = self._run(play)
            if len(self._played) > PLAYED:
                self._played.popitem(last=False)
        return self._played[play]

    def rivals(self, play: Play) -> dict[str, Episode]:
        """Every policy that met the same arrivals so far, best mean first."""
        same = [e for p, e in self._played.items() if p.arrivals_key == play.arrivals_key]
        return {e.play.policy: e for e in sorted(same, key=lambda e: e.mean_s)}

    def _run(self, play: Play) -> Episode:
        model, arrivals = self.model, thinned(Arrivals.draw(self.model.config, [play.episode]), play.busiest)
        policy, generator = policies()[play.policy](model), np.random.default_rng(play.episode)
        environment = Environment(model, arrivals)
        waits, delays, arriving = [], [], []
        for _ in range(environment.slots):
            view = environment.view()
            waits.append(view.backlog[0] / model.capacity)
            arriving.append(float(view.work.sum()))
            decision = policy(view, generator)
            delay = environment.step(*(decision if isinstance(decision, Decision) else (decision, None)))
            delays.append(delay[view.present])
        order = np.argsort(model.capacity, kind="stable")
        return Episode(
            play,
            np.stack(waits)[:, order],
            model.capacity[order],
            np.array(arriving),
            float(model.capacity.sum() * model.config.slot_s),
            np.concatenate(delays),
            float(lower_bound(model, arrivals)[0]),
        )


def thinned(arrivals: Arrivals, busiest: int) -> Arrivals:
    """The same episodes with counts scaled from 1..N to 1..busiest; inputs keep their sizes."""
    most = arrivals.size.shape[3]
    count: Ints = np.ceil(arrivals.count * (busiest / most)).astype(np.int64)
    kept = np.arange(most) < count[..., None]
    return Arrivals(count, np.where(kept, arrivals.size, 0.0))
