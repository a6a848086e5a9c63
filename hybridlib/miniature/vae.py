"""The autoencoder of mini-sd3 and mini-sd: 64x64 pixels to 16 x 8 x 8 latents and back, the ratio of SD3's own."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ..paths import MODELS
from ..training.loop import Draw, History, Recipe, fit
from .scenes import render, sample_scenes

KL_WEIGHT = 1e-6
Runs = dict[str, tuple[Recipe, History]]  # part of a model -> how it was trained


class Stages(NamedTuple):
    """An autoencoder is trained whole, and then its decoder alone, which leaves the latents as they are."""

    whole: Recipe
    decoder: Recipe


STAGES = Stages(
    Recipe(steps=4600, batch_size=12, learning_rate=2e-3, seed=1, ema_decay=0.998),
    Recipe(steps=2200, batch_size=16, learning_rate=1e-3, seed=6, ema_decay=0.998),
)


def build() -> AutoencoderKL:
    """An untrained autoencoder with 1.0 M parameters, 16 latent channels and 8x downsampling."""
    return AutoencoderKL(
        latent_channels=16,
        block_out_channels=(16, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=64,
    )


def shipped() -> AutoencoderKL:
    """That of mini-sd3 as it ships, in float32."""
    return AutoencoderKL.from_pretrained(MODELS / "mini-sd3" / "vae", dtype=torch.float32).eval()


def for_sd(vae: AutoencoderKL) -> AutoencoderKL:
    """The same autoencoder for pipelines of SD1.x, which know a scale of the latents but no shift.

    SD1.x has 1x1 convolutions on both sides of the latents. Here they are identities whose biases take the shift off
    and put it back, so every reconstruction and every normalised latent stays as it was.
    """
    channels = vae.config.latent_channels
    own = {key: value for key, value in vae.config.items() if not key.startswith("_")}  # not where it lay
    config = {**own, "use_quant_conv": True, "use_post_quant_conv": True, "shift_factor": None}
    sd = AutoencoderKL.from_config(config)
    sd.load_state_dict(vae.state_dict(), strict=False)
    with torch.no_grad():
        for layer, shift in ((sd.quant_conv, -vae.config.shift_factor), (sd.post_quant_conv, vae.config.shift_factor)):
            layer.weight.copy_(torch.eye(len(layer.weight))[:, :, None, None])
            layer.bias.zero_()
            layer.bias[:channels] = shift
    return sd.eval()


def train(folder: Path, stages: Stages = STAGES) -> tuple[AutoencoderKL, Runs]:
    """Both stages, one after the other."""
    torch.manual_seed(stages.whole.seed)
    vae = build()
    history = train_whole(folder, vae, stages.whole)
    decoder_history = train_decoder(folder, vae, stages.decoder)
    return vae, {"vae": (stages.whole, history), "vae decoder": (stages.decoder, decoder_history)}


def train_whole(folder: Path, vae: AutoencoderKL, recipe: Recipe) -> History:
    """Train both halves on fresh scenes, then set the latents to zero mean and unit variance."""

    def loss_of(draw: Draw) -> Tensor:
        """Mean absolute and squared error, slight KL."""
        images = _images(draw)
        posterior = vae.encode(images).latent_dist
        error = vae.decode(posterior.sample(draw.generator)).sample.float() - images
        return error.abs().mean() + 2 * error.square().mean() + KL_WEIGHT * posterior.kl().mean()

    history = fit("vae", vae, loss_of, recipe, folder)
    normalise(vae)
    return history


def train_decoder(folder: Path, vae: AutoencoderKL, recipe: Recipe) -> History:
    """Sharpen the decoder alone."""

    def loss_of(draw: Draw) -> Tensor:
        """Squared error, which is what PSNR measures."""
        images = _images(draw)
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.mean
        return (vae.decode(latents).sample.float() - images).square().mean()

    return fit("vae-decoder", vae.decoder, loss_of, recipe, folder)


def _images(draw: Draw) -> Tensor:
    """Fresh scenes of one training step, (B, 3, 64, 64) in [-1, 1]."""
    return 2 * render(sample_scenes(draw.size, draw.key)) - 1


@torch.inference_mode()
def normalise(vae: AutoencoderKL, count: int = 1024) -> None:
    """Write the scale and shift that give the latents zero mean and unit variance into the model's config."""
    scenes = sample_scenes(count, seed=77)
    latents = torch.cat([vae.encode(2 * render(scenes[i : i + 64]) - 1).latent_dist.mean for i in range(0, count, 64)])
    shift, scale = latents.mean().item(), 1 / latents.std().item()
    vae.register_to_config(shift_factor=round(shift, 6), scaling_factor=round(scale, 6))


@torch.inference_mode()
def reconstruction_psnr(vae: AutoencoderKL, count: int = 512, seed: int = 900_001) -> float:
    """Mean PSNR in dB (data range 1) over held-out scenes, posterior mean decoded."""
    scenes = sample_scenes(count, seed)
    scores = []
    for i in range(0, count, 64):
        images = render(scenes[i : i + 64])
        decoded = vae.decode(vae.encode(2 * images - 1).latent_dist.mean).sample
        squared = ((decoded / 2 + 0.5).clamp(0, 1) - images).square().mean(dim=(1, 2, 3))
        scores.append(-10 * squared.log10())
    return torch.cat(scores).mean().item()
