"""What an evaluation and a handover cost: parameters, FLOPs and bytes, counted from the networks themselves.

Nothing is computed: the network runs on the meta device, with tensors that have shapes and no values, so networks of
any size and of any surgery are counted in a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .denoisers import GuidedDenoiser
from .state import DenoiseState
from .tree import Cost

if TYPE_CHECKING:
    from ..codecs import Codec

_ATTENTION = ("bmm", "baddbmm", "_scaled_dot_product")  # the products inside attention; weights make the others


class Work(NamedTuple):
    """Multiply-adds of one evaluation of one row, without guidance.

    Published tables differ in convention: that of BK-SDM and Hybrid SD is `macs`, convolutions and linear layers only.
    """

    macs: int  # multiply-adds of convolutions and linear layers
    attention_macs: int  # of the products of queries, keys and values

    @property
    def flops(self) -> int:
        """Every multiply-add, attention's too, as two operations."""
        return 2 * (self.macs + self.attention_macs)


def parameters(model: Any) -> int:
    """The number of parameters of a network."""
    return sum(parameter.numel() for parameter in model.parameters())


def work(denoiser: GuidedDenoiser, height: int | None = None, width: int | None = None) -> Work:
    """Work of one evaluation at an image size in pixels, the model's own by default."""
    return work_of(denoiser.model, denoiser.example(height or denoiser.default_size, width or denoiser.default_size))


def work_of(model: Any, arguments: Mapping[str, Any]) -> Work:
    """Work of calling a network with these arguments, float32 tensors on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    # Weights of the meta device stand in for the network's own, which are neither moved nor copied, in the arguments'
    # dtype: a product takes as many operations in 16 bit.
    weights = {
        name: torch.empty_like(tensor, device="meta", dtype=torch.float32 if tensor.is_floating_point() else None)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(model, weights, kwargs=dict(arguments) | {"return_dict": False})
    counts = {str(operation): flops // 2 for operation, flops in counter.get_flop_counts()["Global"].items()}
    attention = sum(n for name, n in counts.items() if name.split(".")[-1].startswith(_ATTENTION))
    return Work(sum(counts.values()) - attention, attention)


def flops_by_denoiser(
    cost: Cost, denoisers: Mapping[str, GuidedDenoiser], height: int | None = None, width: int | None = None
) -> dict[str, int]:
    """FLOPs that each denoiser spends on a tree: what its place computes, where places hold one denoiser each."""
    return {part.denoiser: part.tree * work(denoisers[part.denoiser], height, width).flops for part in cost.by_denoiser}


def handover_bytes(state: DenoiseState, codec: Codec | None = None) -> int:
    """Bytes that cross a link where another place goes on: the state, its latents as the message of a codec if given.

    A state of a multistep solver also carries what the solver remembers, a tensor like the latents for each order
    above the first.
    """
    whole = len(state.to_bytes())
    if codec is None:
        return whole
    message = codec.encode(state.latents, [state.past.seed])[0]
    return whole - state.latents.nbytes + len(message)
