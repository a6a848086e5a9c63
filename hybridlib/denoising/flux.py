"""FLUX.1: a flow-matching transformer that is told its guidance scale, on latents packed two by two."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .sd3 import SD3Denoiser


class FluxDenoiser(SD3Denoiser):
    """The FLUX.1 transformer with per-row prompt and guidance scale; see `GuidedDenoiser`. VAE and sizes are as in SD3.

    FLUX.1-dev was distilled from guided outputs: the guidance scale is an input of the network, a step costs one
    evaluation whatever the scale is, and there is no negative prompt. So another scale in the public phase (SIM) is
    another mechanism than in SD3: it weights no two outputs, it asks the network for what it learnt under that scale.
    FLUX.1-schnell takes no scale: one value stands for all.

    Latents are (rows, 16, height, width) here, as in every tree; the network and the stock pipeline know them packed,
    (rows, tokens, 64), each token a patch of two by two.

    Args:
        pipeline: a `FluxPipeline`.
        max_sequence_length: T5 tokens, as in diffusers.
        joint_attention_kwargs: as in diffusers.
    """

    largest_shift = 1.15

    def __init__(
        self,
        pipeline: Any,
        batch_size: int = 64,
        max_sequence_length: int = 512,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(pipeline, batch_size, max_sequence_length, None, joint_attention_kwargs)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents, before they are packed."""
        return self.model.config.in_channels // 4

    @property
    def embeds_guidance(self) -> bool:
        """Always: no FLUX.1 is evaluated twice."""
        return True

    @property
    def ignores_guidance(self) -> bool:
        """Whether the network takes no guidance scale."""
        return not self.model.config.guidance_embeds

    @property
    def size_multiple(self) -> int:
        """Pixels of one token."""
        return 2 * self.pipeline.vae_scale_factor

    def schedule_options(self, config: Any, latent_size: tuple[int, int], num_inference_steps: int) -> dict[str, Any]:
        """`mu` as in SD3, and noise levels evenly spaced from 1 to 1 / num_inference_steps before the shift."""
        options = super().schedule_options(config, latent_size, num_inference_steps)
        if not config.get("use_flow_sigmas"):
            options["sigmas"] = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        return options

    def noise(self, rows: int, height: int, width: int, generator: Any, latents: Tensor | None) -> Tensor:
        """See `GuidedDenoiser.noise`; `latents` are packed, as the stock pipeline takes them."""
        size = (height // self.pipeline.vae_scale_factor, width // self.pipeline.vae_scale_factor)
        wanted = (rows, size[0] * size[1] // 4, self.model.config.in_channels)
        if latents is not None and tuple(latents.shape) != wanted:
            raise ValueError(f"latents must be packed, {wanted}, got {tuple(latents.shape)}")
        where = (self.dtype, self.device)
        packed, _ = self.pipeline.prepare_latents(rows, self.latent_channels, height, width, *where, generator, latents)
        return self.from_stock(packed, size)

    def to_stock(self, latents: Tensor) -> Tensor:
        """Packed latents (rows, tokens, 4 * channels)."""
        return self.pipeline._pack_latents(latents, *latents.shape)

    def from_stock(self, latents: Tensor, latent_size: tuple[int, int]) -> Tensor:
        """Inverse of `to_stock`."""
        factor = self.pipeline.vae_scale_factor
        return self.pipeline._unpack_latents(latents, *(factor * side for side in latent_size), factor)

    def example(self, height: int, width: int) -> dict[str, Any]:
        """See `GuidedDenoiser.example`; the text is `max_sequence_length` tokens of T5."""
        config, tokens = self.model.config, (height // self.size_multiple) * (width // self.size_multiple)
        with torch.device("meta"):
            arguments = {
                "hidden_states": torch.empty(1, tokens, config.in_channels),
                "timestep": torch.empty(1),
                "encoder_hidden_states": torch.empty(1, self.max_sequence_length, config.joint_attention_dim),
                "pooled_projections": torch.empty(1, config.pooled_projection_dim),
                "img_ids": torch.empty(tokens, 3),
                "txt_ids": torch.empty(self.max_sequence_length, 3),
            }
            return arguments if self.ignores_guidance else arguments | {"guidance": torch.empty(1)}

    def _encode(self, text: str | list[str], negative: bool) -> tuple[Tensor, ...]:
        embeds, pooled, _ = self.pipeline.encode_prompt(
            text, None, device=self.pipeline._execution_device, max_sequence_length=self.max_sequence_length
        )
        return embeds, pooled

    def _evaluate(
        self, latents: Tensor, timestep: Tensor, texts: tuple[Tensor, ...], negatives: int, scales: list[float]
    ) -> Tensor:
        embeds, pooled = texts
        size, where = (latents.shape[-2], latents.shape[-1]), (latents.device, latents.dtype)
        output = self.model(
            hidden_states=self.to_stock(latents),
            timestep=timestep.expand(len(latents)).to(latents.dtype) / 1000,
            guidance=None if self.ignores_guidance else torch.tensor(scales, device=latents.device),
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(embeds.shape[1], 3).to(*where),
            img_ids=self.pipeline._prepare_latent_image_ids(len(latents), size[0] // 2, size[1] // 2, *where),
            joint_attention_kwargs=self.attention_kwargs,
            return_dict=False,
        )[0]
        return self.from_stock(output, size)
