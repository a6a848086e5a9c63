"""A narrower decoder for an `AutoencoderKL`, by surgery on the stock class: the most important channels stay.

The published small autoencoder of Hybrid SD (arXiv 2408.06646) has decoder widths (96, 192, 384, 384), three quarters
of SD1.5's; how its channels were chosen is not released. Here every group of the group norms keeps the same number of
channels, those written by the filters of the largest L2 norm: what is normalised together stays together, where
channels dropped at will regroup the survivors, so that even channels of zeros would change the function.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import Decoder
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..files import replacing, write_atomically

FILE, WEIGHTS = "decoder_widths.json", "diffusion_pytorch_model.safetensors"
PUBLISHED = (96, 192, 384, 384)  # decoder widths of Hybrid SD's small autoencoder, inferred from its size
Wires = dict[str, tuple[int | None, int | None]]


def widths_of(vae: AutoencoderKL) -> tuple[int, ...]:
    """Decoder widths, in the order of `block_out_channels`: the stage that runs last stands first."""
    return tuple(block.resnets[0].conv2.out_channels for block in reversed(vae.decoder.up_blocks))


def kept_widths(vae: AutoencoderKL, keep: float) -> tuple[int, ...]:
    """Decoder widths at a keep ratio, rounded up to whole groups of the norm.

    Raises:
        ValueError: if `keep` is no share.
    """
    if not 0.0 < keep <= 1.0:
        raise ValueError(f"keep must lie in (0, 1], got {keep}")
    groups = vae.config.norm_num_groups
    return tuple(math.ceil(width * keep / groups) * groups for width in widths_of(vae))


def with_decoder_widths(vae: AutoencoderKL, widths: Sequence[int]) -> AutoencoderKL:
    """A copy whose decoder is narrower and keeps its most important channels; everything else is the same.

    Raises:
        ValueError: if the widths do not fit the decoder.
    """
    _check(vae, widths)
    config = {key: value for key, value in vae.config.items() if not key.startswith("_")}
    with torch.device("meta"):
        small = AutoencoderKL.from_config(config)
        small.decoder = build_decoder(vae, widths)
    weights = {key: value.detach().clone() for key, value in vae.state_dict().items() if not key.startswith("decoder.")}
    weights |= {f"decoder.{key}": value for key, value in _selected(vae.decoder, small.decoder, vae).items()}
    small.load_state_dict(weights, assign=True)
    return small.requires_grad_(True).train(vae.training)


def build_decoder(vae: AutoencoderKL, widths: Sequence[int]) -> Decoder:
    """An untrained stock decoder of these widths that fits the rest of an autoencoder."""
    config = vae.config
    return Decoder(
        in_channels=config.latent_channels,
        out_channels=config.out_channels,
        up_block_types=config.up_block_types,
        block_out_channels=tuple(widths),
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        act_fn=config.act_fn,
        mid_block_add_attention=config.mid_block_add_attention,
    )


def save(vae: AutoencoderKL, folder: Path, encoder: bool = True) -> None:
    """Write configuration, weights and the decoder's widths; without `encoder` the weights of the decoder alone."""
    vae.save_config(folder)
    weights = {name: tensor for name, tensor in vae.state_dict().items() if encoder or name.startswith("decoder.")}
    with replacing(folder / WEIGHTS) as partial:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, partial, metadata={"format": "pt"})
    write_atomically(folder / FILE, (json.dumps(widths_of(vae)) + "\n").encode())


def load(folder: Path, dtype: torch.dtype | None = None, original: AutoencoderKL | None = None) -> AutoencoderKL:
    """An autoencoder as `save` wrote it, ready for inference, in `dtype` or that of its weights.

    Args:
        original: the one that was pruned, whose weights stand in for those that the folder leaves out.

    Raises:
        ValueError: if the folder leaves some out and there is no original.
    """
    widths, weights = json.loads((folder / FILE).read_text()), load_file(folder / WEIGHTS)
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder))
        vae.decoder = build_decoder(vae, widths)
    if absent := [name for name in vae.state_dict() if name not in weights]:
        if original is None:
            raise ValueError(f"{folder} holds a decoder alone: original must be the autoencoder it was pruned from")
        theirs, stored = original.state_dict(), next(iter(weights.values())).dtype
        weights |= {name: theirs[name].to(stored, copy=True) for name in absent}
    vae.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, assign=True)
    return vae.eval()


