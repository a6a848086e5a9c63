"""Making a small UNet out of a large one: whole blocks removed as BK-SDM does, then widths and heads by significance.

BK-SDM: Kim et al., arXiv 2305.15798. Significance scores: Hybrid SD, Yan et al., arXiv 2408.06646. torch-pruning was
considered for the surgery: it traces a forward pass to find which layers belong together, which here is four layers
a block and known, needs real weights for it, and has no way to build a pruned network again from a table.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from ..denoising.compact import Widths, keep_channels, keep_heads, resnets, transformers, widths_of

SIZES = ("base", "small", "tiny")


def remove_blocks(unet: UNet2DConditionModel, size: str = "tiny") -> UNet2DConditionModel:
    """A new UNet with the blocks that BK-SDM keeps, and their weights.

    Of two layers of a downward stage the first stays, of three of an upward stage the first and the last. "base" is
    that alone, "small" has no middle block, "tiny" lacks the innermost stage, too.

    Raises:
        ValueError: if `size` is none of `SIZES`, or the UNet is not of SD1.x's shape.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {SIZES}, got {size!r}")
    # Without diffusers' private notes, among them which values are defaults and may be replaced by later defaults.
    config = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    if config["layers_per_block"] != 2 or unet.mid_block is None:
        raise ValueError("blocks are removed from UNets with two layers per block and a middle block, as SD1.x has")
    config["layers_per_block"] = 1
    if size != "base":
        config["mid_block_type"] = None
    if size == "tiny":
        for key in ("block_out_channels", "down_block_types"):
            config[key] = config[key][:-1]
        config["up_block_types"] = config["up_block_types"][1:]
        heads = config["attention_head_dim"]
        config["attention_head_dim"] = heads if isinstance(heads, int) else heads[:-1]
    device = next(unet.parameters()).device
    with torch.device("meta"):
        small = UNet2DConditionModel.from_config(config)
    weights = unet.state_dict()
    kept = {key: weights[_source(key, size)].clone() for key in small.state_dict()}
    small.load_state_dict(kept, assign=True)
    return small.to(device)


def _source(key: str, size: str) -> str:
    """Where a weight of the small UNet comes from."""
    match = re.match(r"up_blocks\.(\d+)\.(resnets|attentions|upsamplers)\.(\d+)\.(.*)", key)
    if match is None:
        return key
    stage, kind, layer, rest = int(match[1]), match[2], int(match[3]), match[4]
    stage += size == "tiny"
    layer = 2 * layer if kind != "upsamplers" else layer
    return f"up_blocks.{stage}.{kind}.{layer}.{rest}"


def groups(unet: UNet2DConditionModel) -> dict[str, Any]:
    """What can be pruned, by name: resnet_i, selfattn_i and crossattn_i with i from 1, in running order."""
    named = {f"resnet_{i}": block for i, block in enumerate(resnets(unet), 1)}
    named |= {f"selfattn_{i}": block.attn1 for i, block in enumerate(transformers(unet), 1)}
    return named | {f"crossattn_{i}": block.attn2 for i, block in enumerate(transformers(unet), 1)}


def kept_size(group: Any, keep: float) -> int:
    """Channels or heads that stay at a keep ratio, by the published rules.

    A width is rounded up to whole groups of the norm, and stays whole if two or fewer channels a group would be left;
    heads are rounded down, and stay whole if two or fewer would be left.
    """
    if not 0.0 < keep <= 1.0:
        raise ValueError(f"keep must lie in (0, 1], got {keep}")
    if hasattr(group, "conv1"):
        width, norm = group.conv1.out_channels, group.norm2.num_groups
        left = math.ceil(int(width * keep) / norm) * norm
        return width if left <= 2 * norm else left
    left = int(group.heads * keep)
    return group.heads if left <= 2 else left


def strongest_channels(block: Any, count: int) -> list[int]:
    """The inner channels whose filters in the first convolution have the largest L2 norm, in their old order."""
    norms = block.conv1.weight.detach().float().flatten(1).norm(dim=1)
    return sorted(norms.argsort(descending=True, stable=True)[:count].tolist())


