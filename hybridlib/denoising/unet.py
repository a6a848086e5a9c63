"""UNets: Stable Diffusion 1.x, its latent consistency models, and SDXL."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .denoisers import GuidedDenoiser, Space

Size = tuple[int, int]


class UNetDenoiser(GuidedDenoiser):
    """The UNet of Stable Diffusion 1.x with per-row prompt, negative prompt and guidance scale; see `GuidedDenoiser`.

    A UNet that embeds its guidance scale (a latent consistency model, arXiv 2310.04378) is told w = guidance_scale - 1
    and evaluated once a step; negative prompts then have no effect, as published.

    Args:
        pipeline: a `StableDiffusionPipeline` or `LatentConsistencyModelPipeline`.
    """

    network = "unet"

    @property
    def embeds_guidance(self) -> bool:
        """Whether the guidance scale is an input of the UNet."""
        return self.model.config.time_cond_proj_dim is not None

    @property
    def space(self) -> Space:
        """See `GuidedDenoiser.space`. The prediction type of a network is told by its pipeline's scheduler."""
        noise = self.pipeline.scheduler.config
        names = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps")
        training = " ".join(str(noise.get(name)) for name in names)
        training += " own betas" * (noise.get("trained_betas") is not None)
        training += " zero SNR" * bool(noise.get("rescale_betas_zero_snr"))
        kind = noise.get("prediction_type", "epsilon")
        return Space.of(self.latent_channels, self.pipeline.vae, kind, training)

    @property
    def size_multiple(self) -> int:
        """Pixels; diffusers allows no fewer than 8."""
        return max(8, self.pipeline.vae_scale_factor)

    @property
    def default_size(self) -> int:
        """Height and width of images in pixels where nobody says otherwise."""
        return self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor

    def decode(self, latents: Tensor, output_type: str) -> Any:
        """See `GuidedDenoiser.decode`; with a safety checker, what it rejects is black."""
        pipeline, vae = self.pipeline, self.pipeline.vae
        latents = latents.to(pipeline._execution_device, vae.dtype)
        picture = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        picture, rejected = pipeline.run_safety_checker(picture, picture.device, picture.dtype)
        seen = [not unsafe for unsafe in rejected or [False] * len(picture)]
        return pipeline.image_processor.postprocess(picture, output_type=output_type, do_denormalize=seen)

    def example(self, height: int, width: int) -> dict[str, Any]:
        """See `GuidedDenoiser.example`; the text is as long as the tokenizer makes it."""
        config, factor = self.model.config, self.pipeline.vae_scale_factor
        with torch.device("meta"):
            arguments = {
                "sample": torch.empty(1, config.in_channels, height // factor, width // factor),
                "timestep": torch.empty(()),
                "encoder_hidden_states": torch.empty(
                    1, self.pipeline.tokenizer.model_max_length, config.cross_attention_dim
                ),
            }
            if self.embeds_guidance:
                arguments["timestep_cond"] = torch.empty(1, config.time_cond_proj_dim)
        return arguments

    def _encode(self, text: str | list[str], negative: bool) -> tuple[Tensor, ...]:
        skip = None if negative else self.clip_skip  # as diffusers has it
        embeds, _ = self.pipeline.encode_prompt(text, self.pipeline._execution_device, 1, False, clip_skip=skip)
        return (embeds,)

    def _evaluate(
        self, latents: Tensor, timestep: Tensor, texts: tuple[Tensor, ...], negatives: int, scales: list[float]
    ) -> Tensor:
        return self.model(
            latents,
            timestep,
            encoder_hidden_states=texts[0],
            timestep_cond=self._guidance_embedding(scales, latents) if self.embeds_guidance else None,
            cross_attention_kwargs=self.attention_kwargs,
            added_cond_kwargs=self._added(latents, texts, negatives),
            return_dict=False,
        )[0]

    def _guidance_embedding(self, scales: list[float], latents: Tensor) -> Tensor:
        weights = torch.tensor([scale - 1 for scale in scales])
        width = self.model.config.time_cond_proj_dim
        return self.pipeline.get_guidance_scale_embedding(weights, embedding_dim=width).to(latents)

    def _added(self, latents: Tensor, texts: tuple[Tensor, ...], negatives: int) -> dict[str, Tensor] | None:
        """Conditioning beside the text."""
        return None


class SDXLDenoiser(UNetDenoiser):
    """The UNet of SDXL, which is also told pooled text embeddings and the sizes and crop of its training image.

    An empty negative prompt means none: zeros where the pipeline says `force_zeros_for_empty_prompt`, as SDXL does.

    Args:
        pipeline: a `StableDiffusionXLPipeline`.
        sizes: `original_size`, `crops_coords_top_left`, `target_size` and the same with `negative_` before, as in
            diffusers; by default the image's own size, uncropped.
    """

    def __init__(
        self,
        pipeline: Any,
        batch_size: int = 64,
        clip_skip: int | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        **sizes: Size | None,
    ) -> None:
        super().__init__(pipeline, batch_size, clip_skip, attention_kwargs)
        self.sizes = sizes

    def decode(self, latents: Tensor, output_type: str) -> Any:
        """See `GuidedDenoiser.decode`. A VAE that overflows in half precision decodes in float32, as in diffusers."""
        pipeline, vae = self.pipeline, self.pipeline.vae
        half = vae.dtype == torch.float16 and vae.config.force_upcast
        if half:
            vae.to(dtype=torch.float32)
        try:
            latents = self._unscaled(latents.to(pipeline._execution_device, vae.dtype))
            picture = vae.decode(latents, return_dict=False)[0]
        finally:
            if half:
                vae.to(dtype=torch.float16)
        if pipeline.watermark is not None:
            picture = pipeline.watermark.apply_watermark(picture)
        return pipeline.image_processor.postprocess(picture, output_type=output_type)

    def _unscaled(self, latents: Tensor) -> Tensor:
        config = self.pipeline.vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            return latents / config.scaling_factor
        mean, std = (torch.tensor(values).view(1, -1, 1, 1).to(latents) for values in (mean, std))
        return latents * std / config.scaling_factor + mean

    def example(self, height: int, width: int) -> dict[str, Any]:
        """See `GuidedDenoiser.example`."""
        pooled = self.pipeline.text_encoder_2.config.projection_dim
        added = {"text_embeds": torch.empty(1, pooled, device="meta"), "time_ids": torch.empty(1, 6, device="meta")}
        return super().example(height, width) | {"added_cond_kwargs": added}

    def _encode(self, text: str | list[str], negative: bool) -> tuple[Tensor, ...]:
        pipeline = self.pipeline
        none = negative and not text and pipeline.config.force_zeros_for_empty_prompt
        embeds, _, pooled, _ = pipeline.encode_prompt(
            text,
            device=pipeline._execution_device,
            do_classifier_free_guidance=False,
            clip_skip=None if negative else self.clip_skip,
        )
        return (torch.zeros_like(embeds), torch.zeros_like(pooled)) if none else (embeds, pooled)

    def _added(self, latents: Tensor, texts: tuple[Tensor, ...], negatives: int) -> dict[str, Tensor] | None:
        height, width = (side * self.pipeline.vae_scale_factor for side in latents.shape[-2:])
        ids = self._time_ids("", (height, width))
        # Diffusers takes the negative sizes only where both are given.
        own = self.sizes.get("negative_original_size") and self.sizes.get("negative_target_size")
        negative_ids = self._time_ids("negative_", (height, width)) if own else ids
        rows = [negative_ids] * negatives + [ids] * (len(latents) - negatives)
        return {"text_embeds": texts[1], "time_ids": torch.tensor(rows, dtype=texts[0].dtype, device=latents.device)}

    def _time_ids(self, kind: str, size: Size) -> list[int]:
        original, target = (self.sizes.get(f"{kind}{name}") or size for name in ("original_size", "target_size"))
        return [*original, *(self.sizes.get(f"{kind}crops_coords_top_left") or (0, 0)), *target]
