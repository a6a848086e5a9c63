from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import kstest, norm

from hybridlib.training.mechanism import marginal, mean_cosine, principal_components
from hybridlib.training.semidiscrete import SemidiscreteCoupling


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def data(rows=300, size=24, seed=3):
    """Latents (rows, 4, 6) with a few strong directions, norms that differ, and 3 classes of unequal size."""
    generator = seeded(seed)
    labels = (torch.rand(rows, generator=generator) * 1.7).pow(2).long()
    scales = 3 * torch.arange(1, size + 1).pow(-0.8)
    codes = torch.randn(rows, size, generator=generator) * (0.5 + torch.rand(rows, 1, generator=generator))
    return ((codes + 0.8 * labels[:, None]) * scales).view(rows, 4, 6), labels


@pytest.fixture(scope="module")
def fitted():
    latents, labels = data()
    captions = torch.eye(3)[labels]
    return {
        "none": SemidiscreteCoupling.fit(latents, passes=200, batch_size=256),
        "groups": SemidiscreteCoupling.fit(latents, labels, passes=200, batch_size=256),
        "captions": SemidiscreteCoupling.fit(latents, captions, 0.5, passes=200, batch_size=256),
    }


KINDS = ["none", "groups", "captions"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_latent_is_drawn_equally_often(fitted, kind):
    """Without potentials, the control, latents of large norm take most of the noise."""
    coupling = fitted[kind]
    zero = SemidiscreteCoupling(coupling.latents, torch.zeros(300), coupling.condition, coupling.condition_weight)
    draws = 30_000  # standard deviation of the estimate: sqrt(600) / 30,000 = 0.0008
    assert coupling.chi_squared(draws) < 0.03
    assert zero.chi_squared(draws) > 1


def test_chi_squared_is_that_of_the_frequencies(fitted):
    """Against the plain estimate from many draws, whose bias, N / draws, is known."""
    latents, _ = data()
    zero = SemidiscreteCoupling(latents, torch.zeros(300))
    rows, _ = zero.draw(50_000, seeded(5))
    share = rows.bincount(minlength=300).double() / 50_000
    plain = float((300 * share.square()).sum() - 1) - 300 / 50_000
    assert zero.chi_squared(50_000) == pytest.approx(plain, rel=0.03)
    assert abs(SemidiscreteCoupling(latents, torch.zeros(300), torch.arange(300)).chi_squared(20_000)) < 0.01


def test_potentials_on_a_line_are_known():
    """In one dimension the optimal coupling is monotone: of N points, the i-th takes the i-th N-th of the normal, so
    neighbours differ in potential by the boundary between their cells times their distance."""
    points = torch.tensor([-2.0, -0.5, 0.1, 0.7, 3.0])
    shuffled = torch.tensor([3, 0, 4, 1, 2])
    coupling = SemidiscreteCoupling.fit(points[shuffled][:, None], passes=60_000, batch_size=1024)
    boundaries = torch.tensor(norm.ppf([0.2, 0.4, 0.6, 0.8]), dtype=torch.float32)
    expected = torch.cat([torch.zeros(1), -(boundaries * points.diff()).cumsum(0)])
    found = coupling.potential[shuffled.argsort()]
    # 150,000 noises after the first half: a boundary is known to about 0.01, times distances up to 2.3
    torch.testing.assert_close(found - found.mean(), expected - expected.mean(), atol=0.04, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_each_noise_goes_to_the_largest_inner_product_plus_potential(fitted, kind):
    coupling = fitted[kind]
    latents, labels = data()
    rows, noise = coupling.draw(50, seeded(8))
    own = torch.randint(300, (50,), generator=seeded(8))
    flat = latents.flatten(1).double()
    unit = (flat - flat.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    for row, e, asked in zip(rows, noise, own, strict=True):
        score = flat @ e.flatten().double() + coupling.potential
        if kind == "groups":
            score[labels != labels[asked]] = -torch.inf
        if kind == "captions":
            score = score - 0.5 * unit * (labels != labels[asked])
        assert row == score.argmax()


@pytest.mark.parametrize("kind", KINDS)
def test_the_noise_is_exactly_normal_and_near(fitted, kind):
    coupling = fitted[kind]
    rows, noise = coupling.draw(4096, seeded(8))
    components, _ = principal_components(coupling.latents, 4)
    assert marginal(noise, components).holds
    assert kstest(noise.flatten().numpy(), "norm").pvalue > 0.001
    assert mean_cosine(coupling.latents[rows], noise) > 0.25
    latents, labels = data()
    if kind == "groups":  # also within a class; without groups it is not, which is the control
        assert all(marginal(noise[labels[rows] == label], components).holds for label in range(3))
        rows, noise = SemidiscreteCoupling(latents, torch.zeros(300)).draw(4096, seeded(8))
        assert not marginal(noise[labels[rows] == 0], components).holds


def test_groups_keep_their_shares(fitted):
    _, labels = data()
    rows, _ = fitted["groups"].draw(20_000, seeded(3))
    share = labels[rows].bincount(minlength=3) / 20_000
    expected = labels.bincount(minlength=3) / 300
    torch.testing.assert_close(share, expected, atol=0.015, rtol=0)  # four standard errors of 0.0035


@pytest.mark.parametrize("kind", KINDS)
def test_fits_and_draws_are_the_same_each_time(kind):
    latents, labels = data(60)
    condition = {"none": None, "groups": labels, "captions": torch.eye(3)[labels]}[kind]
    weight = 0.5 if kind == "captions" else None
    first, second, other = (
        SemidiscreteCoupling.fit(latents, condition, weight, passes=3, batch_size=32, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first.potential, second.potential)
    assert not torch.equal(first.potential, other.potential)
    for a, b in zip(first.draw(7, seeded(1)), second.draw(7, seeded(1)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_draws_are_like_the_latents(dtype):
    latents = data(40)[0].to(dtype).requires_grad_()
    coupling = SemidiscreteCoupling.fit(latents, passes=2, batch_size=16)
    rows, noise = coupling.draw(5, seeded())
    assert (noise.shape, noise.dtype, noise.requires_grad) == ((5, 4, 6), dtype, False)
    assert rows.dtype == torch.int64
    assert coupling.potential.isfinite().all()


def test_one_latent_takes_all():
    coupling = SemidiscreteCoupling.fit(torch.ones(1, 4))
    assert coupling.draw(3, seeded())[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_saved_couplings_come_back_the_same(fitted, kind, tmp_path):
    coupling, path = fitted[kind], tmp_path / "potential.safetensors"
    coupling.save(path)
    loaded = SemidiscreteCoupling.load(path, coupling.latents, coupling.condition)
    assert torch.equal(loaded.potential, coupling.potential)
    assert loaded.condition_weight == coupling.condition_weight
    for a, b in zip(coupling.draw(9, seeded(4)), loaded.draw(9, seeded(4)), strict=True):
        assert torch.equal(a, b)


def test_other_data_and_other_files_are_refused(fitted, tmp_path):
    path = tmp_path / "potential.safetensors"
    fitted["groups"].save(path)
    latents, labels = data()
    changed = latents.clone()
    changed[17, 2, 3] += 1e-3
    for other in (
        (changed, labels),
        (latents, 1 - labels),
        (latents, None),
        (latents.flatten(1), labels),
        (latents[:9], labels[:9]),
    ):
        with pytest.raises(ValueError, match="was fitted to other latents or conditions"):
            SemidiscreteCoupling.load(path, *other)
    for damage in (path.read_bytes()[:-40], b"no safetensors", b""):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match="is no semidiscrete coupling"):
            SemidiscreteCoupling.load(path, latents, labels)
    save_file({"potential": torch.zeros(300)}, path)
    with pytest.raises(ValueError, match="is no semidiscrete coupling"):
        SemidiscreteCoupling.load(path, latents, labels)
    with pytest.raises(ValueError, match="is no semidiscrete coupling"):
        SemidiscreteCoupling.load(tmp_path / "missing", latents, labels)


def test_bad_arguments_are_refused():
    latents, labels = data(10)
    with pytest.raises(ValueError, match="latents must be finite"):
        SemidiscreteCoupling.fit(latents / 0)
    with pytest.raises(ValueError, match="integer condition must have shape .10,., got .3."):
        SemidiscreteCoupling.fit(latents, labels[:3])
    with pytest.raises(ValueError, match="need a finite condition_weight"):
        SemidiscreteCoupling.fit(latents, torch.eye(10))
    with pytest.raises(ValueError, match="passes must be at least 1, got 0"):
        SemidiscreteCoupling.fit(latents, passes=0)
    with pytest.raises(ValueError, match="potential must be finite of shape .10,., got .9."):
        SemidiscreteCoupling(latents, torch.zeros(9))
    coupling = SemidiscreteCoupling(latents, torch.zeros(10))
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        coupling.draw(0)
    with pytest.raises(ValueError, match="draws must be at least 2, got 1"):
        coupling.chi_squared(1)
