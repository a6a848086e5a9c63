"""The arguments of `sample` and of a hybrid call, checked before anything runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from torch import Tensor
from tqdm import tqdm

from .solvers import check_scheduler
from .state import DenoiseState
from .trajectory import check_codec, check_type

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

    from ..codecs import Codec

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
_NOT_HYBRID = (  # stock arguments that have no meaning when several users share a prefix
    *("prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3"),
    *("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
    *("ip_adapter_image", "ip_adapter_image_embeds", "skip_guidance_layers"),
)


def check_sampling(
    pipeline: object, keep: Any, resume: object, progress: object, num_inference_steps: object, batch_size: object
) -> None:
    """Raise TypeError unless the arguments of `sample` have its types."""
    from diffusers import StableDiffusion3Pipeline

    check_type("pipeline", pipeline, StableDiffusion3Pipeline, "a StableDiffusion3Pipeline, as models.load returns")
    if num_inference_steps is not None:
        check_type("num_inference_steps", num_inference_steps, Integral, "a whole number")
    check_type("batch_size", batch_size, Integral, "a whole number")
    check_type("keep", keep, Collection, "a collection of numbers of updates")
    for updates in keep:
        check_type("keep", updates, Integral, "a collection of numbers of updates")
    check_type("resume", resume, (DenoiseState, type(None)), "a DenoiseState")
    check_type("progress", progress, (bool, tqdm), "True, False or a bar")


def latent_size(pipeline: StableDiffusion3Pipeline, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width of latents for an image size in pixels, the model's own where None."""
    factor, patch = pipeline.vae_scale_factor, pipeline.patch_size
    default = pipeline.default_sample_size * factor
    sizes = []
    for name, value in (("height", height), ("width", width)):
        value = default if value is None else value
        check_type(name, value, Integral, "a whole number of pixels")
        if value <= 0 or value % (factor * patch):
            raise ValueError(f"{name} must be a positive multiple of {factor * patch} pixels, got {value}")
        sizes.append(value // factor)
    return sizes[0], sizes[1]


def check_types(public_prompt: object, public_guidance_scale: object, unchanged: object, batch_size: object) -> None:
    """Raise TypeError unless the arguments of a hybrid call have its types."""
    check_type("public_prompt", public_prompt, (str, type(None)), "text")
    check_type("public_guidance_scale", public_guidance_scale, (Real, type(None)), "a number")
    check_type("prompt_unchanged", unchanged, (bool, type(None)), "True or False")
    check_type("batch_size", batch_size, Integral, "a whole number")


def check_stock(pipeline: StableDiffusion3Pipeline, call: dict[str, Any]) -> None:
    """Refuse what cannot be combined with a shared prefix; fill in the default image size."""
    for name in _NOT_HYBRID:
        if call[name] is not None:
            raise ValueError(f"{name} cannot be combined with the hybrid arguments")
    if call["callback_on_step_end_tensor_inputs"] != ["latents"]:
        raise ValueError("callback_on_step_end_tensor_inputs can only be ['latents'] with the hybrid arguments")
    steps = call["num_inference_steps"]
    for name, value in (("num_inference_steps", steps), ("num_images_per_prompt", call["num_images_per_prompt"])):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if call["output_type"] not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {OUTPUT_TYPES}, got {call['output_type']!r}")
    check_type("latents", call["latents"], (Tensor, type(None)), "a tensor")
    check_scheduler(pipeline.scheduler)
    for side in ("height", "width"):
        call[side] = call[side] or pipeline.default_sample_size * pipeline.vae_scale_factor
    pipeline.check_inputs(call["prompt"], None, None, call["height"], call["width"])


def texts(call: dict[str, Any]) -> Iterator[str]:
    """Prompts of a stock call, and negative prompts where they count."""
    for name in ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2"):
        given = call[name] if isinstance(call[name], (list, tuple)) else [call[name]]
        if not name.startswith("negative") or call["guidance_scale"] > 1:
            yield from (text for text in given if isinstance(text, str))


def per_user(name: str, value: Any, users: int) -> list[Any]:
    """One value for every user, from one for all or a list."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * users
    if len(value) != users:
        raise ValueError(f"{name} must be one value or one per prompt ({users}), got {len(value)}")
    return list(value)


def link_codec(step: int | None, codec: Codec | None, scale: float | None, rate: float | None) -> Codec | None:
    """The one codec that the arguments name, or None."""
    from ..codecs import DecimalRounding, MinMax

    given = {"codec": codec, "compress_scale": scale, "compression_rate": rate}
    named = [name for name, value in given.items() if value is not None]
    if step is None:
        if named:
            raise ValueError(f"{named[0]} needs compress_at_step, the update after which to compress")
        return None
    check_type("compress_at_step", step, Integral, "a whole number")
    for name in ("compress_scale", "compression_rate"):
        check_type(name, given[name], (Real, type(None)), "a number")
    if codec is not None:
        check_codec(codec)
    if len(named) > 1:
        raise ValueError(f"{named[0]} and {named[1]} name two codecs: pass one of them")
    if rate is not None:
        return MinMax.from_rate(rate)
    return codec if codec is not None else DecimalRounding(100.0 if scale is None else scale)
