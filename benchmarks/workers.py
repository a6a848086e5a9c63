"""Two Ray workers of one thread against one, on images of the compression study, in turn and in one run.

Both sides make the same shards through `generate`, their models loaded and warm; the bytes are compared, too. Prints
wall times and their ratio for each round. It needs two cores: two processors that share one core cannot show it.

    OMP_NUM_THREADS=1 python benchmarks/workers.py --rounds 3
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from hybridlib.compression import grids
from hybridlib.denoising import models
from hybridlib.files import checksum
from hybridlib.prompts import PromptSet
from hybridlib.study import cluster
from hybridlib.study.parameters import Settings
from hybridlib.study.runner import generate, shards_of

SETTINGS = Settings(28, 64, 64, max_sequence_length=1)
WANTED = 1.6  # times the throughput of one worker


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="paired rounds (default 3)")
    parser.add_argument("--seeds", type=int, default=8, help="shards of each round (default 8)")
    given = parser.parse_args()
    if torch.get_num_threads() != 1:
        print("error: OMP_NUM_THREADS must be 1", file=sys.stderr)
        return 2
    pipeline = models.load("mini-sd3", device="cpu")
    prompt = PromptSet.load("miniature").personal[0]
    ratios = []
    for number in range(given.rounds):
        seeds = range(100 * number, 100 * number + given.seeds)
        table = grids.ratio_grid([prompt], seeds, [2, 10, 18, 24], [0.25, 0.5, 1.0])
        seconds, made = {}, {}
        for workers in (1, 2) if number % 2 else (2, 1):
            seconds[workers], made[workers] = timed(table, pipeline, workers)
        if made[1] != made[2]:
            print("error: two workers made other bytes than one", file=sys.stderr)
            return 1
        ratios.append(seconds[1] / seconds[2])
        shards = sum(1 for _ in shards_of(table))
        rates = ", ".join(f"{n} worker{'s' * (n > 1)} {len(table) / seconds[n]:.2f} images/s" for n in (1, 2))
        print(f"round {number + 1}: {len(table)} images in {shards} shards, {rates}, x{ratios[-1]:.2f}", flush=True)
    middle = statistics.median(ratios)
    print(f"two workers / one: median x{middle:.2f}, min x{min(ratios):.2f}, max x{max(ratios):.2f}")
    print(f"at least x{WANTED}: {'yes' if middle >= WANTED else 'NO'}")
    return 0 if middle >= WANTED else 1


def timed(table: pd.DataFrame, pipeline: object, workers: int) -> tuple[float, dict[str, str]]:
    """Seconds for all images with a crew of this size, once it has made one shard each; and their checksums."""
    cluster._room = lambda ray, recipe: workers  # as if the machine had no more room
    if cluster.Crew._last is not None:
        cluster.Crew._last.dismiss()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        warm = table[table["seed"].isin(sorted(table["seed"].unique())[:workers])]
        generate(warm, pipeline, folder / "warm", SETTINGS, progress=False, cluster="ray")
        began = time.perf_counter()
        generate(table, pipeline, folder / "run", SETTINGS, progress=False, cluster="ray")
        seconds = time.perf_counter() - began
        return seconds, {path: checksum(folder / "run" / path) for path in table["path"]}


if __name__ == "__main__":
    sys.exit(main())
