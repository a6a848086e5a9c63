"""Noise assignment against the published way: Euclidean distances by `torch.cdist`, solved by scipy.

Both sides run in one process on the same machine, in turn, on the same latents and the same noise. The published cost
is the sum of distances, ours that of squared distances, which a permutation minimises by inner products alone; so both
objectives of both permutations are printed, and beside the published way stands the same solver on squared distances,
whose optimum is ours exactly. KNN is timed against one training step of mini-sd3, and against plain noise.
Latents are white, or have a steep spectrum ("pink"), as real ones do.

`OMP_NUM_THREADS=1 python benchmarks/assignment.py --rounds 5`
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hybridlib.denoising.models import locate
from hybridlib.training import matching
from hybridlib.training.assignment import assign_noise

SIZES = {"16x8x8": (16, 8, 8), "4x64x64": (4, 64, 64), "16x128x128": (16, 128, 128)}
BYTES = 8 * 1024**3  # of latents, noise and costs at once; larger problems are left out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="paired rounds (default 5)")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 1024, 2048, 4096])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--data", nargs="+", default=["white", "pink"], choices=["white", "pink"])
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a machine that others use")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[arguments.clock]
    print(f"{arguments.rounds} rounds, {arguments.threads} threads, {arguments.clock} time in ms, medians")
    for name in arguments.sizes:
        for rows in arguments.batches:
            size = torch.Size(SIZES[name]).numel()
            if 4 * rows * (4 * size + 6 * rows) > BYTES:
                print(f"{name}, batch {rows}: left out, too large")
                continue
            for data in arguments.data:
                linear(name, data, make(data, rows, SIZES[name]), arguments.rounds, clock)
    for name in arguments.sizes:
        knn(name, SIZES[name], arguments.rounds, clock)


def make(data: str, rows: int, shape: tuple[int, ...]) -> Tensor:
    """Latents of unit variance; "pink" ones have amplitudes that fall as 1 / f from image to pixel scale."""
    latents = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(1))
    if data == "pink":
        fy, fx = torch.fft.fftfreq(shape[1])[:, None], torch.fft.rfftfreq(shape[2])[None]
        amplitude = 1 / torch.hypot(fy, fx).clamp_min(1 / shape[1])
        latents = torch.fft.irfft2(torch.fft.rfft2(latents) * amplitude, s=shape[1:])
        latents /= latents.std()
    return latents


def linear(name: str, data: str, latents: Tensor, rounds: int, clock: Callable[[], float]) -> None:
    rows = len(latents)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    x, e = latents.flatten(1), noise.flatten(1)
    sides: dict[str, Callable[[], Tensor]] = {
        "published": lambda: torch.from_numpy(linear_sum_assignment(torch.cdist(x, e).numpy())[1]),
        "squared": lambda: torch.from_numpy(linear_sum_assignment(torch.cdist(x, e).square().numpy())[1]),
        "ours": lambda: matching.match_noise(latents, noise),
    }
    times: dict[str, list[float]] = {side: [] for side in [*sides, "our matrix of costs"]}
    found = {}
    for _ in range(rounds):
        for side, solve in sides.items():
            began = clock()
            found[side] = solve()
            times[side].append(clock() - began)
        began = clock()
        matching._score(x, e, "inner")
        times["our matrix of costs"].append(clock() - began)
    milliseconds = {side: f"{1e3 * statistics.median(seconds):.1f}" for side, seconds in times.items()}
    print(f"{name}, batch {rows}, {data}: {milliseconds}")
    for side in ("published", "squared"):
        ratios = [a / b for a, b in zip(times[side], times["ours"], strict=True)]
        print(f"  {side} / ours: median x{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")
    solver = 1 - statistics.median(times["our matrix of costs"]) / statistics.median(times["ours"])
    print(f"  solver's share of ours {100 * solver:.0f} %; mean squared distance, mean distance:", end="")
    for side, permutation in found.items():
        squares = (x - e[permutation]).double().square().sum(dim=1)
        print(f" {side} {squares.mean():.4f}, {squares.sqrt().mean():.5f};", end="")
    same = float((found["squared"] == found["ours"]).float().mean())
    print(f" rows alike with 'squared': {100 * same:.1f} %")


def knn(name: str, shape: tuple[int, ...], rounds: int, clock: Callable[[], float]) -> None:
    """At batch 128, mini-sd3's; its step is a forward and backward pass of its transformer, on its own latents only."""
    rows = 128 if shape == SIZES["16x8x8"] else 16
    latents = make("white", rows, shape)
    step_s = [_step(latents, clock) for _ in range(rounds)] if shape == SIZES["16x8x8"] else None
    for k in (4, 8, 64):
        times = []
        for _ in range(rounds):
            began = clock()
            assign_noise(latents, "none")
            middle = clock()
            assign_noise(latents, "knn", k=k)
            times.append((clock() - middle, middle - began))
        ours, plain = (statistics.median(column) for column in zip(*times, strict=True))
        share = "" if step_s is None else f", {100 * (ours - plain) / statistics.median(step_s):.1f} % of a step"
        print(f"KNN {k}, {name}, batch {rows}: {1e3 * ours:.1f} ms, plain noise {1e3 * plain:.1f} ms{share}")


def _step(latents: Tensor, clock: Callable[[], float]) -> float:
    model = SD3Transformer2DModel.from_pretrained(
        locate("mini-sd3"), subfolder="transformer", torch_dtype=torch.float32
    )
    model.train()
    text, pooled = torch.zeros(len(latents), 17, 160), torch.zeros(len(latents), 160)
    began = clock()
    velocity = model(
        latents, encoder_hidden_states=text, pooled_projections=pooled, timestep=torch.full((len(latents),), 500.0)
    ).sample
    F.mse_loss(velocity, latents).backward()
    return clock() - began


if __name__ == "__main__":
    main()
