"""Step splits between networks: against a hand-written loop, against stock, and what a handoff remembers."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler
from factories import SDXL, diffusion_scheduler, random_sd, random_sd3, random_sdxl, random_unet
from reference.split_loop import split_latents

from hybridlib.denoising.pipelines import HybridStableDiffusionPipeline, HybridStableDiffusionXLPipeline
from hybridlib.denoising.sampler import sample
from hybridlib.denoising.state import DenoiseState
from hybridlib.denoising.trajectory import Segment, Trajectory

STEPS, PROMPT = 4, "a red ring on snow"
EMBEDDED = {"time_cond_proj_dim": 16}
V = {"prediction_type": "v_prediction"}
CASES = {  # family, scheduler and its options, what its networks have
    "sd dpm": (random_sd, DPMSolverMultistepScheduler, {}, {}),
    "sd dpm v": (random_sd, DPMSolverMultistepScheduler, V, {}),
    "sd ddim": (random_sd, DDIMScheduler, {}, {}),
    "sd ddim v": (random_sd, DDIMScheduler, V, {}),
    "lcm": (random_sd, LCMScheduler, {}, EMBEDDED),
    "lcm without embedding": (random_sd, LCMScheduler, {}, {}),
    "xl dpm": (random_sdxl, DPMSolverMultistepScheduler, {"timestep_spacing": "leading"}, {}),
    "xl lcm": (random_sdxl, LCMScheduler, {}, EMBEDDED),
    "sd3": (random_sd3, None, {}, {}),
    "sd3 dpm": (
        random_sd3,
        DPMSolverMultistepScheduler,
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
        {},
    ),
}
CLASSES = {random_sd: HybridStableDiffusionPipeline, random_sdxl: HybridStableDiffusionXLPipeline}


@functools.cache
def build(case):
    """A pipeline and a smaller network, made once; a test leaves them as they are."""
    make, kind, options, config = CASES[case]
    if make is random_sd3:
        pipeline, small = random_sd3(), random_sd3(seed=5).transformer
        if kind:
            pipeline.scheduler = kind(**options)
        return pipeline, small
    pipeline = make(scheduler=diffusion_scheduler(kind, **options), cls=CLASSES[make], **config)
    added = SDXL if make is random_sdxl else {}
    return pipeline, random_unet(width=16, seed=5, **(added | config))


@pytest.fixture(scope="module", params=CASES)
def pair(request):
    return build(request.param)


def network(pipeline):
    return getattr(pipeline, "transformer", None) or pipeline.unet


def call(pipeline, seed=3, prompt=PROMPT, **options):
    if hasattr(pipeline, "transformer"):
        options = {"max_sequence_length": 12} | options
    options = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "output_type": "latent"} | options
    return pipeline(prompt, generator=torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize(("steps", "scale"), [("0,4", 4.0), ("2,2", 1.0), ("3,1", 4.0)])
def test_a_split_is_the_hand_written_loop_bit_for_bit(pair, steps, scale):
    pipeline, small = pair
    negative = "a blue star" if not network(pipeline).config.get("time_cond_proj_dim") else None
    networks, numbers = [network(pipeline), small], [int(word) for word in steps.split(",")]
    expected = split_latents(pipeline, networks, numbers, PROMPT, 3, scale, negative)
    options = {"denoisers": networks, "guidance_scale": scale, "negative_prompt": negative}
    assert torch.equal(call(pipeline, steps=steps, **options).images, expected)
    path = Trajectory.plain(PROMPT, 3, scale, negative or "", STEPS)
    path = path.with_denoisers([("", numbers[0]), ("small", numbers[1])])
    given = {"max_sequence_length": 12} if hasattr(pipeline, "transformer") else {}
    latents = sample(pipeline, [path], denoisers={"small": small}, progress=False, **given).latents()
    assert torch.equal(latents, expected)


def test_one_part_or_the_same_network_twice_is_stock(pair):
    pipeline, _ = pair
    expected = call(pipeline).images
    own, twin = network(pipeline), copy.deepcopy(network(pipeline))
    assert torch.equal(call(pipeline, denoisers=[own], steps=[STEPS]).images, expected)
    assert torch.equal(call(pipeline, denoisers=[pipeline, twin], steps=[4, 0]).images, expected)
    for first in (0, 1):
        splits = {"denoisers": [own, twin], "steps": [first, STEPS - first]}
        assert torch.equal(call(pipeline, **splits).images, expected), first


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("case", ["sd dpm", "sd ddim v", "lcm", "xl dpm", "sd3 dpm"])
def test_history_is_kept_or_begins_anew(case, restart):
    """Three parts, small first: kept as one shared scheduler has it, reset as a fresh scheduler begins."""
    pipeline, small = build(case)
    networks, numbers = [small, network(pipeline), small], [1, 2, 1]
    expected = split_latents(pipeline, networks, numbers, PROMPT, 3, 4.0, restart=restart)
    options = {"denoisers": networks, "steps": numbers, "handoff": "reset" if restart else "keep"}
    assert torch.equal(call(pipeline, **options).images, expected)
    other = call(pipeline, **(options | {"handoff": "keep" if restart else "reset"})).images
    multistep = type(pipeline.scheduler) is DPMSolverMultistepScheduler
    assert torch.equal(other, expected) != multistep


@pytest.mark.slow
def test_rows_that_hand_over_at_different_steps_begin_anew_each_on_its_own():
    pipeline, small = build("sd dpm")
    splits = [(1, 3), (2, 2), (4, 0), (0, 4)]
    paths = [
        Trajectory.plain(prompt, 3, 4.0, "", STEPS).with_denoisers([("", a), ("small", b)])
        for a, b in splits
        for prompt in (PROMPT, "a ring")
    ]
    samples = sample(pipeline, paths, denoisers={"small": small}, handoff="reset", keep=[3], progress=False)
    for row, path in enumerate(paths):
        numbers, prompt = splits[row // 2], path.segments[0].prompt
        expected = split_latents(pipeline, [pipeline.unet, small], numbers, prompt, 3, 4.0, restart=True)
        limit = 1e-5 * max(1.0, expected.abs().max().item())  # rounding of a batch; latents reach far
        torch.testing.assert_close(samples.latents()[row : row + 1], expected, rtol=0, atol=limit)
        rest = Trajectory(3, (Segment(prompt, 3, STEPS, 4.0, denoiser=path.segments[-1].denoiser),))
        state = DenoiseState.from_bytes(samples.state(row, 3).to_bytes())
        resumed = sample(
            pipeline, [rest], denoisers={"small": small}, num_inference_steps=STEPS, resume=state, progress=False
        )
        torch.testing.assert_close(resumed.latents(), expected, rtol=0, atol=limit)


@pytest.mark.parametrize("case", ["sd dpm", "lcm", "xl dpm", "sd3 dpm"])
@pytest.mark.parametrize("handoff", ["keep", "reset"])
def test_a_handoff_through_a_state_is_bitwise(case, handoff):
    """The cloud holds one pipeline, the edge another; the state says whose it is and what it remembers."""
    cloud, small = build(case)
    edge = copy.copy(cloud)
    setattr(edge, "transformer" if hasattr(cloud, "transformer") else "unet", small)
    given = {"max_sequence_length": 12} if hasattr(cloud, "transformer") else {}
    given |= {"num_inference_steps": STEPS, "progress": False}
    together = Trajectory.plain(PROMPT, 3, 4.0, "", STEPS).with_denoisers([("", 2), ("edge", 2)])
    expected = sample(cloud, [together], denoisers={"edge": small}, handoff=handoff, **given).latents()
    outline = Trajectory(3, (Segment(PROMPT, 0, 2, 4.0),))
    state = DenoiseState.from_bytes(sample(cloud, [outline], keep=[2], **given).state(0, 2).to_bytes())
    rest = Trajectory(3, (Segment(PROMPT, 2, STEPS, 4.0, denoiser="edge"),))
    latents = sample(edge, [rest], denoisers={"edge": edge}, resume=state, handoff=handoff, **given).latents()
    assert torch.equal(latents, expected)
    with pytest.raises(ValueError, match="made by model .*, this pipeline holds .*a denoiser name of its own"):
        sample(edge, [Trajectory(3, (Segment(PROMPT, 2, STEPS, 4.0),))], resume=state, **given)


@pytest.mark.slow
def test_a_state_is_not_taken_over_by_a_model_of_another_space():
    cloud, _ = build("sd dpm")
    outline = Trajectory(3, (Segment(PROMPT, 0, 2, 4.0),))
    options = {"num_inference_steps": STEPS, "progress": False}
    state = sample(cloud, [outline], keep=[2], **options).state(0, 2)
    rest = [Trajectory(3, (Segment(PROMPT, 2, STEPS, 4.0, denoiser="edge"),))]
    other = random_sd(seed=5, scheduler=diffusion_scheduler(prediction_type="v_prediction"))
    with pytest.raises(ValueError, match="'edge' cannot take over from UNet.*prediction type epsilon and v_prediction"):
        sample(other, rest, denoisers={"edge": other}, resume=state, **options)
    silent = DenoiseState(**{**vars(state), "space": None})
    with pytest.raises(ValueError, match="does not tell whether a model other than UNet2DConditionModel:.* can take"):
        sample(random_sd(seed=5), rest, denoisers={"edge": random_sd(seed=5)}, resume=silent, **options)


@pytest.mark.parametrize("case", ["sd ddim", "lcm", "sd3"])
def test_users_with_public_prompts_codecs_and_splits_share_one_tree(case):
    """All arguments at once: each user is the same trajectory on its own."""
    pipeline, small = build(case)
    options = {
        "denoisers": [network(pipeline), small],
        "steps": "3,1",
        "public_prompt": "a ring",
        "common_step": 2,
        "compress_at_step": 2,
        "compress_scale": 8.0,
    }
    together = call(pipeline, prompt=[PROMPT, "a green ring"], **options)
    guided = 2 if not network(pipeline).config.get("time_cond_proj_dim") else 1
    assert [tuple(cost) for cost in together.cost.by_denoiser] == [
        ("", 4 * guided, 6 * guided),
        ("denoiser 1", 2 * guided, 2 * guided),
    ]
    for row, prompt in enumerate([PROMPT, "a green ring"]):
        alone = call(pipeline, prompt=prompt, **options).images
        assert (together.images[row] - alone[0]).abs().max() < 0.2 * alone.abs().max()  # rounding may cross a level
    public = call(pipeline, prompt="a ring", prompt_unchanged=True, **_public(options)).images
    assert torch.isfinite(public).all()


def _public(options):
    return {name: options[name] for name in ("denoisers", "steps", "common_step")}


@pytest.mark.parametrize("handoff", ["keep", "reset"])
@pytest.mark.parametrize("common_step", [2, 3])
def test_two_calls_with_splits_are_one(common_step, handoff):
    pipeline, small = build("sd dpm")
    options = {"denoisers": [pipeline.unet, small], "steps": "2,2", "common_step": common_step, "handoff": handoff}
    once = call(pipeline, public_prompt="a ring", public_guidance_scale=2.0, **options).images
    call(pipeline, prompt="a ring", prompt_unchanged=True, guidance_scale=2.0, **options)
    assert torch.equal(call(pipeline, prompt_unchanged=False, **options).images, once)


@pytest.mark.parametrize("case", ["sd dpm", "lcm", "xl dpm", "sd3"])
@pytest.mark.parametrize("output_type", ["np", "pt", "pil"])
def test_every_output_type_goes_with_a_split(case, output_type):
    pipeline, small = build(case)
    options = {"denoisers": [network(pipeline), small], "steps": "2,2"}
    made = call(pipeline, output_type=output_type, **options).images
    latents = call(pipeline, **options).images
    vae = pipeline.vae.config
    with torch.no_grad():
        decoded = pipeline.vae.decode(latents / vae.scaling_factor + (vae.shift_factor or 0.0), return_dict=False)[0]
    expected = pipeline.image_processor.postprocess(decoded, output_type=output_type)
    assert type(made) is type(expected)
    assert np.array_equal(np.asarray(made[0]), np.asarray(expected[0]))


@pytest.mark.parametrize("case", ["sd dpm", "lcm", "sd3"])
def test_cost_is_what_each_network_evaluates(case, monkeypatch):
    pipeline, small = build(case)
    counts = {}
    for name, net in (("", network(pipeline)), ("small", small)):
        counts[name], forward = [], net.forward

        def counting(*args, counts=counts[name], forward=forward, **kwargs):
            counts.append(len(kwargs.get("hidden_states", args[0] if args else None)))
            return forward(*args, **kwargs)

        monkeypatch.setattr(net, "forward", counting)
    plain = [Trajectory.plain(PROMPT, 3, scale, "", STEPS) for scale in (1.0, 4.0)]
    paths = [path.with_denoisers([("", a), ("small", STEPS - a)]) for path in plain for a in (1, 3)]
    given = {"max_sequence_length": 12} if hasattr(pipeline, "transformer") else {}
    samples = sample(pipeline, paths, denoisers={"small": small}, batch_size=3, progress=False, **given)
    for name, rows in counts.items():
        assert sum(rows) == samples.cost.of(name).tree
        assert max(rows) <= 3
    assert sum(map(sum, counts.values())) == samples.cost.tree
    assert repr(samples.cost).startswith(f"Cost(tree={samples.cost.tree}, one_at_a_time=")
    assert "'small': " in repr(samples.cost)


def test_lcm_noise_belongs_to_the_image():
    pipeline, small = build("lcm")
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    options = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "output_type": "latent"}
    split = {"denoisers": [pipeline.unet, small], "steps": "2,2"}
    both = pipeline(PROMPT, generator=generators, num_images_per_prompt=2, **options, **split).images
    for row, seed in enumerate((3, 4)):
        expected = split_latents(pipeline, [pipeline.unet, small], [2, 2], PROMPT, seed, 4.0)
        torch.testing.assert_close(both[row : row + 1], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="generator must be a list of num_images_per_prompt=2 generators"):
        pipeline(PROMPT, num_images_per_prompt=2, **options, **split)
    with torch.random.fork_rng():  # without a generator: the global one, as stock
        torch.manual_seed(1)
        expected = pipeline(PROMPT, **options).images
        torch.manual_seed(1)
        assert torch.equal(pipeline(PROMPT, denoisers=[pipeline.unet], steps="4", **options).images, expected)


WRONG = {
    "too few": ({"steps": "2,1"}, r"steps must sum to num_inference_steps=4, got '2,1', which makes 3"),
    "too many": ({"steps": [2, 4]}, r"steps must sum to num_inference_steps=4, got \[2, 4\], which makes 6"),
    "negative": ({"steps": [5, -1]}, "steps must hold a number of updates, 0 or more, for each of 2 denoisers"),
    "three for two": ({"steps": "1,2,1"}, "steps must hold a number of updates, 0 or more, for each of 2 denoisers"),
    "words": ({"steps": "two,2"}, "steps must be whole numbers with commas between"),
    "no steps": ({"steps": None}, "denoisers and steps belong together"),
    "handoff": ({"steps": "2,2", "handoff": "forget"}, r"handoff must be one of \('keep', 'reset'\), got 'forget'"),
    "eta": ({"steps": "2,2", "eta": 0.5}, "eta cannot be combined with the hybrid arguments"),
    "rescale": ({"steps": "2,2", "guidance_rescale": 0.7}, "guidance_rescale cannot be combined"),
    "timesteps": ({"steps": "2,2", "timesteps": [9, 5]}, "timesteps cannot be combined"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_bad_splits_are_refused_before_any_evaluation(monkeypatch, options, message):
    pipeline, small = build("sd dpm")
    monkeypatch.setattr(pipeline.unet, "forward", lambda *a, **k: pytest.fail("evaluated the network"))
    monkeypatch.setattr(small, "forward", lambda *a, **k: pytest.fail("evaluated the network"))
    with pytest.raises(ValueError, match=message):
        call(pipeline, denoisers=[pipeline.unet, small], **options)


def scaled(pipeline):
    pipeline.vae.register_to_config(scaling_factor=0.5)
    return pipeline


OTHERS = {
    "latent channels": (lambda: random_unet(in_channels=8), "they have latent channels 4 and 8"),
    "VAE scaling": (lambda: scaled(random_sd()), "they have VAE scaling 0.18215 and 0.5"),
    "prediction type": (
        lambda: random_sd(scheduler=diffusion_scheduler(prediction_type="v_prediction")),
        "they have prediction type epsilon and v_prediction",
    ),
    "noise schedule": (
        lambda: random_sd(scheduler=diffusion_scheduler(beta_end=0.02)),
        "they have training noise scaled_linear 0.00085 0.012 1000 and scaled_linear 0.00085 0.02 1000",
    ),
    "another network": (lambda: random_sd3().transformer, "must be a UNet2DConditionModel as the pipeline's own is"),
    "other texts": (lambda: random_unet(cross_attention_dim=24), "has cross_attention_dim=24, the pipeline's text"),
}


@pytest.mark.parametrize(("make", "message"), OTHERS.values(), ids=OTHERS)
def test_models_that_share_no_space_are_refused_before_any_evaluation(monkeypatch, make, message):
    pipeline, other = build("sd dpm")[0], make()
    monkeypatch.setattr(pipeline.unet, "forward", lambda *a, **k: pytest.fail("evaluated the network"))
    with pytest.raises(ValueError, match=message):
        call(pipeline, denoisers=[pipeline.unet, other], steps="2,2")
    path = Trajectory.plain(PROMPT, 3, 4.0, "", STEPS).with_denoisers([("", 2), ("small", 2)])
    with pytest.raises(ValueError, match=message):
        sample(pipeline, [path], denoisers={"small": other}, progress=False)


def test_an_edge_with_a_tiny_vae_takes_over():
    """AutoencoderTiny decodes the scaled latents of another VAE, so its own scaling of 1 says nothing of them."""
    cloud, small = build("sd dpm")
    edge = random_sd(seed=5)
    edge.register_modules(
        unet=small,
        vae=AutoencoderTiny(
            encoder_block_out_channels=(8,) * 3,
            decoder_block_out_channels=(8,) * 3,
            num_encoder_blocks=(1,) * 3,
            num_decoder_blocks=(1,) * 3,
        ),
    )
    options = {"num_inference_steps": STEPS, "progress": False}
    outline = Trajectory(3, (Segment(PROMPT, 0, 2, 4.0),))
    state = sample(cloud, [outline], keep=[2], **options).state(0, 2)
    rest = [Trajectory(3, (Segment(PROMPT, 2, STEPS, 4.0, denoiser="edge"),))]
    samples = sample(edge, rest, denoisers={"edge": edge}, resume=state, **options)
    assert samples.images()[0].size == (32, 32)


def test_an_unknown_denoiser_is_refused():
    pipeline, small = build("sd dpm")
    path = Trajectory.plain(PROMPT, 3, 4.0, "", STEPS).with_denoisers([("", 2), ("tiny", 2)])
    with pytest.raises(ValueError, match="a segment asks for denoiser 'tiny'; there are '', 'small'"):
        sample(pipeline, [path], denoisers={"small": small}, progress=False)
    with pytest.raises(TypeError, match="denoiser 'small' must be a network, a pipeline or a denoiser .*, got 5"):
        sample(pipeline, [path], denoisers={"small": 5}, progress=False)
    with pytest.raises(ValueError, match="a name of denoisers must not be ''"):
        sample(pipeline, [path], denoisers={"": small}, progress=False)


def test_sdxl_tells_no_negative_prompt_from_an_empty_one():
    pipeline, small = build("xl dpm")
    with pytest.raises(ValueError, match="negative_prompt must be None, not ''"):
        call(pipeline, denoisers=[pipeline.unet, small], steps="2,2", negative_prompt="")


def test_sdxl_sizes_and_crops_are_those_of_stock():
    pipeline, _ = build("xl dpm")
    sizes = {"original_size": (64, 48), "crops_coords_top_left": (4, 8), "target_size": (32, 16)}
    sizes |= {"negative_original_size": (16, 16), "negative_target_size": (8, 8), "height": 24}
    expected = call(pipeline, **sizes).images
    assert torch.equal(call(pipeline, denoisers=[pipeline], steps="4", **sizes).images, expected)
    assert not torch.equal(call(pipeline, denoisers=[pipeline], steps="4", height=24).images, expected)
