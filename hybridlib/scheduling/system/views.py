"""The MEC environment behind the interfaces other RL libraries speak: PettingZoo and Gymnasium.

Both are thin views of `environment.Environment`'s model; they need the extra `rl`.

| view             | one step          | action                 | observation               | reward               |
|------------------|-------------------|------------------------|---------------------------|----------------------|
| MecParallelEnv   | a slot, B agents  | N servers a station    | sizes, works, all backlogs| - sum of its delays  |
| MecTaskEnv       | a task            | its server             | d, w, all backlogs        | - its delay          |

Observations are raw units in float32 as published; backlogs are those of the slot's start.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import ParallelEnv

from . import register_environments
from .arrivals import Arrivals
from .environment import Environment
from .model import MecConfig, Model, check_model, check_whole

Observation = NDArray[np.float32]


def _limits(model: Model) -> tuple[float, float, float]:
    """Largest size (Mbit), work and backlog (Gcycles) that can occur."""
    config = model.config
    most = float(model.work.sum()) * config.servers * config.slots
    return config.size_mbit[1], float(model.work.max()), most


class _Episodes:
    """Seeded arrivals: a seed starts a series of episodes, resets without one go on with it."""

    def __init__(self, config: MecConfig) -> None:
        self.config, self.seed, self.next = config, 0, 0

    def draw(self, seed: int | None) -> Arrivals:
        if seed is not None:
            self.seed, self.next = seed, 0
        self.next += 1
        return Arrivals.draw(self.config, [self.next - 1], self.seed)


class MecParallelEnv(ParallelEnv):
    """All base stations act at once, one slot a step.

    **Agents**: `station_0` .. `station_{B-1}`.

    **Action** of an agent: MultiDiscrete, N servers, one a task index; those beyond its tasks are ignored.

    **Observation** of an agent, Box (2 N + B,): input sizes (Mbit) and works (Gcycles) of its tasks, 0 where there is
    none, then the backlog of every server at slot start (Gcycles).

    **Reward**: minus the sum of the delays of its tasks, seconds. **Truncation** after T - 1 slots.

    Raises:
        TypeError: if model is no Model.
    """

    metadata: dict[str, Any] = {"name": "mec_v0", "render_modes": []}  # noqa: RUF012 - the interface wants a plain dict
    render_mode = None

    def __init__(self, model: Model | None = None) -> None:
        self.model = Model.draw() if model is None else model
        check_model(self.model)
        config = self.model.config
        self.possible_agents = [f"station_{b}" for b in range(config.servers)]
        self.agents: list[str] = []
        size, work, backlog = _limits(self.model)
        high = np.repeat([size, work, backlog], [config.max_tasks, config.max_tasks, config.servers])
        self.observation_spaces = {
            a: spaces.Box(np.zeros(len(high), np.float32), high.astype(np.float32)) for a in self.possible_agents
        }
        self.action_spaces = {
            a: spaces.MultiDiscrete(np.full(config.max_tasks, config.servers)) for a in self.possible_agents
        }
        self._episodes = _Episodes(config)

    def __repr__(self) -> str:
        return f"MecParallelEnv({self.model!r})"

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        """The same for every agent."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """The same for every agent."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Observation], dict[str, dict[str, Any]]]:
        """Start the next episode, or with `seed` the first of a series."""
        self._environment = Environment(self.model, self._episodes.draw(seed))
        self.agents = list(self.possible_agents)
        return self._observe(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        """Serve one slot.

        Raises:
            ValueError: if no episode is running, an agent's action is missing, or a server lies outside 0..B-1.
        """
        if not self.agents:
            raise ValueError("no episode is running, call reset() first")
        if missing := [agent for agent in self.agents if agent not in actions]:
            raise ValueError(f"actions must hold every agent, {missing[0]} is missing")
        delays = self._environment.step(np.stack([np.asarray(actions[a]) for a in self.possible_agents])[None])[0]
        over = self._environment.slot >= self._environment.slots
        agents = self.agents
        rewards = {a: -float(d.sum()) for a, d in zip(agents, delays, strict=True)}
        observations = self._observe()
        if over:
            self.agents = []
        return observations, rewards, dict.fromkeys(agents, False), dict.fromkeys(agents, over), {a: {} for a in agents}

    def _observe(self) -> dict[str, Observation]:
        view = self._environment.view()
        parts = zip(view.size[0], view.work[0], strict=True)
        rows = [np.concatenate([size, work, view.backlog[0]]).astype(np.float32) for size, work in parts]
        return dict(zip(self.possible_agents, rows, strict=True))


class MecTaskEnv(gymnasium.Env[Observation, np.int64]):
    """One dispatcher for all stations, one task a step, in the published order.

    **Action**: Discrete(B), the server of this task.

    **Observation**, Box (2 + B,): input size (Mbit), work (Gcycles), backlog of every server at slot start (Gcycles).
    With `last_wait` (quirk Q8, the July 2024 code) one entry more: the wait in seconds of the task placed last,
    wherever it went, which leaks what happens inside the slot.

    **Reward**: minus the task's delay, seconds. **Truncation** after the last task of slot T - 2.

    Also `gymnasium.make("hybridlib/MecTask-v0", model=...)`, without an import of ours where the package is installed.

    Raises:
        TypeError: if model is no Model.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - the interface wants a plain dict

    def __init__(self, model: Model | None = None, last_wait: bool = False) -> None:
        self.model, self.last_wait = Model.draw() if model is None else model, last_wait
        check_model(self.model)
        config = self.model.config
        size, work, backlog = _limits(self.model)
        high = [size, work] + [backlog] * config.servers
        if last_wait:
            high.append(backlog / float(self.model.capacity.min()))
        self.observation_space = spaces.Box(np.zeros(len(high), np.float32), np.array(high, np.float32))
        self.action_space = spaces.Discrete(config.servers)
        self._episodes = _Episodes(config)
        self._task: tuple[int, int, int] | None = None

    def __repr__(self) -> str:
        return f"MecTaskEnv({self.model!r}{', last_wait=True' if self.last_wait else ''})"

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start the next episode, or with `seed` the first of a series."""
        super().reset(seed=seed)
        arrivals = self._episodes.draw(seed)
        servers = self.model.config.servers
        self._size, self._tasks = arrivals.size[0], self._order(arrivals)
        self._backlog, self._placed, self._wait, self._slot = np.zeros(servers), np.zeros(servers), 0.0, 0
        self._task = next(self._tasks)
        return self._observe(self._task), {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Place one task.

        Raises:
            ValueError: if no episode is running, or the server is no whole number in 0..B-1.
        """
        if self._task is None:
            raise ValueError("no episode is running, call reset() first")
        check_whole("action", action, 0, self.model.config.servers - 1)
        (slot, b, n), j, model = self._task, int(action), self.model
        self._wait = float((self._backlog[j] + self._placed[j]) / model.capacity[j])
        upload = self._size[slot, b, n] / model.rate[j] if j != b else 0.0
        delay = float(upload + model.work[n] / model.capacity[j] + model.result[n] / model.rate[j] + self._wait)
        self._placed[j] += model.work[n]
        self._task = next(self._tasks, None)
        if self._task is None:
            return self._observe((slot, b, n)), -delay, False, True, {}
        self._advance(self._task[0])
        return self._observe(self._task), -delay, False, False, {}

    def _advance(self, slot: int) -> None:
        """End slots up to the one of the coming task."""
        while self._slot < slot:
            drained = self._backlog + self._placed - self.model.capacity * self.model.config.slot_s
            self._backlog, self._placed = np.maximum(drained, 0.0), np.zeros_like(self._placed)
            self._slot += 1

    @staticmethod
    def _order(arrivals: Arrivals) -> Iterator[tuple[int, int, int]]:
        for slot, counts in enumerate(arrivals.count[0, :-1]):
            for b, m in enumerate(counts):
                yield from ((slot, b, n) for n in range(m))

    def _observe(self, task: tuple[int, int, int]) -> Observation:
        slot, b, n = task
        values = [self._size[slot, b, n], self.model.work[n], *self._backlog]
        return np.array(values + [self._wait] * self.last_wait, dtype=np.float32)


register_environments()
