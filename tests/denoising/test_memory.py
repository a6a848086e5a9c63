"""Memory plans: what they count, which one a budget gets, and that images are those of the resident plan."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import pytest
import torch
from factories import random_flux, random_sd, random_sd3
from reference.stock import DRIFT

from hybridlib.denoising import memory, models
from hybridlib.denoising.blueprints import BLUEPRINTS, HUB, blueprint, network, random_pipeline
from hybridlib.denoising.costs import parameters
from hybridlib.denoising.footprint import Needs, live_peak, needs_of, quantised_bytes, weight_bytes
from hybridlib.denoising.identity import text_identity
from hybridlib.denoising.sampler import sample
from hybridlib.denoising.speed import apply_speed, compile_blocks
from hybridlib.denoising.trajectory import Trajectory
from hybridlib.files import read_image
from hybridlib.study.parameters import Settings
from hybridlib.study.runner import generate

STEPS, CPU = 3, torch.device("cpu")
MAKE = {"sd3": functools.partial(random_sd3, with_t5=True), "flux": random_flux}
OPTIONS = {"height": 32, "width": 32, "max_sequence_length": 12, "progress": False}
GB = 10**9
NEEDS = Needs(  # of SD3-medium in 16 bit, roughly
    weights={"text_encoder": GB // 4, "text_encoder_2": GB, "text_encoder_3": 9 * GB, "transformer": 4 * GB, "vae": 1},
    largest_layer=GB // 2,
    encoding=GB // 25,
    evaluation=GB // 5,
    decoding=GB,
    text=1,
    row=GB // 2000,
    update=GB // 400,
    t5="text_encoder_3",
)


def paths(kind):
    negative = "" if kind == "flux" else "a blue ring"
    texts = ("a red ring on snow", "a green ring on grass")
    return [Trajectory.hybrid("a ring", text, 1, 3, 2.0, 4.0, negative, STEPS) for text in texts]


def plan_of(placement="resident", **changes):
    batches = {"batch_size": 64, "decode_batch_size": 16, "text_batch_size": 32 if "stream" in placement else 1}
    values = batches | {"needs": NEEDS, "t5": "full"} | changes
    return memory.MemoryPlan("tiny", 32, "float32", placement, **values)


def follow(pipeline, plan):
    """As on an accelerator: the hooks that move weights are set, with the CPU as the device that they move to."""
    memory.place(pipeline, plan.placement, CPU)
    pipeline.memory_plan, pipeline.encoded_texts = plan, {}
    return pipeline


@functools.cache
def resident_latents(kind):
    return sample(MAKE[kind](), paths(kind), **OPTIONS).latents()


# --- counting


@pytest.mark.slow
def test_published_parameter_counts():
    """As published: CLIP-L 124 M, CLIP-G 695 M, T5-XXL 4.76 B, the transformers about 2 B and 12 B, the VAE 84 M."""
    counted = {
        name: {part: parameters(network(*entry)) for part, entry in BLUEPRINTS[name].networks.items()}
        for name in ("sd3-medium", "sd3.5-medium", "flux.1-dev")
    }
    sd3 = counted["sd3-medium"]
    assert [round(sd3[part] / 1e6) for part in ("text_encoder", "text_encoder_2", "vae")] == [124, 695, 84]
    assert round(sd3["text_encoder_3"] / 1e9, 2) == 4.76
    assert round(sd3["transformer"] / 1e9, 1) == 2.0
    assert counted["sd3.5-medium"]["transformer"] > sd3["transformer"]  # 13 blocks attend twice
    assert round(counted["flux.1-dev"]["transformer"] / 1e9, 1) == 11.9


@pytest.mark.slow
def test_sd3_medium_fits_where_it_should():
    """8 GB with T5 used for encoding, from configurations alone; without streaming it would be twice that."""
    plan = models.plan("sd3-medium", 8)
    assert (plan.placement, plan.is_exact) == ("stream text", True)
    assert plan.batch_size >= 2
    assert plan.peak <= 8e9
    assert plan.on_device + plan.in_host_memory == sum(plan.needs.weights.values())
    assert models.plan("stabilityai/stable-diffusion-3-medium-diffusers").on_device > 15e9
    assert "weights (GB, counted): text_encoder 0.25" in str(plan)
    assert "activations (estimates)" in str(plan)


def test_a_folder_is_counted_from_its_configurations(tmp_path):
    pipeline = random_sd3(with_t5=True)
    pipeline.save_pretrained(tmp_path)
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()  # not read
    side, needs = needs_of(blueprint(str(tmp_path)), "float32")
    assert side == 32
    networks = {name: getattr(pipeline, name) for name in needs.weights}
    table = networks["transformer"].pos_embed.pos_embed.numel()
    counted = {name: parameters(model) + table * (name == "transformer") for name, model in networks.items()}
    assert needs.weights == {name: 4 * number for name, number in counted.items()}
    assert needs.text == 4 * ((16 + 256) * 48 + 48)
    t5 = pipeline.text_encoder_3.to("meta")
    one, eight = (torch.zeros(n, 256, dtype=torch.long, device="meta") for n in (1, 8))
    assert needs.encoding == live_peak(lambda: t5(one), t5)
    assert needs.encoding < live_peak(lambda: t5(eight), t5) <= 8 * needs.encoding  # what plans count with
    half = needs_of(blueprint(str(tmp_path)), "bfloat16")[1]
    assert half.evaluation < needs.evaluation
    assert needs_of(blueprint(str(tmp_path)), "float32", 64)[1].decoding > 3.5 * needs.decoding
    dropped = needs_of(blueprint(str(tmp_path)), "float32", t5="dropped")[1]
    assert dropped.weights["text_encoder_3"] == 0


def test_layers_that_stay_in_float32_are_counted_so():
    t5 = network("T5EncoderModel", {"d_model": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "d_kv": 4})
    wide = 2 * 8 * 32  # the output layers of two feed-forward parts, which transformers does not halve
    assert weight_bytes(t5, torch.float16) == 2 * (parameters(t5) + wide)
    assert weight_bytes(t5, torch.bfloat16) == 2 * parameters(t5)
    linear = 2 * (4 * 8 * 8 + 2 * 8 * 32)
    assert quantised_bytes(t5, 0.5) == 2 * parameters(t5) - linear


def test_live_peak_is_what_is_held_at_one_time():
    with torch.device("meta"):
        net = torch.nn.Sequential(torch.nn.Linear(10, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10))
        rows = torch.empty(5, 10)
    assert live_peak(lambda: net(rows), net) == 2 * 5 * 100 * 4  # before and after the ReLU, and nothing else
    assert live_peak(lambda: [net(rows) for _ in range(9)], net) == 2 * 5 * 100 * 4 + 8 * 5 * 10 * 4
    query = torch.empty(1, 2, 1000, 8, device="meta")
    attend = torch.nn.functional.scaled_dot_product_attention
    assert live_peak(lambda: attend(query, query, query), net) == 2 * 1000 * 8 * 4  # no matrix of 1000 by 1000


# --- choosing


@pytest.fixture
def _known_needs(monkeypatch):
    monkeypatch.setattr(memory, "published_needs", lambda name, dtype, size, t5: (size or 1024, NEEDS))


@pytest.mark.usefixtures("_known_needs")
@pytest.mark.parametrize(
    ("budget", "placement", "batch", "decoded", "read"),
    [
        (None, "resident", 64, 16, 1),
        (30, "resident", 64, 8, 1),
        (16, "resident", 4, 1, 1),
        (8, "stream text", 16, 2, 32),
        (2, "stream", 4, 1, 16),
        (1.5, "stream", 2, 1, 16),
    ],
)
def test_the_fastest_plan_that_fits(budget, placement, batch, decoded, read):
    plan = memory.make_plan("sd3-medium", budget)
    batches = (plan.batch_size, plan.decode_batch_size, plan.text_batch_size)
    assert (plan.placement, *batches) == (placement, batch, decoded, read)
    assert budget is None or plan.peak <= budget * 1e9
    weights = {"resident": 14.25, "stream text": 4.0, "stream": 0.0}
    assert plan.on_device / 1e9 == pytest.approx(weights[placement], abs=1e-6)


@pytest.mark.usefixtures("_known_needs")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"budget_gb": 0.9},
            r"the least that 'sd3-medium' needs at 1024 pixels in bfloat16 is about 1.4 GB",
        ),
        ({"budget_gb": 0}, "budget_gb must be above 0"),
        ({"placement": "streams"}, "no placement 'streams'; did you mean 'stream'"),
        ({"t5": "2bit"}, "no kind of t5 '2bit'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"name": "sd3-mediun"}, "no pipeline .* 'sd3-mediun'; did you mean 'sd3-medium'"),
    ],
)
def test_what_cannot_be_planned_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        memory.make_plan(**({"name": "sd3-medium"} | options))


def test_other_families_and_impossible_t5_are_refused(tmp_path):
    random_sd().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="memory plans are made for StableDiffusion3Pipeline and FluxPipeline, got"):
        models.plan(str(tmp_path))
    with pytest.raises(ValueError, match="FLUX.1 takes its tokens from T5 alone"):
        models.plan("flux.1-dev", t5="dropped")
    with pytest.raises(ValueError, match="this pipeline has no T5"):
        models.plan("mini-sd3", t5="8bit")
    assert models.locate("flux.1-dev") == "black-forest-labs/FLUX.1-dev"
    assert set(HUB.values()) == set(BLUEPRINTS)


# --- following


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("placement", memory.PLACEMENTS)
def test_every_placement_gives_the_images_of_the_resident_one(kind, placement):
    """Where texts share a forward, rounding differs; else the arithmetic is the same, and so are the bits."""
    pipeline = follow(MAKE[kind](), plan_of(placement))
    latents = sample(pipeline, paths(kind), **OPTIONS).latents()
    if placement.startswith("stream"):
        torch.testing.assert_close(latents, resident_latents(kind), rtol=0, atol=DRIFT)
    else:
        assert torch.equal(latents, resident_latents(kind))


def test_rows_and_images_share_no_more_than_the_plan_allows(monkeypatch):
    pipeline = follow(random_sd3(), plan_of(batch_size=2, decode_batch_size=1))
    rows, forward, decode = [], pipeline.transformer.forward, pipeline.vae.decode
    monkeypatch.setattr(
        pipeline.transformer, "forward", lambda **given: rows.append(len(given["timestep"])) or forward(**given)
    )
    images = []
    monkeypatch.setattr(pipeline.vae, "decode", lambda x, **given: images.append(len(x)) or decode(x, **given))
    samples = sample(pipeline, paths("sd3"), **OPTIONS)
    samples.images()
    assert (max(rows), max(images)) == (2, 1)
    torch.testing.assert_close(samples.latents(), sample(random_sd3(), paths("sd3"), **OPTIONS).latents())


def count_texts(pipeline, monkeypatch):
    asked, encode = [], pipeline.encode_prompt
    monkeypatch.setattr(
        pipeline, "encode_prompt", lambda text, *rest, **o: asked.append(text) or encode(text, *rest, **o)
    )
    return asked


def test_texts_are_encoded_once_and_together_before_the_first_step(monkeypatch):
    pipeline = follow(random_sd3(with_t5=True), plan_of("stream text"))
    asked, trees = count_texts(pipeline, monkeypatch), paths("sd3")
    monkeypatch.setattr(pipeline.transformer, "forward", lambda **_: pytest.fail(f"after {asked}"))
    with pytest.raises(pytest.fail.Exception, match="after"):
        sample(pipeline, trees, **OPTIONS)
    assert asked == [["", "a blue ring"], ["a ring", "a red ring on snow", "a green ring on grass"]]
    monkeypatch.undo()
    asked = count_texts(pipeline, monkeypatch)
    sample(pipeline, trees, **OPTIONS)
    assert not asked
    sample(random_sd3(), trees[:1], **OPTIONS)  # a pipeline without a plan keeps nothing


def test_a_study_encodes_all_its_prompts_and_drops_the_encoders(tmp_path, monkeypatch):
    texts = ["a red ring", "a blue ring", "a ring"]
    rows = [(f"{i}.png", Trajectory.plain(text, i, 4.0, "", STEPS)) for i, text in enumerate(texts)]
    table = pd.DataFrame(rows, columns=["path", "trajectory"])
    settings = Settings(STEPS, 32, 8, max_sequence_length=12)
    generate(table, random_sd3(with_t5=True), tmp_path / "resident", settings, progress=False)
    pipeline = follow(random_sd3(with_t5=True), plan_of(free_text_encoders=True))
    asked = count_texts(pipeline, monkeypatch)
    generate(table, pipeline, tmp_path / "freed", settings, progress=False)
    assert sorted(asked) == ["", *sorted(texts)]
    assert pipeline.text_encoder is pipeline.text_encoder_2 is pipeline.text_encoder_3 is None
    assert text_identity(pipeline) == text_identity(random_sd3(with_t5=True)) != text_identity(random_sd3())
    for path in table["path"]:
        made, expected = (np.asarray(read_image(tmp_path / kind / path), int) for kind in ("freed", "resident"))
        assert abs(made - expected).max() <= 1  # a grey value, where kernels round by where tensors lie
    with pytest.raises(ValueError, match="the text encoders were dropped before 'a star' was encoded: load"):
        sample(pipeline, [Trajectory.plain("a star", 1, 1.0, num_inference_steps=STEPS)], **OPTIONS)


def test_loading_follows_a_plan_and_says_what_a_cpu_cannot(tmp_path):
    random_sd3(with_t5=True).save_pretrained(tmp_path)
    plain = sample(models.load(str(tmp_path), device="cpu"), paths("sd3"), **OPTIONS).latents()
    plan = models.plan(str(tmp_path), placement="stream", dtype="float32")
    with pytest.warns(UserWarning, match="no accelerator: plan 'stream' has nowhere to move weights to"):
        pipeline = models.load(str(tmp_path), device="cpu", plan=plan)
    assert pipeline.memory_plan is plan
    torch.testing.assert_close(sample(pipeline, paths("sd3"), **OPTIONS).latents(), plain, rtol=0, atol=DRIFT)
    budgeted = models.load(str(tmp_path), device="cpu", budget_gb=1)
    assert budgeted.memory_plan.placement == "resident"
    assert torch.equal(sample(budgeted, paths("sd3"), **OPTIONS).latents(), plain)
    with pytest.raises(ValueError, match="plan and budget_gb are two ways"):
        models.load(str(tmp_path), device="cpu", plan=plan, budget_gb=1)
    dropped = models.load(str(tmp_path), device="cpu", plan=models.plan(str(tmp_path), t5="dropped", dtype="float32"))
    assert dropped.text_encoder_3 is None
    without = models.load(str(tmp_path), device="cpu")
    without.text_encoder_3 = None
    expected = sample(without, paths("sd3"), **OPTIONS).latents()
    assert torch.equal(sample(dropped, paths("sd3"), **OPTIONS).latents(), expected)
    assert not torch.allclose(expected, plain, atol=10 * DRIFT)


def test_t5_in_8_bit_needs_a_package(monkeypatch, tmp_path):
    random_sd3(with_t5=True).save_pretrained(tmp_path)
    monkeypatch.setattr(memory, "find_spec", lambda name: None)
    plan = models.plan(str(tmp_path), t5="8bit", dtype="float32")
    with pytest.raises(ValueError, match=r"t5 = '8bit' needs the package bitsandbytes: pip install 'hybridlib\[quant"):
        models.load(str(tmp_path), device="cpu", plan=plan)


def test_random_weights_are_made_from_configurations(tmp_path):
    made_of = random_sd3(with_t5=True)
    made_of.save_pretrained(tmp_path)
    words = ("tokenizer", "tokenizer_2", "tokenizer_3")
    tokenizers = {word: getattr(made_of, word) for word in words}
    pipelines = [
        random_pipeline(blueprint(str(tmp_path)), tokenizers, "cpu", torch.float32, seed) for seed in (1, 1, 2)
    ]
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae"):
        assert parameters(getattr(pipelines[0], name)) == parameters(getattr(made_of, name))
        buffers = dict(getattr(pipelines[0], name).named_buffers())
        assert all(torch.equal(buffers[key], value) for key, value in getattr(made_of, name).named_buffers())
    first, again, other = (sample(pipe, paths("sd3"), **OPTIONS).latents() for pipe in pipelines)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.isfinite(first).all()


# --- speed


def call(pipeline):
    given = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(1)}
    return pipeline("a ring", **given).images


def test_speed_options_change_nothing_but_rounding():
    pipeline = apply_speed(random_sd3(), ["channels_last"])
    made, expected = call(pipeline), call(random_sd3())
    assert abs(made - expected).max() < 1e-5
    with pytest.warns(UserWarning, match="no accelerator: speed 'compile' is left out"):
        apply_speed(pipeline, ["compile"])
    with pytest.raises(ValueError, match="no speed option 'compiled'; did you mean 'compile'"):
        apply_speed(pipeline, ["compiled"])
    pipeline.memory_plan = plan_of("stream")
    with pytest.raises(ValueError, match="needs a denoiser that stays on the device"):
        apply_speed(pipeline, ["compile"])


@pytest.mark.slow
@pytest.mark.parametrize("make", [random_sd3, random_flux, random_sd])
def test_compiled_blocks_give_the_same_latents_whatever_the_number_of_rows(make):
    """Traced as on a GPU, and run as they are, since a bare machine has no compiler. The last batch is smaller."""
    negative = "" if make is random_flux else "a blue ring"
    trees = [Trajectory.hybrid("a ring", f"a {c} ring", 1, 3, 2.0, 4.0, negative, STEPS) for c in ("red", "green")]
    options = {"height": 32, "width": 32, "progress": False, "batch_size": 3}
    pipeline, expected = make(), sample(make(), trees, **options).latents()
    network = pipeline.unet if make is random_sd else pipeline.transformer
    compile_blocks(network, backend="eager")
    compiled = [module for module in network.modules() if module._compiled_call_impl is not None]
    assert len(compiled) >= 2
    assert network not in compiled
    torch.testing.assert_close(sample(pipeline, trees, **options).latents(), expected, rtol=0, atol=DRIFT)
