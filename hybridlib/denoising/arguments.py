"""The arguments of `sample` and of a hybrid call, checked before anything runs."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from torch import Tensor
from tqdm import tqdm

from .blend import Blend, Prompt
from .families import check_pipeline
from .solvers import check_scheduler
from .state import DenoiseState
from .trajectory import Trajectory, check_codec, check_type

if TYPE_CHECKING:
    from ..codecs import Codec
    from .denoisers import Denoiser, GuidedDenoiser

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
_NOT_HYBRID = (  # stock arguments that have no meaning when several users share a prefix
    *("prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3"),
    *("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
    *("ip_adapter_image", "ip_adapter_image_embeds", "skip_guidance_layers"),
    *("negative_ip_adapter_image", "negative_ip_adapter_image_embeds", "true_cfg_scale"),
    *("timesteps", "denoising_end", "eta", "guidance_rescale"),
)


@dataclass(frozen=True, repr=False)
class HybridArguments:
    """What a hybrid call takes beside the stock arguments; see `pipelines.HybridPipeline`."""

    public_prompt: Prompt | None = None
    common_step: int | Sequence[int] | None = None
    public_guidance_scale: float | None = None
    prompt_unchanged: bool | None = None
    denoisers: Sequence[Any] | None = None
    steps: str | Sequence[int] | None = None
    handoff: str = "keep"
    compress_at_step: int | None = None
    codec: Codec | None = None
    compress_scale: float | None = None
    compression_rate: float | None = None
    get_intermediate_result: bool = False
    batch_size: int = 64

    def __repr__(self) -> str:
        given = [f"{f.name}={reprlib.repr(v)}" for f in fields(self) if (v := getattr(self, f.name)) != f.default]
        return f"HybridArguments({', '.join(given)})"

    @property
    def is_stock(self) -> bool:
        """Whether nothing is asked that the stock pipeline does not do."""
        return not self.get_intermediate_result and all(
            getattr(self, f.name) is None for f in fields(self) if f.default is None
        )

    def check(self) -> None:
        """Raise TypeError or ValueError where the arguments have other types or contradict each other."""
        check_type("public_prompt", self.public_prompt, (str, Blend, type(None)), "text or a Blend")
        check_type("public_guidance_scale", self.public_guidance_scale, (Real, type(None)), "a number")
        check_type("prompt_unchanged", self.prompt_unchanged, (bool, type(None)), "True or False")
        check_type("batch_size", self.batch_size, Integral, "a whole number")
        public = self.public_prompt is not None or self.public_guidance_scale is not None
        if self.prompt_unchanged is not None and public:
            raise ValueError("prompt_unchanged is the two-call form: leave out public_prompt and public_guidance_scale")
        if self.prompt_unchanged is None and self.public_prompt is None:
            if self.common_step or self.public_guidance_scale is not None:
                raise ValueError("common_step and public_guidance_scale need a public_prompt (or prompt_unchanged)")
        elif self.common_step is None:
            raise ValueError("a public phase needs common_step, the number of updates that it lasts")
        if (self.denoisers is None) != (self.steps is None):
            raise ValueError("denoisers and steps belong together: one says who denoises, the other for how many steps")

    def parts(self, num_inference_steps: int) -> list[int]:
        """The number of updates of each denoiser.

        Raises:
            TypeError: if `steps` is neither text nor a list of whole numbers, or `denoisers` no list.
            ValueError: unless there is one number a denoiser, none negative, and they sum to the schedule.
        """
        check_type("denoisers", self.denoisers, (list, tuple), "a list of networks or pipelines")
        check_type("steps", self.steps, (str, list, tuple), "text such as '10,15' or a list of whole numbers")
        numbers: list[Any] = list(self.steps or ())
        if isinstance(self.steps, str):
            if not all(word.strip().isdecimal() for word in self.steps.split(",")):
                raise ValueError(f"steps must be whole numbers with commas between, as '10,15' is, got {self.steps!r}")
            numbers = [int(word) for word in self.steps.split(",")]
        for number in numbers:
            check_type("a number of steps", number, Integral, "a whole number")
        if len(numbers) != len(self.denoisers or ()) or min(numbers, default=0) < 0:
            raise ValueError(
                f"steps must hold a number of updates, 0 or more, for each of {len(self.denoisers or ())} denoisers, "
                f"got {self.steps!r}"
            )
        if sum(numbers) != num_inference_steps:
            raise ValueError(
                f"steps must sum to num_inference_steps={num_inference_steps}, got {self.steps!r}, which makes "
                f"{sum(numbers)}"
            )
        return numbers


def check_sampling(
    pipeline: object, keep: Any, resume: object, progress: object, num_inference_steps: object, batch_size: object
) -> None:
    """Raise TypeError unless the arguments of `sample` have its types."""
    check_pipeline(pipeline)
    if num_inference_steps is not None:
        check_type("num_inference_steps", num_inference_steps, Integral, "a whole number")
    check_type("batch_size", batch_size, Integral, "a whole number")
    check_type("keep", keep, Collection, "a collection of numbers of updates")
    for updates in keep:
        check_type("keep", updates, Integral, "a collection of numbers of updates")
    check_type("resume", resume, (DenoiseState, Sequence, type(None)), "a DenoiseState or a list of them")
    for state in resume if isinstance(resume, Sequence) else ():
        check_type("resume", state, DenoiseState, "a DenoiseState or a list of them")
    check_type("progress", progress, (bool, tqdm), "True, False or a bar")


def latent_size(denoiser: GuidedDenoiser, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width of latents for an image size in pixels, the model's own where None."""
    sizes = []
    for name, value in (("height", height), ("width", width)):
        value = denoiser.default_size if value is None else value
        check_type(name, value, Integral, "a whole number of pixels")
        if value <= 0 or value % denoiser.size_multiple:
            raise ValueError(f"{name} must be a positive multiple of {denoiser.size_multiple} pixels, got {value}")
        sizes.append(value // denoiser.pipeline.vae_scale_factor)
    return sizes[0], sizes[1]


def check_segments(trajectories: Sequence[Trajectory], denoisers: Mapping[str, Denoiser]) -> None:
    """Raise ValueError where a segment asks its denoiser for what it cannot do."""
    scales: dict[str, float] = {}  # of denoisers that ignore them
    for segment in dict.fromkeys(segment for trajectory in trajectories for segment in trajectory.segments):
        name, scale = segment.denoiser, segment.guidance_scale
        if name not in denoisers:
            known = ", ".join(map(repr, denoisers))
            raise ValueError(f"a segment asks for denoiser {name!r}; there are {known}")
        if not getattr(denoisers[name], "embeds_guidance", False):
            continue
        if segment.negative_prompt:
            raise ValueError(
                f"negative_prompt must be empty where the network embeds its guidance scale, as denoiser {name!r} "
                f"does, got {segment.negative_prompt!r}"
            )
        if getattr(denoisers[name], "ignores_guidance", False):
            if scales.setdefault(name, scale) != scale:
                raise ValueError(
                    f"guidance_scale must be one value throughout where the network takes none, as denoiser {name!r} "
                    f"does not, got {scales[name]} and {scale}"
                )
        elif scale < 1:
            raise ValueError(
                f"guidance_scale must be at least 1 where the network embeds it, as denoiser {name!r} does, got {scale}"
            )


def check_stock(call: dict[str, Any], defaults: Mapping[str, Any], denoiser: GuidedDenoiser) -> None:
    """Refuse what cannot be combined with the hybrid arguments; fill in the default image size."""
    for name in (name for name in (*_NOT_HYBRID, "kwargs") if name in call):
        if call[name] is not None and call[name] != ({} if name == "kwargs" else defaults[name]):
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
    check_scheduler(denoiser.pipeline.scheduler, denoiser.is_flow)
    for side in ("height", "width"):
        call[side] = call[side] or denoiser.default_size


def texts(call: dict[str, Any]) -> Iterator[str]:
    """Prompts of a stock call, and negative prompts where they count."""
    for name in (n for n in ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2") if n in call):
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


def link_codec(ask: HybridArguments) -> Codec | None:
    """The one codec that the arguments name, or None."""
    from ..codecs import DecimalRounding, MinMax

    step, codec, scale, rate = ask.compress_at_step, ask.codec, ask.compress_scale, ask.compression_rate
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