def _check(vae: AutoencoderKL, widths: Sequence[int]) -> None:
    has, groups = widths_of(vae), vae.config.norm_num_groups
    if len(widths) != len(has) or any(not groups <= want <= width for want, width in zip(widths, has, strict=False)):
        raise ValueError(f"widths must be {len(has)} numbers between {groups} and {has}, got {tuple(widths)}")
    if any(want % groups for want in widths):
        raise ValueError(f"widths must be multiples of the {groups} groups of the norms, got {tuple(widths)}")
    pairs = itertools.pairwise(zip(has, widths, strict=True))
    if any((own == other) != (want == wanted) for (own, want), (other, wanted) in pairs):
        raise ValueError(  # equally wide stages share a residual stream; others are joined by a convolution
            f"widths must be equal where those of the decoder, {has}, are, and differ elsewhere, got {tuple(widths)}"
        )


def _selected(old: Decoder, new: Decoder, vae: AutoencoderKL) -> dict[str, Tensor]:
    """The weights of the narrower decoder, taken out of the wider one."""
    wires = wiring(old)
    kept = _chosen(old, new, wires, vae.config.norm_num_groups)
    weights = {}
    for name, (reads, writes) in wires.items():
        layer = old.get_submodule(name)
        weight = layer.weight.detach()
        if writes is not None:
            weight = weight[kept[writes]]
        if reads is not None and weight.ndim > 1:
            weight = weight[:, kept[reads]]
        weights[f"{name}.weight"] = weight.clone()
        if layer.bias is not None:
            weights[f"{name}.bias"] = layer.bias.detach()[slice(None) if writes is None else kept[writes]].clone()
    return weights


def _chosen(old: Decoder, new: Decoder, wires: Wires, groups: int) -> dict[int, Tensor]:
    """Which channels of each stream stay, in their old order: equally many of each group of the norms."""
    importance: dict[int, Tensor] = {}
    widths: dict[int, int] = {}
    for name, (_, writes) in wires.items():
        layer = old.get_submodule(name)
        if writes is None or isinstance(layer, nn.GroupNorm):
            continue
        importance[writes] = importance.get(writes, 0.0) + layer.weight.detach().float().flatten(1).square().sum(1)
        widths[writes] = new.get_submodule(name).weight.shape[0]
    kept = {}
    for stream, energy in importance.items():
        each = energy.view(groups, -1).argsort(dim=1, descending=True, stable=True)[:, : widths[stream] // groups]
        first = torch.arange(groups, device=each.device)[:, None] * (len(energy) // groups)
        kept[stream] = (each + first).flatten().sort().values
    return kept


def wiring(decoder: Decoder) -> Wires:
    """For each layer with weights the stream of channels that it reads and the one that it writes, by number.

    A residual stream is one stream from where a convolution begins it to where the next replaces it. None stands for
    the latents and for the image.
    """
    wires: Wires = {"conv_in": (None, 0)}
    streams = iter(range(1, 10_000))
    stream = 0
    middle = decoder.mid_block
    for i, resnet in enumerate(middle.resnets):
        if i and middle.attentions[i - 1] is not None:
            wires |= _attention(f"mid_block.attentions.{i - 1}", stream, next(streams))
        stream = _resnet(wires, f"mid_block.resnets.{i}", resnet, stream, streams)
    for b, block in enumerate(decoder.up_blocks):
        for i, resnet in enumerate(block.resnets):
            stream = _resnet(wires, f"up_blocks.{b}.resnets.{i}", resnet, stream, streams)
        for i in range(len(block.upsamplers or ())):
            following = next(streams)
            wires[f"up_blocks.{b}.upsamplers.{i}.conv"] = (stream, following)
            stream = following
    return wires | {"conv_norm_out": (stream, stream), "conv_out": (stream, None)}


def _resnet(wires: Wires, name: str, resnet: Any, stream: int, streams: Any) -> int:
    inner = next(streams)
    out = stream if resnet.conv_shortcut is None else next(streams)
    wires |= {f"{name}.norm1": (stream, stream), f"{name}.conv1": (stream, inner)}
    wires |= {f"{name}.norm2": (inner, inner), f"{name}.conv2": (inner, out)}
    if resnet.conv_shortcut is not None:
        wires[f"{name}.conv_shortcut"] = (stream, out)
    return out


def _attention(name: str, stream: int, inner: int) -> Mapping[str, tuple[int | None, int | None]]:
    reading = {f"{name}.{layer}": (stream, inner) for layer in ("to_q", "to_k", "to_v")}
    return {f"{name}.group_norm": (stream, stream), **reading, f"{name}.to_out.0": (inner, stream)}
