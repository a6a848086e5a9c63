"""Every codec on the same latents: bytes, squared error, speed; and the bytes of ours against the published rounding.

Latents of mini-sd3 after several numbers of updates, and synthetic ones of SD3's size: at each noise level sigma,
(1 - sigma) times a first-order autoregressive field plus sigma times the initial noise of a known seed. Three tables:
bytes a row at given parameters; bytes at equal squared error as ratios with their spread over rows; speed in
megabytes of float16 latents a second of processor time, with its spread over rounds.

`python benchmarks/codecs.py --rounds 5`
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.signal import lfilter
from torch import Tensor

from hybridlib.codecs import Adaptive, DecimalRounding, Message, MinMax, Raw, empirical_entropy
from hybridlib.codecs.quantisers import IndexCodec
from hybridlib.denoising import models
from hybridlib.denoising.sampler import sample
from hybridlib.denoising.trajectory import Trajectory
from hybridlib.noise import initial_noise
from hybridlib.prompts import PromptSet

RATIOS = (0.25, 0.5, 1.0)
CODECS = (
    Raw(),
    DecimalRounding(4.0, "deflate"),
    DecimalRounding(4.0),
    MinMax(6, "deflate"),
    MinMax(6),
    MinMax(8, "png"),
    MinMax(8, "webp"),
    Adaptive(0.25),
)


class Source(NamedTuple):
    label: str
    latents: Tensor  # (rows, channels, height, width), float16
    seeds: Sequence[int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the speed table (default 5)")
    parser.add_argument("--rows", type=int, default=8, help="rows of miniature latents (default 8)")
    parser.add_argument("--updates", type=int, nargs="+", default=[3, 7, 11, 15, 19, 23, 27], help="when to cut")
    parser.add_argument("--correlation", type=float, default=0.9, help="of synthetic neighbours (default 0.9)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    synthetic = [sd3_size(sigma, arguments.correlation) for sigma in (0.96, 0.707, 0.347, 0.0)]
    sources = [*miniature(arguments.rows, arguments.updates), *synthetic]
    for source in sources:
        print_rates(source)
    print("\nbytes at equal squared error, decimal rounding with deflate = 1: median, least and most over rows")
    print(f"{'latents':>26} {'ratio':>5} {'mse':>8}  {'range coder only':>20} {'ours, no seed':>20} {'ours':>20}")
    for source in sources:
        for ratio in RATIOS:
            print_savings(source, ratio)
    print(f"\nMB/s of float16 latents on one core, median, least and most of {arguments.rounds} rounds")
    for source in (sources[0], synthetic[1]):
        print_speed(source, arguments.rounds)


def miniature(rows: int, updates: Sequence[int]) -> list[Source]:
    """Latents of mini-sd3, one prompt and seed a row."""
    pipeline = models.load("mini-sd3", device="cpu")
    prompts = PromptSet.load("miniature").personal[:rows]
    trajectories = [Trajectory.plain(prompt, seed) for seed, prompt in enumerate(prompts, start=42)]
    samples = sample(pipeline, trajectories, keep=updates, max_sequence_length=1, progress=False)
    sigmas = samples.scheduler.sigmas
    seeds = [trajectory.seed for trajectory in trajectories]
    return [Source(f"mini-sd3 sigma {sigmas[n]:.3f}", samples.latents(n).half(), seeds) for n in updates]


def sd3_size(sigma: float, correlation: float, seed: int = 7) -> Source:
    """One synthetic latent, (1, 16, 128, 128)."""
    field = initial_noise(seed + 1, 16, 128, 128).numpy()
    for axis in (2, 3):
        field = lfilter([np.sqrt(1 - correlation**2)], [1, -correlation], field, axis=axis)
    latents = (1 - sigma) * torch.from_numpy(field / field.std()).float() + sigma * initial_noise(seed, 16, 128, 128)
    return Source(f"synthetic sigma {sigma:.3f}", latents.half(), [seed])


def print_rates(source: Source) -> None:
    values = source.latents[0].numel()
    print(f"\n{source.label}: {len(source.latents)} rows of {values} values, {2 * values} bytes in float16")
    print(f"{'codec':>22} {'payload':>9} {'header':>6} {'bits/value':>10} {'mse':>9}  payload / entropy of indices")
    for codec in CODECS:
        messages = codec.encode(source.latents, source.seeds)
        payload = statistics.fmean(len(Message.open(data).payload) for data in messages)
        header = Message.open(messages[0]).header_bytes
        mse = squared_error(codec, source).mean()
        rate = 8 * (payload + header) / values
        print(f"{codec.specification:>22} {payload:9.0f} {header:6} {rate:10.3f} {mse:9.6f}", end="")
        print(f"  {entropy_ratios(codec, source, payload)}" if isinstance(codec, IndexCodec) else "")


def entropy_ratios(codec: IndexCodec, source: Source, payload: float) -> str:
    """Payload by the empirical entropy of the indices of the whole row, of its channels, of channels and bands."""
    rows = [codec.indices(row, seed) for row, seed in zip(source.latents, source.seeds, strict=True)]
    ends = np.cumsum(codec.layout(tuple(source.latents[0].shape)).widths)[:-1]
    bits = {
        "row": [empirical_entropy(row.ravel()) for row in rows],
        "channel": [empirical_entropy(row) for row in rows],
        "band": [sum(empirical_entropy(part) for part in np.split(row, ends, axis=1)) for row in rows],
    }
    return ", ".join(f"{name} {8 * payload / statistics.fmean(b):.3f}" for name, b in bits.items())


def squared_error(codec: Adaptive | DecimalRounding | MinMax | Raw, source: Source, seeds: bool = True) -> Tensor:
    """Mean squared error of each row."""
    decoded = codec.quantise(source.latents, source.seeds if seeds else None)
    return (decoded.float() - source.latents.float()).square().mean((1, 2, 3))


def print_savings(source: Source, ratio: float) -> None:
    published = DecimalRounding.from_ratio(ratio, "deflate")
    mse = squared_error(published, source).mean().item()
    reference = sizes(published.encode(source.latents))
    columns = [sizes(DecimalRounding.from_ratio(ratio).encode(source.latents)) / reference]
    for seeds in (False, True):
        codec = at_error(source, mse, seeds)
        columns.append(sizes(codec.encode(source.latents, source.seeds if seeds else None)) / reference)
    print(f"{source.label:>26} {ratio:5} {mse:8.5f}  " + " ".join(f"{spread(column):>20}" for column in columns))


def at_error(source: Source, mse: float, seeds: bool) -> Adaptive:
    """Ours at the step where its mean squared error is that given, or a little less."""
    low, high = 1e-3, 64.0
    for _ in range(20):
        middle = (low * high) ** 0.5
        too_much = squared_error(Adaptive(middle), source, seeds).mean() > mse
        low, high = (low, middle) if too_much else (middle, high)
    return Adaptive(low)


def sizes(messages: Iterable[bytes]) -> np.ndarray:
    """Bytes of each message, header included."""
    return np.array([len(data) for data in messages])


def print_speed(source: Source, rounds: int) -> None:
    print(f"{source.label}\n{'codec':>22} {'encode':>20} {'decode':>20} {'quantise':>20}")
    megabytes = 2 * source.latents.numel() / 1e6
    for codec in CODECS:
        messages = codec.encode(source.latents, source.seeds)
        speeds = [
            [megabytes / seconds(call) for _ in range(rounds)]
            for call in (
                lambda c=codec: c.encode(source.latents, source.seeds),
                lambda c=codec, m=messages: c.decode(m),
                lambda c=codec: c.quantise(source.latents, source.seeds),
            )
        ]
        print(f"{codec.specification:>22} " + " ".join(f"{spread(values, 1):>20}" for values in speeds))


def seconds(call: Callable[[], object]) -> float:
    """Processor time of a call."""
    began = time.process_time()
    call()
    return time.process_time() - began


def spread(values: Iterable[float], digits: int = 3) -> str:
    values = list(values)
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


if __name__ == "__main__":
    main()
