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
WEBP_SIDE = (1 << 14) - 1
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

    Raises:
        ValueError: if the picture would be larger than its format allows.
    """
    if stage == "range":
        return entropy.encode(indices, layout.widths, layout.centred)
    if stage == "deflate":
        size = next(n for n in (1, 2, 4) if np.abs(indices.astype(np.int64) * 2 + 1).max() < 1 << 8 * n)
        return bytes([size]) + zlib.compress(indices.astype(f"<i{size}").tobytes(), 9)
    columns, rows = _grid(layout.shape[0])
    if stage == "webp" and max(sides := (columns * layout.shape[2], rows * layout.shape[1])) > WEBP_SIDE:
        raise ValueError(f"entropy webp holds pictures of up to {WEBP_SIDE} pixels a side, these latents need {sides}")
    file = io.BytesIO()
    picture = Image.fromarray(_tile(indices.astype(np.uint8).reshape(layout.shape)))
    picture.save(file, stage, **({"optimize": True} if stage == "png" else {"lossless": True, "quality": 100}))
    return file.getvalue()


def unpack(stage: str, payload: bytes, layout: Layout) -> Integers:
    """Inverse of `pack`, in memory bounded by the shape.

    Raises:
        ValueError: if `pack` cannot have made the payload for this shape.
    """
    channels, height, width = layout.shape
    if stage == "range":
        return entropy.decode(payload, channels, layout.widths)
    if stage == "deflate":
        return _inflate(payload, channels * height * width).reshape(channels, height * width)
    return _untile(_picture(stage, payload, layout.shape), layout.shape).reshape(channels, -1).astype(np.int32)


def _inflate(payload: bytes, values: int) -> Integers:
    size = payload[0] if payload else 0
    if size not in (1, 2, 4):
        raise ValueError(f"coded latents must hold integers of 1, 2 or 4 bytes, got {size}")
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(payload[1:], values * size + 1)  # and no more, whatever the payload says
    except zlib.error as error:
        raise ValueError(f"coded latents hold no deflate stream ({error})") from None
    if len(raw) != values * size or not stream.eof or stream.unused_data:
        raise ValueError(f"coded latents must inflate to {values * size} bytes exactly")
    return np.frombuffer(raw, f"<i{size}").astype(np.int32)


def _picture(stage: str, payload: bytes, shape: Shape) -> np.ndarray:
    """Grey values (height, width) of a picture with room for the tiles of `shape`, and no more."""
    columns, rows = _grid(shape[0])
    wanted = columns * shape[2], rows * shape[1]
    if _picture_size(stage, payload) != wanted:  # read here, since Pillow makes room for a WebP as it opens it
        raise ValueError(f"coded latents must hold a {stage} picture of {wanted[0]} x {wanted[1]} grey pixels")
    try:
        with Image.open(io.BytesIO(payload), formats=(stage,)) as picture:
            found = picture.size
            pixels = np.asarray(picture) if found == wanted else np.empty(0)
    except Exception as error:  # Pillow raises a dozen kinds, from SyntaxError to struct.error
        raise ValueError(f"coded latents hold no {stage} picture ({error})") from None
    grey = pixels[..., 0] if pixels.ndim == 3 else pixels  # WebP has no grey: three equal channels
    if grey.shape != wanted[::-1] or grey.dtype != np.uint8:
        raise ValueError(f"coded latents must hold a {stage} picture of {wanted[0]} x {wanted[1]} grey pixels")
    return grey


def _picture_size(stage: str, payload: bytes) -> tuple[int, int] | None:
    """Width and height that the head of a grey 8-bit PNG or a plain lossless WebP tells, or None."""
    if stage == "png" and payload[:8] == b"\x89PNG\r\n\x1a\n" and payload[12:16] == b"IHDR":
        if len(payload) > 26 and payload[24:26] == b"\x08\x00":
            return int.from_bytes(payload[16:20], "big"), int.from_bytes(payload[20:24], "big")
    elif stage == "webp" and payload[:4] == b"RIFF" and payload[8:16] == b"WEBPVP8L" and len(payload) > 25:
        bits = int.from_bytes(payload[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None


def _grid(channels: int) -> tuple[int, int]:
    """Columns and rows of the nearly square picture that holds this many tiles."""
    columns = math.isqrt(channels - 1) + 1
    return columns, -(-channels // columns)


def _tile(planes: np.ndarray) -> np.ndarray:
    """(channels, height, width) as one nearly square picture; missing tiles are black."""
    channels, height, width = planes.shape
    columns, rows = _grid(channels)
    tiles = np.zeros((rows * columns, height, width), np.uint8)
    tiles[:channels] = planes
    return tiles.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)


def _untile(picture: np.ndarray, shape: Shape) -> np.ndarray:
    channels, height, width = shape
    tiles = picture.reshape(picture.shape[0] // height, height, -1, width).swapaxes(1, 2)
    return tiles.reshape(-1, height, width)[:channels]
