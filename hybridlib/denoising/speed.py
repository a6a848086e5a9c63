"""What makes real sizes faster on an accelerator: options of `models.load`, each off unless asked for."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

import torch

from ..names import require_known

SPEED = {
    "compile": "torch.compile of the blocks that the denoiser repeats, one after another; an accelerator only",
    "channels_last": "the VAE's weights with channels last, as convolutions of half precision like them",
}


def apply_speed(pipeline: Any, names: Collection[str]) -> Any:
    """Make a pipeline faster, once its parts are where they stay; results change by rounding.

    Raises:
        ValueError: one sentence, if a name is none of `SPEED`, or layers that a memory plan moves shall be compiled.
    """
    if isinstance(names, str):
        raise TypeError(f"speed must be a collection of names, such as ['compile'], got {names!r}")
    for name in names:
        require_known("speed option", name, SPEED)
    plan = getattr(pipeline, "memory_plan", None)
    if "channels_last" in names:
        pipeline.vae.to(memory_format=torch.channels_last)
    if "compile" in names:
        if plan is not None and plan.placement == "stream":
            raise ValueError("speed 'compile' needs a denoiser that stays on the device; plan 'stream' moves it")
        if pipeline._execution_device.type == "cpu":
            warnings.warn("no accelerator: speed 'compile' is left out", stacklevel=3)
        else:
            compile_blocks(getattr(pipeline, "transformer", None) or pipeline.unet)
    return pipeline


def compile_blocks(network: Any, **options: Any) -> None:
    """Compile the blocks that a network of diffusers repeats, with options of `torch.compile`.

    Numbers of rows change from step to step, so PyTorch is left free to make them dynamic.
    """
    if not network._repeated_blocks:  # diffusers names none for SD3
        network._repeated_blocks = [type(network.transformer_blocks[0]).__name__]
    network.compile_repeated_blocks(**options)
