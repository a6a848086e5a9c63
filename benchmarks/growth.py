"""What it costs to keep the books of a study of 10,000, 100,000 and 1,000,000 images, without any denoising.

Everything of `runner` is real but the images: the table of trajectories, trees and costs, digests, ledgers (written,
and read again by a second run that finds all finished), scores remembered in chunks, the table with its noise schedule
in Parquet. Denoising, image files and metrics are stand-ins, so that a million fits a disk; what a file costs beside
is measured on a thousand. Each size runs in a process of its own, so that its peak of memory is its own.

Two kinds of study: the published similarity grid with more seeds (large shards), and `bulk` (a seed for each image).

    python benchmarks/growth.py --sizes 10000 100000 1000000
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

MOST_SECONDS, MOST_BYTES, AT = 300.0, 2e9, 1_000_000  # allowed at a million images
KINDS = ("similarity", "bulk")


class Constant:
    """A metric that looks at nothing."""

    name, identity = "constant", "stand-in"

    def score(self, images: list[Any], prompts: list[str]) -> np.ndarray:
        return np.zeros(len(images))


def similarity(size: int) -> pd.DataFrame:
    from hybridlib.hybrid import grids
    from hybridlib.prompts import PromptSet

    per_seed = 2 * 22 * 22 * 28
    prompts = PromptSet.load("miniature")
    seeds = range(1, 1 + -(-size // per_seed))
    return grids.similarity_study(prompts, grids.PUBLISHED_VARIANTS, seeds, range(28)).head(size)


def bulk(size: int) -> pd.DataFrame:
    from hybridlib.prompts import PromptSet
    from hybridlib.study import bulk as study
    from hybridlib.study.parameters import Settings

    table = study.plan(PromptSet.load("miniature").personal, size, Settings(batch_size=64), 7.0)
    return table.assign(common_step=0)


def measured(kind: str, size: int) -> dict[str, Any]:
    """Seconds of each part, and the peak of memory, of this process."""
    from hybridlib.denoising import models
    from hybridlib.study import runner
    from hybridlib.study.parameters import Settings

    pipeline, settings = models.load("mini-sd3", device="cpu"), Settings(max_sequence_length=1)
    without_images(runner)
    told: dict[str, Any] = {"kind": kind, "images": size, "base_bytes": peak()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = timed(told, "table", lambda: {"similarity": similarity, "bulk": bulk}[kind](size))
        told["shards"] = sum(1 for _ in runner.shards_of(table))

        def generate() -> Any:
            return runner.generate(table, pipeline, folder, settings, progress=False)

        def score() -> Any:
            full = runner.with_schedule(table, table["common_step"], pipeline, settings)
            return runner.score(full, folder, [Constant()], progress=False)

        timed(told, "generate", generate)
        timed(told, "again", generate)
        timed(told, "score", score)
        timed(told, "score again", score)
    return told | {"peak_bytes": peak()}


def without_images(runner: Any) -> None:
    """Leave denoising and image files out of the runner."""
    from PIL import Image

    from hybridlib.files import write_json

    picture = Image.new("RGB", (8, 8))

    def run_shard(shard: Any, *rest: Any) -> float:
        write_json({"seconds": 0.0, "sha256": {path: sum_of(path) for path in shard.paths}}, shard.ledger)
        return 0.0

    def finished_seconds(ledger: Path, folder: Path) -> float | None:
        if not ledger.is_file():
            return None
        record = json.loads(ledger.read_text())
        return record["seconds"] if all(sum_of(path) == own for path, own in record["sha256"].items()) else None

    def sum_of(path: object) -> str:
        return hashlib.sha256(str(path).encode()).hexdigest()

    runner._run_shard, runner._finished_seconds = run_shard, finished_seconds
    runner.checksum, runner.read_image = sum_of, lambda path: picture


def timed(told: dict[str, Any], name: str, work: Callable[[], Any]) -> Any:
    """Run it, and note wall and processor seconds."""
    began, used = time.perf_counter(), time.process_time()
    result = work()
    told[f"{name}_s"] = time.perf_counter() - began
    told[f"{name}_cpu_s"] = time.process_time() - used
    told[f"{name}_peak_bytes"] = peak()
    return result


def peak() -> int:
    """Most memory that this process held so far, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def per_file_us() -> float:
    """Microseconds to write one image of 64 pixels and to read and hash it again."""
    from PIL import Image

    from hybridlib.files import checksum, write_image

    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    with tempfile.TemporaryDirectory() as name:
        began = time.perf_counter()
        for number in range(1000):
            write_image(image, Path(name) / f"{number}.png")
            checksum(Path(name) / f"{number}.png")
        return 1e3 * (time.perf_counter() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--one", nargs=2, metavar=("KIND", "SIZE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(given.one[0], int(given.one[1]))))
        return 0
    rows, kept = [], True
    for kind in given.kinds:
        for size in given.sizes:
            command = [sys.executable, __file__, "--one", kind, str(size)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            told = json.loads(output.splitlines()[-1])
            seconds = sum(value for key, value in told.items() if key.endswith("_s") and not key.endswith("_cpu_s"))
            cpu = sum(value for key, value in told.items() if key.endswith("_cpu_s"))
            rows.append({key: told[key] for key in ("kind", "images", "shards")})
            rows[-1] |= {key.removesuffix("_cpu_s"): round(told[key], 1) for key in told if key.endswith("_cpu_s")}
            rows[-1] |= {"all": round(seconds, 1), "all, CPU": round(cpu, 1), "CPU us/image": round(1e6 * cpu / size)}
            rows[-1] |= {"peak MB": round(told["peak_bytes"] / 1e6), "of it base": round(told["base_bytes"] / 1e6)}
            if size >= AT:
                kept &= seconds < MOST_SECONDS * size / AT and told["peak_bytes"] < MOST_BYTES * size / AT
            print(pd.DataFrame(rows[-1:]).to_string(index=False), flush=True)
    print(pd.DataFrame(rows).to_string(index=False))
    print(f"files beside: {per_file_us():.0f} us to write, read and hash an image of 64 pixels")
    print(f"within {MOST_SECONDS:.0f} s and {MOST_BYTES / 1e9:g} GB at {AT:,} images: {'yes' if kept else 'NO'}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
