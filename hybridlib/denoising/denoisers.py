"""Denoisers behind one protocol: batched latents in, guided model output out, with a conditioning for every row."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from .trajectory import Conditioning

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline


class Denoiser(Protocol):
    """What the sampler needs of a diffusion model."""

    @property
    def device(self) -> torch.device:
        """Where the latents have to be."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What the latents have to be."""
        ...

    def __call__(self, latents: Tensor, timestep: Tensor, conditionings: Sequence[Conditioning]) -> Tensor:
        """Guided model output for every row, in as many forwards as the batch size asks for.

        latents: (rows, channels, height, width), all at noise level `timestep` (scalar tensor).
        """
        ...


class SD3Denoiser:
    """The SD3 transformer with per-row prompt, negative prompt and guidance scale.

    Rows at guidance scale <= 1 cost one evaluation, the others two: v = v_neg + g (v_text - v_neg). Prompts are
    encoded once per denoiser. `batch_size` bounds the evaluations in one forward; when the device runs out of memory
    it is halved, with a warning, and the forward is tried again.

    Args:
        pipeline: a diffusers SD3 pipeline that holds transformer, text encoders and tokenizers.
        batch_size: most denoiser evaluations in one forward.
        max_sequence_length: T5 tokens, as in diffusers; without T5 the number of null tokens in its place.
        clip_skip: as in diffusers.
    """

    def __init__(
        self,
        pipeline: StableDiffusion3Pipeline,
        batch_size: int = 64,
        max_sequence_length: int = 256,
        clip_skip: int | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.pipeline = pipeline
        self.batch_size = batch_size
        self.max_sequence_length = max_sequence_length
        self.clip_skip = clip_skip
        self.joint_attention_kwargs = joint_attention_kwargs
        self.latent_channels = pipeline.transformer.config.in_channels
        self._embeds: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def device(self) -> torch.device:
        """Where the latents have to be."""
        return self.pipeline._execution_device

    @property
    def dtype(self) -> torch.dtype:
        """What the latents have to be."""
        return self.pipeline.transformer.dtype

    def __call__(self, latents: Tensor, timestep: Tensor, conditionings: Sequence[Conditioning]) -> Tensor:
        """See `Denoiser.__call__`."""
        outputs, start = [], 0
        while start < len(latents):
            stop = self._chunk_end(conditionings, start)
            try:
                outputs.append(self._forward(latents[start:stop], timestep, conditionings[start:stop]))
            except RuntimeError as error:
                if not _is_out_of_memory(error) or stop - start == 1:
                    raise
                self.batch_size = max(1, self.batch_size // 2)
                warnings.warn(f"out of memory: batch_size lowered to {self.batch_size}", stacklevel=2)
                continue
            start = stop
        return torch.cat(outputs)

    def _chunk_end(self, conditionings: Sequence[Conditioning], start: int) -> int:
        """The most rows from `start` whose evaluations fit the batch size; at least one."""
        stop, evaluations = start, 0
        while stop < len(conditionings):
            evaluations += conditionings[stop].nfe
            if evaluations > self.batch_size and stop > start:
                break
            stop += 1
        return stop

    def _forward(self, latents: Tensor, timestep: Tensor, conditionings: Sequence[Conditioning]) -> Tensor:
        guided = [row for row, conditioning in enumerate(conditionings) if conditioning.nfe == 2]
        # Negatives first, as diffusers orders them, so that a single row repeats its arithmetic exactly.
        prompts = [conditionings[row].negative_prompt for row in guided] + [c.prompt for c in conditionings]
        embeds, pooled = self._encode(prompts)
        inputs = torch.cat([latents[guided], latents])
        output = self.pipeline.transformer(
            hidden_states=inputs,
            timestep=timestep.expand(len(inputs)),
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            joint_attention_kwargs=self.joint_attention_kwargs,
            return_dict=False,
        )[0]
        negative, text = output[: len(guided)], output[len(guided) :]
        if not guided:
            return text
        scales = torch.tensor([conditionings[row].guidance_scale for row in guided], device=output.device)
        scales = scales.to(output.dtype).view(-1, 1, 1, 1)
        guided_output = negative + scales * (text[guided] - negative)
        if len(guided) == len(text):
            return guided_output
        text = text.clone()
        text[guided] = guided_output
        return text

    def _encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._embeds:
                embeds, _, pooled, _ = self.pipeline.encode_prompt(
                    prompt,
                    None,
                    None,
                    do_classifier_free_guidance=False,
                    device=self.device,
                    clip_skip=self.clip_skip,
                    max_sequence_length=self.max_sequence_length,
                )
                self._embeds[prompt] = (embeds, pooled)
        rows = [self._embeds[prompt] for prompt in prompts]
        return torch.cat([embeds for embeds, _ in rows]), torch.cat([pooled for _, pooled in rows])


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
