"""FLUX.1 against stock diffusers and a hand-written loop: embedded guidance, packed latents, states, codecs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FluxPipeline,
)
from factories import DYNAMIC, random_flux, random_flux_transformer, random_sd3
from reference.flux_loop import flux_latents
from reference.stock import DRIFT

from hybridlib.codecs import DecimalRounding
from hybridlib.denoising import models
from hybridlib.denoising.costs import parameters, work
from hybridlib.denoising.families import denoiser_of
from hybridlib.denoising.pipelines import HybridFluxPipeline
from hybridlib.denoising.sampler import sample
from hybridlib.denoising.state import DenoiseState
from hybridlib.denoising.trajectory import Segment, Trajectory
from hybridlib.noise import initial_noise

STEPS, SIDE = 4, 32
PERSONAL = ["a red ring on snow", "a green ring on grass"]
TREE = {"max_sequence_length": 12, "progress": False}


@pytest.fixture(scope="module")
def dev():
    return random_flux()


@pytest.fixture(scope="module")
def schnell():
    return random_flux(guidance_embeds=False, scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0))


def stock(pipeline):
    plain = FluxPipeline(**pipeline.components)
    plain.set_progress_bar_config(disable=True)
    return plain


def call(pipeline, prompt, seed=3, **options):
    size = {"height": SIDE, "width": SIDE, "num_inference_steps": STEPS, "max_sequence_length": 12}
    options = size | {"output_type": "latent"} | options
    return pipeline(prompt, generator=torch.Generator().manual_seed(seed), **options)


def packed_noise(seed=3):
    """Patches of two by two, channel by channel: (1, 16, 16) from (1, 4, 8, 8)."""
    return torch.nn.functional.unfold(initial_noise(seed, 4, 8, 8), 2, stride=2).transpose(1, 2)


@pytest.mark.parametrize("kind", ["dev", "schnell"])
@pytest.mark.parametrize("output_type", ["latent", "np", "pt", "pil"])
def test_without_hybrid_arguments_it_is_stock_bit_for_bit(request, kind, output_type):
    pipeline = request.getfixturevalue(kind)
    options = {"guidance_scale": 2.5, "output_type": output_type, "num_images_per_prompt": 2}
    ours, theirs = (call(pipe, PERSONAL[0], **options).images for pipe in (pipeline, stock(pipeline)))
    assert type(ours) is type(theirs)
    assert np.array_equal(np.stack(ours), np.stack(theirs))


def test_true_guidance_of_the_stock_call_is_untouched(dev):
    options = {"negative_prompt": "a blue star", "true_cfg_scale": 3.0}
    expected = call(stock(dev), PERSONAL[0], **options).images
    assert torch.equal(call(dev, PERSONAL[0], **options).images, expected)
    assert not torch.equal(call(dev, PERSONAL[0]).images, expected)


SCHEDULERS = {
    "dev": FlowMatchEulerDiscreteScheduler(**DYNAMIC),
    "schnell": FlowMatchEulerDiscreteScheduler(shift=1.0),
    "dpm": DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, use_dynamic_shifting=True
    ),
}


@pytest.mark.parametrize("output_type", ["latent", "np", "pt", "pil"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_walk_is_stock_bit_for_bit(dev, monkeypatch, scheduler, output_type):
    """`get_intermediate_result` asks for the tree; the pictures are those of the stock call, of every type."""
    monkeypatch.setattr(dev, "scheduler", SCHEDULERS[scheduler])
    expected = call(stock(dev), PERSONAL[0], guidance_scale=2.5, output_type=output_type).images
    made = call(dev, PERSONAL[0], guidance_scale=2.5, output_type=output_type, get_intermediate_result=True)
    assert type(made.images) is type(expected)
    assert np.array_equal(np.stack(made.images), np.stack(expected))
    assert np.array_equal(np.stack(made.intermediate_images[-1]), np.stack(expected))
    assert made.cost.tree == STEPS  # one evaluation a step, whatever the scale


def test_noise_levels_of_ones_own_are_those_of_stock(dev):
    sigmas = [1.0, 0.7, 0.2]
    options = {"num_inference_steps": 3, "sigmas": sigmas}
    expected = call(stock(dev), PERSONAL[0], **options).images
    assert torch.equal(call(dev, PERSONAL[0], get_intermediate_result=True, **options).images, expected)
    assert not torch.equal(call(dev, PERSONAL[0], num_inference_steps=3).images, expected)


@pytest.mark.parametrize("public_scale", [1.0, 2.0])
@pytest.mark.parametrize("common_step", [0, 1, STEPS])
def test_public_then_personal_equals_reference_loop(dev, common_step, public_scale):
    sim = {"public_prompt": "a ring", "common_step": common_step, "public_guidance_scale": public_scale}
    output = call(dev, PERSONAL, guidance_scale=3.5, **sim)
    for row, prompt in enumerate(PERSONAL):
        parts = [(common_step, dev.transformer, "a ring", public_scale)]
        parts += [(STEPS - common_step, dev.transformer, prompt, 3.5)]
        expected = flux_latents(dev, parts, packed_noise(), SIDE)
        torch.testing.assert_close(output.images[row : row + 1], expected, rtol=0, atol=DRIFT)
        alone = call(dev, prompt, guidance_scale=3.5, **sim)
        assert torch.equal(alone.images, expected)
    if common_step not in (0, STEPS):  # the scale of the public phase matters
        other = call(dev, PERSONAL, guidance_scale=3.5, **(sim | {"public_guidance_scale": 3.0}))
        assert not torch.allclose(other.images, output.images, atol=10 * DRIFT)


@pytest.mark.parametrize("kind", ["another dev", "a schnell"])
def test_a_handoff_between_two_transformers_is_the_hand_written_loop(dev, kind):
    small = random_flux_transformer(seed=5, num_single_layers=2, guidance_embeds=kind == "another dev")
    parts = [(3, dev.transformer, PERSONAL[0], 3.5), (1, small, PERSONAL[0], 3.5)]
    expected = flux_latents(dev, parts, packed_noise(), SIDE)
    output = call(dev, PERSONAL[0], denoisers=[dev.transformer, small], steps="3,1")
    assert torch.equal(output.images, expected)
    path = Trajectory.plain(PERSONAL[0], 3, 3.5, "", STEPS).with_denoisers([("", 3), ("small", 1)])
    samples = sample(dev, [path], denoisers={"small": small}, keep=[3], **TREE)
    assert torch.equal(denoiser_of(dev).to_stock(samples.latents()), expected)
    # And over a link, in a state: the edge holds a pipeline of its own.
    state = DenoiseState.from_bytes(samples.state(0, 3).to_bytes())
    edge = HybridFluxPipeline(**(dev.components | {"transformer": small}))
    edge.default_sample_size = dev.default_sample_size
    rest = Trajectory(3, (Segment(PERSONAL[0], 3, STEPS, 3.5, denoiser="small"),))
    resumed = sample(edge, [rest], denoisers={"small": edge}, resume=state, **TREE)
    assert torch.equal(resumed.latents(), samples.latents())


def test_a_state_goes_on_bitwise_and_says_so_in_json(dev):
    path = Trajectory.hybrid("a ring", PERSONAL[0], 2, 3, 1.5, 3.5, num_inference_steps=STEPS)
    samples = sample(dev, [path], keep=range(1, STEPS), **TREE)
    assert Trajectory.from_json(path.as_json()) == path
    for step in (1, 2, 3):
        state = DenoiseState.from_bytes(samples.state(0, step).to_bytes())
        assert state.latents.shape == (1, 4, 8, 8)
        segments = tuple(s.part(max(s.start, step), s.stop) for s in path.segments if s.stop > step)
        resumed = sample(dev, [Trajectory(3, segments)], num_inference_steps=STEPS, resume=state, **TREE)
        assert torch.equal(resumed.latents(), samples.latents()), step
    with pytest.raises(ValueError, match="made by model FluxTransformer2DModel.* this pipeline holds"):
        sample(random_flux(seed=4), [Trajectory(3, segments)], num_inference_steps=STEPS, resume=state, **TREE)


def test_a_codec_codes_latents_before_they_are_packed(dev):
    codec = DecimalRounding(4.0)
    denoiser = denoiser_of(dev)

    def link(packed):
        return denoiser.to_stock(codec.quantise(denoiser.from_stock(packed, (8, 8))))

    expected = flux_latents(dev, [(STEPS, dev.transformer, PERSONAL[0], 3.5)], packed_noise(), SIDE, codec=(2, link))
    output = call(dev, PERSONAL[0], compress_at_step=1, codec=codec)
    assert torch.equal(output.images, expected)


def test_packed_is_the_layout_of_the_stock_pipeline(dev):
    latents, denoiser = torch.randn(2, 4, 8, 6), denoiser_of(dev)
    patches = torch.nn.functional.unfold(latents, 2, stride=2).transpose(1, 2)
    assert torch.equal(denoiser.to_stock(latents), patches)
    assert torch.equal(denoiser.from_stock(patches, (8, 6)), latents)


def test_callbacks_and_latents_are_packed_as_in_stock(dev):
    def halve(pipe, i, t, tensors):
        seen.append(tensors["latents"].shape)
        return {"latents": tensors["latents"] / 2}

    made, seen = [], []
    for pipe, options in ((stock(dev), {}), (dev, {"get_intermediate_result": True})):
        given = {"latents": packed_noise(8), "callback_on_step_end": halve}
        made.append(call(pipe, PERSONAL[0], **given, **options).images)
    assert torch.equal(*made)
    assert set(seen) == {(1, 16, 16)}
    with pytest.raises(ValueError, match=r"latents must be packed, \(1, 16, 16\), got \(1, 4, 8, 8\)"):
        call(dev, PERSONAL[0], latents=torch.zeros(1, 4, 8, 8), get_intermediate_result=True)


def test_two_calls_with_published_names_equal_one_call(dev):
    public = {"common_step": 2, "guidance_scale": 2.0}
    call(dev, "a ring", prompt_unchanged=True, **public)
    personal = call(dev, PERSONAL, prompt_unchanged=False, common_step=2, guidance_scale=3.5)
    once = {"public_prompt": "a ring", "public_guidance_scale": 2.0, "common_step": 2, "guidance_scale": 3.5}
    assert torch.equal(personal.images, call(dev, PERSONAL, **once).images)


def test_oblong_images_have_their_own_schedule(dev):
    """The shift grows with the number of tokens."""
    options = {"height": 48, "width": 32}
    expected = call(stock(dev), PERSONAL[0], **options).images
    made = call(dev, PERSONAL[0], get_intermediate_result=True, **options).images
    assert torch.equal(made, expected)
    path = Trajectory.plain(PERSONAL[0], 3, 3.5, "", STEPS)
    samples = sample(dev, [path], **options, **TREE)
    assert torch.equal(denoiser_of(dev).to_stock(samples.latents()), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negative_prompt": "x"}, "negative_prompt must be None with the hybrid arguments: FLUX.1 embeds"),
        ({"true_cfg_scale": 3.0}, "true_cfg_scale cannot be combined"),
        ({"public_guidance_scale": 0.5}, "guidance_scale must be at least 1 where the network embeds it"),
        ({"height": 36}, "height must be a multiple of 8 pixels, got 36"),
        ({"max_sequence_length": 600}, "cannot be greater than 512"),
        ({"prompt_2": "x"}, "prompt_2 cannot be combined"),
    ],
)
def test_what_flux_cannot_do_is_refused_before_any_evaluation(dev, monkeypatch, options, message):
    monkeypatch.setattr(dev.transformer, "forward", lambda *a, **k: pytest.fail("evaluated the network"))
    with pytest.raises(ValueError, match=message):
        call(dev, PERSONAL, public_prompt="a ring", common_step=2, **options)


def test_schnell_takes_one_scale_and_ignores_it(schnell):
    shared = {"public_prompt": "a ring", "common_step": 2}
    made = call(schnell, PERSONAL, guidance_scale=0.0, **shared).images
    assert torch.equal(made, call(schnell, PERSONAL, guidance_scale=3.5, **shared).images)
    parts = [(2, schnell.transformer, "a ring", 0.0), (2, schnell.transformer, PERSONAL[0], 0.0)]
    plain = FlowMatchEulerDiscreteScheduler(shift=1.0)
    plain.set_timesteps(sigmas=np.linspace(1.0, 1 / STEPS, STEPS))
    assert torch.equal(plain.sigmas, torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))  # no shift
    expected = flux_latents(schnell, parts, packed_noise(), SIDE)
    torch.testing.assert_close(made[:1], expected, rtol=0, atol=DRIFT)
    with pytest.raises(ValueError, match="guidance_scale must be one value throughout where the network takes none"):
        call(schnell, PERSONAL, guidance_scale=3.5, public_guidance_scale=2.0, **shared)


def test_the_wrong_partners_and_solvers_are_refused(dev, monkeypatch):
    with pytest.raises(ValueError, match="must be a FluxTransformer2DModel as the pipeline's own is"):
        call(dev, PERSONAL[0], denoisers=[dev.transformer, random_sd3().transformer], steps="2,2")
    path = Trajectory.plain(PERSONAL[0], 3, 3.5, "", STEPS)
    with pytest.raises(ValueError, match="cannot go on with the latents of the first: they have VAE scaling"):
        sample(dev, [path], denoisers={"sd3": random_sd3(with_t5=True)}, **TREE)
    monkeypatch.setattr(dev, "scheduler", FlowMatchHeunDiscreteScheduler())
    with pytest.raises(ValueError, match="FlowMatchHeunDiscreteScheduler takes no sigmas"):
        call(dev, PERSONAL[0], get_intermediate_result=True)


def test_t5_tokens_are_those_of_diffusers_by_default(dev):
    assert denoiser_of(dev).max_sequence_length == 512
    assert denoiser_of(random_sd3(with_t5=True)).max_sequence_length == 256


def test_a_folder_of_flux_loads(dev, tmp_path):
    stock(dev).save_pretrained(tmp_path)
    loaded = models.load(str(tmp_path), device="cpu")
    assert isinstance(loaded, HybridFluxPipeline)
    made, expected = (call(pipe, PERSONAL[0], output_type="np").images for pipe in (loaded, dev))
    assert np.abs(made - expected).max() < 1e-5  # as of other folders: kernels round by where weights lie


def test_work_is_counted_without_weights(dev):
    counted = work(denoiser_of(dev, max_sequence_length=12), SIDE, SIDE)
    total = 0

    def count(module, inputs, output):
        nonlocal total
        total += output.numel() * module.in_features

    handles = [m.register_forward_hook(count) for m in dev.transformer.modules() if isinstance(m, torch.nn.Linear)]
    call(dev, PERSONAL[0], num_inference_steps=1)
    for handle in handles:
        handle.remove()
    assert counted.macs == total
    assert counted.attention_macs == 2 * 2 * (12 + 16) ** 2 * 32  # two blocks, two products, 28 tokens of width 32
    assert parameters(dev.transformer) == sum(p.numel() for p in dev.transformer.parameters())
