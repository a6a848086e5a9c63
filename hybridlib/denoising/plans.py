"""From the arguments of a hybrid call to trajectories, and the latents that they start from."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ..codecs import Codec
from .arguments import HybridArguments, per_user
from .denoisers import GuidedDenoiser
from .trajectory import Segment, Trajectory, check_common_step


class Handover(NamedTuple):
    """What a public run leaves for the personal runs."""

    latents: Tensor
    step: int
    history: dict[str, Tensor]  # what the solver remembers
    levels: Tensor  # the whole noise schedule
    solver: str
    model: Any  # the network that made it; None of noise

    def __repr__(self) -> str:
        return f"Handover(after {self.step} of {len(self.levels) - 1} updates, latents {tuple(self.latents.shape)})"


class Plan(NamedTuple):
    """What a call has to do."""

    trajectories: list[Trajectory]
    latents: Tensor  # one row per distinct seed of the trajectories
    keep_step: int | None = None  # where a public run leaves its handover
    last_codec: Codec | None = None  # that the final latents pass
    handover: Handover | None = None  # what a personal run goes on from

    def __repr__(self) -> str:
        return f"Plan({len(self.trajectories)} trajectories, latents {tuple(self.latents.shape)})"


def make_plan(call: dict[str, Any], ask: HybridArguments, denoiser: GuidedDenoiser, kept: Handover | None) -> Plan:
    """Turn the arguments of a call into trajectories and the latents they start from.

    `kept` is what an earlier public run left.
    """
    steps, copies = call["num_inference_steps"], call["num_images_per_prompt"]
    prompts = [call["prompt"]] if isinstance(call["prompt"], str) else list(call["prompt"])
    negatives = [n or "" for n in per_user("negative_prompt", call["negative_prompt"], len(prompts))]
    scales = per_user("guidance_scale", call["guidance_scale"], len(prompts))
    switches = per_user("common_step", ask.common_step or 0, len(prompts))
    for switch in switches:
        check_common_step(switch, steps)
    users = list(zip(prompts, negatives, scales, switches, strict=True))
    if ask.prompt_unchanged is False:
        return _personal_plan(kept, call, users, denoiser)
    if ask.prompt_unchanged is True and len(prompts) > 1:
        raise ValueError(f"prompt_unchanged=True runs one public prompt, got {len(prompts)} prompts")
    trajectories = []
    for prompt, negative, scale, switch in users:
        if ask.public_prompt is None:
            make = [Trajectory.plain(prompt, n, scale, negative, steps) for n in range(copies)]
        else:
            public_scale = scale if ask.public_guidance_scale is None else ask.public_guidance_scale
            make = [
                Trajectory.hybrid(ask.public_prompt, prompt, switch, n, public_scale, scale, negative, steps)
                for n in range(copies)
            ]
        trajectories += make
    latents = _noise(call, copies, denoiser)
    return Plan(trajectories, latents, switches[0] if ask.prompt_unchanged else None)


def _personal_plan(
    kept: Handover | None, call: dict[str, Any], users: list[tuple[str, str, float, int]], denoiser: GuidedDenoiser
) -> Plan:
    steps, switches = call["num_inference_steps"], {switch for *_, switch in users}
    if kept is None:
        raise ValueError("prompt_unchanged=False needs an earlier call of this pipeline with prompt_unchanged=True")
    if switches != {kept.step} or len(kept.levels) - 1 != steps:
        raise ValueError(
            f"the public run handed over at common_step={kept.step} of {len(kept.levels) - 1}, "
            f"this call asks for {sorted(switches)} of {steps}"
        )
    factor = denoiser.pipeline.vae_scale_factor
    size = (call["height"] // factor, call["width"] // factor)
    if kept.latents.shape[-2:] != size:
        raise ValueError(f"the public run's latents are {tuple(kept.latents.shape[-2:])}, this call needs {size}")
    trajectories = [
        Trajectory(n, (Segment(prompt, kept.step, steps, scale, negative),))
        for prompt, negative, scale, _ in users
        for n in range(len(kept.latents))
        if kept.step < steps
    ]
    return Plan(trajectories, kept.latents, handover=kept)


def _noise(call: dict[str, Any], rows: int, denoiser: GuidedDenoiser) -> Tensor:
    latents = call["latents"]
    if latents is not None and len(latents) != rows:
        raise ValueError(f"latents must hold num_images_per_prompt={rows} rows shared by all users, got {len(latents)}")
    return denoiser.noise(rows, call["height"], call["width"], call["generator"], latents)


def compressed(plan: Plan, step: int, codec: Codec, num_inference_steps: int) -> Plan:
    """The same plan with latents that pass `codec` right after update `step`."""
    first = plan.trajectories[0].start if plan.trajectories else num_inference_steps
    if not first <= step < num_inference_steps:
        raise ValueError(f"compress_at_step must lie in {first}..{num_inference_steps - 1}, got {step}")
    if step == num_inference_steps - 1:
        return plan._replace(last_codec=codec)
    return plan._replace(trajectories=[t.with_codec(step + 1, codec) for t in plan.trajectories])
