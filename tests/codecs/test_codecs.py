from __future__ import annotations

import hashlib
import math
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlib import codecs
from hybridlib.codecs import Adaptive, DecimalRounding, Message, MinMax, Raw, decode, empirical_entropy, entropy
from hybridlib.noise import initial_noise

CODECS = [
    Raw("float16"),
    Raw("bfloat16"),
    DecimalRounding(4.0),
    DecimalRounding(1.33, "deflate"),
    MinMax(1),
    MinMax(6, "deflate"),
    MinMax(16),
    MinMax(8, "png"),
    MinMax(5, "webp"),
    Adaptive(0.25),
    Adaptive(1.0, 0.0),
]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
each_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.specification)
fast = settings(max_examples=25, deadline=None)


def normal(rows=2, channels=16, height=8, width=8, seed=0, dtype=torch.float32):
    return torch.randn((rows, channels, height, width), generator=torch.Generator().manual_seed(seed)).to(dtype)


@st.composite
def batches(draw):
    """Latents of many shapes and dtypes: normal at any magnitude, constant, sparse, or with the largest floats."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 17), st.integers(1, 17)))
    latents = normal(*shape, seed=draw(st.integers(0, 99))) * 10.0 ** draw(st.integers(-6, 3))
    kind = draw(st.sampled_from(["normal", "constant", "sparse", "extreme", "shifted"]))
    if kind == "constant":
        latents = torch.full_like(latents, draw(st.floats(-100, 100)))
    elif kind == "sparse":
        latents = latents * (latents > 1)
    elif kind == "shifted":
        latents = latents + draw(st.floats(-1000, 1000))
    elif kind == "extreme":
        latents[0, 0, 0, 0], latents[-1, -1, -1, -1] = 65504, -65504
    seeds = st.none() | st.integers(0, 2**40) | st.just(-3)
    return latents.to(draw(st.sampled_from(DTYPES))).clamp(-65504, 65504), [draw(seeds) for _ in range(shape[0])]


@each_codec
@fast
@given(batch=batches())
def test_what_is_decoded_is_what_was_quantised(codec, batch):
    latents, seeds = batch
    try:
        quantised = codec.quantise(latents, seeds)
    except ValueError:
        with pytest.raises(ValueError, match="too large|as large as"):
            codec.encode(latents, seeds)
        return
    messages = codec.encode(latents, seeds)
    decoded = decode(messages)
    assert decoded.dtype == latents.dtype
    assert decoded.shape == latents.shape
    bits = torch.int32 if latents.dtype == torch.float32 else torch.int16
    assert torch.equal(decoded.view(bits), quantised.view(bits))
    assert torch.equal(codec.decode(messages[-1:]), quantised[-1:])
    assert codecs.parse(Message.open(messages[0]).specification) == codec


@fast
@given(
    values=st.lists(st.integers(-entropy.LIMIT + 1, entropy.LIMIT - 1) | st.integers(-20, 20), min_size=1, max_size=60),
    channels=st.integers(1, 4),
    cut=st.integers(0, 60),
    centred=st.booleans(),
)
def test_range_coder_returns_any_integers(values, channels, cut, centred):
    indices = np.array([values[::-1] if c % 2 else values for c in range(channels)], np.int32)
    widths = tuple(width for width in (min(cut, len(values)), len(values) - min(cut, len(values))) if width)
    payload = entropy.encode(indices, widths, centred)
    assert np.array_equal(entropy.decode(payload, channels, widths), indices)


def test_tokens_cover_every_index_once():
    indices = np.concatenate([np.arange(-70_000, 70_000), [1 - entropy.LIMIT, entropy.LIMIT - 1]]).astype(np.int32)
    tokens, edges = entropy._tokens(indices), entropy._edges()
    assert (edges[tokens] < indices).all()
    assert (indices < edges[tokens + 1]).all()
    assert (np.diff(edges) > 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ratio", [1.0, 0.66, 0.33, 0.25])
def test_decimal_rounding_is_the_published_formula(ratio, dtype):
    latents, codec = normal(dtype=dtype) * 3, DecimalRounding.from_ratio(ratio)
    assert codec.scale == {1.0: 1.0, 0.66: 1.52, 0.33: 3.03, 0.25: 4.0}[ratio]
    assert torch.equal(codec.quantise(latents), torch.round(latents * codec.scale) / codec.scale)
    if dtype is torch.float32:
        for x, y in zip(latents.flatten().tolist()[:200], codec.quantise(latents).flatten().tolist(), strict=False):
            assert y == pytest.approx(round(x * codec.scale) / codec.scale, abs=1e-6)  # Python rounds half to even, too


def test_decimal_rounding_rounds_half_to_even():
    halves = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5]).reshape(1, 1, 1, 5)
    assert DecimalRounding(1.0).quantise(halves).flatten().tolist() == [0, 2, 2, 0, -2]


@pytest.mark.parametrize("rate", [0, 0.25, 0.375, 0.5, 0.625, 0.6875, 0.75, 0.8125, 0.875, 0.99])
def test_min_max_is_the_published_formula(rate):
    codec = MinMax.from_rate(rate)
    assert codec.bits == max(round(16 * (1 - rate)), 1)
    latents = normal(rows=2, channels=2) * 2
    for row, quantised in zip(latents, codec.quantise(latents), strict=True):
        values = [np.float32(x) for x in row.flatten().tolist()]
        low, high, levels = min(values), max(values), 2**codec.bits - 1
        step = np.float32((high - low + np.float32(1e-8)) / np.float32(levels))
        for x, y in zip(values, quantised.flatten().tolist(), strict=True):
            q = min(max(round(float(np.float32(x - low) / step)), 0), levels)
            assert y == pytest.approx(float(np.float32(q) * step + low), abs=1e-6)


def test_a_step_bounds_the_error_of_ours_and_coefficients_are_orthonormal():
    latents = normal(height=12, width=9, seed=3)
    fine = Adaptive(1e-3, 0.0)
    error = (fine.quantise(latents, [1, 2]) - latents).square().mean()
    assert error == pytest.approx(1e-6 / 12, rel=0.1)
    energy = np.square(fine.indices(latents[0]) * 1e-3).sum()
    assert energy == pytest.approx(latents[0].square().sum().item(), rel=1e-4)


def test_transform_is_the_cosine_transform_of_blocks():
    block = normal(1, 1, 8, 8)[0, 0].numpy()
    indices = Adaptive(1e-3, 0.0).indices(torch.from_numpy(block)[None])[0]
    order = sorted(((u, v) for u in range(8) for v in range(8)), key=lambda uv: sum(uv))
    for index, (u, v) in zip(indices, order, strict=True):
        scale = math.sqrt(1 / 8 if u == 0 else 2 / 8) * math.sqrt(1 / 8 if v == 0 else 2 / 8)
        c = sum(
            block[y, x] * math.cos(math.pi * u * (y + 0.5) / 8) * math.cos(math.pi * v * (x + 0.5) / 8)
            for y in range(8)
            for x in range(8)
        )
        assert abs(scale * c - index * 1e-3) < 5.1e-4


def test_with_its_seed_nearly_pure_noise_costs_next_to_nothing():
    latents = 0.97 * initial_noise(5, 16, 8, 8) + 0.03 * normal(1)
    with_seed, without = (len(Adaptive(0.25).encode(latents, seeds)[0]) for seeds in ([5], None))
    assert with_seed < 0.15 * without
    assert torch.equal(
        initial_noise(5, 16, 8, 8), torch.randn((1, 16, 8, 8), generator=torch.Generator().manual_seed(5))
    )


def test_the_seed_is_told_only_where_it_pays():
    latents = normal(1, seed=4)
    other, nothing = (Adaptive(0.25).encode(latents, seeds)[0] for seeds in ([5], None))
    assert other == nothing  # noise of another seed explains nothing
    faint = normal(1, seed=4) + 0.02 * initial_noise(5, 16, 8, 8)  # would save half a byte
    assert len(Adaptive(0.25).encode(faint, [5])[0]) == len(Adaptive(0.25).encode(faint)[0])


def synthetic(sigma, seed=7):
    """SD3's size: (1 - sigma) times a smooth field plus sigma times the noise of the seed."""
    smooth = torch.nn.functional.avg_pool2d(initial_noise(seed + 1, 16, 132, 132), 5, 1)
    return (1 - sigma) * smooth / smooth.std() + sigma * initial_noise(seed, 16, 128, 128)


