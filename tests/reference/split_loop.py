"""A generation split between networks written out by hand: one scheduler, one loop, no hybridlib."""

from __future__ import annotations

import copy

import torch


@torch.no_grad()
def split_latents(pipeline, networks, numbers, prompt, seed, scale, negative=None, restart=False):
    """Final latents of a loop in which each network makes its number of updates; one image.

    restart: give every network but the first a fresh scheduler that begins where the one before stopped.
    """
    steps = sum(numbers)
    shared = copy.deepcopy(pipeline.scheduler)
    shared.set_timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn((1, 4, 8, 8), generator=generator)
    who = [network for network, number in zip(networks, numbers, strict=True) for _ in range(number)]
    for i, t in enumerate(shared.timesteps):
        if restart and i and who[i] is not who[i - 1]:
            shared = copy.deepcopy(pipeline.scheduler)
            shared.set_timesteps(steps)
            if hasattr(shared, "set_begin_index"):
                shared.set_begin_index(i)
        embedded = who[i].config.get("time_cond_proj_dim")
        guided = scale > 1 and embedded is None
        inputs, arguments = _inputs(pipeline, prompt, negative, guided)
        if embedded:
            w = torch.tensor([scale - 1])
            arguments["timestep_cond"] = pipeline.get_guidance_scale_embedding(w, embedding_dim=embedded)
        rows = torch.cat([latents] * len(inputs))
        if hasattr(pipeline, "transformer"):
            output = who[i](rows, timestep=t.expand(len(rows)), return_dict=False, **arguments)[0]
        else:
            output = who[i](rows, t, return_dict=False, **arguments)[0]
        if guided:
            unconditional, text = output.chunk(2)
            output = unconditional + scale * (text - unconditional)
        noise = {"generator": generator} if type(shared).__name__ == "LCMScheduler" else {}
        latents = shared.step(output, t, latents, return_dict=False, **noise)[0]
    return latents


def _inputs(pipeline, prompt, negative, guided):
    if not hasattr(pipeline, "text_encoder_2"):
        embeds, without = pipeline.encode_prompt(prompt, "cpu", 1, guided, negative)
        return [1] * (1 + guided), {"encoder_hidden_states": torch.cat([without, embeds]) if guided else embeds}
    if hasattr(pipeline, "transformer"):
        embeds, without, pooled, without_pooled = pipeline.encode_prompt(
            prompt, None, None, negative_prompt=negative, do_classifier_free_guidance=guided, max_sequence_length=12
        )
    else:
        embeds, without, pooled, without_pooled = pipeline.encode_prompt(
            prompt, negative_prompt=negative, do_classifier_free_guidance=guided
        )
    if guided:
        embeds, pooled = torch.cat([without, embeds]), torch.cat([without_pooled, pooled])
    if hasattr(pipeline, "transformer"):
        return [1] * (1 + guided), {"encoder_hidden_states": embeds, "pooled_projections": pooled}
    ids = torch.tensor([[32.0, 32.0, 0.0, 0.0, 32.0, 32.0]]).repeat(len(embeds), 1)
    added = {"text_embeds": pooled, "time_ids": ids}
    return [1] * (1 + guided), {"encoder_hidden_states": embeds, "added_cond_kwargs": added}
