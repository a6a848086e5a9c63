"""Thinned segments: EC-Diff written out by hand, sharing, counting, and what is refused."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchHeunDiscreteScheduler
from factories import diffusion_scheduler, random_sd, random_sd3, random_unet

from hybridlib.codecs import MinMax
from hybridlib.denoising.sampler import sample
from hybridlib.denoising.thinning import Thinning
from hybridlib.denoising.trajectory import Segment, Trajectory
from hybridlib.denoising.tree import Tree

PROMPT, STEPS = "a red ring on snow", 12


@torch.no_grad()
def ec_diff(pipeline, small, seed, scale, p, k, alpha, s, steps=STEPS):
    """The published loop (arXiv 2507.11980) without hybridlib: latents, and evaluations of the large network."""
    scheduler = copy.deepcopy(pipeline.scheduler)
    scheduler.set_timesteps(steps)
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(seed))
    texts = torch.cat(pipeline.encode_prompt(PROMPT, "cpu", 1, True, "")[::-1])
    cache, g, asked = [], None, 0
    for i, t in enumerate(scheduler.timesteps):
        if i < s and i >= p and (i - p + 1) % (k + 1):
            e = cache[-1] + g
        else:
            network = pipeline.unet if i < s else small
            without, text = network(torch.cat([latents] * 2), t, texts, return_dict=False)[0].chunk(2)
            e = without + scale * (text - without)
            asked += i < s
            if i >= 1:
                g = (alpha if i >= p else 1.0) * (e - cache[-1])
        cache.append(e)
        latents = scheduler.step(e, t, latents, return_dict=False)[0]
    return latents, asked


def thinned(p, k, alpha, s, steps=STEPS, seed=3, prompt=PROMPT):
    segments = [Segment(prompt, 0, s, 4.0, thinning=Thinning(p, k, alpha))]
    if s < steps:
        segments.append(Segment(prompt, s, steps, 4.0, denoiser="small"))
    return Trajectory(seed, tuple(segments))


@pytest.fixture(scope="module", params=[DDIMScheduler, DPMSolverMultistepScheduler])
def pair(request):
    return random_sd(scheduler=diffusion_scheduler(request.param)), random_unet(width=16, seed=5)


@pytest.mark.parametrize("setting", [(2, 1, 0.3, 9), (3, 2, 0.2, 12), (2, 5, 0.0, 7)])
def test_a_thinned_segment_is_the_published_loop(pair, setting):
    pipeline, small = pair
    expected, asked = ec_diff(pipeline, small, 3, 4.0, *setting)
    samples = sample(pipeline, [thinned(*setting)], denoisers={"small": small}, progress=False)
    assert torch.equal(samples.latents(), expected)
    assert samples.cost.of("").tree == 2 * asked
    assert samples.cost.of("small").tree == 2 * (STEPS - setting[3])
    whole = sample(pipeline, [Trajectory.plain(PROMPT, 3, 4.0, "", STEPS)], progress=False).latents()
    assert not torch.allclose(whole, expected, rtol=1e-2, atol=1e-2)  # thinning does change something


@pytest.mark.parametrize(
    ("setting", "evaluations"), [((7, 2, 0.3, 37), 17), ((6, 5, 0.2, 36), 11), ((10, 3, 0.2, 38), 17)]
)
def test_published_evaluation_counts(setting, evaluations):
    """EC-Diff's defaults for SD1.4, SDXL and CogVideoX at 50 DDIM steps."""
    path = thinned(*setting, steps=50)
    assert path.segments[0].evaluated == evaluations
    assert Tree([path]).cost.of("").tree == 2 * evaluations
    assert path.nfe == 2 * (evaluations + 50 - setting[3])


