"""The diffusers pipelines of SD3, Stable Diffusion 1.x and SDXL with the hybrid arguments of `HybridPipeline`."""

from __future__ import annotations

from typing import Any

from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from .denoisers import GuidedDenoiser
from .hybrid_call import HybridPipeline
from .sd3 import SD3Denoiser
from .unet import SDXLDenoiser, UNetDenoiser


class HybridStableDiffusion3Pipeline(HybridPipeline, StableDiffusion3Pipeline):
    """`StableDiffusion3Pipeline` plus the hybrid arguments; without one of them it is the stock pipeline."""

    def _denoiser(self, call: dict[str, Any], batch_size: int) -> GuidedDenoiser:
        return SD3Denoiser(
            self, batch_size, call["max_sequence_length"], call["clip_skip"], call["joint_attention_kwargs"]
        )

    def _check_family(self, call: dict[str, Any]) -> None:
        self.check_inputs(call["prompt"], None, None, call["height"], call["width"])


class HybridStableDiffusionPipeline(HybridPipeline, StableDiffusionPipeline):
    """`StableDiffusionPipeline` plus the hybrid arguments; without one of them it is the stock pipeline.

    Latent consistency models are the same parts under another scheduler, and load here. What a safety checker rejects
    is black.
    """

    def _denoiser(self, call: dict[str, Any], batch_size: int) -> GuidedDenoiser:
        return UNetDenoiser(self, batch_size, call["clip_skip"], call["cross_attention_kwargs"])

    def _check_family(self, call: dict[str, Any]) -> None:
        self.check_inputs(call["prompt"], call["height"], call["width"], None)


class HybridStableDiffusionXLPipeline(HybridPipeline, StableDiffusionXLPipeline):
    """`StableDiffusionXLPipeline` plus the hybrid arguments; without one of them it is the stock pipeline."""

    def _denoiser(self, call: dict[str, Any], batch_size: int) -> GuidedDenoiser:
        names = ("original_size", "crops_coords_top_left", "target_size")
        sizes = {name: call[name] for kind in ("", "negative_") for name in (f"{kind}{n}" for n in names)}
        return SDXLDenoiser(self, batch_size, call["clip_skip"], call["cross_attention_kwargs"], **sizes)

    def _check_family(self, call: dict[str, Any]) -> None:
        self.check_inputs(call["prompt"], None, call["height"], call["width"], None)
        given = call["negative_prompt"]
        if self.config.force_zeros_for_empty_prompt and "" in ([given] if isinstance(given, str) else given or []):
            raise ValueError("negative_prompt must be None, not '', for no negative prompt: SDXL tells the two apart")
