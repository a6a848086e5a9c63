"""The diffusers pipelines of SD3, FLUX.1, Stable Diffusion 1.x and SDXL with the arguments of `HybridPipeline`."""

from __future__ import annotations

from typing import Any

from diffusers import FluxPipeline, StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from .denoisers import GuidedDenoiser
from .flux import FluxDenoiser
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


class HybridFluxPipeline(HybridPipeline, FluxPipeline):
    """`FluxPipeline` plus the hybrid arguments; without one of them it is the stock pipeline.

    With them there is no negative prompt, and none of the true classifier-free guidance (`true_cfg_scale`) that
    diffusers offers beside the embedded scale: NPI does not exist here, and SIM is another mechanism, see
    `FluxDenoiser`. Latents go in and out packed, as in diffusers.
    """

    def _denoiser(self, call: dict[str, Any], batch_size: int) -> GuidedDenoiser:
        return FluxDenoiser(self, batch_size, call["max_sequence_length"], call["joint_attention_kwargs"])

    def _check_family(self, call: dict[str, Any]) -> None:
        if call["negative_prompt"] is not None:
            raise ValueError("negative_prompt must be None with the hybrid arguments: FLUX.1 embeds its guidance scale")
        multiple = 2 * self.vae_scale_factor
        for side in ("height", "width"):
            if call[side] % multiple:
                raise ValueError(f"{side} must be a multiple of {multiple} pixels, got {call[side]}")
        length = call["max_sequence_length"]
        self.check_inputs(call["prompt"], None, call["height"], call["width"], max_sequence_length=length)


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
