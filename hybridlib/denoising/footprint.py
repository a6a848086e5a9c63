"""What a pipeline needs in memory, from its configurations alone: weights counted, activations estimated."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .blueprints import BLUEPRINTS, Blueprint, shell
from .families import denoiser_of
from .solvers import begin_at, prepared_scheduler

T5 = {"full": 1.0, "8bit": 0.5, "4bit": 0.25, "dropped": 0.0}  # shares of the bytes of 16-bit linear layers
FAMILIES = ("StableDiffusion3Pipeline", "FluxPipeline")


@dataclass(frozen=True)
class Needs:
    """What a pipeline needs, in bytes.

    Activations are what the tensors of one forward hold at the most at one time, found by running the network without
    values. They are an estimate: workspaces of kernels, and what the allocator leaves unused, come on top.
    """

    weights: Mapping[str, int]  # by part
    largest_layer: int  # twice that of the parts that may pass through: one computes while the next arrives
    encoding: int  # activations of the text encoder that needs most of them, for one text
    evaluation: int  # activations of one evaluation of the denoiser
    decoding: int  # activations of decoding one image
    text: int  # what one prompt is encoded to
    row: int  # the latents of one image in work
    update: int  # what the solver makes of one row, in float32
    t5: str | None  # the name of the T5 text encoder, where there is one


def needs_of(parts: Blueprint, dtype: str, image_size: int | None = None, t5: str = "full") -> tuple[int, Needs]:
    """Side of the image in pixels, and needs of a pipeline.

    Raises:
        ValueError: if it is of another family than SD3 or FLUX.1, or T5 cannot be what it should be.
    """
    if (family := parts.pipeline.removeprefix("Hybrid")) not in FAMILIES:
        raise ValueError(f"memory plans are made for {' and '.join(FAMILIES)}, got {family}")
    encoder = next((name for name, (kind, _) in parts.networks.items() if kind == "T5EncoderModel"), None)
    if t5 != "full" and encoder is None:
        raise ValueError(f"t5 = {t5!r}: this pipeline has no T5; leave it out")
    if t5 == "dropped" and family == "FluxPipeline":
        raise ValueError("t5 = 'dropped': FLUX.1 takes its tokens from T5 alone; only SD3 can do without")
    pipeline, kind = shell(parts), getattr(torch, dtype)
    networks = {name: getattr(pipeline, name) for name in parts.networks}
    weights = {name: weight_bytes(model, kind) for name, model in networks.items()}
    largest = max(p.numel() for name, model in networks.items() if name != "vae" for p in model.parameters())
    if encoder is not None and t5 != "full":
        weights[encoder] = quantised_bytes(networks[encoder], T5[t5])
    denoiser: Any = denoiser_of(pipeline)  # of SD3 or FLUX.1, which count the tokens of T5
    side = image_size or denoiser.default_size
    if side % denoiser.size_multiple:
        raise ValueError(f"image_size must be a multiple of {denoiser.size_multiple} pixels, got {side}")
    arguments = {name: value.to(kind) for name, value in denoiser.example(side, side).items()}
    shape = (1, denoiser.latent_channels, *[side // pipeline.vae_scale_factor] * 2)
    latents = torch.empty(shape, device="meta", dtype=kind)
    scheduler = prepared_scheduler(denoiser, 2, (latents.shape[-2], latents.shape[-1]))
    begin_at(scheduler, 0)
    for part in networks.values():
        torch.nn.Module.to(part, kind)  # that of diffusers warns of dtypes that it keeps apart
    model, vae = denoiser.model, pipeline.vae
    text = sum(arguments[name].numel() for name in ("encoder_hidden_states", "pooled_projections"))
    readers = [name for name in networks if name.startswith("text_encoder") and weights[name]]
    lengths = [denoiser.max_sequence_length if n == encoder else pipeline.tokenizer_max_length for n in readers]
    return side, Needs(
        weights=weights,
        largest_layer=2 * largest * kind.itemsize,
        encoding=max(reading_peak(networks[n], t, n == encoder) for n, t in zip(readers, lengths, strict=True)),
        evaluation=live_peak(lambda: model(**arguments, return_dict=False), model),
        decoding=live_peak(lambda: vae.decode(latents, return_dict=False), vae),
        text=text * kind.itemsize,
        row=latents.nbytes,
        update=live_peak(lambda: scheduler.step(latents, scheduler.timesteps[0], latents, return_dict=False)),
        t5=encoder,
    )


@functools.cache
def published_needs(name: str, dtype: str, image_size: int | None, t5: str) -> tuple[int, Needs]:
    """`needs_of` a blueprint by its name, found once."""
    return needs_of(BLUEPRINTS[name], dtype, image_size, t5)


def weight_bytes(model: Any, dtype: torch.dtype) -> int:
    """Bytes of the weights of a network in `dtype`: parameters and fixed tables, as SD3 has one of positions.

    Transformers keeps some layers of T5 in float32 where the rest is in float16.
    """
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else set()
    return sum(
        tensor.numel() * (4 if kept & set(name.split(".")) else dtype.itemsize)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if tensor.is_floating_point()
    )


def quantised_bytes(model: Any, share: float) -> int:
    """Bytes of a text encoder whose linear layers take this share of 16 bits, the rest 16 bits; all gone at 0."""
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    total = sum(parameter.numel() for parameter in model.parameters())
    return int(2 * (share * linear + (total - linear))) if share else 0


def reading_peak(encoder: torch.nn.Module, tokens: int, is_t5: bool) -> int:
    """`live_peak` of a text encoder that reads one text; of CLIP the states of all layers are asked for."""
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    return live_peak(lambda: encoder(ids, output_hidden_states=not is_t5), encoder)


def live_peak(run: Callable[[], object], model: torch.nn.Module | None = None) -> int:
    """Most bytes that the tensors made by `run` hold at one time, on the meta device; weights are not counted."""
    live = Live([*model.parameters(), *model.buffers()] if model else [])
    with torch.no_grad(), live, FusedAttention():
        run()
    return live.peak


class Live(TorchDispatchMode):
    """Follows the storages that operations make until nobody holds them any more: bytes `now`, and at the most.

    Args:
        known: tensors that are not counted.
        device: the kind of device whose tensors are followed; all by default.
    """

    def __init__(self, known: Sequence[Tensor] = (), device: str | None = None) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._device = device
        self._known = [tensor.untyped_storage() for tensor in known]  # held, so that no other takes its address
        self._seen = {storage._cdata for storage in self._known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and self._device in (None, tensor.device.type):
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


class FusedAttention(TorchFunctionMode):
    """Attention as fused kernels do it, which hold its result alone; without values PyTorch would make the matrix."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **given)
        query = args[0] if args else given["query"]
        value = args[2] if len(args) > 2 else given["value"]
        return query.new_empty(*query.shape[:-1], value.shape[-1])
