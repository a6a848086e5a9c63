"""State files with a right checksum and a wrong content: one sentence of ours, or a state."""

from __future__ import annotations

import copy
import json
import random

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from safetensors.torch import load, save

from hybridlib.codecs import DecimalRounding
from hybridlib.denoising import state as state_module
from hybridlib.denoising.sampler import sample
from hybridlib.denoising.state import DenoiseState
from hybridlib.denoising.trajectory import Segment, Trajectory
from hybridlib.trust import InvalidInput

STEPS, SWITCH = 6, 3
OPTIONS = {"max_sequence_length": 12, "progress": False, "num_inference_steps": STEPS}
VALUES = [None, True, -1, 0, 2, 3, 99, 1 << 70, 1.5, float("nan"), "", "raw:float16", "a" * 99, [], [1], {}, {"a": 1}]
TENSORS = [
    torch.zeros(1, 4, 8, 8),
    torch.full((1, 4, 8, 8), float("nan")),
    torch.zeros(2, 4, 8, 8),
    torch.zeros(1, 4, 4, 4),
    torch.zeros(0),
    torch.tensor(1),
    torch.tensor(-5),
    torch.tensor(1 << 40),
    torch.zeros(7, dtype=torch.bool),
    torch.zeros(1, 4, 8, 8, dtype=torch.complex64),
    torch.linspace(1, 0, STEPS + 1),
]
NAMES = ["latents", "sigmas", "history.step", "history.config", "history.model_outputs.99", "history.__class__", "x"]


@pytest.fixture
def unipc(tiny, monkeypatch):
    solver = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    monkeypatch.setattr(tiny, "scheduler", solver)
    return tiny


def parts(pipeline):
    """Metadata and tensors of an honest state."""
    path = Trajectory.plain("a ring", 1, num_inference_steps=STEPS).with_codec(1, DecimalRounding(4.0))
    data = sample(pipeline, [path], keep=[SWITCH], **OPTIONS).state(0, SWITCH).to_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["state"]), load(data)


def sealed(text, tensors):
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    checksum = state_module._checksum(text, tensors)
    return save(tensors, metadata={"format": state_module.FORMAT, "state": text, "sha256": checksum})


def nodes(value, path=()):
    """Paths to everything inside a JSON value."""
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield from nodes(inner, (*path, key))


def altered(rng, state):
    """The metadata with something in it replaced, removed or added."""
    state = copy.deepcopy(state)
    path = rng.choice(list(nodes(state)))
    if not path:
        return rng.choice(VALUES)
    place = state
    for key in path[:-1]:
        place = place[key]
    kind = rng.randrange(3)
    if kind == 0:
        del place[path[-1]]
    elif kind == 1 and isinstance(place, dict):
        place["unknown"] = rng.choice(VALUES)
    else:
        place[path[-1]] = rng.choice(VALUES)
    return state


@pytest.mark.slow
def test_any_content_is_a_state_or_one_sentence(unipc):
    rng = random.Random(0)
    state, tensors = parts(unipc)
    rest = Trajectory(1, (Segment("a ring", SWITCH, STEPS),))
    read, ran, cases = 0, 0, 1500
    for _ in range(cases):
        mine, told = dict(tensors), state
        if rng.random() < 0.4:
            mine[rng.choice([*NAMES, *tensors])] = rng.choice(TENSORS)
        if rng.random() < 0.2:
            mine.pop(rng.choice(list(mine)))
        if rng.random() < 0.6:
            told = altered(rng, state)
        try:
            found = DenoiseState.from_bytes(sealed(json.dumps(told), mine))
        except InvalidInput as error:
            if not str(error).startswith("state holds no state"):
                raise AssertionError(f"{error!r} is no sentence of ours") from error
            continue
        read += 1
        if read % 8:  # going on takes longer than reading
            continue
        try:
            latents = sample(unipc, [rest], resume=found, **OPTIONS).latents()
        except ValueError:
            continue
        ran += 1
        assert latents.shape == (1, 4, 8, 8)
    assert 0 < ran < read < cases


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "null", '{"step": ' + "9" * 5000 + "}"])
def test_metadata_that_is_no_json_object_is_refused(unipc, text):
    _, tensors = parts(unipc)
    with pytest.raises(InvalidInput, match="state holds no state that can be gone on with"):
        DenoiseState.from_bytes(sealed(text, tensors))


def test_headers_of_any_kind_are_refused(unipc):
    """Bytes of the header itself changed: other dtypes, shapes, offsets and keys, with and without our checksum."""
    rng = random.Random(1)
    state, tensors = parts(unipc)
    data = sealed(json.dumps(state), tensors)
    end = 8 + int.from_bytes(data[:8], "little")
    words = [b'"F4"', b'"BOOL"', b'"I16"', b'"C64"', b'"F8_E8M0"', b'"U64"', b"[]", b"[0,99999999999]", b"{}"]
    for _ in range(500):
        header, old = data[8:end], rng.choice([b'"F32"', b'"I64"', b"[1,4,8,8]", b'"sha256"', b'"format"', b'"state"'])
        header = header.replace(old, rng.choice(words), rng.randrange(1, 3))
        with pytest.raises(InvalidInput, match="^state (is truncated|has format|holds no state|was altered)"):
            DenoiseState.from_bytes(len(header).to_bytes(8, "little") + header + data[end:])


def test_a_state_of_another_size_is_refused(unipc):
    samples = sample(unipc, [Trajectory.plain("a ring", 1, num_inference_steps=STEPS)], keep=[SWITCH], **OPTIONS)
    rest = Trajectory(1, (Segment("a ring", SWITCH, STEPS),))
    with pytest.raises(ValueError, match=r"latents are \(4, 8, 8\), this call needs \(4, 4, 8\)"):
        sample(unipc, [rest], resume=samples.state(0, SWITCH), height=16, **OPTIONS)
