"""The one loop of all learners: play a slot, remember it, let every agent learn, slot by slot, episode by episode.

All decisions of a slot form one batch. An agent's inputs are frozen at slot start and its weights change only after
its last task, so this is the published one-task-at-a-time order with identical semantics.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from ...files import write_atomically
from ...progress import bar
from ..system.arrivals import Arrivals, published_stream
from ..system.environment import Environment, View
from ..system.model import Floats, MecConfig, Model, check_model, check_real, check_whole
from .networks import SeededDraws
from .replay import Replay

CHECKPOINT_EVERY_S = 120.0


@dataclass(frozen=True)
class Settings:
    """What all learners share; the defaults are the published ones.

    Raises:
        ValueError: one sentence naming the setting, its value and what is allowed.
    """

    gamma: float = 0.95
    hidden: int = 20
    replay_size: int = 1000
    warmup: int = 300  # an agent learns while its buffer holds more than this
    batch_size: int = 64
    zero_boundary_queue: bool = True  # Q1: the next state over a slot boundary shows empty queues

    def __post_init__(self) -> None:
        for name in ("hidden", "replay_size", "batch_size"):
            check_whole(name, getattr(self, name), 1)
        check_whole("warmup", self.warmup, 0)
        check_real("gamma", self.gamma, "[0, 1)")
        check_flags(self)
        if not self.batch_size - 1 <= self.warmup < self.replay_size:
            raise ValueError(
                f"warmup must lie in {self.batch_size - 1}..{self.replay_size - 1} (batch_size - 1 to replay_size - 1)"
                f", got {self.warmup}"
            )


def check_flags(settings: Settings) -> None:
    """Raises ValueError, one sentence, if a setting whose default is true or false is anything else."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(field.default, bool) and not isinstance(value, bool):
            raise ValueError(f"{field.name} must be True or False, got {value!r}")


