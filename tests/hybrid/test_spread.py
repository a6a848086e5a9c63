"""How short lists scatter around a surface, on cubes whose scatter is known."""

from __future__ import annotations

import numpy as np
import pytest

from hybridlib.hybrid import spread
from hybridlib.hybrid.hiqm import Cube

SIGMAS = np.array([0.9, 0.5, 0.2])


def cube_of(rng, prompts=60, steered=0.05, single=0.02):
    """Quality that is 1 less .1, .2 and .3 at the three handovers, scattered by who steers and by who is steered."""
    vectors = rng.normal(size=(prompts, 16)) + 1.0
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    by_public = steered * rng.normal(size=(prompts, 1, 1))
    quality = 1 - np.array([0.1, 0.2, 0.3]) + by_public + single * rng.normal(size=(prompts, prompts, 3))
    quality[np.arange(prompts), np.arange(prompts)] = np.nan
    return Cube(quality, vectors @ vectors.T, np.array([1, 2, 3]), SIGMAS)


def fitted(x, similarity):
    """The truth: what is lost depends on the handover alone."""
    return np.interp(x, sorted(spread.log_snr(SIGMAS)), [0.9, 0.8, 0.7]) + 0 * similarity


def test_single_prompts_keep_the_bound_however_alike_they_are():
    """Scatter that is largest at middle similarity; a bound over all similarities, the control, misses it there."""
    rng = np.random.default_rng(0)

    def scattered(pairs):
        m = rng.uniform(0.2, 0.9, pairs)
        width = 0.02 + 0.1 * np.exp(-(((m - 0.55) / 0.1) ** 2))
        x, m = np.repeat([-2.0, 0.0, 2.0], pairs), np.tile(m, 3)
        return x, m, np.tile(width, 3) * rng.normal(size=3 * pairs)

    x, m, residuals = scattered(1000)
    bands = spread.of_cells(x, m, residuals, 10**6)
    one = spread.of_cells(x, np.full(len(m), 0.5), residuals, 10**6)
    assert bands.residuals.shape == (5, 3, 99)
    x, m, fresh = scattered(20_000)
    kept, kept_by_one = (fresh >= found.at(x, m, 0.1) for found in (bands, one))
    assert kept.mean() > 0.9
    middle = np.abs(m - 0.55) < 0.05
    assert kept[middle].mean() > 0.84  # 200 pairs a band, whose scatter is not the same all over it
    assert kept_by_one[middle].mean() < 0.8
    assert spread.of_cells(x[:70], m[:70], fresh[:70], 10**6).residuals.shape[0] == 1  # too few for bands


@pytest.mark.parametrize("prompts", [11, 24])
def test_a_further_prompt_keeps_the_bound_of_few(prompts):
    """Each prompt errs alike in all its pairs; the plain quantile, the control, is passed too often."""
    rng, kept, plain = np.random.default_rng(prompts), [], []
    for _ in range(2000):
        errors = np.repeat(rng.normal(size=prompts), 3)
        x, m = np.zeros(len(errors)), np.full(len(errors), 0.5)
        bound = spread.of_cells(x, m, errors, prompts).at(np.zeros(1), np.full(1, 0.5), 0.1)[0]
        kept.append(rng.normal() >= bound)
        plain.append(rng.normal() >= np.quantile(errors, 0.1))
    assert np.mean(kept) == pytest.approx(0.9, abs=0.025)  # 2,000 tries: standard error .007
    assert np.mean(plain) < np.mean(kept) - 0.02


@pytest.mark.parametrize("way", [0, 1, 2])
def test_fresh_lists_of_every_kind_keep_the_bound(way):
    """Nine of ten, or more, as the bound is for the worst kind; the fitted mean itself, the control, holds for half."""
    rng = np.random.default_rng(way)
    kept, middle = [], []
    for _ in range(12):
        both = cube_of(rng)
        known, fresh = both.of(np.arange(30)), both.of(np.arange(30, 60))
        bound = spread.of_lists(known, fitted).at(spread.log_snr(SIGMAS), np.full(3, 0.5), 0.1)
        lists = list(spread._drawn(fresh.similarity, rng))[way]
        errors = fresh.quality - fitted(spread.log_snr(SIGMAS)[None, None, :], fresh.similarity[:, :, None])
        means = np.array([errors[head, rest].mean(axis=0) for head, rest in lists])
        kept.append((means >= bound).mean())
        middle.append((means >= 0).mean())
    assert np.mean(kept) >= 0.87  # thirty prompts steer, so the tenth percentile is itself known to a few points
    assert np.mean(middle) == pytest.approx(0.5, abs=0.12)


def test_lists_are_alike_random_and_unlike():
    cube = cube_of(np.random.default_rng(0))

    def alike(lists):
        chosen = [np.append(rest, head) for head, rest in lists]
        blocks = [cube.similarity[np.ix_(members, members)] for members in chosen]
        return np.mean([(block.sum() - len(block)) / (len(block) * (len(block) - 1)) for block in blocks])

    near, random, far = (alike(lists) for lists in spread._drawn(cube.similarity, np.random.default_rng(0)))
    assert near > random + 0.05
    assert random > far + 0.02
    head, rest = spread._steered(cube.similarity, np.array([4, 7, 9]))
    sums = {a: sum(cube.similarity[a, b] for b in (4, 7, 9) if b != a) for a in (4, 7, 9)}
    assert head == max(sums, key=sums.get)
    assert sorted([head, *rest]) == [4, 7, 9]


def test_too_few_prompts_tell_nothing_of_lists():
    assert spread.of_lists(cube_of(np.random.default_rng(0), prompts=5), fitted) is None
