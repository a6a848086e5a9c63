"""Smaller autoencoders for latents that exist: Hybrid SD's tiny VAE (Yan et al., arXiv 2408.06646) and small VAE.

The tiny one (`AutoencoderTiny`, TAESD's architecture) learns both ways to the latents of a large one, in turns with a
discriminator. The small one is the large one with a narrower decoder (`decoders`), finetuned against the original.
Recipes are those of the reference at real size; the miniatures change parameters alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Generator, Tensor, nn

from ..files import read_image
from .discriminator import Discriminator, hinge
from .loop import Draw, History, LossOf, Recipe, fit
from .perception import Distance

HYBRID_SD = Recipe(  # what the published tiny autoencoder was trained with: two GPUs, two batches of 12 each
    steps=100_000,
    batch_size=48,
    parts=4,
    learning_rate=1e-5,
    seed=42,
    ema_decay=0.99,
    warmup_steps=0,
    betas=(0.9, 0.999),
    precision="no",
)
SMALL = HYBRID_SD._replace(steps=20_000, learning_rate=5e-5, ema_decay=0.999)  # ours; the published one is not released


class Pictures(NamedTuple):
    """What one forward pass learns from."""

    images: Tensor  # (B, 3, H, W) in [-1, 1]
    latents: Tensor | None = None  # the large autoencoder's normalised latents of them, where they are known already


class Settings(NamedTuple):
    """Of the tiny autoencoder's losses; as published by default."""

    cycle: tuple[str, ...] = ("decoder", "encoder", *("discriminator",) * 5)  # whose turn it is, step by step
    discriminator_alone: int = 5000  # steps at first
    discriminator_rate: float = 50.0  # its learning rate over the autoencoder's: 5e-4 over 1e-5
    attenuation: float = 0.25  # latents are multiplied by 1 - u, u uniform up to this: the decoder adds contrast
    adversarial: float = 0.5  # share of the discriminator's gradient in the decoder's; 0 leaves it out
    pixel: float = 0.0  # weight of the mean squared error, images in [0, 1]; none is published
    colour_mixing: float = 0.1  # probability that the colours of an image are mixed
    filter_every: int = 3  # updates of the decoder; at each such one what is learned already is set to white; 0: never

    def turn(self, step: int) -> str:
        """ "decoder", "encoder" or "discriminator"."""
        return "discriminator" if step < self.discriminator_alone else self.cycle[step % len(self.cycle)]

    def filters(self, step: int) -> bool:
        """Whether this step is a decoder's update with the pixel filter."""
        updates = self.cycle.count("decoder") * (step // len(self.cycle))
        updates += self.cycle[: step % len(self.cycle)].count("decoder")
        return bool(self.filter_every) and self.turn(step) == "decoder" and updates % self.filter_every == 0


class TinyTraining(nn.Module):
    """What learns in turns: both halves of the tiny autoencoder, and the discriminator's heads."""

    def __init__(self, vae: AutoencoderTiny, discriminator: Discriminator) -> None:
        super().__init__()
        self.vae, self.discriminator = vae, discriminator


def pictures_in(folder: Path, size: int) -> Callable[[Draw], Pictures]:
    """Random images of a folder and those below: the shorter side resized to `size` pixels, the centre cropped.

    Raises:
        ValueError: if there are no images.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    if not paths:
        raise ValueError(f"folder = {folder}: there are no images in it")

    def pictures_of(draw: Draw) -> Pictures:
        rows = torch.randint(len(paths), (draw.size,), generator=draw.generator).tolist()
        found = (resize(read_image(paths[row]), size, InterpolationMode.BICUBIC) for row in rows)
        images = torch.stack([pil_to_tensor(center_crop(image, [size, size])) for image in found])
        return Pictures(images.to(draw.device).float() / 127.5 - 1)

    return pictures_of


def encode(vae: AutoencoderKL, images: Tensor, generator: Generator) -> Tensor:
    """Normalised latents (B, C, h, w) as pipelines denoise them, drawn from the posterior, float32."""
    latents = vae.encode(images.to(vae.dtype)).latent_dist.sample(generator).float()
    return normalised(vae, latents)


def normalised(vae: Any, latents: Tensor) -> Tensor:
    """Latents as networks see them, of latents as an autoencoder encodes them."""
    return (latents - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1], float32, of normalised latents."""
    latents = latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
    return vae.decode(latents.to(vae.dtype)).sample.float()


def mix_colours(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Some images (B, 3, H, W) in [-1, 1] with their channels mixed by a random matrix, blended in by channel."""
    rows = len(images)
    chosen = torch.rand(rows, 1, 1, 1, generator=generator) < probability
    matrix = 0.5 + torch.randn(rows, 3, 3, generator=generator)
    share = torch.rand(rows, 3, 1, 1, generator=generator).to(images)
    plain = (images + 1) / 2
    mixed = torch.einsum("bij,bjhw->bihw", matrix.to(images), plain).clamp(0, 1)
    blended = 2 * (share * mixed + (1 - share) * plain) - 1
    return torch.where(chosen.to(images.device), blended, images)


def adaptive_weight(distance: Tensor, adversarial: Tensor, weight: Tensor) -> Tensor:
    """What gives both losses gradients of one length at `weight`, the decoder's last (Esser et al. 2021)."""
    own, other = (torch.autograd.grad(loss, weight, retain_graph=True)[0].norm() for loss in (distance, adversarial))
    return (own / (other + 1e-4)).clamp(0, 1e4).detach()


def tiny_loss(
    teacher: AutoencoderKL,
    model: TinyTraining,
    pictures_of: Callable[[Draw], Pictures],
    distance: Distance,
    settings: Settings = Settings(),  # noqa: B008 - a frozen value
) -> LossOf:
    """The loss of one draw, for `loop.fit`: of whoever's turn it is.

    Raises:
        ValueError: if a turn is nobody's, or the two autoencoders disagree about latents.
    """
    if unknown := set(settings.cycle) - {"decoder", "encoder", "discriminator"}:
        raise ValueError(f"cycle must be of 'decoder', 'encoder' and 'discriminator', got {sorted(unknown)}")
    if teacher.config.latent_channels != model.vae.config.latent_channels:
        channels = teacher.config.latent_channels, model.vae.config.latent_channels
        raise ValueError("latent_channels must agree, got {} and {}".format(*channels))
    teacher.requires_grad_(False).eval()

    def loss_of(draw: Draw) -> dict[str, Tensor]:
        images, latents = _prepared(teacher, model.vae, pictures_of(draw), draw, settings)
        if settings.turn(draw.step) == "encoder":
            return {"encoder": (model.vae.encode(images).latents - latents).abs().sum() / len(images)}
        weaker = latents * (1 - settings.attenuation * torch.rand((), generator=draw.generator).item())
        if settings.turn(draw.step) == "decoder":
            return _decoder_terms(model, weaker, images, distance, settings, draw.generator)
        with torch.no_grad():
            fake = model.vae.decode(weaker).sample
        real = model.discriminator(images, draw.generator)
        return {"discriminator": hinge(real, model.discriminator(fake, draw.generator))}

    return loss_of


@torch.no_grad()
def _prepared(
    teacher: AutoencoderKL, vae: AutoencoderTiny, pictures: Pictures, draw: Draw, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Images, augmented, and the teacher's latents of them."""
    images, latents = pictures
    if settings.colour_mixing:
        images, latents = mix_colours(images, settings.colour_mixing, draw.generator), None
    if latents is None:
        latents = encode(teacher, images, draw.generator)
    if settings.filters(draw.step):
        error = (vae.decode(latents).sample - decode(teacher, latents)).abs()
        images = torch.where(error < error.median(), 1.0, images)
        latents = encode(teacher, images, draw.generator)
    return images, latents


def _decoder_terms(
    model: TinyTraining, latents: Tensor, images: Tensor, distance: Distance, settings: Settings, generator: Generator
) -> dict[str, Tensor]:
    decoded = model.vae.decode(latents).sample
    terms = {"perceptual": distance.between(decoded, images)}
    if settings.pixel:
        terms["pixel"] = settings.pixel * (decoded - images).square().mean() / 4  # [-1, 1] to [0, 1]
    if settings.adversarial:
        with _left_alone(model.discriminator):
            fooled = -model.discriminator(decoded, generator).mean()
        last = model.vae.decoder.layers[-1].weight
        scale = adaptive_weight(torch.stack(list(terms.values())).sum(), fooled, last)
        terms["adversarial"] = settings.adversarial * scale * fooled
    return terms


@contextlib.contextmanager
def _left_alone(module: nn.Module) -> Iterator[None]:
    """No gradient is kept for what is computed with these parameters meanwhile."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def train_tiny(
    teacher: AutoencoderKL,
    model: TinyTraining,
    pictures_of: Callable[[Draw], Pictures],
    distance: Distance,
    folder: Path,
    recipe: Recipe = HYBRID_SD,
    settings: Settings = Settings(),  # noqa: B008 - a frozen value
) -> History:
    """Train a tiny autoencoder in place; published runs start from TAESD's weights."""
    loss_of = tiny_loss(teacher, model, pictures_of, distance, settings)
    return fit("tiny-vae", model, loss_of, recipe, folder, rates={"discriminator": settings.discriminator_rate})


def small_loss(
    teacher: AutoencoderKL,
    student: AutoencoderKL,
    pictures_of: Callable[[Draw], Pictures],
    distance: Distance,
    perceptual: float = 0.1,
) -> LossOf:
    """The error of a narrower decoder against what the original decodes, images in [0, 1], and how unlike they look."""
    teacher.requires_grad_(False).eval()

    def loss_of(draw: Draw) -> dict[str, Tensor]:
        images, latents = pictures_of(draw)
        with torch.no_grad():
            latents = encode(teacher, images, draw.generator) if latents is None else latents
            original = decode(teacher, latents)
        decoded = decode(student, latents)
        return {
            "pixel": (decoded - original).square().mean() / 4,
            "perceptual": perceptual * distance.between(decoded, original),
        }

    return loss_of


def finetune_small(
    teacher: AutoencoderKL,
    student: AutoencoderKL,
    pictures_of: Callable[[Draw], Pictures],
    distance: Distance,
    folder: Path,
    recipe: Recipe = SMALL,
    perceptual: float = 0.1,
) -> History:
    """Finetune the decoder of a pruned autoencoder in place; its latents are the teacher's and stay so."""
    loss_of = small_loss(teacher, student, pictures_of, distance, perceptual)
    return fit("small-vae", student.decoder, loss_of, recipe, folder)
