"""What our shipped schedulers give and what they cost: the front of mean against tail, and other horizons.

`python -m hybridlib.scheduling.study.front` fits the shipped files anew (about 12 minutes of one core), then measures
each as it lies on disk and writes `08_front` and `08_horizons` to `data/results`; `--measure` only measures.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ...files import write_json, write_table
from ...paths import MODELS, RESULTS
from ..rules.fluid import FluidScheduler
from ..rules.heuristics import capacity_weighted, scaled_size_split
from ..system.environment import Policy
from ..system.model import MecConfig, Model
from .pieces import OURS, REPORT_SEED
from .price import measure, summary

FOLDER = MODELS / "schedulers"
DEADLINES_S = (math.inf, 20.0, 16.0, 13.0)  # settings of the knob that ship
HORIZONS = (30, 59, 120, 240)  # slots played; 59 is the published one
ITERATIONS, DEADLINE_ITERATIONS = 300, 150  # a deadline is fitted to from a start that nearly keeps it
EPISODES = 20


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


def front(episodes: int = EPISODES, deadlines_s: Sequence[float] = DEADLINES_S, folder: Path = FOLDER) -> pd.DataFrame:
    """Rows of `price.measure` for every setting of the knob on the published system, and for two rules."""
    return measure(policies(deadlines_s, folder), MecConfig(), episodes)


def horizons(
    episodes: int = EPISODES,
    slots: Sequence[int] = HORIZONS,
    deadlines_s: Sequence[float] = (DEADLINES_S[0], DEADLINES_S[-1]),
    folder: Path = FOLDER,
) -> pd.DataFrame:
    """Rows of `price.measure` at several numbers of slots played, from the same files."""
    played = policies(deadlines_s, folder)
    return pd.concat([measure(played, MecConfig(slots=s + 1), episodes) for s in slots], ignore_index=True)


def policies(deadlines_s: Sequence[float] = DEADLINES_S, folder: Path = FOLDER) -> dict[str, Policy]:
    """Our shipped schedulers by name, and two rules that know no horizon either."""
    ours = {name_of(d): shipped_fluid(d, folder=folder).policy() for d in deadlines_s}
    return ours | {"capacity-weighted random": capacity_weighted, "size split": scaled_size_split(Model.draw())}


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit, measure, write; always exit status 0."""
    from ...study.origin import git_revision, versions

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
