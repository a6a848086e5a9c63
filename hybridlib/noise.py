"""The noise of a generation, initial and of its steps, which every party that knows its seed can draw."""

from __future__ import annotations

import torch
from torch import Tensor


def initial_noise(seed: int, channels: int, height: int, width: int) -> Tensor:
    """Standard normal latents (1, channels, height, width), float32, drawn on the CPU from the seed alone.

    Every device and batch sees the same noise; in float32 it is what diffusers draws for one image from a CPU
    generator with this seed.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn((1, channels, height, width), generator=generator)


def step_generator(seed: int, shape: tuple[int, ...], updates: int, dtype: torch.dtype) -> torch.Generator:
    """The generator that draws the noise of the updates to come, for solvers that add fresh noise in every update.

    It has drawn `initial_noise`, and the noise of `updates` updates of a row (channels, height, width), so that the
    noise of an update depends on seed, shape and update alone. In float32 it is what diffusers draws for one image
    from a CPU generator with this seed, first the latents and then every step.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    torch.randn((1, *shape), generator=generator)
    for _ in range(updates):
        torch.randn((1, *shape), generator=generator, dtype=dtype)
    return generator


def twin(generator: torch.Generator) -> torch.Generator:
    """Another generator that will draw the same."""
    other = torch.Generator(generator.device)
    other.set_state(generator.get_state())
    return other