class Learner:
    """The agents of all base stations and seeds: B * len(seeds) groups, each with networks and replay of its own.

    A subclass provides `act_on`, `learn_from` and the tensors in `state`.

    Raises:
        TypeError: if model is no Model, or settings are those of another learner.
        ValueError: if seeds are not different whole numbers.
    """

    name: ClassVar[str]
    settings_type: ClassVar[type[Settings]] = Settings

    def __init__(
        self,
        model: Model,
        seeds: Sequence[int] = (0,),
        settings: Settings | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_model(model)
        if not isinstance(seeds, Sequence) or not seeds or len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds must be a list of different whole numbers, at least one, got {seeds!r}")
        for seed in seeds:
            check_whole("seeds", seed, 0)
        self.model, self.seeds, self.dtype = model, tuple(seeds), dtype
        self.settings: Any = self.settings_type() if settings is None else settings
        if not isinstance(self.settings, self.settings_type):
            raise TypeError(f"settings must be {self.settings_type.__name__}, got {type(settings).__name__}")
        self.servers, self.groups = model.config.servers, model.config.servers * len(seeds)
        self.draws: Any = SeededDraws(seeds, self.servers, dtype)
        self.updates = torch.zeros(self.groups, dtype=torch.int64)  # gradient steps each agent has made
        width = 2 + self.servers
        fields = {"state": width, "next_state": width, "reward": 1, "action": 1} | self.extra_fields()
        self.replay = Replay(self.groups, self.settings.replay_size, fields, dtype)
        self.greedy = False  # the published scripts sample, and so measure, while training

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r}, seeds {list(self.seeds)}, {self.groups} agents)"

    # What a subclass defines.
    def extra_fields(self) -> dict[str, int]:
        """Further replay fields and their widths."""
        return {}

    def act_on(self, slot: int, states: Tensor, present: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions (G, N) and the values of the extra fields, for states (G, N, 2 + B)."""
        raise NotImplementedError

    def learn_from(self, place: Tensor, active: Tensor) -> None:
        """One gradient step on the replay places (G, batch) for the groups in `active` (G,)."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Everything learned, by name; loading copies into these in place."""
        raise NotImplementedError

    # What is the same for all.
    def states(self, view: View) -> Tensor:
        """[d, w, L_0 .. L_{B-1}] of every task, raw units as published, shape (G, N, 2 + B)."""
        shape = view.size.shape
        states = np.empty((*shape, 2 + self.servers))
        states[..., 0], states[..., 1] = view.size, view.model.work
        states[..., 2:] = view.backlog[:, None, None, :]
        return torch.from_numpy(states.reshape(-1, shape[2], 2 + self.servers)).to(self.dtype)

    def play_slot(self, environment: Environment) -> Floats:
        """Act on all tasks of the slot, store the transitions and learn; returns the delays (seeds, B, N)."""
        view = environment.view()
        states = self.states(view)
        present = torch.from_numpy(view.present.reshape(self.groups, -1))
        actions, extra = self.act_on(view.slot, states, present)
        delays = environment.step(actions.numpy().reshape(view.size.shape))
        reward = torch.from_numpy(-delays.reshape(self.groups, -1)).to(self.dtype)
        values = {"state": states, "next_state": self._next_states(states, present, environment)}
        self.replay.append(values | {"reward": reward, "action": actions} | extra, present)
        self._learn()
        return delays

    def _next_states(self, states: Tensor, present: Tensor, environment: Environment) -> Tensor:
        """The next task of the same base station; after its last one, the first of the coming slot."""
        upcoming = environment.view()
        after = np.zeros((len(self.seeds), self.servers, 2 + self.servers))
        after[..., 0], after[..., 1] = upcoming.size[..., 0], self.model.work[0]
        if not self.settings.zero_boundary_queue:
            after[..., 2:] = upcoming.backlog[:, None]
        following = torch.roll(states, -1, dims=1)
        last = (present.sum(1) - 1).clamp(min=0)
        following[torch.arange(self.groups), last] = torch.from_numpy(after).to(self.dtype).flatten(0, 1)
        return following

    def _learn(self) -> None:
        active = self.replay.filled > self.settings.warmup
        if not active.any():
            return
        place = self.replay.sample(self.settings.batch_size, self.draws.uniform("replay", self.settings.replay_size))
        self.learn_from(place, active)
        self.updates += active

    @property
    def architecture(self) -> str:
        """What two checkpoints must share to be exchangeable, as JSON."""
        config = self.model.config
        return json.dumps(
            {
                "algorithm": self.name,
                "servers": config.servers,
                "max_tasks": config.max_tasks,
                "slots": config.slots,
                "seeds": self.seeds,
                "dtype": str(self.dtype).removeprefix("torch."),
                "settings": dataclasses.asdict(self.settings),
            }
        )

    def all_tensors(self) -> dict[str, Tensor]:
        """Learned tensors, replay and counts: all that a resumed run needs."""
        kept = {"replay.rows": self.replay.rows, "replay.written": self.replay.written, "updates": self.updates}
        return self.tensors() | kept


ArrivalsOf = Callable[[int], Arrivals]


def common_arrivals(config: MecConfig, seeds: Sequence[int]) -> ArrivalsOf:
    """Episode e of each seed from the arrival generator of that seed: the same for every method."""

    def of(episode: int) -> Arrivals:
        return Arrivals.join([Arrivals.draw(config, [episode], seed) for seed in seeds])

    return of


def published_arrivals(config: MecConfig, seeds: Sequence[int], after_latents: bool = False) -> ArrivalsOf:
    """Episode e of the published stream (Q5), the same for all seeds; `after_latents` is that of the LAD-TS script."""
    streams: list[Iterator[Arrivals]] = [published_stream(config, after_latents)]
    drawn = 0

    def of(episode: int) -> Arrivals:
        nonlocal drawn
        if episode < drawn:
            streams[0], drawn = published_stream(config, after_latents), 0
        arrivals = next(islice(streams[0], episode - drawn, None))
        drawn = episode + 1
        return Arrivals.join([arrivals] * len(seeds))

    return of


class Curve(NamedTuple):
    """Mean delay in seconds of every episode and seed, shape (episodes, seeds), and the wall time it took."""

    mean_s: Floats
    seconds: float


def train(
    learner: Learner,
    episodes: int,
    arrivals_of: ArrivalsOf | None = None,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> Curve:
    """Train to `episodes` episodes; continues from the checkpoint if there is one, to the same numbers.

    Raises:
        ValueError: if the checkpoint is of another architecture.
    """
    arrivals_of = arrivals_of or common_arrivals(learner.model.config, learner.seeds)
    delays: list[Floats] = []
    before = 0.0
    if checkpoint is not None and checkpoint.exists():
        delays, before = load(learner, checkpoint)
    began = saved = time.monotonic()
    played = bar(range(len(delays), episodes), desc=learner.name, initial=len(delays), total=episodes, show=progress)
    for episode in played:
        delays.append(play_episode(learner, episode, arrivals_of(episode)))
        played.set_postfix(delay_s=f"{np.mean(delays[-20:]):.2f}", refresh=False)
        now = time.monotonic()
        if checkpoint is not None and (now - saved > CHECKPOINT_EVERY_S or episode + 1 == episodes):
            save(learner, checkpoint, delays, before + now - began)
            saved = now
    return Curve(np.array(delays[:episodes]), before + time.monotonic() - began)


def play_episode(learner: Learner, episode: int, arrivals: Arrivals) -> Floats:
    """Mean delay of each seed over one episode, seconds, shape (seeds,); batch row s of `arrivals` is seed s."""
    if len(arrivals.count) != len(learner.seeds):
        raise ValueError(f"arrivals must have one episode a seed ({len(learner.seeds)}), got {len(arrivals.count)}")
    environment = Environment(learner.model, arrivals)
    learner.draws.restart(episode + 1)
    total = np.zeros(len(learner.seeds))
    for _ in range(environment.slots):
        total += learner.play_slot(environment).sum(axis=(1, 2))
    return total / arrivals.tasks


def save(learner: Learner, path: Path, delays: Sequence[Floats], seconds: float) -> None:
    """Write a checkpoint (safetensors), replaced by rename, never half-written."""
    tensors = {name: value.detach().clone() for name, value in learner.all_tensors().items()}
    tensors["delays"] = torch.tensor(np.array(delays).reshape(-1, len(learner.seeds)))
    metadata = {"architecture": learner.architecture, "seconds": str(seconds)}
    write_atomically(path, safetensors.torch.save(tensors, metadata))


def load(learner: Learner, path: Path) -> tuple[list[Floats], float]:
    """Put a checkpoint into the learner; returns the delays of the episodes it has seen and the seconds they took.

    Raises:
        ValueError: if the file cannot be read, or holds another algorithm, system, setting or seeds; nothing of the
            learner is changed then.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint ({error})") from None
    try:
        found, seconds = json.loads(metadata["architecture"]), float(metadata["seconds"])
    except (KeyError, ValueError):
        raise ValueError(f"{path} is no checkpoint: it does not say of which learner") from None
    wanted = json.loads(learner.architecture)
    for key, value in wanted.items():
        if found.get(key) != value:
            differs = _first_difference(found.get(key), value)
            raise ValueError(f"{path} is a checkpoint of another architecture: its {key} {differs}")
    learned = learner.all_tensors()
    for name, tensor in learned.items():
        if name not in tensors or tensors[name].shape != tensor.shape:
            raise ValueError(f"{path} is a damaged checkpoint: it lacks {name} of shape {tuple(tensor.shape)}")
    if "delays" not in tensors:
        raise ValueError(f"{path} is a damaged checkpoint: it lacks the delays of its episodes")
    for name, tensor in learned.items():
        tensor.detach().copy_(tensors[name])
    return list(tensors["delays"].numpy()), seconds


def _first_difference(found: Any, wanted: Any) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in wanted.keys() | found.keys():
            if found.get(key) != wanted.get(key):
                return f"have {key} = {found.get(key)!r}, this learner {wanted.get(key)!r}"
    return f"is {found!r}, this learner's {wanted!r}"
