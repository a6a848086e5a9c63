"""Hybrid inference written out by hand: one image, one row, no tree, no hybridlib."""

from __future__ import annotations

import torch


@torch.no_grad()
def hybrid_latents(
    pipeline,
    public_prompt,
    personal_prompt,
    common_step,
    noise,
    public_scale,
    personal_scale,
    negative_prompt="",
    num_inference_steps=28,
    max_sequence_length=256,
):
    """Final latents of: public prompt for i < common_step, personal prompt from the top of i = common_step on."""
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(num_inference_steps)
    scheduler.set_begin_index(0)
    latents = noise.clone()
    for i, t in enumerate(scheduler.timesteps):
        public = i < common_step
        prompt, scale = (public_prompt, public_scale) if public else (personal_prompt, personal_scale)
        text, negative, pooled, negative_pooled = pipeline.encode_prompt(
            prompt,
            prompt,
            prompt,
            negative_prompt="" if public else negative_prompt,
            do_classifier_free_guidance=True,
            max_sequence_length=max_sequence_length,
        )

        def velocity(embeds, pooled_embeds, latents=latents, t=t):
            return pipeline.transformer(
                hidden_states=latents,
                timestep=t.expand(1),
                encoder_hidden_states=embeds,
                pooled_projections=pooled_embeds,
                return_dict=False,
            )[0]

        v = velocity(text, pooled)
        if scale > 1:
            v_negative = velocity(negative, negative_pooled)
            v = v_negative + scale * (v - v_negative)
        latents = scheduler.step(v, t, latents, return_dict=False)[0]
    return latents
