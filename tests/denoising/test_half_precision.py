"""In 16 bit, as real weights are loaded: what float32 promises bit for bit holds there, too."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, FluxPipeline, LCMScheduler
from factories import diffusion_scheduler, random_flux, random_sd, random_sd3, random_sdxl
from reference.hybrid_loop import hybrid_latents
from reference.stock import noise, stock

from hybridlib.denoising.costs import work
from hybridlib.denoising.families import denoiser_of
from hybridlib.denoising.sampler import sample
from hybridlib.denoising.thinning import Thinning
from hybridlib.denoising.trajectory import Segment, Trajectory

STEPS, PROMPT = 4, "a red ring on snow"
SCALE = 4.3  # no number of 16 bit
CASES = {
    "sd3": lambda: random_sd3(with_t5=True),
    "flux": random_flux,
    "sd": random_sd,
    "lcm": lambda: random_sd(scheduler=diffusion_scheduler(LCMScheduler), time_cond_proj_dim=16),
    "sdxl": random_sdxl,
}
DTYPES = [torch.float16, torch.bfloat16]
OPTIONS = {"height": 32, "width": 32}


def options_of(case):
    return OPTIONS | ({"max_sequence_length": 12} if case in ("sd3", "flux") else {})


def halved(pipeline, dtype):
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            torch.nn.Module.to(part, dtype)  # that of diffusers warns
    return pipeline


def stock_call(case, pipeline, scale):
    plain = {"sd3": stock, "flux": lambda p: FluxPipeline(**p.components)}.get(case, lambda p: p)(pipeline)
    plain.set_progress_bar_config(disable=True)
    given = {"num_inference_steps": STEPS, "output_type": "latent", "generator": torch.Generator().manual_seed(3)}
    return plain(PROMPT, guidance_scale=scale, **given, **options_of(case)).images


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_a_single_row_is_stock_bit_for_bit(case, dtype):
    """A control fails it: the scale rounded to the dtype of the latents, as a product of two tensors would do."""
    pipeline = halved(CASES[case](), dtype)
    expected = stock_call(case, pipeline, SCALE)
    path = Trajectory.plain(PROMPT, 3, SCALE, "", STEPS)
    samples = sample(pipeline, [path], keep=[2], progress=False, **options_of(case))
    latents = samples.latents()
    latents = denoiser_of(pipeline).to_stock(latents) if case == "flux" else latents
    assert latents.dtype == dtype
    assert torch.equal(latents, expected)
    assert torch.isfinite(expected).all()
    if case not in ("flux", "lcm"):  # where the scale is a product, not an input of the network
        assert not torch.equal(stock_call(case, pipeline, torch.tensor(SCALE, dtype=dtype).item()), expected)
    rest = Trajectory(3, (Segment(PROMPT, 2, STEPS, SCALE),))
    resumed = sample(pipeline, [rest], resume=samples.state(0, 2), progress=False, **options_of(case))
    assert torch.equal(resumed.latents(), samples.latents())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_public_then_personal_is_the_reference_loop(dtype):
    pipeline = halved(random_sd3(with_t5=True), dtype)
    path = Trajectory.hybrid("a ring", PROMPT, 2, 3, 2.3, SCALE, "a blue star", STEPS)
    latents = sample(pipeline, [path], progress=False, **options_of("sd3")).latents()
    start = noise(pipeline, 3).to(dtype)
    expected = hybrid_latents(pipeline, "a ring", PROMPT, 2, start, 2.3, SCALE, "a blue star", STEPS, 12)
    # The tree evaluates prompt and negative prompt together, the loop one after the other: they round otherwise.
    rounding = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(latents, expected, rtol=0, atol=rounding)
    sooner = hybrid_latents(pipeline, "a ring", PROMPT, 1, start, 2.3, SCALE, "a blue star", STEPS, 12)
    assert (latents - sooner).abs().max() > 2 * rounding  # the control: another common step


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_thinned_step_goes_on_by_the_slope_itself(dtype):
    """Outputs 2 and 4 of six are extrapolated as published: e2 = e1 + (e1 - e0), e4 = e3 + 0.3 (e3 - e2)."""
    pipeline = halved(random_sd(scheduler=diffusion_scheduler(DDIMScheduler)), dtype)
    segments = (Segment(PROMPT, 0, 5, SCALE, thinning=Thinning(2, 1, 0.3)), Segment(PROMPT, 5, 6, SCALE))
    made = sample(pipeline, [Trajectory(3, segments)], progress=False).latents()
    denoiser, scheduler, e = denoiser_of(pipeline), pipeline.scheduler, []
    scheduler.set_timesteps(6)
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3)).to(dtype)
    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps):
            if i == 2:
                e.append(e[1] + (e[1] - e[0]))
            elif i == 4:
                e.append(e[3] + 0.3 * (e[3] - e[2]))
            else:
                e.append(denoiser(latents, t, [segments[0].conditioning]))
            latents = scheduler.step(e[i], t, latents, return_dict=False)[0]
    assert torch.equal(made, latents)


@pytest.mark.parametrize("make", [random_sd3, random_sd, random_flux])
def test_operations_are_those_of_float32(make):
    whole, half = denoiser_of(make()), denoiser_of(halved(make(), torch.bfloat16))
    assert work(half, 32, 32) == work(whole, 32, 32)
