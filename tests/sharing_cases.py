"""A quality surface and a comparison of prompts made by hand, for planned trees."""

from __future__ import annotations

import zlib

import numpy as np

from hybridlib.hybrid import planning
from hybridlib.hybrid.sharing.planner import MINI_SHIFT

STEPS = 28
EVEN = np.linspace(1, 1 / 1000, STEPS)
SIGMAS = MINI_SHIFT * EVEN / (1 + (MINI_SHIFT - 1) * EVEN)  # SD3's rule of a shift, written out
TRUTH = np.array([1.0, 0.0, 0.6, 1.0, 1.0, 1.5])  # U, c0, c1, k, a0, a1: similarity helps
PROMPTS = [
    f"a {size} {colour} {shape} on {ground}"
    for size in ("large", "small")
    for colour in ("red", "blue", "green")
    for shape in ("star", "circle")
    for ground in ("snow", "sand")
]


def surface_of(parameters=TRUTH, similarity_range=(0.2, 0.9), scatter=0.1, model=""):
    replicates = parameters + np.random.default_rng(0).normal(0, 0.01, (20, 6))
    shares = np.linspace(0.01, 0.99, 99)
    residuals = np.outer([0.0, scatter], 2 * shares - 1)[None]
    spread = planning.Spread(np.array([-32.0, 0.0]), shares, residuals, np.array([0.5]))
    return planning.QualitySurface(
        parameters, replicates, similarity_range, np.arange(STEPS), SIGMAS, 0.1, spread, model
    )


SURFACE = surface_of()


def words(texts):
    """Sums of a fixed random vector a word: prompts with common words are alike."""
    return np.array(
        [sum(np.random.default_rng(zlib.crc32(w.encode())).normal(size=64) for w in t.split()) for t in texts]
    )
