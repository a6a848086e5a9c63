"""A denoiser that somebody else wrote, as a guest in the trajectories of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .trajectory import Conditioning

if TYPE_CHECKING:
    from .denoisers import GuidedDenoiser, Space


def is_own(thing: object) -> bool:
    """Whether this is a denoiser of somebody's own: it can be called and says by `identity` which one it is."""
    return callable(thing) and isinstance(getattr(thing, "identity", None), str)


class OwnDenoiser:
    """Any object that is called as a `Denoiser` is: `(latents, timestep, conditionings) -> model output`.

    `latents` are (rows, channels, height, width), all at noise level `timestep` (scalar tensor, sigma times the length
    of the training schedule for a flow), with a `Conditioning` for each row: prompt (a text, or a `Blend` of several),
    negative prompt, guidance scale.
    It answers what the pipeline's own network answers, guided already: for SD3 the velocity, noise minus data.

    Beside being called it has only to say its `identity`, one line of text under which states and ledgers know it; it
    changes when the answers do. `device`, `dtype` and `nfe(conditioning)` are optional: those of the pipeline, and two
    evaluations under guidance, else one.

    Args:
        name: under which segments ask for it.
        guest: the object.
        host: the denoiser of the pipeline.
    """

    embeds_guidance = False

    def __init__(self, name: str, guest: Any, host: GuidedDenoiser) -> None:
        self.name, self.model, self._host = name, guest, host

    @property
    def identity(self) -> str:
        """As the guest says."""
        return self.model.identity

    @property
    def device(self) -> torch.device:
        """Where the latents have to be."""
        return torch.device(getattr(self.model, "device", self._host.device))

    @property
    def dtype(self) -> torch.dtype:
        """What the latents have to be."""
        return getattr(self.model, "dtype", self._host.dtype)

    @property
    def space(self) -> Space:
        """That of the pipeline: a guest goes on with its latents."""
        return self._host.space

    def nfe(self, conditioning: Conditioning) -> int:
        """See `Denoiser.nfe`."""
        own = getattr(self.model, "nfe", None)
        return conditioning.nfe if own is None else int(own(conditioning))

    def example(self, height: int, width: int) -> dict[str, Any]:
        """Nobody knows what a guest computes with.

        Raises:
            ValueError: always, in one sentence for who counts its work.
        """
        raise ValueError(f"the work of denoiser {self.name!r} cannot be counted: it is no network of the pipeline")

    def __call__(self, latents: Tensor, timestep: Tensor, conditionings: Sequence[Conditioning]) -> Tensor:
        """What the guest answers, checked.

        Raises:
            ValueError: one sentence, if the answer is no tensor of the latents' shape, or not finite.
        """
        output = self.model(latents, timestep, conditionings)
        if not isinstance(output, Tensor) or output.shape != latents.shape:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"denoiser {self.name!r} must return a tensor of shape {tuple(latents.shape)}, got {got}")
        if not torch.isfinite(output).all():
            raise ValueError(f"denoiser {self.name!r} returned values that are not finite at timestep {timestep:g}")
        return output.to(latents.dtype)
