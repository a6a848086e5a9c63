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
    for name, features in (("first", first), ("second", second)):
        if features.ndim != 2 or len(features) < 2 or features.shape[1] != first.shape[-1]:
            raise ValueError(f"{name} must be features (N, D) with N at least 2 and one D, got {features.shape}")
        if not np.isfinite(features).all():
            raise ValueError(f"{name} must be finite; some features are not")
    mean, covariance = _moments(first)
    other_mean, other_covariance = _moments(second)
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ other_covariance @ root).clip(min=0)
    spread = np.trace(covariance) + np.trace(other_covariance) - 2 * np.sqrt(product).sum()
    return float(np.square(mean - other_mean).sum() + spread)


def _moments(features: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    features = features.astype(np.float64)
    return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))
