"""The autoencoder of mini-sd3: 64x64 pixels to 16 x 8 x 8 latents and back, the ratio of the real SD3 autoencoder."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from .scenes import render, sample_scenes
from .training import History, Recipe, fit

RECIPE = Recipe(steps=4600, batch_size=12, learning_rate=2e-3, seed=1, ema_decay=0.998)
DECODER_RECIPE = Recipe(steps=2200, batch_size=16, learning_rate=1e-3, seed=6, ema_decay=0.998)
KL_WEIGHT = 1e-6


def build() -> AutoencoderKL:
    """An untrained autoencoder with 1.0 M parameters."""
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


def train(folder: Path) -> tuple[AutoencoderKL, dict[str, tuple[Recipe, History]]]:
    """Train both halves on fresh scenes, set the latents to unit variance, then sharpen the decoder alone.

    The second stage leaves the encoder, and so the latents, as they are.
    """
    torch.manual_seed(RECIPE.seed)
    vae = build()

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        """Mean absolute and squared error, slight KL."""
        images = 2 * render(sample_scenes(RECIPE.batch_size, seed=RECIPE.seed * 10_000_019 + step)) - 1
        posterior = vae.encode(images).latent_dist
        error = vae.decode(posterior.sample(generator)).sample.float() - images
        return error.abs().mean() + 2 * error.square().mean() + KL_WEIGHT * posterior.kl().mean()

    def decoder_loss_of(step: int, generator: torch.Generator) -> Tensor:
        """Squared error, which is what PSNR measures."""
        seed = DECODER_RECIPE.seed * 10_000_019 + step
        images = 2 * render(sample_scenes(DECODER_RECIPE.batch_size, seed)) - 1
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.mean
        return (vae.decoder(latents).float() - images).square().mean()

    history = fit("vae", vae, loss_of, RECIPE, folder)
    normalise(vae)
    decoder_history = fit("vae-decoder", vae.decoder, decoder_loss_of, DECODER_RECIPE, folder)
    return vae, {"vae": (RECIPE, history), "vae decoder": (DECODER_RECIPE, decoder_history)}


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
