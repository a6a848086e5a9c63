"""The 36 natural scene statistics of BRISQUE for a whole batch, equal to those of piq 0.8.

piq searches its table of 9801 shape parameters exhaustively, which dominates small images, and refuses a whole batch
for one flat image. Here the search is a bisection and a flat image is NaN in its own row. Kernel and resizing are
piq's own functions.

Source: Mittal, Moorthy and Bovik, "No-Reference Image Quality Assessment in the Spatial Domain", 2012.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from piq.functional import gaussian_filter, imresize
from torch import Tensor

KERNEL_SIZE, KERNEL_SIGMA = 7, 7 / 6
NEIGHBOURS = [(0, 1), (1, 0), (1, 1), (-1, 1)]  # horizontal, vertical and the two diagonals
SMALLEST_SIDE = 8  # pixels; below that the half-size image is smaller than what its resizing reads


def features(luma: Tensor) -> Tensor:
    """Statistics (n, 36) of grey images (n, 1, height, width) with values in 0..255, at full and at half size.

    A row holds NaN where the statistics are undefined: no variance, or no positive or no negative product of
    neighbours, as in a flat image.
    """
    half = imresize(luma, sizes=(luma.shape[2] // 2, luma.shape[3] // 2))
    return torch.cat([_one_scale(luma), _one_scale(half)], dim=-1)


def _one_scale(luma: Tensor) -> Tensor:
    kernel = gaussian_filter(KERNEL_SIZE, KERNEL_SIGMA, dtype=luma.dtype)[None]
    mean = F.conv2d(luma, kernel, padding=KERNEL_SIZE // 2)
    deviation = (F.conv2d(luma**2, kernel, padding=KERNEL_SIZE // 2) - mean**2).abs().sqrt()
    normalised = (luma - mean) / (deviation + 1)
    shape, sigma = _symmetric_fit(normalised)
    products = torch.cat([normalised * normalised.roll(shift, dims=(-2, -1)) for shift in NEIGHBOURS], dim=1)
    alpha, left, right = _asymmetric_fit(products)
    log_ratio = torch.lgamma(2 / alpha) - (torch.lgamma(1 / alpha) + torch.lgamma(3 / alpha)) / 2
    eta = (right - left) * log_ratio.exp()
    pairs = torch.stack([alpha, eta, left**2, right**2], dim=-1)
    return torch.cat([shape, sigma**2, pairs.flatten(1)], dim=-1)


def _symmetric_fit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and deviation (n, channels) of a generalised Gaussian."""
    gamma, ratios = _tables(x.dtype)
    variance = x.square().mean(dim=(-1, -2))
    sigma = variance.sqrt()
    rho = variance / x.abs().mean(dim=(-1, -2)) ** 2
    flat = torch.isclose(sigma, torch.zeros_like(sigma))
    # The ratio falls with the shape: both signs are turned so that the table ascends and keeps its order.
    return gamma[_nearest(-1 * ratios[0], -rho)], sigma.masked_fill(flat, torch.nan)


def _asymmetric_fit(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shape, left and right deviation (n, channels) of an asymmetric generalised Gaussian."""
    gamma, ratios = _tables(x.dtype)
    left = _one_sided_deviation(x.clamp(max=0))
    right = _one_sided_deviation(x.clamp(min=0))
    skew = left / right
    ratio = x.abs().mean(dim=(-1, -2)) ** 2 / x.square().mean(dim=(-1, -2))
    ratio = (ratio * (skew**3 + 1) * (skew + 1)) / (skew**2 + 1) ** 2
    return gamma[_nearest(ratios[1], ratio)], left, right


def _one_sided_deviation(x: Tensor) -> Tensor:
    """Root mean square of the values that are not zero; NaN where there are none."""
    deviation = (x.square().sum(dim=(-1, -2)) / x.count_nonzero(dim=(-1, -2)).to(x.dtype)).sqrt()
    return deviation.masked_fill(deviation == 0, torch.nan)


@cache
def _tables(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Shape parameters 0.2 to 10, and for each the moment ratio of either distribution; monotone to the last bit."""
    gamma = torch.arange(0.2, 10.001, 0.001, dtype=dtype)
    first, second, third = (torch.lgamma(order / gamma) for order in (1.0, 2.0, 3.0))
    return gamma, torch.stack([(first + third - 2 * second).exp(), (2 * second - first - third).exp()])


def _nearest(table: Tensor, values: Tensor) -> Tensor:
    """Index of the entry of an ascending table nearest to each value, the first of two equally near."""
    above = torch.searchsorted(table, values.contiguous()).clamp(1, len(table) - 1)
    return torch.where(values - table[above - 1] <= table[above] - values, above - 1, above)
