from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from factories import random_sd3
from reference.hybrid_loop import hybrid_latents
from reference.stock import DRIFT, noise, stock

STEPS = 6
PERSONAL = ["a red ring on snow", "a green ring on grass"]


def call(pipeline, prompt, seed=3, **options):
    options = {"num_inference_steps": STEPS, "max_sequence_length": 12, "output_type": "latent"} | options
    return pipeline(prompt, generator=torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("output_type", ["latent", "np"])
@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_without_hybrid_arguments_it_is_stock_bit_for_bit(pipeline, scale, output_type):
    options = {"guidance_scale": scale, "negative_prompt": "a blue ring", "output_type": output_type}
    options["num_images_per_prompt"] = 2
    ours = call(pipeline, PERSONAL[0], **options).images
    theirs = call(stock(pipeline), PERSONAL[0], **options).images
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize("public_scale", [1.0, 2.0])
@pytest.mark.parametrize("common_step", [0, 1, 4, STEPS])
def test_public_then_personal_equals_reference_loop(pipeline, common_step, public_scale):
    output = call(
        pipeline,
        PERSONAL,
        public_prompt="a ring",
        common_step=common_step,
        public_guidance_scale=public_scale,
        guidance_scale=8.0,
        negative_prompt=["a blue ring", ""],
    )
    for row, negative in enumerate(["a blue ring", ""]):
        expected = hybrid_latents(
            pipeline, "a ring", PERSONAL[row], common_step, noise(pipeline, 3), public_scale, 8.0, negative, STEPS, 12
        )
        torch.testing.assert_close(output.images[row : row + 1], expected, rtol=0, atol=DRIFT)


HYBRID = {
    "public prompt": {"public_prompt": "a ring", "common_step": 2},
    "a step for each user": {"public_prompt": "a ring", "common_step": [1, 4]},
    "SIM": {"public_prompt": "a ring", "common_step": 2, "public_guidance_scale": 2.0},
    "NPI": {"public_prompt": "a ring", "common_step": 2, "negative_prompt": ["a blue ring", ""]},
    "several noises": {"public_prompt": "a ring", "common_step": 2, "num_images_per_prompt": 2},
    "batches of one": {"public_prompt": "a ring", "common_step": 2, "batch_size": 1},
    "intermediate": {"public_prompt": "a ring", "common_step": 2, "get_intermediate_result": True},
    "public half": {"prompt_unchanged": True, "common_step": 2},
}


@pytest.mark.parametrize("output_type", ["latent", "np", "pt", "pil"])
@pytest.mark.parametrize("arguments", HYBRID.values(), ids=HYBRID)
def test_every_output_type_goes_with_every_hybrid_argument(tiny, arguments, output_type):
    """Whatever the arguments, the pictures are those that the stock pipeline would make of the final latents."""
    prompts = PERSONAL[0] if "prompt_unchanged" in arguments else PERSONAL
    made = call(tiny, prompts, output_type=output_type, **arguments).images
    latents = call(tiny, prompts, **arguments).images
    expected = latents
    if output_type != "latent":
        scaled = latents / tiny.vae.config.scaling_factor + tiny.vae.config.shift_factor
        with torch.no_grad():
            decoded = tiny.vae.decode(scaled, return_dict=False)[0]
        expected = tiny.image_processor.postprocess(decoded, output_type=output_type)
    assert type(made) is type(expected)
    assert len(made) == len(expected)
    if output_type == "pil":
        made, expected = np.stack(made), np.stack(expected)
    made, expected = np.asarray(made, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert np.abs(made - expected).max() <= (1 if output_type == "pil" else 1e-5)  # a grey value; float32 rounding


def test_users_may_switch_at_different_steps(tiny):
    both = call(tiny, PERSONAL, public_prompt="a ring", common_step=[1, 4])
    for row, step in enumerate([1, 4]):
        alone = call(tiny, PERSONAL[row], public_prompt="a ring", common_step=step)
        torch.testing.assert_close(both.images[row], alone.images[0], rtol=0, atol=DRIFT)
    assert both.cost.tree == 2 * (4 + 5 + 2)


def test_several_noises_keep_stock_order(tiny):
    output = call(tiny, PERSONAL, public_prompt="a ring", common_step=0, num_images_per_prompt=2)
    expected = call(stock(tiny), PERSONAL[1], num_images_per_prompt=2)
    torch.testing.assert_close(output.images[2:], expected.images, rtol=0, atol=DRIFT)


@pytest.mark.parametrize("common_step", [0, 2, STEPS])
def test_two_calls_with_published_names_equal_one_call(tiny, common_step):
    public = call(tiny, "a ring", common_step=common_step, prompt_unchanged=True, guidance_scale=2.0)
    assert torch.equal(public.images, call(tiny, "a ring", guidance_scale=2.0).images)
    personal = call(tiny, PERSONAL, common_step=common_step, prompt_unchanged=False, guidance_scale=8.0)
    together = call(
        tiny, PERSONAL, common_step=common_step, public_prompt="a ring", public_guidance_scale=2.0, guidance_scale=8.0
    )
    torch.testing.assert_close(personal.images[: len(together.images)], together.images[: len(personal.images)])


def test_handover_happens_before_update_common_step(tiny):
    """The published off-by-one: the kept latents have had exactly common_step updates."""
    seen = []
    call(
        tiny,
        "a ring",
        common_step=2,
        prompt_unchanged=True,
        callback_on_step_end=lambda pipe, i, t, tensors: seen.append(tensors["latents"]) or {},
    )
    assert torch.equal(tiny._handover.latents, seen[1])


def test_callback_sees_and_may_replace_the_true_state(tiny):
    shapes, timesteps = [], []

    def callback(pipe, i, t, tensors):
        shapes.append(len(tensors["latents"]))
        timesteps.append(float(t))
        return {"latents": torch.zeros_like(tensors["latents"])} if i == STEPS - 1 else {}

    output = call(tiny, PERSONAL, public_prompt="a ring", common_step=4, callback_on_step_end=callback)
    assert shapes == [1, 1, 1, 1, 2, 2]
    assert timesteps == sorted(timesteps, reverse=True)
    assert not output.images.any()


def test_interrupt_stops_the_walk(tiny):
    steps = []

    def stop(pipe, i, t, tensors):
        steps.append(i)
        pipe._interrupt = i == 2
        return {}

    output = call(tiny, PERSONAL, public_prompt="a ring", common_step=4, callback_on_step_end=stop)
    assert steps == [0, 1, 2]
    assert torch.equal(output.images[0], output.images[1])


def test_intermediate_results_end_in_the_image(tiny):
    output = call(tiny, PERSONAL, public_prompt="a ring", common_step=4, get_intermediate_result=True)
    assert len(output.intermediate_images) == STEPS
    assert torch.equal(output.intermediate_images[-1], output.images)
    assert torch.equal(*output.intermediate_images[3])
    plain = call(tiny, "a ring", get_intermediate_result=True)
    assert torch.equal(plain.images, call(tiny, "a ring").images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"public_prompt": "a ring", "common_step": STEPS + 1}, f"common_step must lie in 0..{STEPS}"),
        ({"public_prompt": "a ring", "common_step": -1}, "common_step must lie in"),
        ({"common_step": 3}, "need a public_prompt"),
        ({"public_guidance_scale": 2.0}, "need a public_prompt"),
        (
            {"public_prompt": "a ring", "common_step": [1, 2, 3]},
            r"common_step must be one value or one per prompt \(2\)",
        ),
        ({"public_prompt": "a ring"}, "a public phase needs common_step"),
        (
            {"public_prompt": "a ring", "common_step": 1, "negative_prompt": ["x"]},
            "negative_prompt must be one value or one per prompt",
        ),
        ({"public_prompt": "a ring", "prompt_unchanged": True}, "two-call form"),
        ({"public_prompt": "a ring", "common_step": 1, "prompt_2": "x"}, "prompt_2 cannot be combined"),
        (
            {"public_prompt": "a ring", "common_step": 1, "public_guidance_scale": float("inf")},
            "guidance_scale must be finite",
        ),
        (
            {"public_prompt": "a ring", "common_step": 0, "num_inference_steps": 0},
            "num_inference_steps must be a positive integer",
        ),
        ({"prompt_unchanged": True, "common_step": 1}, "one public prompt, got 2"),
        ({"prompt_unchanged": False, "common_step": 1}, "earlier call"),
    ],
)
def test_bad_input_is_refused_before_any_evaluation(tiny, monkeypatch, options, message):
    monkeypatch.setattr(tiny.transformer, "forward", lambda *a, **k: pytest.fail("evaluated the network"))
    monkeypatch.setattr(tiny, "_handover", None)
    with pytest.raises(ValueError, match=message):
        call(tiny, PERSONAL, **options)


