from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import ncx2, pearsonr
from sklearn.decomposition import PCA

from hybridlib.training import mechanism as m
from hybridlib.training.assignment import assign_noise


def normal(*shape, seed=7):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [64, 1024])
@pytest.mark.parametrize("std", [0.2, 1.0, 3.0])
def test_expected_distance_is_exact(size, std):
    """The squared distance to fresh noise is noncentral chi-squared; its root is integrated numerically."""
    x = std * normal(1, size).double()
    law = ncx2(size, float(x.square().sum()))
    grid = np.linspace(max(0, law.mean() - 12 * law.std()), law.mean() + 12 * law.std(), 20_001)
    exact = np.trapezoid(np.sqrt(grid) * law.pdf(grid), grid)
    noise = x + torch.nn.functional.normalize(normal(1, size, seed=2).double(), dim=1) * 0.9 * exact
    assert m.distance_reduction(x, noise) == pytest.approx(0.1, abs=1 / size**2)


def test_independent_pairs_show_nothing_and_near_pairs_do():
    x, e = normal(500, 4, 8), normal(500, 4, 8, seed=8)
    labels = torch.arange(500) % 5
    x = x + 0.8 * normal(5, 4, 8, seed=3)[labels]
    means = torch.stack([x[labels == i].mean(dim=0) for i in range(5)])
    independent = m.mechanism(x, e, means, labels)
    # standard errors: 1 / sqrt(500 * 32), twice that, 1 / sqrt(2 * 500 * 32), 1 / sqrt(500)
    assert independent == pytest.approx((0, 0, 1, 0), abs=0.1)
    assert abs(independent.mean_cosine) < 0.03
    assert independent.noise_std == pytest.approx(1, abs=0.02)
    near = m.mechanism(x, assign_noise(x, generator=torch.Generator().manual_seed(1)), means, labels)
    assert near.mean_cosine > 0.3
    assert near.distance_reduction > 0.1
    assert near.class_shift > 0.5
    within = assign_noise(x, condition=labels, generator=torch.Generator().manual_seed(1))
    assert abs(m.mechanism(x, within, means, labels).class_shift) < 0.15
    assert math.isnan(m.mechanism(x, e).class_shift)


def test_noise_std_and_cosine_by_hand():
    assert m.noise_std(torch.tensor([[3.0, 4.0]])) == pytest.approx(math.sqrt(12.5))
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert m.mean_cosine(x, torch.tensor([[1.0, 1.0], [0.0, -3.0]])) == pytest.approx((math.sqrt(0.5) - 1) / 2)


def test_class_shift_by_hand():
    """Two classes at +-(1, 0) around a common mean: noise moved by 0.3 towards its own class shifts by 0.3."""
    means = torch.tensor([[5.0, 1.0], [3.0, 1.0]])
    labels = torch.tensor([0, 1, 1])
    noise = torch.tensor([[0.3, 9.0], [-0.3, 9.0], [-0.3, -2.0]])
    assert m.class_shift(noise, means, labels) == pytest.approx(0.3)


@pytest.mark.parametrize("shape", [(200, 4, 5), (30, 4, 20)])
def test_principal_components_are_sklearns(shape):
    x = normal(*shape) * torch.linspace(3, 0.1, shape[-1])
    components, shares = m.principal_components(x, 5)
    theirs = PCA(5).fit(x.flatten(1).double().numpy())
    np.testing.assert_allclose(shares, theirs.explained_variance_ratio_, rtol=1e-5)
    np.testing.assert_allclose(np.abs((components.double().numpy() * theirs.components_).sum(axis=1)), 1, rtol=1e-5)


def test_component_correlation_is_pearsons():
    x, e = normal(100, 3, 4), normal(100, 3, 4, seed=1)
    e = e + 0.5 * x
    components, _ = m.principal_components(x, 3)
    found = m.component_correlation(x, e, components)
    for i, component in enumerate(components):
        expected = pearsonr(x.flatten(1) @ component, e.flatten(1) @ component).statistic
        assert found[i] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("size", [256, 1024])
def test_correlation_on_leading_components_depends_on_their_share_not_on_the_size(size):
    """Section 4: about c_B sqrt(share) where that is small; 256 rows, c_B = 2.68, share 2 %: 0.38.

    The formula is for small correlations, and this one saturates a little.
    """
    scales = torch.ones(size)
    scales[0] = math.sqrt(0.02 * (size - 1) / 0.98)
    x = normal(2048, size) * scales
    noise = torch.cat(
        [assign_noise(part, generator=torch.Generator().manual_seed(i)) for i, part in enumerate(x.split(256))]
    )
    found = m.component_correlation(x, noise, torch.eye(size)[:1])
    assert float(found) == pytest.approx(2.68 * math.sqrt(0.02), rel=0.15)


def test_marginals_hold_for_normal_noise_only():
    components = torch.linalg.qr(normal(20, 20))[0][:3]
    held = [m.marginal(normal(2000, 4, 5, seed=seed), components).holds for seed in range(200)]
    assert sum(held) >= 197  # one in 1,000 fails by chance
    noise = normal(2000, 4, 5).flatten(1)
    along = noise @ components.T
    assert not m.marginal(noise + 0.15 * components[1], components).holds
    assert not m.marginal(noise + 0.1 * along[:, 2:] * components[2], components).holds
    assert not m.marginal(noise - 0.1 * along[:, 2:] * components[2], components).holds
    assert m.marginal(noise + 0.15 * components[1], components[2:]).holds
