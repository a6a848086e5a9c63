from __future__ import annotations

import pytest
import torch

from hybridlib.codecs import Adaptive, DecimalRounding, MinMax
from hybridlib.denoising.sampler import sample
from hybridlib.denoising.state import DenoiseState
from hybridlib.denoising.trajectory import Segment, Trajectory
from hybridlib.denoising.tree import Tree

OPTIONS = {"max_sequence_length": 8, "progress": False}


def loop_latents(pipeline, prompt, seed, scale, steps, compress_at_step, quantise):
    """A stock loop of one row in which the latents are replaced right after update `compress_at_step`."""

    def callback(pipe, i, timestep, tensors):
        return {"latents": quantise(tensors["latents"]) if i == compress_at_step else tensors["latents"]}

    return pipeline(
        prompt,
        num_inference_steps=steps,
        guidance_scale=scale,
        latents=torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)),
        max_sequence_length=8,
        output_type="latent",
        callback_on_step_end=callback,
    ).images


@pytest.mark.parametrize("i", [0, 2, 4])
def test_codec_acts_right_after_the_update(tiny, i):
    expected = loop_latents(tiny, "a ring", 3, 4.0, 6, i, lambda x: torch.round(x * 2.5) / 2.5)  # published v1
    path = Trajectory.plain("a ring", 3, 4.0, num_inference_steps=6).with_codec(i + 1, DecimalRounding(2.5))
    torch.testing.assert_close(sample(tiny, [path], **OPTIONS).latents(), expected, atol=1e-5, rtol=0)


def minmax(x, bits):
    low, high = x.float().min(), x.float().max()
    step = (high - low + 1e-8) / (2**bits - 1)
    return torch.round((x - low) / step).clamp(0, 2**bits - 1) * step + low


@pytest.mark.parametrize(
    ("arguments", "quantise"),
    [
        ({"compress_scale": 4.0}, lambda x: torch.round(x * 4.0) / 4.0),
        ({}, lambda x: torch.round(x * 100.0) / 100.0),  # the published default
        ({"compression_rate": 0.75}, lambda x: minmax(x, 4)),
        ({"codec": DecimalRounding(1.33)}, lambda x: torch.round(x * 1.33) / 1.33),
    ],
)
@pytest.mark.parametrize("i", [1, 5])  # 5 is the last update: the decoder gets what the codec made
def test_pipeline_arguments_mean_what_was_published(tiny, arguments, quantise, i):
    expected = loop_latents(tiny, "a ring", 3, 4.0, 6, i, quantise)
    out = tiny(
        "a ring",
        num_inference_steps=6,
        guidance_scale=4.0,
        latents=torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)),
        max_sequence_length=8,
        output_type="latent",
        compress_at_step=i,
        **arguments,
    ).images
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"compress_scale": 4.0}, "compress_scale needs compress_at_step"),
        ({"compress_at_step": 6}, r"compress_at_step must lie in 0\.\.5, got 6"),
        ({"compress_at_step": 1, "compress_scale": 0.0}, "scale must be finite and above 0"),
        ({"compress_at_step": 1, "compression_rate": 1.0}, r"rate must lie in \[0, 1\)"),
        ({"compress_at_step": 1, "compression_rate": 0.5, "codec": MinMax(4)}, "name two codecs"),
    ],
)
def test_bad_compression_is_refused_before_any_evaluation(tiny, monkeypatch, arguments, message):
    monkeypatch.setattr(tiny.transformer, "forward", lambda *a, **k: pytest.fail("evaluated the network"))
    with pytest.raises(ValueError, match=message):
        tiny("a ring", num_inference_steps=6, max_sequence_length=8, **arguments)


def test_prefix_is_shared_and_counts_are_those_of_the_reference():
    plain = Trajectory.plain("a city", 42)
    strengths = (4.0, 3.03, 2.5, 2.0, 1.52, 1.33, 1.25, 1.11, 1.0)
    first = [plain.with_codec(i + 1, DecimalRounding(a)) for i in range(2, 25, 2) for a in strengths]
    assert Tree([plain, *first]).steps * 50 == 77_000  # reference, section 7: v1, 50 seeds
    rates = (0, 0.25, 0.375, 0.5, 0.625, 0.6875, 0.75, 0.8125, 0.875)
    second = [plain.with_codec(i + 1, MinMax.from_rate(c)) for i in range(2, 27, 2) for c in rates]
    assert Tree([plain, *second]).steps * 50 == 77_450  # v2, 10 prompts and 5 seeds


def test_a_codec_may_sit_on_a_handover(tiny):
    hybrid = Trajectory.hybrid("a ring", "a red ring", 2, 1, 2.0, 4.0, num_inference_steps=6)
    coded = hybrid.with_codec(2, DecimalRounding(2.0))
    assert len(coded.segments) == 2
    assert coded.segments[1].codec == DecimalRounding(2.0)
    kept = sample(tiny, [hybrid, coded], keep=[2], **OPTIONS)
    assert torch.equal(kept.latents(2)[0], kept.latents(2)[1])  # one row until the link
    assert not torch.equal(kept.latents()[0], kept.latents()[1])


def test_receiver_knows_the_noise_of_the_seed(tiny):
    codec = Adaptive(step=0.5)
    path = Trajectory.plain("a ring", 7, 4.0, num_inference_steps=6)
    before = sample(tiny, [path], keep=[1], **OPTIONS).latents(1)
    state = sample(tiny, [path], keep=[1], **OPTIONS).state(0, 1)
    rest = Trajectory(7, (Segment("a ring", 1, 6, 4.0, codec=codec),))
    resumed = sample(tiny, [rest], num_inference_steps=6, resume=state, **OPTIONS).latents()
    whole = sample(tiny, [path.with_codec(1, codec)], **OPTIONS).latents()
    assert torch.equal(resumed, whole)
    with_seed, without = codec.encode(before, [7])[0], codec.encode(before)[0]
    assert len(with_seed) < len(without)


def test_json_keeps_codecs_and_leaves_plain_trajectories_as_they_were():
    path = Trajectory.plain("a ring", 7).with_codec(3, MinMax(6, "deflate"))
    assert Trajectory.from_json(path.as_json()) == path
    assert "codec" not in str(Trajectory.plain("a ring", 7).as_json())


def test_state_keeps_the_codecs_of_its_past(tiny):
    path = Trajectory.plain("a ring", 7, num_inference_steps=6).with_codec(2, DecimalRounding(2.0))
    state = sample(tiny, [path], keep=[4], **OPTIONS).state(0, 4)
    again = DenoiseState.from_bytes(state.to_bytes())
    assert again.past.segments == (*path.segments[:1], Segment("a ring", 2, 4, 7.0, "", DecimalRounding(2.0)))


@pytest.mark.parametrize("step", [-1, 28])
def test_codec_outside_the_trajectory_is_refused(step):
    with pytest.raises(ValueError, match=r"latents can pass a codec after 0\.\.27 updates"):
        Trajectory.plain("a ring", 7).with_codec(step, DecimalRounding(2.0))
