"""Distances between distributions of features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]


def frechet_distance(first: Features, second: Features) -> float:
    """Frechet distance `|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))` between the normals fitted to two sets.

    It is FID where the features (N, D) are those of Inception at its published setting; name the features wherever the
    number stands. It falls with the number of rows, so compare equal numbers only. The root of the product is taken
    over the symmetric matrix S1^(1/2) S2 S1^(1/2), which has the same trace and, unlike the product, real eigenvalues
    when a covariance is singular.

    Raises:
        ValueError: if shapes do not fit, a set has fewer than two rows, or a feature is not finite.
    """
    _check(first, second)
    mean, covariance = _moments(first)
    other_mean, other_covariance = _moments(second)
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ other_covariance @ root).clip(min=0)
    spread = np.trace(covariance) + np.trace(other_covariance) - 2 * np.sqrt(product).sum()
    return float(np.square(mean - other_mean).sum() + spread)


def cmmd(first: Features, second: Features, bandwidth: float = 10.0, block: int = 4096) -> float:
    """1000 times the squared maximum mean discrepancy of two sets of CLIP embeddings under a Gaussian kernel.

    Jayasumana et al., arXiv 2401.09603, with their kernel `exp(-|x - y|^2 / (2 bandwidth^2))`, their estimator, which
    keeps each row's pair with itself, and their factor. Published values are those of normalised embeddings of OpenAI's
    ViT-L/14 at 336 pixels; name the features wherever the number stands. Unlike the Frechet distance it assumes no
    normal distribution and holds no matrix of D x D, so few rows suffice.

    Args:
        bandwidth: of the kernel, in units of the features.
        block: rows of one set compared at a time, which bounds memory.

    Raises:
        ValueError: if shapes do not fit, a set has fewer than two rows, a feature is not finite, or the bandwidth is
            not positive.
    """
    _check(first, second)
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")
    sets = first.astype(np.float64), second.astype(np.float64)
    own, other, across = (_mean_kernel(a, b, bandwidth, block) for a, b in (sets[:1] * 2, sets[1:] * 2, sets))
    return 1000 * (own + other - 2 * across)


def _mean_kernel(first: NDArray[np.float64], second: NDArray[np.float64], bandwidth: float, block: int) -> float:
    total = 0.0
    squares = np.square(second).sum(axis=1)
    for start in range(0, len(first), block):
        rows = first[start : start + block]
        distances = np.square(rows).sum(axis=1)[:, None] + squares - 2 * rows @ second.T
        total += np.exp(-distances.clip(min=0) / (2 * bandwidth**2)).sum()
    return float(total / (len(first) * len(second)))


def _check(first: Features, second: Features) -> None:
    for name, features in (("first", first), ("second", second)):
        if features.ndim != 2 or len(features) < 2 or features.shape[1] != first.shape[-1]:
            raise ValueError(f"{name} must be features (N, D) with N at least 2 and one D, got {features.shape}")
        if not np.isfinite(features).all():
            raise ValueError(f"{name} must be finite; some features are not")


def _moments(features: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    features = features.astype(np.float64)
    return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))
