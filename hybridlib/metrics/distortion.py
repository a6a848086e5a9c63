"""PSNR and SSIM of images against reference images, in the conventions of piq and of scikit-image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import piq
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from .base import check_counts, equal_sizes, stack

Rule = Callable[[Tensor, Tensor], Tensor]
Variant = Literal["scikit-image", "piq"]

WINDOW = 7  # pixels
C1, C2 = 0.01**2, 0.03**2  # K1 and K2 at data range 1


def psnr(
    images: Sequence[Image],
    references: Sequence[Image],
    variant: Variant = "scikit-image",
    grey: bool = False,
    batch_size: int = 64,
) -> np.ndarray:
    """Peak signal-to-noise ratio (n,) in dB, float64, of 8-bit images at data range 1; higher is better.

    Args:
        images: each of the size of its reference; sizes may differ from pair to pair.
        variant: "scikit-image" is -10 log10(mean squared error), infinite for identical images; "piq" adds 1e-8 to
            the error, so that it never exceeds 80 dB.
        grey: compare 8-bit BT.601 luma, as the study of latent compression does, in place of RGB.

    Raises:
        ValueError: before any computing, if the counts, the sizes of a pair, or the variant do not fit.
    """
    rules: dict[str, Rule] = {"scikit-image": _plain_psnr, "piq": _piq_psnr}
    return _compare(images, references, _choose(rules, variant), grey, batch_size)


def ssim(
    images: Sequence[Image],
    references: Sequence[Image],
    variant: Variant = "scikit-image",
    grey: bool = False,
    batch_size: int = 64,
) -> np.ndarray:
    """Structural similarity (n,), float64, of 8-bit images at data range 1, K1 .01 and K2 .03; at most 1.

    Args:
        images: each of the size of its reference; sizes may differ from pair to pair.
        variant: "scikit-image" has a uniform 7x7 window and sample covariance; "piq" a Gaussian 11x11 window with
            sigma 1.5 and population covariance, after average pooling by round(shorter side / 256). Either is the
            mean over all windows inside the image and over the channels.
        grey: compare 8-bit BT.601 luma, as the study of latent compression does, in place of RGB.

    Raises:
        ValueError: before any computing, if the counts, the sizes of a pair, the window or the variant do not fit.
    """
    rules: dict[str, Rule] = {"scikit-image": _uniform_ssim, "piq": _piq_ssim}
    rule = _choose(rules, variant)
    window = WINDOW if variant == "scikit-image" else 11
    if small := [image.size for image in images if min(image.size) < window]:
        raise ValueError(f"SSIM needs {window} pixels a side, got an image of {small[0]}")
    return _compare(images, references, rule, grey, batch_size)


def _choose(rules: dict[str, Rule], variant: str) -> Rule:
    if variant not in rules:
        raise ValueError(f"variant must be one of {sorted(rules)}, got {variant!r}")
    return rules[variant]


def _compare(
    images: Sequence[Image],
    references: Sequence[Image],
    rule: Rule,
    grey: bool,
    batch_size: int,
) -> np.ndarray:
    check_counts(images, references, "references")
    for index, (image, reference) in enumerate(zip(images, references, strict=True)):
        if image.size != reference.size:
            raise ValueError(f"image {index} of {image.size} cannot be compared with a reference of {reference.size}")
    mode = "L" if grey else "RGB"
    scores = np.empty(len(images))
    for batch in equal_sizes(images, batch_size):
        pair = [stack([side[index] for index in batch], mode).double() / 255 for side in (images, references)]
        scores[batch] = rule(*pair).numpy()
    return scores


def _plain_psnr(x: Tensor, y: Tensor) -> Tensor:
    return -10 * (x - y).square().mean(dim=(1, 2, 3)).log10()


def _piq_psnr(x: Tensor, y: Tensor) -> Tensor:
    return piq.psnr(x, y, data_range=1.0, reduction="none")


def _piq_ssim(x: Tensor, y: Tensor) -> Tensor:
    return piq.ssim(x, y, data_range=1.0, reduction="none")


def _uniform_ssim(x: Tensor, y: Tensor) -> Tensor:
    """`skimage.metrics.structural_similarity` with its defaults, for a batch (n, channels, height, width)."""
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    sample = WINDOW**2 / (WINDOW**2 - 1)
    variance_x = sample * (_window_mean(x * x) - mean_x**2)
    variance_y = sample * (_window_mean(y * y) - mean_y**2)
    covariance = sample * (_window_mean(x * y) - mean_x * mean_y)
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * covariance + C2) / (variance_x + variance_y + C2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _window_mean(x: Tensor) -> Tensor:
    # Only whole windows: just what is left where scikit-image cuts off a border of 3 pixels.
    return F.avg_pool2d(F.avg_pool2d(x, (WINDOW, 1), stride=1), (1, WINDOW), stride=1)