@pytest.mark.slow
def test_rows_share_what_they_evaluate_alike_and_each_is_itself(pair):
    """Thinned beside plain, other strengths and other prompts: each row as alone, the common warm-up once."""
    pipeline, small = pair
    paths = [
        thinned(3, 1, 0.3, 9),
        thinned(3, 1, 0.5, 9),  # parts from the first when the changed slope is first used
        thinned(5, 2, 0.3, 9),
        thinned(3, 1, 0.3, 9, prompt="a ring"),
        Trajectory.plain(PROMPT, 3, 4.0, "", STEPS),
    ]
    counts, forward = [], pipeline.unet.forward
    pipeline.unet.forward = lambda *a, **k: counts.append(len(a[0])) or forward(*a, **k)
    try:
        samples = sample(pipeline, paths, denoisers={"small": small}, progress=False)
    finally:
        pipeline.unet.forward = forward
    assert sum(counts) == samples.cost.of("").tree < samples.cost.of("").one_at_a_time
    for row, path in enumerate(paths):
        alone = sample(pipeline, [path], denoisers={"small": small}, progress=False).latents()
        # float rounding of another batch, as every row of a shared tree has it; latents reach far
        torch.testing.assert_close(samples.latents()[row : row + 1], alone, rtol=1e-4, atol=1e-4)


def test_thinning_survives_json_and_a_ledger_tells_it_apart():
    path = thinned(3, 1, 0.3, 9)
    assert Trajectory.from_json(json.loads(json.dumps(path.as_json()))) == path
    assert "thinning" not in Trajectory.plain(PROMPT, 3).as_json()["segments"][0]
    assert path.as_json() != thinned(3, 1, 0.5, 9).as_json()
    broken = path.as_json()
    broken["segments"][0]["thinning"] = [3, 1]
    with pytest.raises(ValueError, match=r"thinning must be warm_up, skip and alpha, got \[3, 1\]"):
        Trajectory.from_json(broken)


def test_a_state_is_taken_around_a_thinned_segment_but_not_inside(pair):
    pipeline, small = pair
    samples = sample(pipeline, [thinned(3, 1, 0.3, 9)], denoisers={"small": small}, keep=[5, 9], progress=False)
    with pytest.raises(ValueError, match=r"cannot be taken after 5 updates, inside a thinned segment \(0 to 9\)"):
        samples.state(0, 5)
    rest = Trajectory(3, (Segment(PROMPT, 9, STEPS, 4.0, denoiser="small"),))
    resumed = sample(
        pipeline,
        [rest],
        denoisers={"small": small},
        resume=samples.state(0, 9),
        num_inference_steps=STEPS,
        progress=False,
    )
    assert torch.equal(resumed.latents(), samples.latents())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Thinning(1, 2, 0.3), "warm_up must be at least 2, got 1"),
        (lambda: Thinning(7, 0, 0.3), "skip must be at least 1, got 0"),
        (lambda: Thinning(7, 2, float("nan")), "alpha must be finite and not negative, got nan"),
        (lambda: Thinning(7, 2, -0.1), "alpha must be finite and not negative, got -0.1"),
        (
            lambda: thinned(3, 1, 0.3, 9).with_codec(4, MinMax(4)),
            "a thinned segment cannot be cut: .* 0 to 9, not 0..4",
        ),
        (lambda: thinned(3, 1, 0.3, 9).with_denoisers([("", 4), ("small", 8)]), "a thinned segment cannot be cut"),
    ],
)
def test_bad_thinnings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_types_are_told():
    with pytest.raises(TypeError, match="warm_up must be a whole number of steps, got 2.5"):
        Thinning(2.5, 1, 0.3)
    with pytest.raises(TypeError, match="alpha must be a number, got 'x'"):
        Thinning(2, 1, "x")
    with pytest.raises(TypeError, match="thinning must be a Thinning"):
        Segment("a", 0, 5, thinning=(2, 1, 0.3))


def test_a_codec_may_follow_a_thinned_segment():
    coded = thinned(3, 1, 0.3, 9).with_codec(9, MinMax(4))
    assert coded.segments[1].codec == MinMax(4)
    assert coded.segments[0] == thinned(3, 1, 0.3, 9).segments[0]


def test_a_solver_that_evaluates_twice_is_refused():
    pipeline = random_sd3()
    pipeline.scheduler = FlowMatchHeunDiscreteScheduler()
    path = Trajectory(3, (Segment(PROMPT, 0, 5, 4.0, thinning=Thinning(2, 1, 0.3)),))
    with pytest.raises(ValueError, match="FlowMatchHeunDiscreteScheduler evaluates 2 times an update: thinning needs"):
        sample(pipeline, [path], progress=False)
