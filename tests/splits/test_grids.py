"""Splits as published: counts, orders, sharing, and what is refused."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from factories import diffusion_scheduler, random_sd, random_unet
from reference.split_loop import split_latents

from hybridlib.denoising.sampler import sample
from hybridlib.denoising.tree import Tree
from hybridlib.splits import grids

PROMPT = "a red ring on snow"


@pytest.mark.parametrize("family", grids.PUBLISHED)
def test_published_splits_sum_to_the_published_schedule(family):
    steps = 8 if family == "lcm" else 25
    made = grids.divisions(grids.PUBLISHED[family], steps)
    assert [d.large_steps for d in made] == sorted(d.large_steps for d in made)
    assert {d.large_steps + d.small_steps for d in made} == {steps}
    assert [d.large_steps for d in made][:: len(made) - 1] == [0, steps]  # both ends


@pytest.mark.parametrize(
    ("setting", "evaluated"), zip(grids.PUBLISHED_THINNED.values(), [(17, 37), (11, 36), (17, 38)], strict=True)
)
def test_published_cloud_evaluations(setting, evaluated):
    """EC-Diff's defaults on 50 steps: 17 of 37, 11 of 36, 17 of 38."""
    division = grids.thinned(setting, 50)
    assert (division.large_evaluated, division.large_steps) == evaluated
    cost = Tree([division.trajectory(PROMPT, 1)]).cost
    assert cost.of(grids.LARGE).tree == 2 * evaluated[0]
    assert cost.of(grids.SMALL).tree == 2 * (50 - evaluated[1])


@pytest.mark.parametrize("kind", [DDIMScheduler, LCMScheduler])
def test_rows_are_hand_written_loops(kind):
    """Both orders and a mask through the sampler at once, against the loop without hybridlib."""
    embedded = {"time_cond_proj_dim": 16} if kind is LCMScheduler else {}
    pipeline = random_sd(scheduler=diffusion_scheduler(kind), **embedded)
    small = random_unet(width=16, seed=5, **embedded)
    networks = {grids.LARGE: pipeline.unet, grids.SMALL: small}
    made = grids.divisions(["1,3", "4,0", "0,4"], 4, ["1,3"], masks=["LSSL"])
    table = grids.grid({0: PROMPT, 1: "a ring"}, [3, 4], made, 4.0)
    samples = sample(pipeline, list(table["trajectory"]), denoisers={"small": small}, progress=False)
    for row in (0, 5, 9, 13, 16):  # one of each division
        trajectory, prompt = table["trajectory"][row], table["prompt"][row]
        who = [networks[s.denoiser] for s in trajectory.segments]
        numbers = [s.stop - s.start for s in trajectory.segments]
        expected = split_latents(pipeline, who, numbers, prompt, trajectory.seed, 4.0)
        # float rounding of a larger batch; latents of random networks reach far
        limit = 1e-5 * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(samples.latents()[row : row + 1], expected, rtol=0, atol=limit)
    shared = samples.cost
    assert shared.tree < shared.one_at_a_time  # "4,0", "1,3" and the mask begin alike


def test_the_same_split_costs_the_same_in_both_orders():
    for split in ("5,20", "20,5"):
        first, second = (
            Tree([make(split).trajectory(PROMPT, 1)]).cost for make in (grids.large_first, grids.small_first)
        )
        assert {c.denoiser: c.tree for c in first.by_denoiser} == {c.denoiser: c.tree for c in second.by_denoiser}
    assert [part[0] for part in grids.small_first("5,20").parts] == [grids.SMALL, grids.LARGE]


def test_a_grid_pairs_prompts_and_seeds():
    made = grids.divisions(["10,15", "25,0"], 25, ["10,15"], ["4,2,0.3,18"], ["L" * 5 + "S" * 20])
    table = grids.grid({0: "a ring", 1: "a star"}, [1, 2, 3], made)
    assert table["path"].is_unique
    assert len(table) == 5 * 2 * 3
    pairs = table.groupby(["method", "split"])[["prompt", "seed"]].apply(lambda part: set(map(tuple, part.to_numpy())))
    assert all(found == pairs.iloc[0] for found in pairs)
    assert table.set_index(["method", "split"])["common_step"].groupby(level=[0, 1]).first().to_dict() == {
        ("large first", "10,15"): 10,
        ("large first", "25,0"): 25,
        ("small first", "10,15"): 15,
        ("thinned", "4,2,0.3,18"): 18,
        ("mask", "L" * 5 + "S" * 20): 5,
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grids.large_first("10,14"), "must sum to num_inference_steps=25, got '10,14', which makes 24"),
        (lambda: grids.small_first("10"), "a split must be two whole numbers, such as '10,15', got '10'"),
        (lambda: grids.large_first("-5,30"), "a split must be two whole numbers"),
        (lambda: grids.masked("LSX", 3), r"a mask must be 3 letters, each L or S, got 'LSX' \(3\)"),
        (lambda: grids.masked("LS", 3), r"a mask must be 3 letters"),
        (lambda: grids.thinned("7,2,0.3"), "must be 'p,k,alpha,s', such as"),
        (lambda: grids.thinned("7,2,0.3,37,1", 50), "must be 'p,k,alpha,s', such as"),
        (lambda: grids.thinned("7,2,0.3,37"), "needs p <= s <= num_inference_steps=25, got p=7, s=37"),
        (lambda: grids.thinned("1,2,0.3,20"), "warm_up must be at least 2, got 1"),
        (lambda: grids.divisions(["10,15", "10,15"]), "large first 10,15 occurs twice"),
        (lambda: grids.divisions(["10,15"], masks=["L" * 10 + "S" * 15]), "mask L+S+ occurs twice"),
        (lambda: grids.divisions([], 25, ["25,0"]), "small first 25,0 has one denoiser alone"),
    ],
)
def test_bad_splits_are_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()
