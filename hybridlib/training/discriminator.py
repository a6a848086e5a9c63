"""The discriminator of StyleGAN-T (Sauer et al., arXiv 2301.09515), without its text: light heads on frozen features.

Written from the paper; the released code is not used, its licence forbids commercial use. Augmentation: DiffAugment
(Zhao et al., arXiv 2006.10738).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from .perception import Features

VIRTUAL_BATCH = 8  # rows that one batch norm sees
CROP_PROBABILITY = 0.5
TRANSLATION, CUTOUT = 0.125, 0.2  # shares of the side


class Discriminator(nn.Module):
    """Logits that say how real images look. Only the heads are its parameters; the features stay outside, frozen."""

    def __init__(self, features: Features) -> None:
        super().__init__()
        self.features = features
        self.heads = nn.ModuleList(_head(channels) for channels in features.channels)

    def forward(self, images: Tensor, generator: Generator) -> Tensor:
        """Logits (B, places) of images (B, 3, H, W) in [-1, 1], each augmented anew."""
        seen = _sized(augment(images, generator), self.features.size, generator)
        maps = self.features.maps(seen)
        return torch.cat([head(found).flatten(1) for head, found in zip(self.heads, maps, strict=True)], dim=1)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss: half of both hinges."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def augment(images: Tensor, generator: Generator) -> Tensor:
    """Differentiable changes of colour, place and cover that a discriminator must not mistake for fakes.

    Brightness, saturation and contrast of each image; a shift of up to 1/8 of the side, filled with zeros; a square
    of 1/5 of the side covered with zeros.
    """
    rows, _, height, width = images.shape
    device = images.device
    brightness, saturation, contrast = torch.rand(3, rows, 1, 1, 1, generator=generator).to(device)
    x = images + brightness - 0.5
    grey = x.mean(dim=1, keepdim=True)
    x = grey + 2 * saturation * (x - grey)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x = mean + (0.5 + contrast) * (x - mean)
    share = torch.rand(4, rows, generator=generator).to(device)
    reach = [int(TRANSLATION * side + 0.5) for side in (height, width)]
    down, right = (((2 * r + 1) * u).long() - r for r, u in zip(reach, share[:2], strict=True))
    across, along = torch.arange(height, device=device), torch.arange(width, device=device)
    y = across[None] - down[:, None]
    z = along[None] - right[:, None]
    inside = ((y >= 0) & (y < height))[:, :, None] & ((z >= 0) & (z < width))[:, None, :]
    index = torch.arange(rows, device=device)[:, None, None]
    moved = x.permute(0, 2, 3, 1)[index, y.clamp(0, height - 1)[:, :, None], z.clamp(0, width - 1)[:, None, :]]
    x = moved.permute(0, 3, 1, 2) * inside[:, None]
    top, left = (u * side for u, side in zip(share[2:], (height, width), strict=True))
    half = [CUTOUT * side / 2 for side in (height, width)]
    covered = ((across[None] - top[:, None]).abs() < half[0])[:, :, None]
    covered = covered & ((along[None] - left[:, None]).abs() < half[1])[:, None, :]
    return x * ~covered[:, None]


def _sized(images: Tensor, size: int, generator: Generator) -> Tensor:
    """Images at the size that the features read: half of the time a random crop, where there is something to crop."""
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    if min(height, width) > size and torch.rand((), generator=generator) < CROP_PROBABILITY:
        top, left = (int(torch.randint(side - size + 1, (), generator=generator)) for side in (height, width))
        return images[..., top : top + size, left : left + size]
    return F.interpolate(images, (size, size), mode="area")


class LocalBatchNorm(nn.Module):
    """Batch norm over eight rows at a time, so that its statistics do not depend on the batch size; none are kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, L), normalised."""
        parts = x.split(VIRTUAL_BATCH)
        return torch.cat([F.batch_norm(part, None, None, self.weight, self.bias, training=True) for part in parts])


class _Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.inner(x)) * 0.5**0.5


def _head(channels: int) -> nn.Module:
    last = spectral_norm(nn.Conv1d(channels, 1, 1))
    return nn.Sequential(_block(channels, 1), _Residual(_block(channels, 9)), last)


def _block(channels: int, kernel: int) -> nn.Module:
    convolution = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, padding_mode="circular")
    return nn.Sequential(spectral_norm(convolution), LocalBatchNorm(channels), nn.LeakyReLU(0.2))
