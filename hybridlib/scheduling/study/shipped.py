"""Trained schedulers that ship with the project: weights for inference alone, loaded with one call.

`load("LAD-TS")` returns a policy for `environment.simulate`; the files lie in `data/models/schedulers`, and their card
says how they were trained and what they give. `python -m hybridlib.scheduling.study.shipped` prints what they give.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from ...files import write_atomically
from ...paths import MODELS
from ..learners.training import Learner
from ..system.arrivals import Arrivals
from ..system.environment import Policy, simulate
from ..system.model import Model
from .front import file_of, shipped_fluid
from .pieces import LEARNERS, OURS, as_policy, measure_learner

FOLDER = MODELS / "schedulers"
SEEDS = (0, 1, 2)
WARM_UP_SEED = 2000  # of arrivals that nothing else uses


def export(learner: Learner, path: Path, seeds: Sequence[int] = SEEDS, memory: str = "as training left it") -> None:
    """Write what acting needs of some seeds: the actors, or the value networks of DQN-TS, and the memory of LAD-TS.

    The memory holds probabilities, which are kept as deflated bytes (a step of 1/255 moves a logit by 0.05 at
    most, where the denoiser's own noise has a standard deviation of 5).

    Args:
        memory: how the memory came about, for the file's metadata.

    Raises:
        ValueError: if the learner lacks one of the seeds, or remembers logits, which bytes cannot hold.
    """
    if missing := [seed for seed in seeds if seed not in learner.seeds]:
        raise ValueError(f"the learner has the seeds {list(learner.seeds)}, not {missing[0]}")
    rows = _rows(learner, [learner.seeds.index(seed) for seed in seeds])
    metadata = {"architecture": _architecture(learner), "seeds": json.dumps(list(seeds))}
    tensors = {"acting": _acting(learner)[rows].clone()}
    if (held := _memory(learner)) is not None:
        if learner.settings.memory_holds != "probabilities":
            raise ValueError("memory_holds must be 'probabilities' to be shipped, got 'logits'")
        metadata["memory"] = memory
        levels = (held[rows].clamp(0, 1) * 255).round().to(torch.uint8)
        tensors["memory"] = torch.frombuffer(bytearray(zlib.compress(levels.numpy().tobytes(), 9)), dtype=torch.uint8)
    write_atomically(path, safetensors.torch.save(tensors, metadata))


def warm_up(learner: Learner, episodes: int) -> None:
    """Let LAD-TS play without learning, on arrivals of its system that nothing else uses: its memory fills."""
    policy = as_policy(learner)
    for episode in range(episodes):
        arrivals = Arrivals.draw(learner.model.config, [episode], WARM_UP_SEED)
        simulate(learner.model, policy, Arrivals.join([arrivals] * len(learner.seeds)))


def load(
    name: str,
    seed: int = 0,
    model: Model | None = None,
    folder: Path = FOLDER,
    greedy: bool = False,
    deadline_s: float = math.inf,
) -> Policy:
    """A trained scheduler as a policy for one episode at a time: a learner's name, or "fluid split (ours)".

    Args:
        seed: of the training, for learners.
        model: the system it shall serve; servers, tasks a station and slots must be as many as in training.
        greedy: take the likeliest server instead of sampling as published, for learners.
        deadline_s: of our scheduler, one of `front.DEADLINES_S` seconds: a shorter tail for a higher mean.

    Raises:
        ValueError: one sentence, if there is no such scheduler, file or seed, or the file is of another architecture.
    """
    model = Model.draw() if model is None else model
    if name == OURS:
        _existing(file_of(deadline_s, folder))
        return shipped_fluid(deadline_s, model, folder).policy()
    return as_policy(load_learner(name, [seed], model, folder), greedy)


def load_learner(name: str, seeds: Sequence[int] = SEEDS, model: Model | None = None, folder: Path = FOLDER) -> Learner:
    """The learner behind `load`, with several seeds side by side; it acts as trained, its critics are untrained.

    Raises:
        ValueError: as `load`.
    """
    if name not in LEARNERS:
        raise ValueError(f"no shipped scheduler {name!r}; there are {', '.join([*LEARNERS, OURS])}")
    learner = LEARNERS[name](Model.draw() if model is None else model, list(seeds))
    _fill(learner, _existing(folder / f"{name}.safetensors"))
    return learner


def levels(folder: Path = FOLDER, episodes: int = 10) -> pd.DataFrame:
    """What the learners' files give on the reporting arrivals: policy, seed, mean_s (mean delay in seconds)."""
    rows = [row for name in LEARNERS for row in measure_learner(name, load_learner(name, folder=folder), episodes)]
    return pd.DataFrame(rows).groupby(["policy", "seed"], sort=False)["mean_s"].mean().reset_index()


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"there is no policy file {path}")
    return path


def _fill(learner: Learner, path: Path) -> None:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a shipped scheduler ({error})") from None
    found, wanted = metadata.get("architecture"), _architecture(learner)
    if found != wanted:
        raise ValueError(f"{path} is of another architecture: {found}, this system needs {wanted}")
    try:
        held = json.loads(metadata["seeds"])
        places = [held.index(seed) for seed in learner.seeds]
    except (KeyError, ValueError, AttributeError):
        raise ValueError(f"{path} holds the seeds {metadata.get('seeds')}, not {list(learner.seeds)}") from None
    rows, into = _rows(learner, places), {"acting": _acting(learner), "memory": _memory(learner)}
    for name, target in into.items():
        if target is None:
            continue
        shape = (len(held) * learner.servers, *target.shape[1:])
        if name == "memory" and name in tensors:
            tensors[name] = _inflated(tensors[name], shape)
        if name not in tensors or tensors[name].shape != shape:
            raise ValueError(f"{path} is damaged: {name} must have a row for each of {len(held)} x {learner.servers}")
        values = tensors[name][rows]
        target.copy_(values / 255 if name == "memory" else values)


def _inflated(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The bytes of this shape, or an empty tensor if they are not what was packed; never more memory than the shape."""
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(packed.numpy().tobytes(), math.prod(shape) + 1)
    except zlib.error:
        raw = b""
    whole = stream.eof and len(raw) == math.prod(shape)
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(shape) if whole else torch.empty(0)


def _rows(learner: Learner, places: Sequence[int]) -> Tensor:
    """Rows of the agents of the seeds at these places."""
    return torch.from_numpy((np.array(places)[:, None] * learner.servers + np.arange(learner.servers)).ravel())


def _acting(learner: Learner) -> Tensor:
    tensors = learner.tensors()
    return tensors["actor" if "actor" in tensors else "network"].detach()


def _memory(learner: Learner) -> Tensor | None:
    return learner.tensors().get("memory")


def _architecture(learner: Learner) -> str:
    """What acting depends on beside the weights, and the size of the system."""
    config, settings = learner.model.config, dataclasses.asdict(learner.settings)
    names = ("hidden", "denoising_steps", "memory_key", "memory_holds", "start", "output")
    shape = {"algorithm": learner.name, "servers": config.servers, "max_tasks": config.max_tasks, "slots": config.slots}
    return json.dumps(shape | {name: settings[name] for name in names if name in settings})


if __name__ == "__main__":
    print(levels().pivot(index="policy", columns="seed", values="mean_s").round(3))
