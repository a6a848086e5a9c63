"""mini-tiny-vae and mini-small-vae: faster ways back from the latents that mini-sd3 and mini-sd share."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from ..denoising.costs import parameters
from ..metrics.alignment import ClipAlignment
from ..paths import MODELS
from ..training import decoders, perception, sizes
from ..training import vae as training
from ..training.discriminator import Discriminator
from ..training.loop import Draw, History, Recipe
from ..training.vae import Pictures, Settings, TinyTraining
from .corpus import corpus
from .scenes import render, sample_scenes
from .vae import shipped as vae_of_mini_sd3

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

TINY = Recipe(steps=2400, batch_size=16, learning_rate=2e-3, seed=41, ema_decay=0.995, warmup_steps=100)
TINY_SETTINGS = Settings(
    cycle=("decoder", "encoder", "decoder", "encoder", "decoder", "discriminator"),
    discriminator_alone=0,
    discriminator_rate=0.2,
    attenuation=0.0,  # it buys contrast with PSNR, which is what is asked for here
    adversarial=0.05,
    pixel=100.0,  # a run this short needs to be told where edges are
    colour_mixing=0.0,
    filter_every=0,
)
SMALL = Recipe(steps=8000, batch_size=16, learning_rate=2e-3, seed=42, ema_decay=0.995, warmup_steps=50)
SMALL_PERCEPTUAL = 0.003  # at 0.1 it outweighs the pixels: 16.8 dB and stripes after 1,200 steps
SMALL_KEEP = 0.5  # three quarters, as published, would leave the last stage whole: 12 of 16 channels in 8 groups
TIMED_IMAGES, TIMED_ROUNDS = 8, 15
NAMES = ("mini-sd3", "mini-small-vae", "mini-tiny-vae")  # of autoencoders, the widest first


class Trained(NamedTuple):
    """An autoencoder, and how it was trained."""

    vae: Any
    recipe: Recipe
    history: History


def build_tiny() -> AutoencoderTiny:
    """An untrained TAESD in 0.13 M parameters: 16 channels throughout, fewest blocks where the image is large.

    On a CPU time goes by pixels: a block at 64 x 64 costs as much as sixty-four at 8 x 8.
    """
    return AutoencoderTiny(
        latent_channels=16,
        encoder_block_out_channels=(16,) * 4,
        decoder_block_out_channels=(16,) * 4,
        num_encoder_blocks=(1, 2, 2, 2),
        num_decoder_blocks=(2, 2, 1, 0),
    )


def train_tiny(folder: Path) -> Trained:
    """Encoder and decoder for the latents of mini-sd3, in turns with a discriminator on mini-clip's features."""
    torch.manual_seed(TINY.seed)
    original, clip = vae_of_mini_sd3(), ClipAlignment.load("mini-clip", device="cpu").model
    model = TinyTraining(build_tiny(), Discriminator(perception.clip_features(clip, "mini-clip")))
    distance = perception.clip_distance(clip, "mini-clip")
    history = training.train_tiny(original, model, _pictures(folder, original), distance, folder, TINY, TINY_SETTINGS)
    return Trained(model.vae.eval(), TINY, history)


def train_small(folder: Path) -> Trained:
    """The autoencoder of mini-sd3 with half of its decoder's channels, finetuned against the original."""
    original, clip = vae_of_mini_sd3(), ClipAlignment.load("mini-clip", device="cpu").model
    small = decoders.with_decoder_widths(original, decoders.kept_widths(original, SMALL_KEEP))
    distance = perception.clip_distance(clip, "mini-clip")
    pictures = _pictures(folder, original)
    history = training.finetune_small(original, small, pictures, distance, folder, SMALL, SMALL_PERCEPTUAL)
    return Trained(small.eval(), SMALL, history)


def shipped(name: str) -> Any:
    """mini-tiny-vae, mini-small-vae, or the autoencoder of mini-sd3 as "mini-sd3", in float32."""
    if name == "mini-tiny-vae":
        return AutoencoderTiny.from_pretrained(MODELS / name, dtype=torch.float32).eval()
    original = vae_of_mini_sd3()
    return decoders.load(MODELS / name, torch.float32, original) if name == "mini-small-vae" else original


def _pictures(folder: Path, original: AutoencoderKL) -> Callable[[Draw], Pictures]:
    """Scenes of the corpus of mini-sd3, and their latents, cached in `folder`."""
    scenes, latents = corpus(folder, original)

    def pictures_of(draw: Draw) -> Pictures:
        rows = torch.randint(len(latents), (draw.size,), generator=draw.generator)
        return Pictures(2 * render(scenes[rows]) - 1, latents[rows].float())

    return pictures_of


