"""What the keyed seal costs: states and codec messages written and read with and without a key, in turn, in one run.

Prints median processor time of each, with its spread over rounds, the overhead of the seal in time and bytes, and what
HMAC-SHA256 alone makes of the same bytes.

`python benchmarks/seal.py --rounds 21`
"""

from __future__ import annotations

import argparse
import secrets
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from hybridlib import codecs
from hybridlib.codecs import Adaptive, Codec, DecimalRounding, Raw
from hybridlib.denoising.state import DenoiseState
from hybridlib.denoising.trajectory import Trajectory
from hybridlib.trust import KEY_BYTES, SEAL_BYTES, seal, unseal

SIZES = {"mini-sd3": (16, 8, 8), "SD3 at 1024 pixels": (16, 128, 128)}


class Times(NamedTuple):
    """Processor seconds of each round, without and with the key, and the bytes of the plain side."""

    plain: list[float]
    keyed: list[float]
    size: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21, help="paired rounds (default 21)")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    key = secrets.token_bytes(KEY_BYTES)
    print(f"a seal has {SEAL_BYTES} bytes\n")
    print(f"{'what':>44} {'bytes':>9} {'plain, ms':>24} {'sealed, ms':>24} {'overhead':>9}")
    for size, shape in SIZES.items():
        latents = torch.randn((1, *shape), generator=torch.Generator().manual_seed(2)).half()  # not the noise of seed 1
        data = bytes(latents.numel() * 2)
        show(f"HMAC alone, {size}", measure(lambda k, d=data: unseal(seal(d, k), k), key, rounds, len(data)))
        state = state_of(latents)
        show(f"state there and back, {size}", state_times(state, key, rounds))
        for codec in (Raw(), DecimalRounding(4.0), Adaptive(0.25)):
            show(f"{codec.specification} there and back, {size}", codec_times(codec, latents, key, rounds))


def state_times(state: DenoiseState, key: bytes, rounds: int) -> Times:
    call = lambda k: DenoiseState.from_bytes(state.to_bytes(k), key=k)  # noqa: E731
    return measure(call, key, rounds, len(state.to_bytes()))


def codec_times(codec: Codec, latents: torch.Tensor, key: bytes, rounds: int) -> Times:
    call = lambda k: codecs.decode(codecs.encode(latents, [codec], [1], k), k)  # noqa: E731
    return measure(call, key, rounds, len(codec.encode(latents, [1])[0]))


def measure(call: Callable[[bytes | None], object], key: bytes, rounds: int, size: int) -> Times:
    """Both sides in turn; a call is repeated so that a round takes some milliseconds."""
    began = time.process_time()
    call(key), call(None)
    repeats = max(1, round(0.01 / max(time.process_time() - began, 1e-5)))
    sides: dict[bytes | None, list[float]] = {None: [], key: []}
    for _ in range(rounds):
        for side, found in sides.items():
            began = time.process_time()
            for _ in range(repeats):
                call(side)
            found.append((time.process_time() - began) / repeats)
    return Times(sides[None], sides[key], size)


def state_of(latents: torch.Tensor) -> DenoiseState:
    past = Trajectory.plain("a ring", 1, num_inference_steps=14)
    sigmas = torch.linspace(1, 0, 29)
    return DenoiseState(latents.float(), 14, sigmas, {}, past, "a model", "a solver", {"torch": torch.__version__})


def show(what: str, times: Times) -> None:
    ratio = statistics.median(k / p for k, p in zip(times.keyed, times.plain, strict=True)) - 1
    told = f"{100 * ratio:8.1f}%" if "alone" not in what else f"{'':9}"
    print(f"{what:>44} {times.size:9,} {spread(times.plain):>24} {spread(times.keyed):>24} {told}")


def spread(seconds: Sequence[float]) -> str:
    ms = [1e3 * s for s in seconds]
    return f"{statistics.median(ms):.3f} ({min(ms):.3f}..{max(ms):.3f})"


if __name__ == "__main__":
    main()
