"""The smaller tables of study 08's notebook: the system, quirks and their effects, decision latency, platforms."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd

from ...paths import PUBLISHED
from ..rules.fluid import FluidScheduler
from ..rules.heuristics import capacity_weighted, greedy_oracle
from ..system.arrivals import Arrivals
from ..system.environment import Decision, Environment, Policy, simulate
from ..system.model import Floats, MecConfig, Model
from . import shipped
from .claims import by_seed
from .pieces import LEARNERS, OURS, REPORT_SEED, yardsticks
from .variants import QUIRKS


def system_table(config: MecConfig) -> pd.DataFrame:
    """What this run and the published system have to serve: servers, tasks and work of a slot, capacity, load."""
    columns = {}
    for name, system in (("this run", config), ("published", MecConfig())):
        model = Model.draw(system)
        columns[name] = {
            "servers": f"{system.servers}",
            "slots played": f"{system.slots - 1}",
            "tasks a slot (expected)": f"{system.servers * (system.max_tasks + 1) / 2:.0f}",
            "work a slot (Gcycles, expected)": f"{model.offered_gcycles:.1f}",
            "capacity a slot (Gcycles)": f"{model.capacity.sum() * system.slot_s:.0f}",
            "load": f"{model.load:.3f}",
        }
    return pd.DataFrame(columns)


def capacity_rule_s(episodes: int = 20) -> float:
    """Mean delay of the capacity-proportional rule on the first episodes of the published stream, seconds."""
    config = MecConfig()
    return float(simulate(Model.draw(config), capacity_weighted, Arrivals.published(config, episodes)).mean_s.mean())


def shipped_split(slots: tuple[int, ...] = (0, 15, 45)) -> tuple[FluidScheduler, dict[str, Floats]]:
    """Our shipped scheduler of the published system, and the queues it meets in one episode at some slots, Gcycles."""
    model = Model.draw()
    scheduler = FluidScheduler(model)
    scheduler.load(shipped.FOLDER / "fluid.safetensors")
    policy = scheduler.policy()
    environment = Environment(model, Arrivals.draw(model.config, [0], REPORT_SEED))
    generator, queues = np.random.default_rng(0), {}
    for slot in range(max(slots) + 1):
        view = environment.view()
        if slot in slots:
            queues["first slot" if slot == 0 else f"after {slot} slots"] = view.backlog[0].copy()
        actions = policy(view, generator)
        environment.step(actions.actions if isinstance(actions, Decision) else actions)
    return scheduler, queues


def latency(slots: int = 6) -> pd.DataFrame:
    """Median time of a decision for a whole slot (ms) and per task of it (microseconds), fastest first."""
    model = Model.draw()
    policies = yardsticks(model) | {name: shipped.load(name) for name in (*LEARNERS, OURS)}
    rows = {}
    for name, policy in policies.items():
        spent, tasks = _decision_seconds(model, policy, slots)
        rows[name] = {"slot (ms)": 1e3 * np.median(spent), "task (us)": 1e6 * spent.sum() / tasks}
    return pd.DataFrame.from_dict(rows, orient="index").sort_values("slot (ms)").round(2)


def _decision_seconds(model: Model, policy: Policy, slots: int) -> tuple[Floats, int]:
    environment = Environment(model, Arrivals.draw(model.config, [1], REPORT_SEED))
    generator, spent, tasks = np.random.default_rng(0), [], 0
    policy(environment.view(), generator)  # first calls allocate
    for _ in range(slots):
        view = environment.view()
        began = time.perf_counter()
        decision = policy(view, generator)
        spent.append(time.perf_counter() - began)
        tasks += int(view.present.sum())
        environment.step(*(decision if isinstance(decision, Decision) else (decision, None)))
    return np.array(spent), tasks


def quirk_table() -> pd.DataFrame:
    """The known inconsistencies of the published code, and the switch of each."""
    return pd.DataFrame.from_dict({name: quirk._asdict() for name, quirk in QUIRKS.items()}, orient="index")


def further_effects(curves: pd.DataFrame, leaderboard: pd.DataFrame, sweeps: pd.DataFrame) -> pd.DataFrame:
    """Effects that need no training of their own: of Q3, Q4, the 50 servers of Q8, and Q9; delays in seconds."""
    rows = []

    def add(quirk: str, what: str, published: float, intended: float) -> None:
        rows.append((quirk, what, published, intended))

    oracle = []
    for top in (20, 50):
        config = MecConfig(capacity_gcycles_s=(10, top))
        oracle.append(simulate(Model.draw(config), greedy_oracle, Arrivals.published(config, 20)).mean_s.mean())
    add("Q3", "Opt-TS, 20 published episodes: capacities up to 20 | 50", *oracle)
    last = by_seed(curves, "LAD-TS")[:, -20:].mean(axis=1)
    add("Q4", "LAD-TS, last 20 episodes: best | worst seed", last.min(), last.max())
    servers = sweeps[(sweeps["axis"] == "servers") & (sweeps["policy"] == "LAD-TS")].groupby("value")["mean_s"].mean()
    if {20, 50} <= set(servers.index):
        add("Q8", "LAD-TS, short training: 50 | 20 servers", servers[50], servers[20])
    long = leaderboard[leaderboard["trained"] == leaderboard["trained"].max()]
    for method in LEARNERS:
        if method in set(curves["method"]) and method in set(long["policy"]):
            while_training = by_seed(curves, method)[:, -20:].mean()
            for suffix, name in (("", "sampling"), (", arg-max", "arg-max")):
                after = long[long["policy"] == method + suffix]["mean_s"].mean()
                add("Q9", f"{method}: last 20 training episodes | trained, {name}", while_training, after)
    return pd.DataFrame(rows, columns=["quirk", "what", "first", "second"])


def platforms() -> pd.DataFrame:
    """Delay of DEdgeAI below the fastest other platform, per cent, by number of images; and below each of them."""
    table = pd.read_csv(PUBLISHED / "lad_ts_platforms.csv", index_col="system")
    numbers = (1, 100, 500, 1000)
    delays = table[[f"images_{n}_s" for n in numbers]].set_axis([f"images: {n}" for n in numbers], axis=1)
    ours = delays.filter(like="DEdgeAI", axis=0).iloc[0]
    others = delays.drop(index=delays.filter(like="DEdgeAI", axis=0).index)
    lower = 100 * (1 - ours / others)
    lower.loc["the fastest of them"] = 100 * (1 - ours / others.min())
    return lower.round(2)