@torch.inference_mode()
def quality(vae: Any, count: int = 256, seed: int = 900_001) -> dict[str, float]:
    """Mean PSNR in dB (data range 1) over held-out scenes: of what `vae` decodes from the latents of mini-sd3, against
    the scenes and against what mini-sd3 decodes, and of the scenes encoded and decoded by `vae` alone."""
    original, scenes = vae_of_mini_sd3(), sample_scenes(count, seed)
    parts: dict[str, list[Tensor]] = {}
    for i in range(0, count, 64):
        images = 2 * render(scenes[i : i + 64]) - 1
        latents = training.normalised(original, original.encode(images).latent_dist.mean)
        decoded = training.decode(vae, latents)
        encoded = vae.encode(images)
        own = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
        for name, first, second in (
            ("PSNR of mini-sd3's latents against the scene (dB)", decoded, images),
            ("PSNR of mini-sd3's latents against its own decoder (dB)", decoded, training.decode(original, latents)),
            ("PSNR of encoding and decoding (dB)", vae.decode(own).sample, images),
        ):
            parts.setdefault(name, []).append(_psnr(first, second))
    return {name: torch.cat(values).mean().item() for name, values in parts.items()}


def decode_times(vae: Any, rounds: int = TIMED_ROUNDS) -> dict[str, float]:
    """Milliseconds of processor time an image, of `vae` and of mini-sd3's decoder, and their ratio: medians, and the
    quartiles of the ratio over the rounds. One thread, batches of 8, both in turn in one run, each in the memory
    format in which it is faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = [_fastest(model, rounds) for model in (vae_of_mini_sd3(), vae)]
    finally:
        torch.set_num_threads(threads)
    ratios = sorted(slow / fast for slow, fast in zip(*seconds, strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    base, own = (1000 * statistics.median(times) / TIMED_IMAGES for times in seconds)
    names = ("mini-sd3 ms", "own ms", "times faster", "lower quartile", "upper quartile")
    return dict(zip(names, (base, own, middle, low, high), strict=True))


@torch.no_grad()  # inference mode would leave weights behind that can no longer be trained
def _fastest(vae: Any, rounds: int) -> list[float]:
    """Processor seconds of each round, in the faster memory format."""
    runs = []
    for order in (torch.contiguous_format, torch.channels_last):
        model = vae.to(memory_format=order)
        latents = torch.randn(TIMED_IMAGES, 16, 8, 8).to(memory_format=order)
        times = []
        for _ in range(rounds + 2):
            began = time.process_time()
            model.decode(latents)
            times.append(time.process_time() - began)
        runs.append(times[2:])
    return min(runs, key=statistics.median)


def _psnr(first: Tensor, second: Tensor) -> Tensor:
    first, second = ((x / 2 + 0.5).clamp(0, 1) for x in (first, second))
    return -10 * (first - second).square().mean(dim=(1, 2, 3)).log10()


def table(scenes: int, rounds: int) -> pd.DataFrame:
    """Fidelity, decoding time and memory of the three autoencoders that share latents, as they ship."""
    import pandas as pd

    rows = []
    for name in NAMES:
        vae = shipped(name)
        fidelity, times = quality(vae, scenes), decode_times(vae, rounds)
        latents = torch.zeros(1, 16, 8, 8)
        row = {"model": name, "parameters": parameters(vae), "decoder_parameters": parameters(vae.decoder)}
        row |= dict(zip(("psnr", "psnr_to_original", "psnr_alone"), fidelity.values(), strict=True))
        row |= {"decode_ms": times["own ms"], "times_faster": times["times faster"]}
        row |= {"lower_quartile": times["lower quartile"], "upper_quartile": times["upper quartile"]}
        peak = sizes.peak_bytes(lambda vae=vae, latents=latents: vae.decode(latents), vae)  # type: ignore[misc]
        rows.append({**row, "peak_kib": peak / 1024})
    return pd.DataFrame(rows)


@torch.inference_mode()
def pictures(count: int, seed: int = 900_011) -> dict[str, list[Image]]:
    """Held-out scenes, and what each autoencoder decodes from the latents of mini-sd3."""
    original, images = vae_of_mini_sd3(), 2 * render(sample_scenes(count, seed)) - 1
    latents = training.normalised(original, original.encode(images).latent_dist.mean)
    rows = {"scene": images} | {name: training.decode(shipped(name), latents) for name in NAMES}
    return {name: VaeImageProcessor().postprocess(pixels, "pil") for name, pixels in rows.items()}
