"""The bytes of one coded row: a self-describing header, the payload, a checksum over both.

    "HLC" version  n codec-specification  dtype channels height width  payload  crc32
     3       1     1          n             1      2       2     2       ...      4      bytes, little-endian

The specification is text such as "decimal:4.0,range". CRC-32 finds every altered byte, but anyone can compute it:
what a message says is believed only as far as `Message.open` and the codecs have checked it.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

import torch
from torch import Tensor

from ..trust import InvalidInput, refusing, shown

MAGIC, VERSION = b"HLC", 1
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_SHAPE = struct.Struct("<BHHH")
_CHECKSUM = struct.Struct("<I")
LARGEST_SIDE = (1 << 16) - 1
LARGEST_ROW = (
    1 << 24
)  # values, 64 times a latent of SD3; a coder spends next to no bytes on zeros, so size has to be ruled
Shape = tuple[int, int, int]  # channels, height, width


class Message(NamedTuple):
    """A row of latents as it crosses a link."""

    specification: str  # of the codec
    dtype: torch.dtype
    shape: Shape
    payload: bytes

    @property
    def header_bytes(self) -> int:
        """Bytes beside the payload, checksum included."""
        return len(MAGIC) + 2 + len(self.specification) + _SHAPE.size + _CHECKSUM.size

    def seal(self) -> bytes:
        """Header, payload and checksum."""
        name = self.specification.encode("ascii")
        if len(name) > 255:
            raise ValueError(f"specification must have at most 255 characters, got {len(name)}")
        shape = _SHAPE.pack(DTYPES.index(self.dtype), *self.shape)
        body = MAGIC + bytes([VERSION, len(name)]) + name + shape + self.payload
        return body + _CHECKSUM.pack(zlib.crc32(body))

    @staticmethod
    def open(data: bytes) -> Message:
        """Inverse of `seal`.

        Raises:
            TypeError: if `data` are no bytes.
            InvalidInput: if the bytes are no such message, of another version, truncated or altered, or tell a shape or
                dtype that no latents have.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"a message must be bytes, got {type(data).__name__}")
        data = bytes(data)
        if not data.startswith(MAGIC):
            raise InvalidInput(f"coded latents must begin with {MAGIC!r}, got {data[:3]!r}")
        if len(data) <= len(MAGIC) or data[len(MAGIC)] != VERSION:
            raise InvalidInput(f"coded latents must have format version {VERSION}, got {list(data[3:4])}")
        body, checksum = data[: -_CHECKSUM.size], data[-_CHECKSUM.size :]
        start = len(MAGIC) + 2 + data[len(MAGIC) + 1] if len(data) > len(MAGIC) + 1 else len(data)
        if len(body) < start + _SHAPE.size or _CHECKSUM.pack(zlib.crc32(body)) != checksum:
            raise InvalidInput(
                f"coded latents of {len(data)} bytes are truncated or altered: the checksum does not match"
            )
        dtype, *shape = _SHAPE.unpack_from(body, start)
        channels, height, width = shape
        if dtype >= len(DTYPES):
            raise InvalidInput(f"coded latents must have a dtype of number 0..{len(DTYPES) - 1}, got {dtype}")
        with refusing():
            check_size((channels, height, width))
        name = body[len(MAGIC) + 2 : start]
        if not name.isascii():
            raise InvalidInput(f"coded latents must name their codec in ASCII, got {shown(name)}")
        payload = body[start + _SHAPE.size :]
        return Message(name.decode("ascii"), DTYPES[dtype], (channels, height, width), payload)

    def __repr__(self) -> str:
        return f"Message({self.specification}, {self.dtype}, {self.shape}, payload of {len(self.payload)} bytes)"


def check_size(shape: Shape) -> None:
    """Raise ValueError unless a row (channels, height, width) is neither empty nor larger than `LARGEST_ROW` values."""
    channels, height, width = shape
    if not 0 < channels * height * width <= LARGEST_ROW:
        raise ValueError(f"coded latents must have 1..{LARGEST_ROW} values a row, got shape {shape}")


def shape_of(row: Tensor) -> Shape:
    """Channels, height, width."""
    channels, height, width = row.shape
    return channels, height, width
