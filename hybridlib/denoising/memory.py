"""Memory plans: where the parts of a pipeline are while it works, told before anything is loaded, and followed.

A pipeline that follows a plan encodes the prompts of a tree, or of a whole study, before the first step (`texts`), and
keeps what they are encoded to in host memory. So text encoders need not be on the device as a whole: their layers pass
through, once for many prompts.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from numbers import Real
from typing import Any

import torch

from ..names import require_known
from .blueprints import BLUEPRINTS, HUB, blueprint
from .footprint import T5, Needs, needs_of, published_needs
from .texts import TEXTS_NEAR
from .trajectory import check_type

PLACEMENTS = {
    "resident": "all parts stay on the device",
    "stream text": "the layers of text encoders pass through the device, once for many prompts; all else stays there",
    "model": "one part at a time is on the device (model offload of diffusers)",
    "stream": "the layers of the denoiser pass through, too, at every forward; the VAE stays",
}
LADDER = ("resident", "stream text", "stream")  # that a budget is tried on, fastest first
BATCHES = (64, 32, 16, 8, 4, 2, 1)
IMAGES, TEXTS = 16, 32  # the most that are decoded, or read while encoders pass through, together
ROWS = 256  # images in work at one time that a plan counts with: a larger tree needs more
_GB = 1e9


@dataclass(frozen=True, repr=False)
class MemoryPlan:
    """Where the parts of a pipeline are, how many rows share a forward, and what that needs. Made by `make_plan`.

    Outputs are those of the plan "resident" up to the rounding of another batch, except with T5 in 8 or 4 bit or
    dropped, and with `vae_tiling`, which change them.
    """

    name: str
    image_size: int  # pixels
    dtype: str
    placement: str  # of PLACEMENTS
    t5: str  # of T5
    batch_size: int  # most denoiser evaluations in one forward
    decode_batch_size: int  # most images decoded together
    text_batch_size: int  # most texts read together, where the layers of encoders pass through; else each is read alone
    needs: Needs
    vae_tiling: bool = False  # parts of an image that is larger than the VAE was trained on are decoded one by one
    free_text_encoders: bool = False  # `study.runner.generate` drops them once all prompts of its table are encoded

    @property
    def streamed(self) -> list[str]:
        """The parts whose layers pass through the device. A quantised T5 stays."""
        if not self.placement.startswith("stream"):
            return []
        parts = [name for name in self.needs.weights if name.startswith("text_encoder") or self.placement == "stream"]
        return [name for name in parts if name != "vae" and (self.t5 == "full" or name != self.needs.t5)]

    @property
    def on_device(self) -> int:
        """Bytes of weights that stay on the device; under "model" of the largest that are there at one time."""
        weights = self.needs.weights
        if self.placement != "model":
            return sum(size for name, size in weights.items() if name not in self.streamed)
        return max(self._encoders_at_once, weights["transformer"], weights["vae"])

    @property
    def _encoders_at_once(self) -> int:
        """Under "model": the last text encoder is still there while the others read the next prompt."""
        sizes = sorted(size for name, size in self.needs.weights.items() if name.startswith("text_encoder"))
        return sum(sizes[-2:])

    @property
    def peak(self) -> int:
        """Bytes on the device at the most, with `ROWS` images in work: it reads, evaluates or decodes. An estimate."""
        needs, passing = self.needs, self.needs.largest_layer
        evaluating, decoding = self.batch_size * needs.evaluation, self.decode_batch_size * needs.decoding
        reading = self.text_batch_size * needs.encoding
        evaluating = max(evaluating, ROWS * needs.update)  # the solver works where the denoiser has been
        if self.placement == "model":
            weights = needs.weights
            parts = (self._encoders_at_once + reading, weights["transformer"] + evaluating, weights["vae"] + decoding)
            return self.standing + max(parts)
        reading += passing if self.streamed else 0
        evaluating += passing if self.placement == "stream" else 0
        return self.on_device + self.standing + max(reading, evaluating, decoding)

    @property
    def standing(self) -> int:
        """Bytes of what a tree keeps on the device: its prompts, and latents and model output of every row."""
        return TEXTS_NEAR * self.needs.text + ROWS * 2 * self.needs.row

    @property
    def in_host_memory(self) -> int:
        """Bytes of weights that wait in host memory."""
        weights = self.needs.weights
        return sum(weights[name] for name in (weights if self.placement == "model" else self.streamed))

    @property
    def is_exact(self) -> bool:
        """Whether outputs are those of the resident plan, up to rounding."""
        return self.t5 == "full" and not self.vae_tiling

    def as_key(self) -> list[Any]:
        """What of it decides the bytes of an image."""
        batches = [self.batch_size, self.decode_batch_size, self.text_batch_size]
        return [self.placement, self.t5, *batches, self.vae_tiling]

    def __repr__(self) -> str:
        return f"MemoryPlan({self.name}, {self.placement}, {self.peak / _GB:.1f} GB)"

    def __str__(self) -> str:
        weights = ", ".join(f"{name} {size / _GB:.2f}" for name, size in self.needs.weights.items())
        lines = [
            f"{self.name} in {self.dtype}, {self.image_size} pixels",
            f"  plan {self.placement!r}: {PLACEMENTS[self.placement]}",
            f"  weights (GB, counted): {weights}",
            f"  T5: {self.t5}" * (self.t5 != "full"),
            f"  on the device: {self.on_device / _GB:.2f} GB of weights, "
            f"{self.standing / _GB:.2f} GB of {ROWS} images in work and {TEXTS_NEAR} prompts",
            f"  activations (estimates): {self.batch_size} evaluations of {self.needs.evaluation / _GB:.2f} GB, or "
            f"{self.decode_batch_size} x {self.needs.decoding / _GB:.2f} GB to decode, or "
            f"{self.text_batch_size} x {self.needs.encoding / _GB:.2f} GB to read texts, at one time",
            f"  peak about {self.peak / _GB:.1f} GB, the context of the driver not counted",
            f"  in host memory: {self.in_host_memory / _GB:.2f} GB of weights, {self.needs.text / 1e6:.1f} MB a prompt",
        ]
        return "\n".join(line for line in lines if line)


def make_plan(
    name: str,
    budget_gb: float | None = None,
    *,
    placement: str | None = None,
    dtype: str = "bfloat16",
    image_size: int | None = None,
    t5: str = "full",
    batch_size: int = 64,
    vae_tiling: bool = False,
    free_text_encoders: bool = False,
) -> MemoryPlan:
    """The fastest plan that fits the memory of a device; see `MemoryPlan`. Only configurations are read.

    Args:
        name: a name of `blueprints.BLUEPRINTS`, its hub id, or a folder; of SD3 or FLUX.1.
        budget_gb: memory of the device in 10^9 bytes that PyTorch may allocate; without one everything fits.
        placement: one of `PLACEMENTS`, where it shall be that one; by default the first of `LADDER` that fits.
        dtype: of the weights.
        image_size: side in pixels; the model's own by default.
        t5: "full", "8bit", "4bit" (bitsandbytes) or "dropped" (SD3 only); all but the first change the images.
        batch_size: most evaluations in one forward; fewer where so many do not fit.
        vae_tiling, free_text_encoders: see `MemoryPlan`.

    Raises:
        TypeError, ValueError: one sentence, if nothing fits, with what the least plan needs; or if an argument is none
            of those.
    """
    if budget_gb is not None:
        check_type("budget_gb", budget_gb, Real, "a number of GB")
        if not budget_gb > 0:
            raise ValueError(f"budget_gb must be above 0, got {budget_gb}")
    if placement is not None:
        require_known("placement", placement, PLACEMENTS)
    require_known("kind of t5", t5, T5)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    name = HUB.get(name, name)
    if name in BLUEPRINTS:
        size, needs = published_needs(name, dtype, image_size, t5)
    else:
        size, needs = needs_of(blueprint(name), dtype, image_size, t5)
    batches = [n for n in {batch_size: 0} | dict.fromkeys(BATCHES) if n <= batch_size]
    budget = float("inf") if budget_gb is None else budget_gb * _GB

    def made(rung: str, rows: int, images: int, texts: int) -> MemoryPlan:
        return MemoryPlan(name, size, dtype, rung, t5, rows, images, texts, needs, vae_tiling, free_text_encoders)

    rungs = [placement] if placement else list(LADDER)
    pictures = [n for n in BATCHES if n <= IMAGES]
    for rung in rungs:
        together = [n for n in BATCHES if n <= TEXTS] if rung.startswith("stream") else [1]
        for rows, images, texts in product(batches, pictures, together):
            if rows < 2 <= batch_size and rung != rungs[-1]:  # a guided image should be one forward
                continue
            if (plan := made(rung, rows, images, texts)).peak <= budget:
                return plan
    least = made(rungs[-1], 1, 1, 1)
    raise ValueError(
        f"budget_gb = {budget_gb}: the least that {name!r} needs at {size} pixels in {dtype} is about "
        f"{least.peak / _GB:.1f} GB ({least.placement!r}, one evaluation at a time)"
    )


# --- following a plan


def follow(pipeline: Any, plan: MemoryPlan, device: str | torch.device) -> Any:
    """Bring the parts of a pipeline, as it was loaded into host memory, to where the plan wants them.

    Without an accelerator there is nowhere to move them: all stay in host memory, with a notice, and the rest of the
    plan (texts encoded ahead, batches, tiling) holds.
    """
    device = torch.device(device)
    if device.type == "cpu" and plan.placement != "resident":
        warnings.warn(
            f"no accelerator: plan {plan.placement!r} has nowhere to move weights to, they all stay in host memory",
            stacklevel=3,
        )
        pipeline.to(device)
    else:
        place(pipeline, plan.placement, device)
    if plan.vae_tiling:
        pipeline.vae.enable_tiling()
    pipeline.memory_plan, pipeline.encoded_texts = plan, {}
    return pipeline


def place(pipeline: Any, placement: str, device: torch.device) -> None:
    """Move the parts of a pipeline, or let diffusers move them while it works."""
    if placement == "resident":
        pipeline.to(device)
    elif placement == "model":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        stays = [name for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)]
        streamed = [n for n in stays if n.startswith("text_encoder") or (placement == "stream" and n != "vae")]
        streamed = [n for n in streamed if not getattr(getattr(pipeline, n), "is_quantized", False)]
        pipeline.enable_group_offload(
            device,
            offload_type="leaf_level",
            use_stream=device.type == "cuda",  # from pinned memory, while the layer before computes
            exclude_modules=[name for name in stays if name not in streamed],
        )


def t5_options(name: str, t5: str) -> dict[str, Any]:
    """What `from_pretrained` is told so that T5 is in 8 or 4 bit, or left out.

    Raises:
        ValueError: if bitsandbytes is needed and missing.
    """
    if t5 == "full":
        return {}
    encoder = next(part for part, (kind, _) in blueprint(name).networks.items() if kind == "T5EncoderModel")
    if t5 == "dropped":
        return {encoder: None, encoder.replace("text_encoder", "tokenizer"): None}
    if find_spec("bitsandbytes") is None:
        raise ValueError(f"t5 = {t5!r} needs the package bitsandbytes: pip install 'hybridlib[quantised]'")
    from diffusers.quantizers import PipelineQuantizationConfig

    number = t5.removesuffix("bit")
    quantised = PipelineQuantizationConfig(
        quant_backend=f"bitsandbytes_{number}bit",
        quant_kwargs={f"load_in_{number}bit": True},
        components_to_quantize=[encoder],
    )
    return {"quantization_config": quantised}
