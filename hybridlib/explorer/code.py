"""The snippet that makes a picture without the explorer, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..codecs import Adaptive, DecimalRounding, MinMax

if TYPE_CHECKING:
    from ..codecs import Codec
    from .controls import Controls
    from .session import Session

_FAMILIES = (Adaptive, DecimalRounding, MinMax)


def snippet(controls: Controls, model: str, session: Session) -> str:
    """Python whose last line leaves the images in `images`: one call of the pipeline, as in the README.

    A codec that uses the seed needs to know it, so that picture is told as trajectories.
    """
    if isinstance(controls.link_codec, Adaptive) or str(session.pipeline.dtype) != "torch.float32":
        return _as_trajectories(controls, model, session)
    shifted = controls.shift is not None and controls.shift != session.own_shift
    lines = ["import torch", "", "from hybridlib.denoising import models"]
    if controls.link_codec is not None:
        lines.append(f"from hybridlib.codecs import {type(controls.link_codec).__name__}")
    lines[2:] = sorted(lines[2:])
    lines += ["", f"pipe = models.load({model!r})"]
    if shifted:
        made = f"type(pipe.scheduler).from_config(pipe.scheduler.config, shift={controls.shift!r})"
        lines.append(f"pipe.scheduler = {made}")
    lines += ["images = pipe(", *_prompts(controls.personal_prompts)]
    arguments: dict[str, object] = {
        "public_prompt": controls.public_prompt,
        "common_step": controls.common_step,
        "public_guidance_scale": controls.public_guidance_scale,
        "guidance_scale": controls.guidance_scale,
    }
    if controls.negative_prompt:
        arguments["negative_prompt"] = controls.negative_prompt
    arguments["num_inference_steps"] = controls.num_inference_steps
    lines += [f"    {name}={value!r}," for name, value in arguments.items()]
    if (codec := controls.link_codec) is not None:
        lines.append(f"    compress_at_step={controls.common_step - 1},  # right after the last shared update")
        lines.append(f"    codec={_constructed(codec)},")
    lines.append(f"    generator=torch.Generator().manual_seed({controls.seed}),")
    lines += [f"    max_sequence_length={session.max_sequence_length},", ").images"]
    return "\n".join(lines) + "\n"


def _as_trajectories(controls: Controls, model: str, session: Session) -> str:
    codec, steps = controls.link_codec, controls.num_inference_steps
    imports = [
        "from hybridlib.denoising import models",
        "from hybridlib.denoising.sampler import sample",
        "from hybridlib.denoising.trajectory import Trajectory",
    ]
    if codec is not None:
        imports.insert(0, f"from hybridlib.codecs import {type(codec).__name__}")
    send = "" if codec is None else f".with_codec({controls.common_step}, {_constructed(codec)})"
    lines = [*imports, "", f"pipe = models.load({model!r})", "users = [", *_prompts(controls.personal_prompts)[1:-1]]
    lines += ["]", "paths = [", "    Trajectory.hybrid("]
    lines += [
        f"        {controls.public_prompt!r},",
        "        prompt,",
        f"        common_step={controls.common_step},",
        f"        seed={controls.seed},",
        f"        public_guidance_scale={controls.public_guidance_scale!r},",
        f"        personal_guidance_scale={controls.guidance_scale!r},",
    ]
    if controls.negative_prompt:
        lines.append(f"        negative_prompt={controls.negative_prompt!r},")
    lines += [f"        num_inference_steps={steps},", f"    ){send}", "    for prompt in users", "]"]
    shift = "" if controls.shift in (None, session.own_shift) else f", shift={controls.shift!r}"
    lines.append(f"images = sample(pipe, paths, max_sequence_length={session.max_sequence_length}{shift}).images()")
    return "\n".join(lines) + "\n"


def _prompts(prompts: tuple[str, ...]) -> list[str]:
    return ["    [", *(f"        {prompt!r}," for prompt in prompts), "    ],"]


def _constructed(codec: Codec) -> str:
    if not isinstance(codec, _FAMILIES):
        raise ValueError(f"codec must be one that the explorer offers, got {codec!r}")
    return repr(codec)
