from __future__ import annotations

import numpy as np
import pytest
import torch

from hybridlib.miniature.scenes import render, sample_lone
from hybridlib.training import sanity
from hybridlib.training.mechanism import mean_cosine

RECIPE = sanity.Recipe(steps=60, batch_size=96, width=64, blocks=1, samples=240, step_counts=(1, 16))


@pytest.fixture(scope="module")
def world():
    scenes = sample_lone(480, seed=5, shapes=3, colours=2)
    labels = scenes.shape[:, 0] * 2 + scenes.colour[:, 0]
    captions = torch.cat([torch.eye(3).repeat_interleave(2, 0), torch.eye(2).repeat(3, 1)], dim=1)
    latents = sanity.linear_latents(render(scenes))
    return latents, labels, sanity.couplings(latents, labels, captions, passes=8)


def test_linear_latents_are_uncorrelated_channels_of_unit_spread(world):
    latents = world[0]
    assert latents.shape == (480, 4, 8, 8)
    flat = latents.permute(0, 2, 3, 1).reshape(-1, 4).double().numpy()
    np.testing.assert_allclose(np.cov(flat, rowvar=False), np.eye(4), atol=1e-4)


def test_every_arm_gives_rows_and_noise(world):
    rows = torch.arange(96)
    latents = world[0] - world[0].mean(dim=0)
    for name, arm in world[2].items():
        chosen, noise = arm(rows, torch.Generator().manual_seed(0))
        assert noise.shape == (96, 4, 8, 8), name
        assert ("semidiscrete" in name) or torch.equal(chosen, rows), name
        near = {"independent": 0, "farthest (control)": -1}.get(name, 1)
        assert np.sign(round(mean_cosine(latents[chosen], noise), 2)) == near, name
        for again, first in zip(arm(rows, torch.Generator().manual_seed(0)), (chosen, noise), strict=True):
            assert torch.equal(again, first), name


@pytest.mark.slow
def test_training_learns_and_depends_on_seed_and_coupling_only(world):
    latents, labels, arms = world
    models = [
        sanity.train(latents, labels, arms[name], seed, RECIPE)
        for name, seed in (("independent", 0), ("independent", 0), ("independent", 1), ("linear", 0))
    ]
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])
    untrained = sanity.train(latents, labels, arms["independent"], 0, RECIPE._replace(steps=1))
    before, after = (sanity.evaluate(model, latents, labels, 0, RECIPE) for model in (untrained, models[0]))
    assert after["FD 16"] < 0.7 * before["FD 16"]
    assert after["class error"] < 0.7 * before["class error"]


@pytest.mark.slow
def test_linear_assignment_straightens_paths(world):
    """The one claim that 60 steps of a small network can bear, in both seeds."""
    latents, labels, arms = world
    chosen = {name: arms[name] for name in ("independent", "linear")}
    table = sanity.experiment(latents, labels, chosen, seeds=(0, 1), recipe=RECIPE)
    assert table.columns.tolist() == ["coupling", "seed", "FD 1", "FD 16", "S", "class error"]
    straight = table.pivot(index="seed", columns="coupling", values="S")
    assert (straight["linear"] < 0.9 * straight["independent"]).all()
