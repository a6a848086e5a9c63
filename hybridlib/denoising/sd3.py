"""SD3: a flow-matching transformer with joint text attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .denoisers import GuidedDenoiser, Space


class SD3Denoiser(GuidedDenoiser):
    """The SD3 transformer with per-row prompt, negative prompt and guidance scale; see `GuidedDenoiser`.

    Args:
        pipeline: a `StableDiffusion3Pipeline`.
        max_sequence_length: T5 tokens, as in diffusers; without T5 the number of null tokens in its place.
        joint_attention_kwargs: as in diffusers.
    """

    network = "transformer"
    largest_shift = 1.16  # where the scheduler does not say, as the stock pipeline has it
    encodes_lists = True

    def __init__(
        self,
        pipeline: Any,
        batch_size: int = 64,
        max_sequence_length: int = 256,
        clip_skip: int | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(pipeline, batch_size, clip_skip, joint_attention_kwargs)
        self.max_sequence_length = max_sequence_length

    @property
    def space(self) -> Space:
        """See `GuidedDenoiser.space`. Every flow is trained on all noise levels between data and noise."""
        return Space.of(self.latent_channels, self.pipeline.vae, "flow_prediction", "flow")

    @property
    def size_multiple(self) -> int:
        """Pixels of one patch of latents."""
        return self.pipeline.vae_scale_factor * self.pipeline.patch_size

    @property
    def default_size(self) -> int:
        """Height and width of images in pixels where nobody says otherwise."""
        return self.pipeline.default_sample_size * self.pipeline.vae_scale_factor

    def schedule_options(self, config: Any, latent_size: tuple[int, int], num_inference_steps: int) -> dict[str, Any]:
        """`mu`, where the schedule shifts with the number of latent patches."""
        from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

        if not config.get("use_dynamic_shifting"):
            return {}
        patch = self.size_multiple // self.pipeline.vae_scale_factor
        mu = calculate_shift(
            (latent_size[0] // patch) * (latent_size[1] // patch),
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", self.largest_shift),
        )
        return {"mu": mu}

    def decode(self, latents: Tensor, output_type: str) -> Any:
        """See `GuidedDenoiser.decode`."""
        vae = self.pipeline.vae
        latents = latents.to(self.pipeline._execution_device, vae.dtype)
        latents = latents / vae.config.scaling_factor + vae.config.shift_factor
        picture = vae.decode(latents, return_dict=False)[0]
        return self.pipeline.image_processor.postprocess(picture, output_type=output_type)

    def example(self, height: int, width: int) -> dict[str, Any]:
        """See `GuidedDenoiser.example`; the text is 77 CLIP tokens and `max_sequence_length` of T5."""
        config, factor = self.model.config, self.pipeline.vae_scale_factor
        tokens = self.pipeline.tokenizer_max_length + self.max_sequence_length
        with torch.device("meta"):
            return {
                "hidden_states": torch.empty(1, config.in_channels, height // factor, width // factor),
                "timestep": torch.empty(1),
                "encoder_hidden_states": torch.empty(1, tokens, config.joint_attention_dim),
                "pooled_projections": torch.empty(1, config.pooled_projection_dim),
            }

    def _encode(self, text: str | list[str], negative: bool) -> tuple[Tensor, ...]:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            text,
            None,
            None,
            do_classifier_free_guidance=False,
            device=self.pipeline._execution_device,
            clip_skip=None if negative else self.clip_skip,  # as diffusers has it
            max_sequence_length=self.max_sequence_length,
        )
        return embeds, pooled

    def _evaluate(
        self, latents: Tensor, timestep: Tensor, texts: tuple[Tensor, ...], negatives: int, scales: list[float]
    ) -> Tensor:
        embeds, pooled = texts
        return self.model(
            hidden_states=latents,
            timestep=timestep.expand(len(latents)),
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            joint_attention_kwargs=self.attention_kwargs,
            return_dict=False,
        )[0]
