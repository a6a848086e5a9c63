"""What a user gets wrong or prints: wrong types, foreign words, and short representations."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import warnings

import pytest
import torch
from transformers import CLIPTokenizer

from hybridlib import codecs, denoising
from hybridlib.codecs import Adaptive, DecimalRounding, Message, MinMax, Raw
from hybridlib.denoising import models
from hybridlib.denoising.sampler import sample
from hybridlib.denoising.state import DenoiseState
from hybridlib.denoising.trajectory import Segment, Trajectory
from hybridlib.denoising.tree import Tree
from hybridlib.miniature.tokens import build_tokenizer, words
from hybridlib.prompts import closed_vocabulary, warn_of_foreign_words

STEPS = 4
PATH = Trajectory.plain("a ring", 1, num_inference_steps=STEPS)
OPTIONS = {"max_sequence_length": 12, "progress": False}

WRONG = {
    "prompt": lambda tiny: Segment(None, 0, 4),
    "negative prompt": lambda tiny: Segment("a ring", 0, 4, 7.0, None),
    "start": lambda tiny: Segment("a ring", "0", 4),
    "stop": lambda tiny: Segment("a ring", 0, 4.0),
    "guidance_scale": lambda tiny: Segment("a ring", 0, 4, "7"),
    "codec": lambda tiny: Segment("a ring", 0, 4, codec="decimal:4.0,range"),
    "codec class": lambda tiny: Segment("a ring", 0, 4, codec=DecimalRounding),
    "seed": lambda tiny: Trajectory(1.5, (Segment("a ring", 0, 4),)),
    "list of segments": lambda tiny: Trajectory(1, [Segment("a ring", 0, 4)]),
    "segments": lambda tiny: Trajectory(1, ("a ring",)),
    "hybrid steps": lambda tiny: Trajectory.hybrid("a ring", "a red ring", 2, 1, num_inference_steps="28"),
    "trajectories of a tree": lambda tiny: Tree(PATH),
    "trajectory of a tree": lambda tiny: Tree(["a ring"]),
    "one trajectory": lambda tiny: sample(tiny, PATH, **OPTIONS),
    "a prompt": lambda tiny: sample(tiny, ["a ring"], **OPTIONS),
    "name for a pipeline": lambda tiny: sample("mini-sd3", [PATH], **OPTIONS),
    "num_inference_steps": lambda tiny: sample(tiny, [PATH], num_inference_steps="4", **OPTIONS),
    "shift": lambda tiny: sample(tiny, [PATH], shift="1", **OPTIONS),
    "height": lambda tiny: sample(tiny, [PATH], height=32.0, **OPTIONS),
    "batch_size": lambda tiny: sample(tiny, [PATH], batch_size=2.5, **OPTIONS),
    "keep": lambda tiny: sample(tiny, [PATH], keep=2, **OPTIONS),
    "entry of keep": lambda tiny: sample(tiny, [PATH], keep=["2"], **OPTIONS),
    "resume": lambda tiny: sample(tiny, [PATH], resume="state.safetensors", **OPTIONS),
    "progress": lambda tiny: sample(tiny, [PATH], progress="yes"),
    "state path": lambda tiny: DenoiseState.load(5),
    "state bytes": lambda tiny: DenoiseState.from_bytes("state"),
    "public_prompt": lambda tiny: tiny("a ring", public_prompt=["a ring"], common_step=2),
    "public_guidance_scale": lambda tiny: tiny(
        "a ring", public_prompt="a ring", common_step=2, public_guidance_scale="2"
    ),
    "prompt_unchanged": lambda tiny: tiny("a ring", common_step=2, prompt_unchanged="yes"),
    "hybrid batch_size": lambda tiny: tiny("a ring", public_prompt="a ring", common_step=2, batch_size="2"),
    "scale of users": lambda tiny: tiny(
        ["a ring", "a star"], public_prompt="a ring", common_step=2, guidance_scale=[1.0, "2"]
    ),
    "compress_at_step": lambda tiny: tiny("a ring", compress_at_step="2"),
    "compress_scale": lambda tiny: tiny("a ring", compress_at_step=2, compress_scale="4"),
    "compression_rate": lambda tiny: tiny("a ring", compress_at_step=2, compression_rate="0.5"),
    "pipeline codec": lambda tiny: tiny("a ring", compress_at_step=2, codec="minmax"),
    "latents": lambda tiny: tiny("a ring", public_prompt="a ring", common_step=2, latents=[1.0]),
    "model": lambda tiny: models.load(5),
    "messages": lambda tiny: codecs.decode(b"HLC"),
    "message": lambda tiny: codecs.decode(["HLC"]),
    "latents of a codec": lambda tiny: Raw().encode([1.0]),
    "seed of a codec": lambda tiny: Adaptive().encode(torch.zeros(1, 1, 2, 2), [1.5]),
    "rows of codecs": lambda tiny: codecs.encode(torch.zeros(1, 1, 2, 2), ["raw"]),
    "specification": lambda tiny: codecs.parse(5),
    "scale": lambda tiny: DecimalRounding("4"),
    "step": lambda tiny: Adaptive("0.25"),
    "thrift": lambda tiny: Adaptive(0.25, None),
    "rate": lambda tiny: MinMax.from_rate("0.5"),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_type_is_one_sentence_before_any_evaluation(tiny, monkeypatch, wrong):
    monkeypatch.setattr(tiny.transformer, "forward", lambda *a, **k: pytest.fail("evaluated the network"))
    monkeypatch.setattr(tiny, "encode_prompt", lambda *a, **k: pytest.fail("encoded a prompt"))
    with pytest.raises(TypeError, match=r"^[\w ]+ must be .*, got ") as caught:
        wrong(tiny)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 0}, "beyond num_inference_steps=0"),
        ({"height": 0}, "height must be a positive multiple of 8 pixels, got 0"),
        ({"shift": float("nan")}, "shift must be finite and above 0, got nan"),
    ],
)
def test_zero_is_no_default(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        sample(tiny, [PATH], **OPTIONS, **options)


def test_an_unknown_output_type_or_device_is_refused(tiny):
    with pytest.raises(ValueError, match=r"output_type must be one of \('pil', 'np', 'pt', 'latent'\), got 'png'"):
        tiny("a ring", public_prompt="a ring", common_step=2, output_type="png")
    with pytest.raises(ValueError, match="num_images_per_prompt must be a positive integer, got 0"):
        tiny("a ring", public_prompt="a ring", common_step=2, num_images_per_prompt=0)
    with pytest.raises(ValueError, match="device must be a name that torch knows"):
        models.load("mini-sd3", device="gpu!")


# --- foreign words


def test_the_closed_vocabulary_is_that_of_the_captions(mini):
    for tokenizer in (build_tokenizer(), build_tokenizer(pad_token="!"), mini.tokenizer, mini.tokenizer_2):
        assert set(closed_vocabulary(tokenizer)) == set(words())


def test_a_large_vocabulary_is_open():
    """A byte-pair tokenizer as CLIP has it, with pieces enough to spell any text."""
    small = build_tokenizer().get_vocab()
    pieces = [f"{a}{b}</w>" for a in small if len(a) == 1 for b in small if len(b) == 1][:4000]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*small, *pieces]))}
    real = CLIPTokenizer(vocab=vocabulary, merges=[])
    assert closed_vocabulary(real) is None
    warn_of_foreign_words(real, ["a dragon over the city"])  # warnings are errors here


DRAW = {
    "sample": lambda tiny, a, b: sample(
        tiny, [Trajectory.hybrid(a, b, 2, 1, negative_prompt=b, num_inference_steps=STEPS)], **OPTIONS
    ),
    "hybrid": lambda tiny, a, b: tiny(
        [b, b],
        public_prompt=a,
        common_step=2,
        negative_prompt=b,
        num_inference_steps=STEPS,
        max_sequence_length=12,
        output_type="latent",
    ),
    "stock": lambda tiny, a, b: tiny(
        [a, b], negative_prompt=[b, b], num_inference_steps=STEPS, max_sequence_length=12, output_type="latent"
    ),
}


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_foreign_words_draw_one_warning_that_names_them(tiny, draw):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        draw(tiny, "a Dragon on grass", "a red ring above all, and now 2 stars")
    assert len(caught) == 1
    told = str(caught[0].message)
    assert "'dragon', 'all', ',', 'and', 'now', '2', 'stars'" in told
    assert "its vocabulary is a, above, an, at, below" in told
    assert caught[0].filename == __file__


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_known_words_draw_no_warning(tiny, draw):
    draw(tiny, "a large Red ring left of a star on snow", "an orange circle on wood at noon")  # warnings are errors


def test_a_negative_prompt_without_guidance_does_not_matter(tiny):
    options = {"num_inference_steps": STEPS, "max_sequence_length": 12, "output_type": "latent"}
    tiny("a ring", negative_prompt="a dragon", guidance_scale=1.0, **options)
    tiny("a ring", negative_prompt="a dragon", guidance_scale=1.0, get_intermediate_result=True, **options)


# --- representations


def holders():
    """Dataclasses and named tuples of the two rooms that hold tensors, arrays, bytes or lists of pictures."""
    for package in (denoising, codecs):
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            for name, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
                if cls.__module__ != module.name:
                    continue
                if not (dataclasses.is_dataclass(cls) or hasattr(cls, "_fields")):
                    continue
                told = " ".join(str(kind) for kind in inspect.get_annotations(cls).values())
                if any(kind in told for kind in ("Tensor", "Integers", "NDArray", "bytes", "Any")):
                    yield name, cls


def test_every_holder_of_arrays_has_a_representation_of_its_own():
    found = dict(holders())
    assert {"Samples", "Kept", "Front", "DenoiseState", "HybridPipelineOutput", "Message", "Model"} <= set(found)
    for name, cls in found.items():
        assert "__repr__" in vars(cls), name
        assert "dataclasses" not in getattr(cls.__repr__, "__module__", ""), name
        assert cls.__repr__.__qualname__ == f"{cls.__qualname__}.__repr__", name
        assert inspect.getsource(cls.__repr__).strip().startswith("def __repr__"), name


def test_representations_are_short(tiny):
    samples = sample(tiny, [PATH], keep=[2], **OPTIONS)
    tiny("a ring", common_step=2, prompt_unchanged=True, num_inference_steps=STEPS, max_sequence_length=12)
    message = Message.open(Adaptive().encode(samples.latents())[0])
    output = tiny(
        "a ring", get_intermediate_result=True, output_type="latent", num_inference_steps=STEPS, max_sequence_length=12
    )
    assert repr(samples) == ("Samples(1 trajectories, kept after [2, 4] updates, Cost(tree=8, one_at_a_time=8))")
    assert repr(samples.kept[2]) == "Kept(1 trajectories in 1 rows of (4, 8, 8))"
    assert repr(samples.state(0, 2)) == (
        "DenoiseState(seed 1, after 2 of 4 updates, latents (4, 8, 8) torch.float32, FlowMatchEulerDiscreteScheduler)"
    )
    assert repr(output) == "HybridPipelineOutput(1 images, 4 intermediate, Cost(tree=8, one_at_a_time=8))"
    for thing in (message, tiny._handover):
        assert len(repr(thing)) < 120
        assert "tensor(" not in repr(thing)
