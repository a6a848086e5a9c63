"""The explorer over 500 moves of its sliders: seconds until the new images are there, and whether memory grows.

Each move sets one control of a panel to a random place, as a user would, and is timed until the images are in the
widget; frames on the branches are drawn between moves and timed apart. Run on an idle machine; both wall and CPU
seconds are told, since other work on the same cores stretches the first.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from pathlib import Path

import torch

from hybridlib.explorer.app import open_session
from hybridlib.explorer.controls import STRENGTHS
from hybridlib.explorer.hybrid_panel import HybridPanel

NEGATIVES = ("", "a small blue circle", "a large purple circle", "a star")


def move(panel: HybridPanel, rng: random.Random) -> str:
    """Set one control; returns its name."""
    if panel.codec.value == "none" and rng.random() < 0.2:
        panel.codec.value = rng.choice([family for family in STRENGTHS if family != "none"])
        return "codec"
    names = ["common", "public_scale", "scale", "steps", "shift", "seed", "negative", "codec"]
    name = rng.choice(names if panel.strength.disabled else [*names, "strength"])
    control = getattr(panel, name)
    if name == "negative":
        control.value = rng.choice([text for text in NEGATIVES if text != control.value])
    elif name in ("codec", "strength"):
        options = [o if isinstance(o, str) else o[1] for o in control.options]
        control.value = rng.choice([o for o in options if o != control.value])
    elif isinstance(control.value, int):
        high = 40 if name == "steps" else control.max
        control.value = rng.choice([v for v in range(max(control.min, 1), high + 1) if v != control.value])
    else:
        control.value = round(rng.uniform(control.min, control.max), 2)
    return name


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moves", type=int, default=500, help="of the sliders; the caches are full after about 50")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    panel, rng = HybridPanel(open_session("mini-sd3"), "mini-sd3", None), random.Random(0)
    panel._later.do = lambda jobs: jobs[0]()  # the images alone; frames follow below
    wall, cpu, frames, memory = [], [], [], []
    by_control: dict[str, list[float]] = {}
    for _ in range(given.moves):
        at, used = time.perf_counter(), time.process_time()
        name = move(panel, rng)
        wall.append(time.perf_counter() - at)
        cpu.append(time.process_time() - used)
        by_control.setdefault(name, []).append(cpu[-1])
        at = time.perf_counter()
        panel._show_frames()
        frames.append(time.perf_counter() - at)
        memory.append(resident_mib())
    load = os.getloadavg()[0]
    print(f"{given.moves} moves, 3 users, mini-sd3, {given.threads} threads, load average {load:.1f} at the end")
    for label, values in (("new images", wall), ("new images, CPU", cpu), ("frames after them", frames)):
        p90 = statistics.quantiles(values, n=10)[-1]
        print(f"{label}: median {statistics.median(values):.3f} s, 90th percentile {p90:.3f} s")
    for name, values in sorted(by_control.items()):
        print(f"  {name}: {len(values)} moves, median {statistics.median(values):.3f} s of CPU")
    marks = [max(1, round(share * given.moves)) for share in (0.2, 0.6, 1.0)]  # 100, 300 and 500 of 500
    told = ", ".join(f"{memory[mark - 1]:.0f} MiB after {mark} moves" for mark in marks)
    print(f"resident memory: {told} ({memory[-1] - memory[marks[0] - 1]:+.1f})")


if __name__ == "__main__":
    main()
