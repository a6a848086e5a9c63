"""What our shipped schedulers give and what they cost: the front of mean against tail, and other horizons.

`python -m hybridlib.scheduling.study.front` fits the shipped files anew (about 12 minutes of one core), then measures
each as it lies on disk and writes `08_front` and `08_horizons` to `data/results`; `--measure` only measures.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from ...files import write_json, write_table
from ...paths import MODELS, RESULTS
from ...runs import t_interval
from ..rules.fluid import FluidScheduler
from ..rules.heuristics import capacity_weighted, greedy_oracle, scaled_size_split
from ..system.arrivals import Arrivals
from ..system.environment import Policy, Result, simulate
from ..system.model import MecConfig, Model
from .pieces import OURS, REPORT_SEED

FOLDER = MODELS / "schedulers"
DEADLINES_S = (math.inf, 20.0, 16.0, 13.0)  # settings of the knob that ship
HORIZONS = (30, 59, 120, 240)  # slots played; 59 is the published one
ITERATIONS, DEADLINE_ITERATIONS = 300, 150  # a deadline is fitted to from a start that nearly keeps it
EPISODES = 20
ORACLE = "Opt-TS (greedy oracle)"
MEASURES = ("mean_s", "p95_s", "p99_s", "work_weighted_s", "largest_fifth_s", "slower_share")


class Setting(NamedTuple):
    """A policy and the deadline it was fitted to, nan for rules."""

    policy: Policy
    deadline_s: float = math.nan


def file_of(deadline_s: float = math.inf, folder: Path = FOLDER) -> Path:
    """Where our scheduler with this deadline ships."""
    return folder / ("fluid.safetensors" if math.isinf(deadline_s) else f"fluid-{deadline_s:g}s.safetensors")


def shipped_fluid(deadline_s: float = math.inf, model: Model | None = None, folder: Path = FOLDER) -> FluidScheduler:
    """Our shipped scheduler for the published system, without a deadline or with one of `DEADLINES_S`.

    Raises:
        ValueError: one sentence, if none ships with this deadline or for this system.
    """
    scheduler = FluidScheduler(model or Model.draw(), deadline_s=deadline_s)
    if not file_of(deadline_s, folder).is_file() and deadline_s not in DEADLINES_S:
        raise ValueError(f"no scheduler ships with deadline_s = {deadline_s}; there are {list(DEADLINES_S)}")
    scheduler.load(file_of(deadline_s, folder))
    return scheduler


def name_of(deadline_s: float = math.inf) -> str:
    """Our scheduler's name in tables."""
    return OURS + ("" if math.isinf(deadline_s) else f", deadline {deadline_s:g} s")


def fit(deadlines_s: Sequence[float] = DEADLINES_S, folder: Path = FOLDER) -> None:
    """Fit and write the shipped schedulers; the same on every run of one machine."""
    for deadline_s in deadlines_s:
        scheduler = FluidScheduler(Model.draw(), deadline_s=deadline_s)
        scheduler.fit(DEADLINE_ITERATIONS if scheduler.has_deadline else ITERATIONS)
        scheduler.save(file_of(deadline_s, folder))


def measure(
    settings: Mapping[str, Setting], config: MecConfig, episodes: int = EPISODES, seed: int = REPORT_SEED
) -> pd.DataFrame:
    """Opt-TS and the given policies on the same episodes: a row per policy and episode, with `MEASURES`.

    The work-weighted mean counts each task by its Gcycles; the largest fifth are the task types of most work;
    `slower_share` is the share of tasks that wait longer than the same tasks do under Opt-TS. Links are counted.
    """
    model = Model.draw(config)
    arrivals = Arrivals.draw(config, range(episodes), seed)
    oracle, rows = simulate(model, greedy_oracle, arrivals), []
    for name, (policy, deadline_s) in {ORACLE: Setting(greedy_oracle), **settings}.items():
        result = oracle if name == ORACLE else simulate(model, policy, arrivals)
        at = {"policy": name, "deadline_s": deadline_s, "slots": config.slots - 1}
        rows += [at | {"episode": e} | _of_episode(model, result, oracle, e) for e in range(episodes)]
    return pd.DataFrame(rows)


def front(episodes: int = EPISODES, deadlines_s: Sequence[float] = DEADLINES_S, folder: Path = FOLDER) -> pd.DataFrame:
    """Rows of `measure` for every setting of the knob on the published system."""
    return measure(_ours(deadlines_s, folder) | _rules(Model.draw()), MecConfig(), episodes)


