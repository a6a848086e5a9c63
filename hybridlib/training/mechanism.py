"""What an assignment does to pairs of latents and noise, before any training: the statistics of the mechanism.

All take latents x and their noise e, both (B, ...). Independent pairs give 0 (noise_std 1) up to sampling error.
Distances shrink little, because most of the D dimensions of a latent are hardly predictable; paths are bent by the
few leading principal components, so `component_correlation` is the one to look at.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Mechanism(NamedTuple):
    """What a training loop logs about one step's pairs; each is explained at the function of its name."""

    mean_cosine: float
    distance_reduction: float
    noise_std: float
    class_shift: float  # nan without labels


@torch.no_grad()
def mechanism(latents: Tensor, noise: Tensor, means: Tensor | None = None, labels: Tensor | None = None) -> Mechanism:
    """The four cheap statistics of one batch or pool; `means` and `labels` as for `class_shift`."""
    shift = math.nan if means is None or labels is None else class_shift(noise, means, labels)
    return Mechanism(mean_cosine(latents, noise), distance_reduction(latents, noise), noise_std(noise), shift)


def mean_cosine(latents: Tensor, noise: Tensor) -> float:
    """Mean cosine between a latent and its noise. Linear assignment of white data: c_B / sqrt(D)."""
    return float(F.cosine_similarity(latents.flatten(1).float(), noise.flatten(1).float(), dim=1).mean())


def distance_reduction(latents: Tensor, noise: Tensor) -> float:
    """How much nearer the noise is than independent noise would be: `1 - mean |x - e| / mean |x - fresh|`.

    The second mean is computed, not drawn: with `m = |x|^2 + D` and `v = 2 D + 4 |x|^2`, the mean and variance of the
    squared distance, it is sqrt(m) (1 - v / (8 m^2)), to within 1 / D^2.
    """
    x, e = latents.flatten(1).double(), noise.flatten(1).double()
    power, size = x.square().sum(dim=1), x.shape[1]
    mean, variance = power + size, 2 * size + 4 * power
    fresh = mean.sqrt() * (1 - variance / (8 * mean.square()))
    return 1 - float((x - e).norm(dim=1).mean() / fresh.mean())


def noise_std(noise: Tensor) -> float:
    """Root mean square of the noise: 1 for a permutation, about 1 - m_k / sqrt(D (2 + 4 s^2)) for KNN by L2."""
    return math.sqrt(float(noise.double().square().mean()))


def class_shift(noise: Tensor, means: Tensor, labels: Tensor) -> float:
    """Mean displacement of the noise along the direction of its class mean, in standard deviations of the noise.

    A conditional model trained on displaced noise learns a prior per class that is never sampled from.

    Args:
        means: (C, ...) mean latents of the classes over the training set, which are centred here. Means of the batch
            itself will not do: they are near its noise wherever rows are chosen for noise.
        labels: (B,) in 0..C-1.
    """
    directions = means.flatten(1).float()
    directions = F.normalize(directions - directions.mean(dim=0), dim=1)
    return float((noise.flatten(1).float() * directions[labels]).sum(dim=1).mean())


def principal_components(latents: Tensor, count: int = 8) -> tuple[Tensor, Tensor]:
    """The leading principal components (count, D) of latents (N, ...) and their shares of the variance (count,)."""
    flat = latents.flatten(1).double()
    flat = flat - flat.mean(dim=0)
    wide = flat.shape[1] > len(flat)  # the smaller of the two Gram matrices has all that is needed
    values, vectors = torch.linalg.eigh(flat @ flat.T if wide else flat.T @ flat)
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    components = flat.T @ vectors if wide else vectors
    shares = values / flat.square().sum()
    return F.normalize(components, dim=0).T.float().contiguous(), shares.float()


def component_correlation(latents: Tensor, noise: Tensor, components: Tensor) -> Tensor:
    """Correlation between the coefficients of latents and noise on each component (K, D): float32 (K,).

    Linear assignment gives about c_B sqrt(variance share), saturating below 1, whatever D is.
    """
    x, e = latents.flatten(1).float() @ components.T, noise.flatten(1).float() @ components.T
    x, e = x - x.mean(dim=0), e - e.mean(dim=0)
    return (x * e).mean(dim=0) / (x.square().mean(dim=0) * e.square().mean(dim=0)).sqrt()


class Marginal(NamedTuple):
    """How far the noise is from N(0, I) on some components; `allowed` is what exact noise exceeds once in 1,000."""

    worst_mean: float  # |mean|, in its own standard errors
    worst_std: float  # |std - 1|, in its own standard errors
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether both lie within what chance allows."""
        return max(self.worst_mean, self.worst_std) <= self.allowed


def marginal(noise: Tensor, components: Tensor) -> Marginal:
    """Mean and standard deviation of the noise (B, ...) along each component (K, D), against N(0, 1).

    Each must hold for the noise of all images together and, where a model is conditional, of each class.
    """
    coefficients = noise.flatten(1).double() @ components.double().T
    rows, tests = len(coefficients), 2 * len(components)
    mean_errors = coefficients.mean(dim=0).abs() * math.sqrt(rows)
    std_errors = (coefficients.square().mean(dim=0).sqrt() - 1).abs() * math.sqrt(2 * rows)
    allowed = float(torch.special.ndtri(torch.tensor(1 - 0.001 / (2 * tests), dtype=torch.float64)))
    return Marginal(float(mean_errors.max()), float(std_errors.max()), allowed)