@pytest.mark.parametrize("sigma", [0.9, 0.5, 0.0])
@pytest.mark.parametrize("codec", [Adaptive(0.25), Adaptive(1.0), DecimalRounding(4.0), MinMax(6)])
def test_payload_is_within_two_percent_of_the_entropy(codec, sigma):
    latents = synthetic(sigma).half()
    payload = 8 * len(Message.open(codec.encode(latents, [7])[0]).payload)
    assert payload < 1.02 * empirical_entropy(codec.indices(latents[0], 7).ravel())


@pytest.mark.parametrize("sigma", [0.9, 0.5, 0.0])
def test_ours_needs_far_fewer_bytes_than_rounding_with_deflate_at_equal_error(sigma):
    latents = synthetic(sigma).half()
    published, ours = DecimalRounding(4.0, "deflate"), Adaptive(0.25, 0.0)
    errors = [(c.quantise(latents, [7]) - latents).float().square().mean() for c in (ours, published)]
    assert errors[0] < 1.01 * errors[1]
    assert len(ours.encode(latents, [7])[0]) < 0.85 * len(published.encode(latents)[0])


def test_entropy_is_shannons():
    assert empirical_entropy(np.array([0, 0, 1, 2], np.int32)) == pytest.approx(4 * 1.5)
    assert empirical_entropy(np.array([[0, 0], [1, 2]], np.int32)) == pytest.approx(2)


