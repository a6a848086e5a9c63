"""Messages with a right checksum and a wrong content: one sentence of ours, or latents as the header tells them."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from hybridlib.codecs import Adaptive, DecimalRounding, Message, MinMax, Raw, decode
from hybridlib.codecs.message import LARGEST_ROW
from hybridlib.trust import InvalidInput

CODECS = [
    Raw("float16"),
    Raw("bfloat16"),
    DecimalRounding(4.0),
    DecimalRounding(1.33, "deflate"),
    MinMax(6),
    MinMax(16, "deflate"),
    MinMax(8, "png"),
    MinMax(5, "webp"),
    Adaptive(0.25),
]
SENTENCES = ("coded latents ", "codec ", "scale ", "step ", "thrift ", "bits ", "entropy ", "dtype ")
SHAPES = [(65535, 65535, 65535), (65535, 1, 1), (1, 65535, 300), (0, 8, 8), (3, 5, 7), (1, 1, 1), (4, 8, 8), (2, 4, 16)]
WORDS = [
    *(
        "raw:float16",
        "raw:int8",
        "decimal:1e-300,range",
        "decimal:1e30,range",
        "decimal:nan,deflate",
        "decimal:4.0,png",
    ),
    *("minmax:8,range", "minmax:99,deflate", "minmax:8,png", "minmax:8,webp", "minmax:-1,range", "minmax:1e9,range"),
    *("adaptive:1e30,0.0", "adaptive:0.25,inf", "adaptive:0.25", "adaptive:,", "", ":", "zip:1", "\x00", "é"),
]


def sealed(specification, shape, payload, dtype=2):
    """A message as `Message.seal` makes it, of any content."""
    name = specification.encode("latin-1")
    body = b"HLC\x01" + bytes([len(name)]) + name + struct.pack("<BHHH", dtype, *shape) + payload
    return body + struct.pack("<I", zlib.crc32(body))


def outcome(data):
    """Latents as the header tells them, or a sentence of ours; anything else fails."""
    try:
        latents = decode([data])
    except InvalidInput as error:
        if not str(error).startswith(SENTENCES):
            raise AssertionError(f"{error!r} is no sentence of ours") from error
        return None
    message = Message.open(data)
    assert (tuple(latents[0].shape), latents.dtype) == (message.shape, message.dtype)
    assert torch.isfinite(latents).all()
    return latents


def altered(rng, payload):
    """A payload of the same kind with bytes changed, cut out, doubled, or nothing of it left."""
    kind = rng.randrange(6)
    place, some = rng.randrange(len(payload)), rng.randbytes(rng.randrange(1, 9))
    if kind == 0:
        return rng.randbytes(rng.randrange(60))
    if kind == 1:
        return payload[:place]
    if kind == 2:
        return payload[:place] + some + payload[place:]
    if kind == 3:
        return payload + payload[-place:]
    return payload[:place] + some + payload[place + len(some) :]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.specification)
def test_any_content_is_latents_or_one_sentence(codec):
    rng = random.Random(codec.specification)
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1)) * 3
    message = Message.open(codec.encode(latents, [5])[0])
    refused = 0
    cases = 600
    for _ in range(cases):
        payload = altered(rng, message.payload) if rng.random() < 0.8 else message.payload
        shape = rng.choice(SHAPES) if rng.random() < 0.4 else message.shape
        word = rng.choice(WORDS) if rng.random() < 0.2 else message.specification
        dtype = rng.choice([0, 1, 2, 3, 255]) if rng.random() < 0.3 else 2
        refused += outcome(sealed(word, shape, payload, dtype)) is None
    assert 0 < refused < cases  # both outcomes are met, or the test would say nothing
    assert torch.equal(outcome(sealed(message.specification, message.shape, message.payload)), decode([message.seal()]))


def png(pixels, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, **({"format": "png"} | options))
    return file.getvalue()


SIDE = bytes([8]) + struct.pack("<ff", -1, 1)
BOMB = zlib.compress(bytes(1 << 28), 9)  # 256 MiB in 260 kB
HOSTILE = {
    "shape of a pebibyte": ("decimal:4.0,range", (65535, 65535, 65535), bytes(9)),
    "deflate bomb": ("decimal:4.0,deflate", (4, 8, 8), bytes([0, 1]) + BOMB),
    "picture bomb": ("minmax:8,png", (4, 8, 8), SIDE + png(np.zeros((8000, 8000), np.uint8))),
    "webp bomb": (
        "minmax:8,webp",
        (4, 8, 8),
        SIDE + png(np.zeros((8000, 8000), np.uint8), format="webp", lossless=True),
    ),
    "colour": ("minmax:8,png", (4, 8, 8), SIDE + png(np.zeros((16, 16, 3), np.uint8))),
    "another picture format": ("minmax:8,png", (4, 8, 8), SIDE + png(np.zeros((16, 16), np.uint8), format="tiff")),
    "no payload": ("adaptive:0.25,1.0", (4, 8, 8), b""),
    "infinite minimum": (
        "minmax:8,deflate",
        (1, 1, 1),
        bytes([8]) + struct.pack("<ff", -np.inf, 1) + b"\x01" + zlib.compress(b"\0"),
    ),
    "infinite alpha": ("adaptive:0.25,1.0", (1, 8, 8), bytes([2]) + struct.pack("<e", np.inf) + bytes(8)),
    "raw NaN": ("raw:float16", (1, 1, 1), struct.pack("<e", np.nan)),
    "bytes after the stream": ("decimal:4.0,deflate", (1, 1, 1), b"\0\x01" + zlib.compress(b"\0") + b"more"),
    "specification beyond ASCII": ("décimal:4.0,range", (1, 1, 1), b""),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_content_is_refused(content):
    assert outcome(sealed(*content)) is None


def test_a_webp_with_an_innocent_head_is_refused():
    """The head says 16 x 16, the canvas chunk that a decoder believes says 8,000 x 8,000."""
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (7999).to_bytes(3, "little") * 2
    small = png(np.zeros((16, 16), np.uint8), format="webp", lossless=True)[12:]
    for chunks in (extended + small, small + extended):
        body = b"WEBP" + chunks
        outcome(sealed("minmax:8,webp", (4, 8, 8), SIDE + b"RIFF" + struct.pack("<I", len(body)) + body))


PEAK = """
import sys
from hybridlib.codecs import decode
def peak():  # not ru_maxrss, which begins at the peak of the process that forked this one
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return 1024 * int(status["VmHWM"].split()[0])
messages = [bytes.fromhex(line) for line in sys.stdin]
before = peak()
for data in messages:
    try:
        decode([data])
    except ValueError:
        pass
print(peak() - before)
"""


def growth(messages):
    """By how many bytes the peak memory of a process of its own grows while it decodes the messages one by one."""
    told = "\n".join(data.hex() for data in messages)
    done = subprocess.run([sys.executable, "-c", PEAK], input=told, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.slow
def test_memory_stays_within_a_few_rows_of_the_largest_size():
    whole = Message("decimal:4.0,range", torch.float32, (16, 1024, 1024), bytes(9)).seal()
    hostile = [sealed(word, (16, 1024, 1024), bytes(n)) for word in WORDS for n in (9, 40, 1000)]
    assert growth([whole]) > 4 * LARGEST_ROW  # what is allowed is seen
    assert growth([sealed(*content) for content in HOSTILE.values()]) < 2 * LARGEST_ROW  # far below any bomb
    assert growth(hostile) < 10 * 4 * LARGEST_ROW  # a few copies of 64 MiB
