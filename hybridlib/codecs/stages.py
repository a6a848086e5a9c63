"""Entropy stages: indices (channels, values) of one row to bytes and back."""

from __future__ import annotations

import io
import math
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image

from . import entropy
from .entropy import Integers
from .message import Shape

PICTURES = ("png", "webp")
STAGES = ("range", "deflate", *PICTURES)


class Layout(NamedTuple):
    """What a stage may know of the indices without being told in the payload."""

    shape: Shape  # of the row
    widths: tuple[int, ...]  # columns of each band
    centred: bool = True  # whether indices may cluster away from zero


def check_stage(stage: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless the entropy stage is one of those allowed."""
    if stage not in allowed:
        raise ValueError(f"entropy must be one of {', '.join(allowed)}, got {stage!r}")


def pack(stage: str, indices: Integers, layout: Layout) -> bytes:
    """Indices (channels, values) as bytes.

    range: the range coder of `entropy`. deflate: zlib at level 9 over the smallest integer type that holds them.
    png, webp: lossless, the channels as tiles of one grey 8-bit picture; indices must lie in 0..255.
    """
    if stage == "range":
        return entropy.encode(indices, layout.widths, layout.centred)
    if stage == "deflate":
        size = next(n for n in (1, 2, 4) if np.abs(indices.astype(np.int64) * 2 + 1).max() < 1 << 8 * n)
        return bytes([size]) + zlib.compress(indices.astype(f"<i{size}").tobytes(), 9)
    file = io.BytesIO()
    picture = Image.fromarray(_tile(indices.astype(np.uint8).reshape(layout.shape)))
    picture.save(file, stage, **({"optimize": True} if stage == "png" else {"lossless": True, "quality": 100}))
    return file.getvalue()


def unpack(stage: str, payload: bytes, layout: Layout) -> Integers:
    """Inverse of `pack`."""
    channels, height, width = layout.shape
    if stage == "range":
        return entropy.decode(payload, channels, layout.widths)
    if stage == "deflate":
        indices = np.frombuffer(zlib.decompress(payload[1:]), f"<i{payload[0]}")
        return indices.astype(np.int32).reshape(channels, height * width)
    with Image.open(io.BytesIO(payload)) as picture:
        pixels = np.asarray(picture)
    grey = pixels if pixels.ndim == 2 else pixels[..., 0]  # WebP has no grey: three equal channels
    return _untile(grey, layout.shape).reshape(channels, -1).astype(np.int32)


def _tile(planes: np.ndarray) -> np.ndarray:
    """(channels, height, width) as one nearly square picture; missing tiles are black."""
    channels, height, width = planes.shape
    columns = math.isqrt(channels - 1) + 1
    rows = -(-channels // columns)
    tiles = np.zeros((rows * columns, height, width), np.uint8)
    tiles[:channels] = planes
    return tiles.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)


def _untile(picture: np.ndarray, shape: Shape) -> np.ndarray:
    channels, height, width = shape
    tiles = picture.reshape(picture.shape[0] // height, height, -1, width).swapaxes(1, 2)
    return tiles.reshape(-1, height, width)[:channels]
