from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from hybridlib.metrics.distribution import cmmd, frechet_distance


def textbook(a, b):
    (m1, s1), (m2, s2) = ((x.mean(axis=0), np.cov(x, rowvar=False)) for x in (a, b))
    return np.square(m1 - m2).sum() + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)


def test_equals_the_formula_with_scipys_root():
    generator = np.random.default_rng(0)
    a = generator.normal(size=(400, 12)) @ generator.normal(size=(12, 12))
    b = generator.normal(size=(300, 12)) @ generator.normal(size=(12, 12)) + 0.5
    assert frechet_distance(a, b) == pytest.approx(textbook(a, b), rel=1e-8)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-8)
    assert frechet_distance(a.astype(np.float32), b) == pytest.approx(textbook(a, b), rel=1e-4)


def test_by_hand():
    """Points at +-1 on an axis, with n - 1 in the variance: (2 - 0)^2 + (sqrt(2) - sqrt(8))^2 = 4 + 2."""
    a, b = np.array([[-1.0], [1.0]]), np.array([[0.0], [4.0]])
    assert frechet_distance(a, b) == pytest.approx(4 + (np.sqrt(2) - np.sqrt(8)) ** 2)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_fewer_rows_than_features_are_no_trouble():
    """A singular product, where the plain root turns complex."""
    generator = np.random.default_rng(1)
    a, b = generator.normal(size=(2, 20, 50))
    # 31 eigenvalues of rounding size, 1e-15, have roots of 3e-8 each
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(a, a + 3) == pytest.approx(9 * 50, rel=1e-6)
    assert frechet_distance(a, b) > 10


def test_bad_features_are_refused():
    good = np.ones((4, 3))
    for bad in (np.ones((4, 2)), np.ones((1, 3)), np.ones(3)):
        with pytest.raises(ValueError, match="second must be features"):
            frechet_distance(good, bad)
    with pytest.raises(ValueError, match="first must be finite"):
        frechet_distance(np.full((4, 3), np.nan), good)


def by_loop(a, b, bandwidth=10.0):
    """Gretton et al. 2012, equation 5, pair by pair."""

    def kernel(x, y):
        return np.mean([[np.exp(-np.square(p - q).sum() / (2 * bandwidth**2)) for q in y] for p in x])

    return 1000 * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))


@pytest.mark.parametrize("block", [3, 4096])
def test_cmmd_is_the_sum_over_pairs(block):
    generator = np.random.default_rng(2)
    a, b = generator.normal(size=(17, 6)), generator.normal(size=(11, 6)) + 0.7
    assert cmmd(a, b, block=block) == pytest.approx(by_loop(a, b), rel=1e-9)
    assert cmmd(a, b, bandwidth=0.5, block=block) == pytest.approx(by_loop(a, b, 0.5), rel=1e-9)
    assert cmmd(a, b) != pytest.approx(by_loop(a, b, 5.0), rel=0.1)  # the control: the bandwidth matters
    assert cmmd(a.astype(np.float32), b) == pytest.approx(by_loop(a, b), rel=1e-4)


def test_cmmd_sees_what_the_frechet_distance_does_not():
    """Two peaks against one normal of the same mean and variance: the moments agree, the distributions do not."""
    generator = np.random.default_rng(3)
    peaks = np.sign(generator.normal(size=(2000, 1))) + 0.1 * generator.normal(size=(2000, 1))
    normal = generator.normal(size=(2000, 1)) * peaks.std() + peaks.mean()
    same = generator.permutation(np.concatenate([peaks, normal]))
    assert frechet_distance(peaks, normal) < 0.01
    assert cmmd(peaks, normal, bandwidth=0.5) > 20 * cmmd(same[:2000], same[2000:], bandwidth=0.5)
    assert cmmd(peaks, peaks) == pytest.approx(0, abs=1e-9)


def test_cmmd_refuses_bad_arguments():
    with pytest.raises(ValueError, match="bandwidth must be positive, got 0"):
        cmmd(np.ones((3, 2)), np.ones((3, 2)), bandwidth=0)
    with pytest.raises(ValueError, match="second must be features"):
        cmmd(np.ones((3, 2)), np.ones((3, 1)))
