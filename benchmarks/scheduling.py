"""Scheduling: decisions per second of the environment, and LAD-TS training against the published script structure.

Both sides of the training run in one process, in turn, at the published size: our batched learner with `--seeds` seeds
side by side, and `tests/reference/lad_script.py`, one task at a time with batch-of-1 inference. Only slots in which all
agents learn are timed. Seconds are processor seconds of this process, so other work on the machine disturbs
little; use one thread for both sides.

`OMP_NUM_THREADS=1 python benchmarks/scheduling.py --rounds 5`

`--curves 12` instead lets the script train that many whole episodes (about a minute each) on the arrivals that our
seed 0 meets, and writes its learning curve to `data/results/08_script_curve.csv`; the notebook shows it beside ours.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from hybridlib.files import write_atomically
from hybridlib.paths import RESULTS
from hybridlib.scheduling.learners.lad import LadTs
from hybridlib.scheduling.learners.training import common_arrivals
from hybridlib.scheduling.system.arrivals import Arrivals
from hybridlib.scheduling.system.environment import Environment, simulate
from hybridlib.scheduling.system.model import Model

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference import lad_script, mec_loop

WARM_SLOTS = 16  # every agent holds more than 300 transitions by then, and has made steps
OUR_SLOTS = 8  # a round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="paired rounds (default 5)")
    parser.add_argument("--seeds", type=int, default=5, help="seeds our side trains side by side (default 5)")
    parser.add_argument("--script-slots", type=int, default=2, help="slots the script plays each round (default 2)")
    parser.add_argument("--curves", type=int, default=0, help="episodes the script trains; nothing is timed then")
    arguments = parser.parse_args()
    if arguments.curves:
        return script_curve(arguments.curves)
    print(f"{torch.get_num_threads()} thread(s), published size: 20 servers, up to 50 tasks a station, 60 slots")
    decisions(arguments.rounds)
    training(arguments.rounds, arguments.seeds, arguments.script_slots)


def cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def decisions(rounds: int) -> None:
    """Environment alone, fixed actions, by episodes in a batch."""
    model, generator = Model.draw(), np.random.default_rng(0)
    for episodes in (1, 4, 16):
        arrivals = Arrivals.draw(model.config, range(episodes))
        actions = generator.integers(0, 20, (episodes, 20, 50))
        rates = [
            arrivals.tasks.sum() / cpu_seconds(lambda a=actions, b=arrivals: simulate(model, lambda *_: a, b))
            for _ in range(rounds)
        ]
        print(f"environment, {episodes:2d} episode(s): {summary(rates, 1e-6)} million decisions per CPU second")


def training(rounds: int, seeds: int, script_slots: int) -> None:
    """LAD-TS, acting and learning; both sides continue one training through all rounds."""
    learner = LadTs(Model.draw(), range(seeds))
    arrivals_of = common_arrivals(learner.model.config, learner.seeds)
    environment = Environment(learner.model, arrivals_of(0))
    for _ in range(WARM_SLOTS):
        learner.play_slot(environment)

    *drawn, stream = mec_loop.published_system()
    system, sizes, draws = [np.array(values) for values in drawn], mec_loop.draw_episode(stream), lad_script.Draws()
    agents = [lad_script.Agent(b, 20) for b in range(20)]
    memory = np.random.default_rng(0).normal(size=(60, 20, 50, 20)).astype(np.float32)
    lad_script.play_slots(agents, system, sizes, memory, draws, 1)
    for agent in agents:  # repeated transitions cost as much to learn from as different ones
        agent.replay.extend(list(agent.replay) * (agent.warmup // len(agent.replay) + 1))

    ours, theirs, ratios = [], [], []
    for number in range(rounds):
        if environment.slot + OUR_SLOTS > environment.slots:
            environment.reset()
        spent = cpu_seconds(lambda: [learner.play_slot(environment) for _ in range(OUR_SLOTS)])
        ours.append(seeds * OUR_SLOTS / environment.slots / spent)
        later = sizes[WARM_SLOTS + number % 20 :]
        spent = cpu_seconds(lambda s=later: lad_script.play_slots(agents, system, s, memory, draws, script_slots))
        theirs.append(script_slots / environment.slots / spent)
        ratios.append(ours[-1] / theirs[-1])
    print(f"LAD-TS, one task at a time: {summary(theirs)} episodes per CPU second")
    print(f"LAD-TS, batched, {seeds} seeds: {summary(ours)} episodes per CPU second")
    print(f"ratio: {summary(ratios)} over {rounds} rounds")


def script_curve(episodes: int, seed: int = 0) -> None:
    """Mean delay of every episode of one training of the script, the file rewritten after each."""
    torch.manual_seed(seed)
    random.seed(seed)
    model = Model.draw()
    system = [np.array(values) for values in mec_loop.published_system()[:4]]
    arrivals_of = common_arrivals(model.config, [seed])
    agents = [lad_script.Agent(b, 20) for b in range(20)]
    memory = np.random.default_rng(seed).normal(size=(60, 20, 50, 20)).astype(np.float32)
    rows = []
    for episode in range(1, episodes + 1):
        arrivals = arrivals_of(episode - 1)
        sizes = [
            [s[:m] for s, m in zip(*slot, strict=True)]
            for slot in zip(arrivals.size[0], arrivals.count[0], strict=True)
        ]
        delays = lad_script.play_slots(agents, system, sizes, memory, lad_script.Draws(), 59)
        rows.append({"episode": episode, "seed": seed, "delay_s": round(float(np.mean(delays)), 4)})
        print(rows[-1], flush=True)
        write_atomically(RESULTS / "08_script_curve.csv", pd.DataFrame(rows).to_csv(index=False).encode())


def summary(values: list[float], scale: float = 1.0) -> str:
    low, middle, high = (scale * v for v in (min(values), statistics.median(values), max(values)))
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


if __name__ == "__main__":
    main()
