"""Conditioning by a mean of prompts: one form, stock diffusers told the averaged embeddings, and everything else."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from factories import diffusion_scheduler, random_sd, random_sdxl
from hypothesis import given
from hypothesis import strategies as st
from reference.stock import DRIFT, stock

from hybridlib.codecs import MinMax
from hybridlib.denoising.blend import Blend
from hybridlib.denoising.families import denoiser_of
from hybridlib.denoising.sampler import sample
from hybridlib.denoising.state import DenoiseState
from hybridlib.denoising.thinning import Thinning
from hybridlib.denoising.trajectory import Conditioning, Segment, Trajectory
from hybridlib.denoising.tree import Tree
from hybridlib.study import runner
from hybridlib.study.parameters import Settings

STEPS = 4
OPTIONS = {"max_sequence_length": 12, "progress": False}
RINGS, WEIGHTS = ("a red ring on snow", "a small blue ring", "a ring at noon"), (0.5, 0.2, 0.3)
BLEND = Blend(RINGS, WEIGHTS)


def test_equal_means_are_equal_values():
    assert Blend(("b", "a")) == Blend(("a", "b")) == Blend(("a", "b"), (3, 3)) == Blend.of(["a", "b", "b", "a"])
    assert hash(Blend(("b", "a"), (1, 3))) == hash(Blend(("a", "b"), (0.75, 0.25)))
    assert Blend(("b", "a"), (1, 3)).weights == (0.75, 0.25)
    assert Blend.of(["a", "b", "a"]).weights == (2 / 3, 1 / 3)
    assert Blend(("a", "b")) != Blend(("a", "b"), (0.5, 0.6)) != Blend(("a", "c"), (0.5, 0.6))


def test_the_mean_of_one_prompt_is_that_prompt():
    assert Blend.of(["a ring"]) == Blend.of(["a ring"] * 3, [1, 2, 3]) == "a ring"
    with pytest.raises(ValueError, match=r"two different prompts or more, got \('a ring', 'a ring'\); Blend.of takes"):
        Blend(("a ring", "a ring"))


TEXTS = st.lists(st.text(max_size=3), min_size=1, max_size=8)


@given(TEXTS.flatmap(lambda texts: st.tuples(st.just(texts), *[st.floats(1e-3, 1e6) for _ in texts])), st.randoms())
def test_weights_are_added_and_sum_to_one_in_any_order(drawn, rng):
    texts, *weights = drawn
    blend = Blend.of(texts, weights)
    if isinstance(blend, str):
        assert set(texts) == {blend}
        return
    expected = {text: math.fsum(w for t, w in zip(texts, weights, strict=True) if t == text) for text in texts}
    total = math.fsum(weights)
    assert blend.prompts == tuple(sorted(expected))
    assert blend.weights == pytest.approx([expected[text] / total for text in blend.prompts], rel=1e-12)
    assert math.fsum(blend.weights) == pytest.approx(1, abs=1e-15)
    assert Blend(blend.prompts, blend.weights) == blend == Blend.from_json(json.loads(json.dumps(blend.as_json())))
    order = list(range(len(texts)))
    rng.shuffle(order)
    other = Blend.of([texts[i] for i in order], [weights[i] for i in order])
    assert isinstance(other, Blend)
    assert other == blend


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((),), "prompts must hold at least one text, got none"),
        ((("a", "b"), (1.0,)), "weights must be one for each of 2 prompts, got 1"),
        ((("a", "b"), (1.0, -0.5)), "weights must be finite and above 0, got -0.5"),
        ((("a", "b"), (1.0, 0)), "weights must be finite and above 0, got 0"),
        ((("a", "b"), (math.nan, 1.0)), "weights must be finite and above 0, got nan"),
        ((("a", "b"), (math.inf, 1.0)), "weights must be finite and above 0, got inf"),
        ((("a", "b"), (1e-300, 1e100)), "weights must not vanish beside each other"),
    ],
)
def test_bad_blends_are_one_sentence(arguments, message):
    for make in (Blend, Blend.of):
        with pytest.raises(ValueError, match=f"^{message}"):
            make(*arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Blend(("a", None)), "prompts must be a tuple of texts"),
        (lambda: Blend(["a", "b"]), "prompts must be a tuple of texts"),
        (lambda: Blend("ab"), "prompts must be a tuple of texts"),
        (lambda: Blend.of("ab"), "prompts must be a list of texts, got 'ab'"),
        (lambda: Blend.of(None), "prompts must be a list of texts, got None"),
        (lambda: Blend.of(["a", BLEND]), "prompts must be a tuple of texts"),
        (lambda: Blend(("a", "b"), ("1", "2")), "weights must be a tuple of numbers"),
        (lambda: Segment(["a", "b"], 0, 4), r"prompt must be text or a Blend, got \['a', 'b'\]"),
        (lambda: Segment("a", 0, 4, negative_prompt=BLEND), "negative_prompt must be text, got Blend"),
    ],
)
def test_wrong_types_are_one_sentence(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_labels_are_short():
    assert str(Blend(("b", "a"))) == "mean of 'a', 'b'"
    assert str(Blend(("b", "a"), (1, 3))) == "mean of 0.75 'a', 0.25 'b'"
    assert str(Blend.of([f"a ring {i}" for i in range(9)])) == "mean of 'a ring 0', 'a ring 1', 7 more"
    assert len(str(Blend.of(["word " * 99 + str(i) for i in range(9)]))) < 120


def hybrid(common_step=2, seed=3, public=BLEND, scale=5.0, negative="a blue star", personal="a red ring"):
    return Trajectory.hybrid(public, personal, common_step, seed, scale, 7.0, negative, STEPS)


def test_trees_share_what_equal_means_share():
    again = hybrid(public=Blend(RINGS[::-1], WEIGHTS[::-1]), personal="a green ring")
    assert Tree([hybrid(), again]).cost.tree == 2 * (2 + 2 * 2)
    other = hybrid(public=Blend(RINGS))
    assert Tree([hybrid(), other]).cost.tree == 2 * 2 * STEPS
    assert set(Tree([hybrid()]).texts) == {*RINGS, "a red ring", "a blue star"}


def test_json_tells_a_blend_and_texts_as_ever():
    path = hybrid()
    told = json.loads(json.dumps(path.as_json()))
    assert told["segments"][0]["prompt"] == {"prompts": sorted(RINGS), "weights": [0.5, 0.3, 0.2]}
    assert told["segments"][1]["prompt"] == "a red ring"
    assert Trajectory.from_json(told) == path
    for wrong in (
        {},
        {"prompts": "ab", "weights": [1, 2]},
        {"prompts": ["a"], "weights": [1]},
        {"prompts": ["a", "b"]},
    ):
        told["segments"][0]["prompt"] = wrong
        with pytest.raises(ValueError, match="^a blend must have"):
            Trajectory.from_json(told)


# --- what the network is told


def averaged(encoded, weights):
    """Mean of tuples of tensors, written out."""
    return [sum(w * part for w, part in zip(weights, parts, strict=True)) for parts in zip(*encoded, strict=True)]


def stock_sd3(pipeline, scale, steps=STEPS):
    """Stock diffusers told the averaged embeddings."""
    plain = stock(pipeline)
    told = [plain.encode_prompt(t, None, None, max_sequence_length=12, device="cpu") for t in RINGS]
    embeds, pooled = averaged([(embeds, pooled) for embeds, _, pooled, _ in told], WEIGHTS)
    none = plain.encode_prompt("a blue star", None, None, max_sequence_length=12, device="cpu")
    return plain(
        prompt_embeds=embeds,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=none[0],
        negative_pooled_prompt_embeds=none[2],
        guidance_scale=scale,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images


def stock_unet(pipeline, scale, steps=STEPS):
    xl = "text_encoder_2" in pipeline.components
    plain = (StableDiffusionXLPipeline if xl else StableDiffusionPipeline)(**pipeline.components)
    plain.set_progress_bar_config(disable=True)
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    told, none = [plain.encode_prompt(text, **options) for text in RINGS], plain.encode_prompt("a blue star", **options)
    names = ("prompt_embeds", "pooled_prompt_embeds") if xl else ("prompt_embeds",)
    means = averaged([parts[::2][: len(names)] for parts in told], WEIGHTS)
    given = dict(zip(names, means, strict=True))
    given |= dict(zip((f"negative_{name}" for name in names), none[::2][: len(names)], strict=True))
    options = {"guidance_scale": scale, "num_inference_steps": steps, "output_type": "latent"}
    return plain(**given, **options, generator=torch.Generator().manual_seed(3)).images


def unet(make):
    return make(scheduler=diffusion_scheduler(DPMSolverMultistepScheduler))


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_a_blend_is_stock_sd3_told_the_averaged_embeddings(pipeline, scale):
    path = Trajectory.plain(BLEND, 3, scale, "a blue star", STEPS)
    latents = sample(pipeline, [path], **OPTIONS).latents()
    # The mean is summed in another order: 1e-7 in the embeddings.
    torch.testing.assert_close(latents, stock_sd3(pipeline, scale), rtol=0, atol=1e-5)
    for text in RINGS:  # and none of the prompts alone is near it
        alone = sample(pipeline, [Trajectory.plain(text, 3, scale, "a blue star", STEPS)], **OPTIONS).latents()
        assert (latents - alone).abs().max() > 1e-2


@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize("make", [random_sd, random_sdxl])
def test_a_blend_is_a_stock_unet_told_the_averaged_embeddings(make, scale):
    pipeline = unet(make)
    latents = sample(pipeline, [Trajectory.plain(BLEND, 3, scale, "a blue star", STEPS)], progress=False).latents()
    expected = stock_unet(pipeline, scale)
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item()))
    alone = sample(pipeline, [Trajectory.plain(RINGS[0], 3, scale, "a blue star", STEPS)], progress=False).latents()
    assert (latents - alone).abs().max() > 1e-2


def test_a_blend_of_equal_prompts_draws_what_the_prompt_draws(tiny):
    blend = Trajectory.plain(Blend.of(["a ring"] * 2), 3, 5.0, "", STEPS)
    plain = Trajectory.plain("a ring", 3, 5.0, "", STEPS)
    assert torch.equal(sample(tiny, [blend], **OPTIONS).latents(), sample(tiny, [plain], **OPTIONS).latents())


def test_nearly_all_weight_on_one_prompt_draws_nearly_that_prompt(tiny):
    def drawn(weight):
        return sample(tiny, [Trajectory.plain(Blend(RINGS[:2], (weight, 1.0)), 3, 5.0, "", STEPS)], **OPTIONS).latents()

    alone = sample(tiny, [Trajectory.plain(RINGS[0], 3, 5.0, "", STEPS)], **OPTIONS).latents()
    torch.testing.assert_close(drawn(1e8), alone, rtol=0, atol=1e-5)
    distances = [(drawn(weight) - alone).abs().max().item() for weight in (1e3, 10.0, 1.0)]
    assert 1e-5 < distances[0] < distances[1] < distances[2]


def test_half_precision_averages_in_float32(tiny):
    denoiser = denoiser_of(tiny, max_sequence_length=12)
    halves = {text: tuple(part.half() for part in denoiser._encode(text, False)) for text in RINGS}
    denoiser._encode = lambda text, negative: halves[text]
    denoiser.encode_all([(BLEND, False)])
    embeds, pooled = denoiser._embeds[BLEND, False]
    expected = averaged([[part.float() for part in halves[text]] for text in RINGS], WEIGHTS)
    assert embeds.dtype == pooled.dtype == torch.float16
    # The nearest half, but for a sum in another order that falls just beside a tie.
    for part, mean in zip((embeds, pooled), expected, strict=True):
        assert (part == mean.half()).float().mean() > 0.99


def test_each_prompt_is_encoded_once(tiny, monkeypatch):
    asked, encode = [], tiny.encode_prompt
    monkeypatch.setattr(tiny, "encode_prompt", lambda text, *a, **k: asked.append(text) or encode(text, *a, **k))
    paths = [hybrid(), hybrid(public=Blend(RINGS)), hybrid(public=RINGS[0], personal=RINGS[1])]
    sample(tiny, paths, **OPTIONS)
    assert sorted(asked) == sorted({*RINGS, "a red ring", "a blue star", ""})  # "" is the public negative prompt


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ((torch.zeros(1, 5, 48), torch.zeros(1, 48)), r"prompts of a blend must have embeddings of the same shapes: "),
        ((torch.zeros(1, 5, 48),), "prompts of a blend must have embeddings of the same shapes: "),
        ((torch.zeros(1, 4, 48), torch.zeros(1, 4, dtype=torch.bool)), None),
    ],
)
def test_what_has_no_mean_is_refused(tiny, other, message):
    denoiser, first = denoiser_of(tiny), (torch.zeros(1, 4, 48), torch.zeros(1, 48))
    if message is None:
        first, message = other, "only embeddings can be blended, .* by a tensor of torch.bool"
    denoiser._encode = lambda text, negative: first if text == sorted(RINGS)[0] else other
    with pytest.raises(ValueError, match=message):
        denoiser.encode_all([(BLEND, False)])


# --- crossed with the rest


def crossed():
    """Blends at both ends, scales on both sides of 1, codecs, thinning, forks, two seeds."""
    thin = Trajectory(4, (Segment(BLEND, 0, 3, 4.0, thinning=Thinning(2, 1, 0.3)), Segment("a ring", 3, STEPS, 7.0)))
    return [
        hybrid(),
        hybrid(scale=1.0, seed=4),
        hybrid(common_step=3, personal="a green ring"),
        hybrid(public="a ring", personal=Blend(RINGS), negative=""),
        hybrid(seed=4).with_codec(2, MinMax(6)),
        thin,
        Trajectory.plain(BLEND, 3, 1.0, "", STEPS),
    ]


@pytest.mark.parametrize("solver", ["euler", "dpm-solver++"])
@pytest.mark.slow
def test_rows_do_not_depend_on_their_order_or_company(tiny, monkeypatch, solver):
    from hybridlib.denoising.solvers import solver_of

    monkeypatch.setattr(tiny, "scheduler", solver_of(tiny.scheduler.config, solver))
    paths = crossed()
    together = sample(tiny, paths, **OPTIONS).latents()
    backwards = sample(tiny, paths[::-1], **OPTIONS).latents().flip(0)
    torch.testing.assert_close(together, backwards, rtol=0, atol=DRIFT)
    for row, path in enumerate(paths):
        alone = sample(tiny, [path], **OPTIONS).latents()
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=DRIFT)
    assert len({tuple(latents.flatten()[:8].tolist()) for latents in together}) == len(paths)


def test_a_state_inside_a_blend_goes_on_bitwise(tiny):
    path = hybrid(common_step=3)
    samples = sample(tiny, [path], keep=[2, 3], **OPTIONS)
    for step in (2, 3):
        state = DenoiseState.from_bytes(samples.state(0, step).to_bytes())
        assert state.past == Trajectory(3, (Segment(BLEND, 0, step, 5.0),))
        resumed = sample(tiny, [path.since(step)], resume=state, num_inference_steps=STEPS, **OPTIONS)
        assert torch.equal(resumed.latents(), samples.latents())


def test_what_is_left_of_a_trajectory():
    path = hybrid(common_step=3).with_codec(1, MinMax(4)).with_codec(3, MinMax(8))
    assert path.since(0) == path
    for step in range(STEPS):
        assert list(path.since(step).moves()) == list(path.moves())[step:]
    for step in (-1, STEPS):
        with pytest.raises(ValueError, match=rf"what is left begins after 0..3 updates, got {step}"):
            path.since(step)
    with pytest.raises(ValueError, match="a thinned segment cannot be cut"):
        crossed()[5].since(2)


def test_a_guest_is_told_the_blend(tiny):
    asked = []

    class Guest:
        identity = "guest"

        def __call__(self, latents, timestep, conditionings):
            asked.extend(conditionings)
            return torch.zeros_like(latents)

    path = hybrid().with_denoisers([("guest", STEPS)])
    sample(tiny, [path], denoisers={"guest": Guest()}, **OPTIONS)
    assert asked[0] == Conditioning(BLEND, "", 5.0)


def test_hybrid_calls_take_a_blend_as_public_prompt(tiny):
    images = tiny(
        "a red ring",
        public_prompt=BLEND,
        common_step=2,
        public_guidance_scale=5.0,
        guidance_scale=7.0,
        negative_prompt="a blue star",
        num_inference_steps=STEPS,
        max_sequence_length=12,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images
    assert torch.equal(images, sample(tiny, [hybrid()], **OPTIONS).latents())


def test_foreign_words_inside_a_blend_are_named(tiny):
    path = Trajectory.plain(Blend(("a ring", "a Dragon")), 1, num_inference_steps=STEPS)
    with pytest.warns(UserWarning, match="the model does not know 'dragon'"):
        sample(tiny, [path], **OPTIONS)


def test_ledgers_tell_blends_apart(tiny, tmp_path, monkeypatch):
    settings = Settings(num_inference_steps=STEPS, image_size=32, batch_size=16, max_sequence_length=12)
    paths = [hybrid(), hybrid(personal="a green ring"), hybrid(public=Blend(RINGS))]
    table = pd.DataFrame({"path": ["1.png", "2.png", "3.png"], "trajectory": paths})
    assert [len(shard) for shard in runner.shards_of(table)] == [2, 1]
    runner.generate(table, tiny, tmp_path, settings, progress=False)
    monkeypatch.setattr(tiny.transformer, "forward", lambda *a, **k: pytest.fail("evaluated the network"))
    runner.generate(table, tiny, tmp_path, settings, progress=False)
    changed = table.assign(trajectory=[hybrid(public=Blend(RINGS, (2, 1, 1))), *paths[1:]])
    with pytest.raises(pytest.fail.Exception, match="evaluated the network"):
        runner.generate(changed, tiny, tmp_path, settings, progress=False)