def test_rows_may_have_their_own_codecs():
    latents, seeds = normal(rows=3), [1, None, 3]
    mine = [Adaptive(0.5), DecimalRounding(1.0), MinMax(4)]
    messages = codecs.encode(latents, mine, seeds)
    assert torch.equal(decode(messages), codecs.quantise(latents, mine, seeds))
    assert torch.equal(decode(messages[1:2]), mine[1].quantise(latents[1:2]))
    kept = codecs.quantise(latents, [None, mine[1], None], seeds)
    assert torch.equal(kept[::2], latents[::2])
    with pytest.raises(ValueError, match="a codec for each of 3 rows, got 1"):
        codecs.quantise(latents, mine[:1])
    with pytest.raises(ValueError, match="coded by decimal:1.0,range, not by adaptive:0.5,1.0"):
        mine[0].decode(messages[1:])


def test_result_of_a_row_does_not_depend_on_its_batch():
    latents, seeds = normal(rows=4, height=16), [1, 2, 3, 4]
    for codec in CODECS:
        assert codec.encode(latents, seeds)[2:3] == codec.encode(latents[2:3], seeds[2:3])


@each_codec
def test_every_altered_byte_and_every_truncation_is_refused(codec):
    message = codec.encode(normal(1, 2, 4, 4), [9])[0]
    for position in range(len(message)):
        for flip in (1, 0x80, 0xFF):
            altered = bytearray(message)
            altered[position] ^= flip
            with pytest.raises(ValueError, match="coded latents"):
                decode([bytes(altered)])
    for length in range(len(message)):
        with pytest.raises(ValueError, match="coded latents"):
            decode([message[:length]])
    with pytest.raises(ValueError, match="truncated or altered"):
        decode([message + b"\0"])


@each_codec
def test_header_is_small_and_says_everything(codec):
    data = codec.encode(normal(1, 3, 4, 5, dtype=torch.bfloat16), [9])[0]
    message = Message.open(data)
    assert (message.dtype, message.shape) == (torch.bfloat16, (3, 4, 5))
    assert codecs.parse(message.specification) == codec
    assert len(data) == message.header_bytes + len(message.payload)
    assert message.header_bytes < 40
    assert message.seal() == data


