"""The initial noise of a generation, which every party that knows its seed can draw."""

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
