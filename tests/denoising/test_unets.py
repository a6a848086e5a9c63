"""UNet denoisers under every scheduler that they can be walked with, against stock diffusers."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from factories import diffusion_scheduler, random_sd, random_sd3, random_sdxl
from reference.stock import DRIFT

from hybridlib.denoising.families import denoiser_of
from hybridlib.denoising.sampler import sample
from hybridlib.denoising.solvers import DIFFUSION_SCHEDULERS
from hybridlib.denoising.state import DenoiseState
from hybridlib.denoising.trajectory import Segment, Trajectory

STEPS, PROMPT, NEGATIVE = 4, "a red ring on snow", "a blue star"
QUIET = {"progress": False}
EMBEDDED = {"time_cond_proj_dim": 16}
CASES = {
    "sd dpm": (random_sd, DPMSolverMultistepScheduler, {}, {}),
    "sd dpm v": (random_sd, DPMSolverMultistepScheduler, {"prediction_type": "v_prediction"}, {}),
    "sd dpm third order karras": (
        random_sd,
        DPMSolverMultistepScheduler,
        {"solver_order": 3, "use_karras_sigmas": True},
        {},
    ),
    "sd singlestep": (random_sd, DPMSolverSinglestepScheduler, {}, {}),
    "sd deis": (random_sd, DEISMultistepScheduler, {}, {}),
    "sd unipc": (random_sd, UniPCMultistepScheduler, {}, {}),
    "sd ddim": (random_sd, DDIMScheduler, {}, {}),
    "sd ddim v": (random_sd, DDIMScheduler, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, {}),
    "lcm": (random_sd, LCMScheduler, {}, EMBEDDED),
    "lcm without embedding": (random_sd, LCMScheduler, {}, {}),
    "lcm v": (random_sd, LCMScheduler, {"prediction_type": "v_prediction"}, EMBEDDED),
    "xl dpm": (random_sdxl, DPMSolverMultistepScheduler, {"timestep_spacing": "leading"}, {}),
    "xl ddim v": (random_sdxl, DDIMScheduler, {"prediction_type": "v_prediction"}, {}),
    "xl lcm": (random_sdxl, LCMScheduler, {}, EMBEDDED),
}


def build(case):
    make, kind, options, config = CASES[case]
    return make(scheduler=diffusion_scheduler(kind, **options), **config)


@pytest.fixture(scope="module", params=CASES)
def unet_pipeline(request):
    return build(request.param)


def assert_close(latents, expected):
    """To float32 rounding; an untrained network sends latents far out, where rounding is larger, too."""
    torch.testing.assert_close(latents, expected, rtol=0, atol=DRIFT * max(1.0, expected.abs().max().item()))


def embedded(pipeline):
    return pipeline.unet.config.time_cond_proj_dim is not None


def stock_latents(pipeline, prompt, seed, scale, negative="", steps=STEPS):
    return pipeline(
        prompt,
        negative_prompt=negative or None,
        guidance_scale=scale,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
    ).images


@pytest.mark.parametrize("scale", [1.0, 4.3])
def test_a_single_row_is_stock_bit_for_bit(unet_pipeline, scale):
    negative = "" if embedded(unet_pipeline) else NEGATIVE
    expected = stock_latents(unet_pipeline, PROMPT, 3, scale, negative)
    path = Trajectory.plain(PROMPT, 3, scale, negative, STEPS)
    samples = sample(unet_pipeline, [path], **QUIET)
    assert torch.equal(samples.latents(), expected)
    assert samples.cost.tree == STEPS * (2 if scale > 1 and not embedded(unet_pipeline) else 1)
    assert torch.isfinite(expected).all()


def test_rows_do_not_depend_on_what_shares_their_batch(unet_pipeline):
    """Prompts, scales on both sides of 1, seeds, forks: each row is stock diffusers on its own."""
    cases = [(PROMPT, 3, 1.0), (PROMPT, 4, 6.0), ("a green ring on grass", 3, 6.0)]
    paths = [Trajectory.plain(*case, num_inference_steps=STEPS) for case in cases]
    latents = sample(unet_pipeline, paths, **QUIET).latents()
    for row, path in enumerate(paths):
        part = path.segments[0]
        expected = stock_latents(unet_pipeline, part.prompt, path.seed, part.guidance_scale)
        assert_close(latents[row : row + 1], expected)
    fork = [Trajectory.hybrid("a ring", p, 2, 3, 1.0, 6.0, num_inference_steps=STEPS) for p in (PROMPT, "a ring")]
    together = sample(unet_pipeline, fork, **QUIET).latents()
    for row, path in enumerate(fork):
        alone = sample(unet_pipeline, [path], **QUIET).latents()
        assert_close(together[row : row + 1], alone)


def test_a_state_goes_on_bitwise_from_any_step(unet_pipeline):
    samples = sample(unet_pipeline, [Trajectory.plain(PROMPT, 3, 6.0, "", STEPS)], keep=range(1, STEPS), **QUIET)
    for step in (1, STEPS - 1):
        state = DenoiseState.from_bytes(samples.state(0, step).to_bytes())
        rest = Trajectory(3, (Segment(PROMPT, step, STEPS, 6.0),))
        resumed = sample(unet_pipeline, [rest], num_inference_steps=STEPS, resume=state, **QUIET)
        assert torch.equal(resumed.latents(), samples.latents()), step


@pytest.mark.parametrize("case", ["sd dpm", "xl dpm", "lcm"])
def test_images_are_stock_images(case):
    pipeline = build(case)
    options = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "output_type": "pil"}
    expected = pipeline(PROMPT, generator=torch.Generator().manual_seed(3), **options).images[0]
    image = sample(pipeline, [Trajectory.plain(PROMPT, 3, 4.0, "", STEPS)], **QUIET).images()[0]
    assert image.tobytes() == expected.tobytes()


def test_the_lcm_class_of_diffusers_is_the_same_model():
    lcm = random_sd(
        scheduler=diffusion_scheduler(LCMScheduler), cls=diffusers.LatentConsistencyModelPipeline, **EMBEDDED
    )
    expected = lcm(
        PROMPT,
        guidance_scale=7.0,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images
    path = Trajectory.plain(PROMPT, 3, 7.0, "", STEPS)
    assert torch.equal(sample(lcm, [path], **QUIET).latents(), expected)
    other = sample(lcm, [Trajectory.plain(PROMPT, 3, 8.0, "", STEPS)], **QUIET).latents()
    assert not torch.equal(other, expected)  # the embedding matters


@pytest.mark.slow
def test_every_scheduler_of_diffusion_is_tried():
    assert {kind.__name__ for _, kind, _, _ in CASES.values()} == set(DIFFUSION_SCHEDULERS)
    for case in CASES:  # what stock pipelines multiply latents by, which a walk therefore need not
        scheduler = build(case).scheduler
        scheduler.set_timesteps(STEPS)
        assert scheduler.init_noise_sigma == 1.0
        assert scheduler.scale_model_input(torch.ones(1), scheduler.timesteps[0]) == 1.0


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (diffusers.PNDMScheduler, {}, "PNDMScheduler cannot be walked as a tree"),  # 26 timesteps for 25 steps
        (diffusers.EulerDiscreteScheduler, {}, "EulerDiscreteScheduler cannot be walked as a tree"),
        (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, "draws noise at every step"),
        (DPMSolverMultistepScheduler, {"prediction_type": "sample"}, "needs use_flow_sigmas=False"),
    ],
)
def test_other_schedulers_are_refused(kind, options, message):
    pipeline = random_sd(scheduler=kind(**(BETAS_ONLY | options)))
    pipeline.unet.forward = lambda *a, **k: pytest.fail("evaluated the network")
    with pytest.raises(ValueError, match=f"{message}.*must be one of DPMSolverMultistep.*LCMScheduler"):
        sample(pipeline, [Trajectory.plain(PROMPT, 3, num_inference_steps=STEPS)], **QUIET)


BETAS_ONLY = {"beta_schedule": "scaled_linear", "steps_offset": 1}


def test_a_schedule_of_another_length_is_refused():
    """Trailing timesteps of 61 steps are 62, for float rounding."""
    pipeline = random_sd(scheduler=diffusion_scheduler(DDIMScheduler, timestep_spacing="trailing"))
    with pytest.raises(ValueError, match="DDIMScheduler makes 62 updates of num_inference_steps=61; as many are"):
        sample(pipeline, [Trajectory.plain(PROMPT, 3, num_inference_steps=61)], **QUIET)


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        (Segment(PROMPT, 0, STEPS, 7.0, NEGATIVE), "negative_prompt must be empty where the network embeds"),
        (Segment(PROMPT, 0, STEPS, 0.5), "guidance_scale must be at least 1 where the network embeds it"),
    ],
)
def test_what_an_embedded_guidance_cannot_do_is_refused(segment, message):
    with pytest.raises(ValueError, match=message):
        sample(build("lcm"), [Trajectory(3, (segment,))], **QUIET)


def test_clip_skip_is_that_of_diffusers():
    """Negative prompts are never skipped. (Under transformers 5 stock Stable Diffusion 1.x cannot skip at all.)"""
    for pipeline in (build("xl dpm"), random_sd3()):
        expected = pipeline(
            PROMPT,
            negative_prompt=NEGATIVE,
            clip_skip=1,
            guidance_scale=5.0,
            num_inference_steps=2,
            output_type="latent",
            generator=torch.Generator().manual_seed(3),
        ).images
        denoiser = denoiser_of(pipeline)
        denoiser.clip_skip = 1
        pipeline.scheduler.set_timesteps(2)
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        steer = Segment(PROMPT, 0, 2, 5.0, NEGATIVE).conditioning
        with torch.no_grad():
            for t in pipeline.scheduler.timesteps:
                output = denoiser(latents, t, [steer])
                latents = pipeline.scheduler.step(output, t, latents, return_dict=False)[0]
        assert torch.equal(latents, expected)
