"""Trained schedulers that ship with the project: weights for inference alone, loaded with one call.

`load("LAD-TS")` returns a policy for `environment.simulate`; the files lie in `data/models/schedulers`, and their card
says how they were trained.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import safetensors.torch
from safetensors import safe_open
from torch import Tensor

from ...files import write_atomically
from ...paths import MODELS
from ..learners.training import Learner
from ..rules.fluid import FluidScheduler
from ..system.arrivals import Arrivals
from ..system.environment import Policy, simulate
from ..system.model import Model
from .pieces import LEARNERS, OURS, as_policy

FOLDER = MODELS / "schedulers"
SETTLING_EPISODES = 5
SETTLING_SEED = 2000


def export(learner: Learner, path: Path, seeds: int = 3) -> None:
    """Write what acting needs, of the first `seeds` seeds: the actors, or the value networks of DQN-TS.

    Replay, critics and the memory of LAD-TS (24 MB) stay behind; the memory fills again within a few episodes.
    """
    kept = learner.seeds[:seeds]
    flat = _acting(learner)[: len(kept) * learner.servers].detach().clone()
    metadata = {"architecture": _architecture(learner), "seeds": json.dumps(kept)}
    write_atomically(path, safetensors.torch.save({"acting": flat}, metadata))


def load(name: str, seed: int = 0, model: Model | None = None, folder: Path = FOLDER, greedy: bool = False) -> Policy:
    """A trained scheduler as a policy for one episode at a time: a learner's name, or "fluid split (ours)".

    Args:
        seed: of the training, for learners.
        model: the system it shall serve; servers and tasks a station must be as many as in training.
        greedy: take the likeliest server instead of sampling as published, for learners.

    Raises:
        ValueError: one sentence, if there is no such scheduler or seed, or its file is of another architecture.
    """
    model = model or Model.draw()
    if name == OURS:
        scheduler = FluidScheduler(model)
        scheduler.load(folder / "fluid.safetensors")
        return scheduler.policy()
    if name not in LEARNERS:
        raise ValueError(f"no shipped scheduler {name!r}; there are {', '.join([*LEARNERS, OURS])}")
    learner = LEARNERS[name](model, [seed])
    _fill(learner, folder / f"{name}.safetensors", seed)
    policy = as_policy(learner, greedy)
    if hasattr(learner, "memory") and learner.memory is not None:
        for episode in range(SETTLING_EPISODES):
            simulate(model, policy, Arrivals.draw(model.config, [episode], SETTLING_SEED))
    return policy


def _fill(learner: Learner, path: Path, seed: int) -> None:
    try:
        with safe_open(path, "pt") as file:
            metadata, flat = file.metadata() or {}, file.get_tensor("acting")
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a shipped scheduler ({error})") from None
    if metadata.get("architecture") != _architecture(learner):
        raise ValueError(
            f"{path} is of another architecture: {metadata.get('architecture')}, this system needs "
            f"{_architecture(learner)}"
        )
    seeds = json.loads(metadata["seeds"])
    if seed not in seeds:
        raise ValueError(f"{path} holds the seeds {seeds}, not {seed}")
    rows = np.arange(learner.servers) + seeds.index(seed) * learner.servers
    _acting(learner).copy_(flat[rows])


def _acting(learner: Learner) -> Tensor:
    tensors = learner.tensors()
    return tensors["actor" if "actor" in tensors else "network"].detach()


def _architecture(learner: Learner) -> str:
    """What acting depends on beside the weights."""
    config, settings = learner.model.config, dataclasses.asdict(learner.settings)
    names = ("hidden", "denoising_steps", "memory_key", "memory_holds", "start", "output")
    shape = {"algorithm": learner.name, "servers": config.servers, "max_tasks": config.max_tasks}
    if settings.get("memory_key") == "slot" and settings.get("start") == "memory":
        shape["slots"] = config.slots
    return json.dumps(shape | {name: settings[name] for name in names if name in settings})
