"""UNets that are narrower inside than their configuration says, as pruning leaves them.

Pruned are the inner width of residual blocks and the heads of attentions, on stock diffusers classes: what goes into
a block and comes out of it stays as it was. Stock loading does not know of this and fails on the shapes, so a table
of widths lies beside the weights, and `load_unet` builds the UNet from its configuration and the table.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_atomically

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DConditionModel
    from torch import nn

FILE = "widths.json"


@dataclass(frozen=True)
class Widths:
    """Inner widths in the order in which the UNet runs its blocks: down, middle, up."""

    resnets: tuple[int, ...]  # channels between the two convolutions of a residual block
    self_attention: tuple[int, ...]  # heads
    cross_attention: tuple[int, ...]  # heads


def stages(unet: UNet2DConditionModel) -> list[Any]:
    """The blocks of a UNet in the order in which they run; a UNet may have no middle block."""
    middle = [] if unet.mid_block is None else [unet.mid_block]
    return [*unet.down_blocks.children(), *middle, *unet.up_blocks.children()]


def resnets(unet: UNet2DConditionModel) -> list[Any]:
    """Its residual blocks (`ResnetBlock2D`), in running order."""
    return [block for stage in stages(unet) for block in stage.resnets]


def transformers(unet: UNet2DConditionModel) -> list[Any]:
    """Its transformer blocks (`BasicTransformerBlock`), in running order."""
    attentions = [attention for stage in stages(unet) for attention in getattr(stage, "attentions", [])]
    return [block for attention in attentions for block in attention.transformer_blocks]


def widths_of(unet: UNet2DConditionModel) -> Widths:
    """The table of a UNet as it is."""
    blocks = transformers(unet)
    return Widths(
        tuple(block.conv1.out_channels for block in resnets(unet)),
        tuple(block.attn1.heads for block in blocks),
        tuple(block.attn2.heads for block in blocks),
    )


def narrow(unet: UNet2DConditionModel, widths: Widths) -> None:
    """Cut a UNet down to a table in place, keeping the first channels and heads.

    Raises:
        ValueError: if the table does not fit the UNet.
    """
    has = widths_of(unet)
    for name, now in asdict(has).items():
        wanted = getattr(widths, name)
        if len(wanted) != len(now):
            raise ValueError(f"widths.{name} must have {len(now)} entries for this UNet, got {len(wanted)}")
        if any(not 1 <= want <= width for want, width in zip(wanted, now, strict=True)):
            raise ValueError(f"widths.{name} must lie between 1 and {now}, got {wanted}")
    for block, width in zip(resnets(unet), widths.resnets, strict=True):
        keep_channels(block, range(width))
    for block, own, cross in zip(transformers(unet), widths.self_attention, widths.cross_attention, strict=True):
        keep_heads(block.attn1, range(own))
        keep_heads(block.attn2, range(cross))


def keep_channels(block: Any, kept: Sequence[int]) -> None:
    """Leave a `ResnetBlock2D` only these inner channels, in place by new layers.

    Raises:
        ValueError: if the group norm cannot divide them.
    """
    from torch import nn

    groups = block.norm2.num_groups
    if len(kept) % groups:
        raise ValueError(f"an inner width must be a multiple of the {groups} groups of its norm, got {len(kept)}")
    if len(kept) == block.conv1.out_channels:
        return
    norm = nn.GroupNorm(groups, len(kept), eps=block.norm2.eps)
    norm.weight, norm.bias = (_rows(parameter, kept) for parameter in (block.norm2.weight, block.norm2.bias))
    block.conv1 = _outputs(block.conv1, kept)
    if block.time_emb_proj is not None:
        block.time_emb_proj = _outputs(block.time_emb_proj, kept)
    block.norm2 = norm
    block.conv2 = _inputs(block.conv2, kept)


def keep_heads(attention: Any, kept: Sequence[int]) -> None:
    """Leave an `Attention` only these heads, in place by new layers."""
    from torch import nn

    if len(kept) == attention.heads:
        return
    size = attention.inner_dim // attention.heads
    rows = [head * size + i for head in kept for i in range(size)]
    for name in ("to_q", "to_k", "to_v"):
        setattr(attention, name, _outputs(getattr(attention, name), rows))
    attention.to_out = nn.ModuleList([_inputs(attention.to_out[0], rows), *attention.to_out[1:]])
    attention.heads = attention.sliceable_head_dim = len(kept)
    attention.inner_dim = attention.inner_kv_dim = len(rows)


def _rows(parameter: torch.Tensor, kept: Sequence[int], dim: int = 0) -> nn.Parameter:
    import torch
    from torch import nn

    index = torch.as_tensor(list(kept), device=parameter.device)
    return nn.Parameter(parameter.detach().index_select(dim, index), requires_grad=parameter.requires_grad)


def _outputs(layer: Any, kept: Sequence[int]) -> Any:
    new = _like(layer, _inputs_of(layer), len(kept))
    new.weight = _rows(layer.weight, kept)
    if layer.bias is not None:
        new.bias = _rows(layer.bias, kept)
    return new


def _inputs(layer: Any, kept: Sequence[int]) -> Any:
    new = _like(layer, len(kept), layer.weight.shape[0])
    new.weight = _rows(layer.weight, kept, dim=1)
    new.bias = layer.bias
    return new


def _inputs_of(layer: Any) -> int:
    return int(layer.weight.shape[1])


def _like(layer: Any, inputs: int, outputs: int) -> Any:
    """A layer of the same kind without weights of its own yet."""
    from torch import nn

    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Linear(inputs, outputs, bias=bias, device="meta")
    return nn.Conv2d(
        inputs, outputs, layer.kernel_size, layer.stride, layer.padding, layer.dilation, bias=bias, device="meta"
    )


def save_unet(unet: UNet2DConditionModel, folder: Path) -> None:
    """Write configuration, weights and table of widths."""
    unet.save_pretrained(folder, safe_serialization=True)
    write_atomically(folder / FILE, (json.dumps(asdict(widths_of(unet)), indent=1) + "\n").encode())


def load_unet(folder: Path, dtype: torch.dtype | None = None) -> UNet2DConditionModel:
    """A UNet as `save_unet` wrote it, ready for inference, in `dtype` or that of its weights."""
    import torch
    from diffusers import UNet2DConditionModel
    from safetensors.torch import load_file

    table = json.loads((folder / FILE).read_text())
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder))
        narrow(unet, Widths(**{name: tuple(values) for name, values in table.items()}))
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    unet.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, assign=True)
    unet.loaded_from = str(folder)  # not in its config, which is part of its identity
    return unet.eval()
