"""Which denoiser belongs to which diffusers pipeline, and which of them can share a trajectory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from .denoisers import Denoiser, GuidedDenoiser
from .own import OwnDenoiser, is_own
from .trajectory import Conditioning, check_type

DIFFUSERS = (
    *("StableDiffusion3Pipeline", "FluxPipeline", "StableDiffusionXLPipeline"),
    *("StableDiffusionPipeline", "LatentConsistencyModelPipeline"),
)


def is_pipeline(thing: object) -> bool:
    """Whether there is a denoiser for this pipeline."""
    return any(base.__name__ in DIFFUSERS for base in type(thing).__mro__)


def check_pipeline(pipeline: object) -> None:
    """Raise TypeError unless there is a denoiser for this pipeline."""
    if not is_pipeline(pipeline):
        check_type("pipeline", pipeline, (), f"one of {', '.join(DIFFUSERS)}")


def denoiser_of(pipeline: Any, batch_size: int = 64, max_sequence_length: int | None = None) -> GuidedDenoiser:
    """The denoiser of a diffusers pipeline, by its class.

    `max_sequence_length` is that of T5, where there is one; by default as in diffusers, 256 of SD3 and 512 of FLUX.

    Raises:
        TypeError: if there is none for this pipeline.
    """
    from .flux import FluxDenoiser
    from .sd3 import SD3Denoiser
    from .unet import SDXLDenoiser, UNetDenoiser

    check_pipeline(pipeline)
    bases = [base.__name__ for base in type(pipeline).__mro__]
    tokens: dict[str, Any] = {} if max_sequence_length is None else {"max_sequence_length": max_sequence_length}
    if "StableDiffusion3Pipeline" in bases:
        return SD3Denoiser(pipeline, batch_size, **tokens)
    if "FluxPipeline" in bases:
        return FluxDenoiser(pipeline, batch_size, **tokens)
    return (SDXLDenoiser if "StableDiffusionXLPipeline" in bases else UNetDenoiser)(pipeline, batch_size)


def collect(first: GuidedDenoiser, others: Mapping[str, Any] | None) -> dict[str, GuidedDenoiser]:
    """Denoisers by name, the pipeline's own under "".

    Args:
        others: name -> a network, which takes prompts, VAE and scheduler from the first pipeline; a pipeline, which
            encodes prompts itself; or a denoiser of your own, see `own.OwnDenoiser`.

    Raises:
        TypeError: if these are no names, networks, pipelines or denoisers.
        ValueError: if a denoiser cannot go on with the latents of the first.
    """
    from torch.nn import Module

    check_type("denoisers", others, (Mapping, type(None)), "a mapping of names to networks or pipelines")
    denoisers = {"": first}
    for name, other in (others or {}).items():
        check_type("a name of denoisers", name, str, "text")
        if not name:
            raise ValueError("a name of denoisers must not be '', which is the pipeline's own network")
        if is_pipeline(other):
            denoisers[name] = denoiser_of(other, first.batch_size, getattr(first, "max_sequence_length", None))
        elif is_own(other):
            denoisers[name] = cast(GuidedDenoiser, OwnDenoiser(name, other, first))  # answers all that it is asked
        else:
            check_type(f"denoiser {name!r}", other, Module, "a network, a pipeline or a denoiser of your own")
            _check_network(name, first, other)
            denoisers[name] = first.of_model(other)
        if (difference := first.space.difference(denoisers[name].space)) is not None:
            raise ValueError(f"denoiser {name!r} cannot go on with the latents of the first: they have {difference}")
    return denoisers


def nfe_of(denoisers: Mapping[str, Denoiser]) -> Callable[[str, Conditioning], int]:
    """Evaluations of a row at one timestep from the denoiser's name and the conditioning, as `Tree` asks for them.

    A name that is not there counts as classifier-free guidance; whoever walks the tree refuses it.
    """

    def nfe(name: str, conditioning: Conditioning) -> int:
        return denoisers[name].nfe(conditioning) if name in denoisers else conditioning.nfe

    return nfe


def _check_network(name: str, first: GuidedDenoiser, model: Any) -> None:
    wanted = type(first.model).__name__
    if not any(base.__name__ == wanted for base in type(model).__mro__):
        raise ValueError(f"denoiser {name!r} must be a {wanted} as the pipeline's own is, got {type(model).__name__}")
    for key in ("cross_attention_dim", "joint_attention_dim", "pooled_projection_dim", "addition_embed_type"):
        mine, its = first.model.config.get(key), model.config.get(key)
        if mine != its:
            raise ValueError(f"denoiser {name!r} has {key}={its}, the pipeline's text encoders serve {mine}")
