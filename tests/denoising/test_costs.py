"""Parameters and multiply-adds of the published networks from their configurations, on the meta device."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    LCMScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from factories import random_sd, random_sd3, random_sdxl, random_unet

from hybridlib.codecs import MinMax
from hybridlib.denoising.costs import flops_by_denoiser, handover_bytes, parameters, work, work_of
from hybridlib.denoising.families import collect, denoiser_of
from hybridlib.denoising.published import BK_SDM_TINY, SD14, SDXL_BASE
from hybridlib.denoising.sampler import sample
from hybridlib.denoising.solvers import evaluations, noise_levels
from hybridlib.denoising.trajectory import Trajectory

SD3_MEDIUM = {
    "sample_size": 128,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}


def unet(config):
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def test_published_parameter_counts():
    assert round(parameters(unet(SD14)) / 1e6, 2) == 859.52
    assert parameters(unet(BK_SDM_TINY)) == 323_384_964
    # SDXL report (arXiv 2307.01952), table 1: 2.6 B; KOALA's table: 2,567 M.
    assert round(parameters(unet(SDXL_BASE)) / 1e6) == 2567


@pytest.mark.parametrize(("config", "gmacs", "attention"), [(SD14, 338.6, 63), (BK_SDM_TINY, 205.0, 38)])
def test_published_gmacs_at_64_by_64(config, gmacs, attention):
    arguments = {
        "sample": torch.empty(1, 4, 64, 64, device="meta"),
        "timestep": torch.empty((), device="meta"),
        "encoder_hidden_states": torch.empty(1, 77, 768, device="meta"),
    }
    counted = work_of(unet(config), arguments)
    assert round(counted.macs / 1e9, 1) == gmacs  # convolutions and linear layers, as the table counts
    assert round(counted.attention_macs / 1e9) == attention
    assert counted.flops == 2 * (counted.macs + counted.attention_macs)


def of_real_size(pipeline, network, side):
    """The denoiser of a tiny pipeline with a network of real size on the meta device."""
    denoiser = denoiser_of(pipeline)
    pipeline.tokenizer.model_max_length = 77
    denoiser = denoiser.of_model(network)
    factor = pipeline.vae_scale_factor
    return denoiser, side * factor


def macs_by_hooks(model, run):
    """Multiply-adds of convolutions and linear layers, from the shapes that pass through the modules."""
    total, handles = 0, []

    def count(module, inputs, output):
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            handles.append(module.register_forward_hook(count))
    with torch.no_grad():
        output = run()
    for handle in handles:
        handle.remove()
    return total, output


@pytest.mark.slow
def test_sdxl_of_real_size_runs_through_its_denoiser():
    """1 x 4 x 128 x 128 latents; the arguments are those that a walk would give, with values of no matter."""
    pipeline = random_sdxl()
    pipeline.text_encoder_2.config.projection_dim = 1280
    denoiser, side = of_real_size(pipeline, unet(SDXL_BASE), 128)
    counted = work(denoiser, side, side)
    texts = (torch.empty(2, 77, 2048, device="meta"), torch.empty(2, 1280, device="meta"))
    latents = torch.empty(2, 4, 128, 128, device="meta")
    macs, output = macs_by_hooks(
        denoiser.model, lambda: denoiser._evaluate(latents, torch.empty((), device="meta"), texts, 1, [7.0])
    )
    assert output.shape == (2, 4, 128, 128)
    assert macs == 2 * counted.macs  # two rows


@pytest.mark.slow
def test_sd3_of_real_size_is_counted():
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(**SD3_MEDIUM)
    assert round(parameters(transformer) / 1e9, 2) == 2.03  # stable-diffusion-3-medium's "2B"
    denoiser, side = of_real_size(random_sd3(), transformer, 128)
    macs, _ = macs_by_hooks(transformer, lambda: transformer(**denoiser.example(side, side)))
    assert work(denoiser, side, side).macs == macs > 1e12


@pytest.mark.slow
def test_counting_leaves_the_network_alone_and_knows_its_size():
    pipeline, small = random_sd(), random_unet(width=16)
    weights = [parameter.clone() for parameter in pipeline.unet.parameters()]
    denoisers = collect(denoiser_of(pipeline), {"small": small})
    path = Trajectory.plain("a ring", 1, 4.0, "", 4).with_denoisers([("", 1), ("small", 3)])
    cost = sample(pipeline, [path], denoisers={"small": small}, progress=False).cost
    spent = flops_by_denoiser(cost, denoisers)
    assert spent == {"": 2 * work(denoisers[""]).flops, "small": 6 * work(denoisers["small"]).flops}
    assert work(denoisers["small"]).macs < work(denoisers[""]).macs / 2
    assert work(denoisers[""], 64, 64).macs > 3 * work(denoisers[""]).macs
    assert all(torch.equal(*pair) for pair in zip(weights, pipeline.unet.parameters(), strict=True))


def test_what_crosses_a_link():
    pipeline = random_sd()
    path = Trajectory.plain("a ring", 1, 4.0, "", 4)
    state = sample(pipeline, [path], keep=[1, 2], progress=False).state(0, 2)
    assert handover_bytes(state) == len(state.to_bytes())
    codec = MinMax(4)
    saved = handover_bytes(state) - handover_bytes(state, codec)
    assert saved == 4 * 8 * 8 * 4 - len(codec.encode(state.latents, [1])[0])
    assert state.latents.nbytes * 3 < handover_bytes(state)  # and two model outputs of the second-order solver


def test_attention_counts_as_by_hand():
    class Layer(torch.nn.Linear):
        def forward(self, x, return_dict=True):
            return torch.nn.functional.scaled_dot_product_attention(super().forward(x), x, x)

    counted = work_of(Layer(8, 8), {"x": torch.empty(1, 5, 8, device="meta")})
    assert counted == (5 * 8 * 8, 2 * 5 * 5 * 8)  # five tokens; queries by keys, and weights by values


# --- timestep tables of the published pairs


def test_sd14_under_dpm_solver():
    """The config of SD-v1.4 names no spacing, so DPM-Solver++ takes its own: linspace."""
    source = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    scheduler = DPMSolverMultistepScheduler.from_config(source | {"set_alpha_to_one": False, "skip_prk_steps": True})
    scheduler.set_timesteps(25)
    table = scheduler.timesteps.tolist()
    assert (table[:2], table[9:11], table[-2:]) == ([999, 959], [639, 599], [80, 40])
    assert evaluations(scheduler) == [1] * 25
    levels = noise_levels(scheduler)
    for step, (timestep, sigma) in {5: (799, 5.09), 10: (599, 2.28), 15: (400, 1.16), 20: (200, 0.57)}.items():
        assert table[step] == timestep
        assert round(levels[step].item(), 2) == sigma


def test_sdxl_under_dpm_solver():
    source = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    scheduler = DPMSolverMultistepScheduler.from_config(source | {"timestep_spacing": "leading"})
    scheduler.set_timesteps(25)
    table = scheduler.timesteps.tolist()
    assert (table[:2], table[10], table[-1], len(table)) == ([951, 913], 571, 39, 25)


def test_lcm():
    scheduler = LCMScheduler(beta_start=0.00085, beta_end=0.012)
    scheduler.set_timesteps(8)
    assert scheduler.timesteps.tolist() == [999, 879, 759, 639, 499, 379, 259, 139]
    assert noise_levels(scheduler)[-1] == 0