@each_codec
def test_bad_latents_are_refused(codec):
    for value in (math.nan, math.inf, -math.inf):
        latents = normal()
        latents[1, 3, 2, 1] = value
        for call in (codec.encode, codec.quantise):
            with pytest.raises(ValueError, match="finite, but row 1 holds NaN or infinity"):
                call(latents)
    for shape in ((0, 4, 8, 8), (1, 4, 0, 8), (4, 8, 8)):
        with pytest.raises(ValueError, match="each at least 1, got"):
            codec.encode(torch.zeros(shape))
    with pytest.raises(ValueError, match="float16, bfloat16 or float32, got torch.float64"):
        codec.encode(normal().double())
    with pytest.raises(ValueError, match="a seed for each of 2 rows, got 1"):
        codec.encode(normal(), [1])
    with pytest.raises(ValueError, match="at least one message"):
        codec.decode([])


def test_what_does_not_fit_is_refused():
    large = torch.full((1, 1, 2, 2), 60000.0)
    with pytest.raises(ValueError, match="too large for codec decimal:100.0,range in torch.float16"):
        DecimalRounding().encode(large.half())
    with pytest.raises(ValueError, match="dtype float16 cannot hold latents as large as 1.2e"):
        Raw().encode(2 * large)
    with pytest.raises(ValueError, match="too large for codec adaptive:0.001"):
        Adaptive(1e-3).encode(large)
    with pytest.raises(ValueError, match="64 bits with sign"):
        Adaptive().encode(large, [2**63])
    messages = Raw().encode(normal(1)) + Raw().encode(normal(1, height=4))
    with pytest.raises(ValueError, match="one shape and dtype"):
        decode(messages)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Raw("float64"), "dtype must be float16 or bfloat16, got 'float64'"),
        (lambda: DecimalRounding(0.0), "scale must be finite and above 0"),
        (lambda: DecimalRounding(math.nan), "scale must be finite and above 0"),
        (lambda: DecimalRounding(1.0, "png"), "entropy must be one of range, deflate, got 'png'"),
        (lambda: DecimalRounding.from_ratio(0.0), "ratio must be finite and above 0"),
        (lambda: MinMax(0), "bits must be a whole number in 1..16, got 0"),
        (lambda: MinMax(2.5), "bits must be a whole number in 1..16"),
        (lambda: MinMax(9, "webp"), "entropy webp needs bits of at most 8"),
        (lambda: MinMax.from_rate(1.0), "rate must lie in"),
        (lambda: Adaptive(math.inf), "step must be finite and above 0"),
        (lambda: Adaptive(1.0, -0.1), "thrift must be finite and not negative"),
        (lambda: codecs.parse("zip:1"), "codec must be one of raw, decimal, minmax, adaptive, got 'zip'"),
        (lambda: codecs.parse("raw:float16,2"), "codec raw has 1 parameters"),
    ],
)
def test_bad_parameters_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_codecs_are_values():
    assert len({DecimalRounding(4), DecimalRounding(4.0), Adaptive(), Adaptive(0.25), MinMax(8)}) == 3
    for codec in CODECS:
        assert codecs.parse(codec.specification) == codec


def test_the_library_alone_does_not_load_the_coder():
    loaded = "import sys, hybridlib, hybridlib.denoising.trajectory; sys.exit('constriction' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0


def test_format_is_pinned():
    data = DecimalRounding(1.0, "deflate").encode(torch.tensor([[[[1.0, -2.0]]]]))[0]
    assert data[:5] == b"HLC\x01" + bytes([len("decimal:1.0,deflate")])
    assert data[5:24] == b"decimal:1.0,deflate"
    assert struct.unpack("<BHHH", data[24:31]) == (2, 1, 1, 2)
    payload = entropy.encode(np.arange(-40, 41, dtype=np.int32)[None], (41, 40), True)
    assert hashlib.sha256(payload).hexdigest()[:16] == "9b6b2c960643a91b"