def horizons(
    episodes: int = EPISODES,
    slots: Sequence[int] = HORIZONS,
    deadlines_s: Sequence[float] = (DEADLINES_S[0], DEADLINES_S[-1]),
    folder: Path = FOLDER,
) -> pd.DataFrame:
    """Rows of `measure` at several numbers of slots played, from the same files, beside rules that know no horizon."""
    policies = _ours(deadlines_s, folder) | _rules(Model.draw())
    return pd.concat([measure(policies, MecConfig(slots=s + 1), episodes) for s in slots], ignore_index=True)


def summary(rows: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Mean over episodes of each measure by policy and slots, and its ratio to Opt-TS on the same episodes.

    Intervals (`low`, `high`) are Student's t over episodes: the arrivals are redrawn, the fitted scheduler is not.
    Ratios are paired, the mean over episodes of one episode's ratio; of `slower_share` there is none.

    Returns:
        One row per slots, policy and measure: estimate, low, high, ratio, ratio_low, ratio_high, episodes.

    Raises:
        ValueError: if there are fewer than two episodes.
    """
    table = []
    for (slots, policy), part in rows.groupby(["slots", "policy"], sort=False):
        oracle = rows[(rows["slots"] == slots) & (rows["policy"] == ORACLE)].set_index("episode")
        own = part.set_index("episode")
        for name in MEASURES:
            ratio = own[name] / oracle[name] if name != "slower_share" else own[name] * np.nan
            values = dict(zip(("estimate", "low", "high"), _interval(own[name], level), strict=True))
            values |= dict(zip(("ratio", "ratio_low", "ratio_high"), _interval(ratio, level), strict=True))
            at = {"slots": slots, "policy": policy, "deadline_s": own["deadline_s"].iloc[0], "measure": name}
            table.append(at | values | {"episodes": len(own)})
    return pd.DataFrame(table)


def _ours(deadlines_s: Sequence[float], folder: Path) -> dict[str, Setting]:
    return {name_of(d): Setting(shipped_fluid(d, folder=folder).policy(), d) for d in deadlines_s}


def _rules(model: Model) -> dict[str, Setting]:
    rules = {"capacity-weighted random": capacity_weighted, "size split": scaled_size_split(model)}
    return {name: Setting(policy) for name, policy in rules.items()}


def _of_episode(model: Model, result: Result, oracle: Result, episode: int) -> dict[str, float]:
    present = result.present[episode]
    delay, theirs = (r.delay_s[episode][present] for r in (result, oracle))
    work = np.broadcast_to(model.work, present.shape)[present]
    largest = work > np.quantile(model.work, 0.8)
    p95, p99 = np.percentile(delay, (95, 99))
    measured = (delay.mean(), p95, p99, np.average(delay, weights=work), delay[largest].mean(), (delay > theirs).mean())
    return {name: round(float(value), 4) for name, value in zip(MEASURES, measured, strict=True)}


def _interval(values: pd.Series, level: float) -> tuple[float, float, float]:
    if len(values) < 2:
        raise ValueError(f"an interval over episodes needs at least 2 of them, got {len(values)}")
    if not np.isfinite(values).all():
        return float("nan"), float("nan"), float("nan")
    estimate, low, high = t_interval(values, level)
    return estimate, low, high


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit, measure, write; always exit status 0."""
    from ...study.runner import git_revision, versions

    parser = argparse.ArgumentParser(prog="python -m hybridlib.scheduling.study.front", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="measure the shipped files, fit nothing")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if not given.measure:
        fit()
    origin: dict[str, Any] = {"profile": "shipped schedulers", "versions": versions().to_dict()}
    origin["parameters"] = {"deadlines_s": [str(d) for d in DEADLINES_S], "episodes": EPISODES}
    origin["parameters"] |= {"arrival_seed": REPORT_SEED}
    origin["parameters"] |= {"slots": list(HORIZONS), "iterations": [ITERATIONS, DEADLINE_ITERATIONS]}
    for name, rows in {"08_front": front(), "08_horizons": horizons()}.items():
        rows.attrs |= origin
        write_table(rows, RESULTS / f"{name}.parquet")
        write_json(origin | {"git_revision": git_revision()}, RESULTS / f"{name}.json")
        print(summary(rows).to_string())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
