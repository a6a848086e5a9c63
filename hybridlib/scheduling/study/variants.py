"""What study 08 varies: the published sweep axes, and the quirks of the published code as switches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ..system.model import MecConfig

if TYPE_CHECKING:
    from ...study.parameters import SchedulingParameters

AXES = {
    "tasks": "most tasks a station and slot",
    "quality": "most denoising steps demanded",
    "servers": "edge servers",
    "capacity": "largest capacity (Gcycles/s)",
    "denoising": "denoising steps of LAD-TS",
}


def sweep_points(config: MecConfig, p: SchedulingParameters) -> Iterator[tuple[str, int, MecConfig, dict[str, Any]]]:
    """Axis, value, system and settings of LAD-TS at every point of the published sweeps.

    A published "quality 15" draws 1..14, so the top of the range is one below the value.
    """
    for value in p.sweep_tasks:
        yield "tasks", value, dataclasses.replace(config, max_tasks=value), {}
    for value in p.sweep_quality:
        yield "quality", value, dataclasses.replace(config, quality_steps=(1, value - 1)), {}
    for value in p.sweep_servers:
        yield "servers", value, dataclasses.replace(config, servers=value), {}
    for value in p.sweep_capacity:
        yield "capacity", value, dataclasses.replace(config, capacity_gcycles_s=(10, value)), {}
    for value in p.sweep_denoising:
        yield "denoising", value, config, {} if value == 5 else {"denoising_steps": value}


class Switch(NamedTuple):
    """A quirk turned the other way: what is trained, and against which switch its effect counts."""

    method: str
    settings: dict[str, Any]
    published_stream: bool = False  # the arrivals of the published script in place of our common ones
    against: str = "LAD-TS, as published"


SWITCHES: dict[str, Switch] = {
    "LAD-TS, as published": Switch("LAD-TS", {}),
    "Q1 real queues in the boundary state": Switch("LAD-TS", {"zero_boundary_queue": False}),
    "Q2 copies instead of live memory": Switch("LAD-TS", {"aliased_memory": False}),
    "Q5 arrivals of the published script": Switch("LAD-TS", {}, published_stream=True),
    "Q6 memory keyed by task alone": Switch("LAD-TS", {"memory_key": "task"}),
    "Q6 memory holds logits": Switch("LAD-TS", {"memory_holds": "logits"}),
    "Q6 act by arg-max": Switch("LAD-TS", {"argmax": True}),
    "Q8 I = 3 denoising steps": Switch("LAD-TS", {"denoising_steps": 3}),
    "tanh output of the denoiser": Switch("LAD-TS", {"output": "tanh"}),
    "D2SAC-A: no memory": Switch("D2SAC-A", {}),
    "no memory, tanh output": Switch("D2SAC-A", {"output": "tanh"}, against="D2SAC-A: no memory"),
}


class Quirk(NamedTuple):
    """A known inconsistency of the published code."""

    published: str
    intended: str
    switch: str  # how to turn it here


QUIRKS: dict[str, Quirk] = {
    "Q1": Quirk(
        "the next state over a slot boundary shows empty queues",
        "the queues of the coming slot",
        "zero_boundary_queue=False",
    ),
    "Q2": Quirk(
        "replayed latents are live views of the memory, so training sees what was decided later",
        "copies of the latents the decision started from",
        "aliased_memory=False",
    ),
    "Q3": Quirk(
        "the Opt-TS script draws capacities up to 20, all others up to 50",
        "50 everywhere",
        "MecConfig(capacity_gcycles_s=(10, 20))",
    ),
    "Q4": Quirk("one unseeded run of each learner", "several seeds with intervals", "seeds=range(5)"),
    "Q5": Quirk(
        "arrivals share one global random stream, so methods meet different ones",
        "the same arrivals for all methods",
        "published_arrivals(...) is the published stream; default here: common_arrivals",
    ),
    "Q6": Quirk(
        "memory for each (slot, station, task) holding probabilities, sampled action; the diagram shows otherwise",
        "as drawn: memory for each (station, task) holding logits, arg-max action",
        'memory_key="task", memory_holds="logits", argmax=True',
    ),
    "Q7": Quirk(
        "acting fails on a GPU, since a device tensor is converted without a copy to the host",
        "any device",
        "no switch: all is computed on the CPU in batches, where these networks are too small for a GPU",
    ),
    "Q8": Quirk(
        "earlier code: I = 3, and the wait of the last placed task in the state (July 2024); B = 50 in the first SAC",
        "I = 5, no such leak, B = 20",
        "denoising_steps=3; MecConfig(servers=50); MecTaskEnv(last_wait=True). The leak makes the decisions of a slot "
        "depend on each other, which is the one thing that batching them must exclude, so the learners have none",
    ),
    "Q9": Quirk(
        "the reported delay is the average while training and sampling, labelled make-span",
        "evaluation of the trained policy",
        "as_policy(learner) and as_policy(learner, greedy=True)",
    ),
}