def strongest_heads(attention: Any, count: int) -> list[int]:
    """The heads with the largest L2 norm of what they write: value times output projection, in their old order."""
    size = attention.inner_dim // attention.heads
    value = attention.to_v.weight.detach().float().unflatten(0, (-1, size))  # heads, size, inputs
    out = attention.to_out[0].weight.detach().float().unflatten(1, (-1, size)).movedim(1, 0)  # heads, outputs, size
    norms = (out @ value).flatten(1).norm(dim=1)
    return sorted(norms.argsort(descending=True, stable=True)[:count].tolist())


def prune_group(group: Any, keep: float, first_heads: bool = False) -> None:
    """Prune one group in place to a keep ratio. The published method keeps always the first heads."""
    count = kept_size(group, keep)
    if hasattr(group, "conv1"):
        keep_channels(group, strongest_channels(group, count))
    else:
        keep_heads(group, range(count) if first_heads else strongest_heads(group, count))


@contextlib.contextmanager
def pruned(group: Any, keep: float, first_heads: bool = False) -> Iterator[None]:
    """The group is pruned inside the context and whole again after it."""
    modules = dict(group._modules)
    numbers = {name: value for name, value in vars(group).items() if isinstance(value, int)}
    try:
        prune_group(group, keep, first_heads)
        yield
    finally:
        for name, module in modules.items():
            setattr(group, name, module)
        for name, value in numbers.items():
            setattr(group, name, value)


def prune(unet: UNet2DConditionModel, keep: Mapping[str, float], first_heads: bool = False) -> Widths:
    """Prune groups in place to their keep ratios by name (a group not named stays whole) and tell the new widths."""
    named = groups(unet)
    if unknown := sorted(keep.keys() - named.keys()):
        raise ValueError(f"keep must name groups of this UNet ({', '.join(named)}), got {unknown}")
    for name, ratio in keep.items():
        prune_group(named[name], ratio, first_heads)
    return widths_of(unet)


def significance(
    unet: UNet2DConditionModel, final_latents: Callable[[], Tensor], keep: float = 0.5, first_heads: bool = False
) -> dict[str, float]:
    """How much the final latents change when one group alone is pruned to `keep`, by name of the group.

    The score is `||mean - mean'|| + ||std - std'||` over the images (Hybrid SD's significance score); low is
    unimportant. A group that the rules leave whole scores 0.

    Args:
        final_latents: generates with `unet` as it now is, (N, C, H, W); it must draw the same noise at every call.
            The published script does not, and there a group that is not pruned at all scores 43.5 from noise alone.

    Raises:
        ValueError: if two calls of `final_latents` on the intact UNet differ.
    """
    intact = final_latents()
    if not torch.equal(intact, final_latents()):
        raise ValueError("final_latents must draw the same noise at every call, but two calls differ; seed it anew")
    scores = {}
    for name, group in groups(unet).items():
        with pruned(group, keep, first_heads):
            scores[name] = change(intact, final_latents())
    return scores


def change(intact: Tensor, other: Tensor) -> float:
    """`||mean - mean'|| + ||std - std'||` of two sets of latents (N, C, H, W), N at least 2."""
    if len(intact) < 2:
        raise ValueError(f"a score needs two images or more, got {len(intact)}")
    mean = (intact.double().mean(0) - other.double().mean(0)).norm()
    return (mean + (intact.double().std(0) - other.double().std(0)).norm()).item()


def ratios(scores: Mapping[str, float], quarter: int, half: int) -> dict[str, float]:
    """Keep ratios by rank, least significant first: the first `quarter` groups keep 0.25, those up to rank `half`
    0.5, the rest 0.75. Published: 19 and 21 of 27."""
    if not 0 <= quarter <= half <= len(scores):
        raise ValueError(f"ranks must satisfy 0 <= quarter <= half <= {len(scores)}, got {quarter} and {half}")
    ranked = sorted(scores, key=lambda name: scores[name])
    return {name: 0.25 if rank < quarter else 0.5 if rank < half else 0.75 for rank, name in enumerate(ranked)}
