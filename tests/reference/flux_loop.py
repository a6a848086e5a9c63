"""FLUX.1 with a prompt, a scale and a network that change on the way, written out by hand: packed, no hybridlib."""

from __future__ import annotations

import copy

import numpy as np
import torch


@torch.no_grad()
def flux_latents(pipeline, parts, packed, side, max_sequence_length=12, codec=None):
    """Final packed latents of one image.

    parts: (number of updates, network, prompt, guidance scale), one after another.
    packed: initial latents (1, tokens, channels) of an image of `side` pixels.
    codec: (updates, function of the packed latents), applied before that update.
    """
    steps = sum(number for number, *_ in parts)
    scheduler, config = copy.deepcopy(pipeline.scheduler), pipeline.scheduler.config
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    mu = config.base_shift + slope * (packed.shape[1] - config.base_image_seq_len)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    tokens = side // (2 * pipeline.vae_scale_factor)
    places = torch.stack(torch.meshgrid(torch.arange(tokens), torch.arange(tokens), indexing="ij"), dim=-1)
    ids = torch.cat([torch.zeros(tokens * tokens, 1), places.reshape(-1, 2).float()], dim=1)
    who = [part for part in parts for _ in range(part[0])]
    for i, (t, (_, network, prompt, scale)) in enumerate(zip(scheduler.timesteps, who, strict=True)):
        if codec is not None and codec[0] == i:
            packed = codec[1](packed)
        embeds, pooled, text_ids = pipeline.encode_prompt(prompt, None, max_sequence_length=max_sequence_length)
        velocity = network(
            hidden_states=packed,
            timestep=t.expand(1) / 1000,
            guidance=torch.tensor([scale]) if network.config.guidance_embeds else None,
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=text_ids,
            img_ids=ids,
            return_dict=False,
        )[0]
        packed = scheduler.step(velocity, t, packed, return_dict=False)[0]
    return packed