def test_personal_call_refuses_another_common_step(tiny):
    call(tiny, "a ring", common_step=2, prompt_unchanged=True)
    with pytest.raises(ValueError, match=r"handed over at common_step=2 of 6, this call asks for \[3\] of 6"):
        call(tiny, PERSONAL[0], common_step=3, prompt_unchanged=False)
    with pytest.raises(ValueError, match=r"latents are \(8, 8\), this call needs \(4, 4\)"):
        call(tiny, PERSONAL[0], common_step=2, prompt_unchanged=False, height=16, width=16)


def test_signature_shows_stock_and_hybrid_arguments(tiny):
    names = set(inspect.signature(tiny.__call__).parameters)
    assert {"prompt", "guidance_scale", "callback_on_step_end", "public_prompt", "common_step"} <= names


SD35 = {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}  # what SD3.5-medium adds, in its first 13 of 24 blocks


def test_sd35_is_stock_bit_for_bit_and_shares_steps():
    newer = random_sd3(with_t5=True, **SD35)
    assert hasattr(newer.transformer.transformer_blocks[0], "attn2")
    options = {"guidance_scale": 4.5, "negative_prompt": "a blue ring"}
    expected = call(stock(newer), PERSONAL[0], **options).images
    assert torch.equal(call(newer, PERSONAL[0], **options).images, expected)
    assert torch.equal(call(newer, PERSONAL[0], get_intermediate_result=True, **options).images, expected)
    plain = call(random_sd3(with_t5=True), PERSONAL[0], **options).images
    assert not torch.allclose(plain, expected, atol=10 * DRIFT)
    made = call(newer, PERSONAL, public_prompt="a ring", common_step=2, **options).images
    for row, prompt in enumerate(PERSONAL):
        given = (2, noise(newer, 3), 4.5, 4.5, "a blue ring", STEPS, 12)
        expected = hybrid_latents(newer, "a ring", prompt, *given)
        torch.testing.assert_close(made[row : row + 1], expected, rtol=0, atol=DRIFT)
