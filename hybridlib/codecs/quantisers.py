"""The codecs: 16-bit floats, the two published quantisers, and ours."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..noise import initial_noise
from .codec import RowCodec
from .entropy import LIMIT, Integers
from .message import Message, Shape, shape_of
from .stages import PICTURES, STAGES, Layout, check_stage, pack, unpack


@dataclass(frozen=True)
class Raw(RowCodec):
    """16-bit floats as they are: lossless for latents of that dtype.

    Args:
        dtype: "float16" or "bfloat16".
    """

    name: ClassVar[str] = "raw"
    dtype: str = "float16"

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "bfloat16"):
            raise ValueError(f"dtype must be float16 or bfloat16, got {self.dtype!r}")

    def _pack(self, row: Tensor, seed: int | None) -> bytes:
        return self._sent(row).contiguous().view(torch.int16).numpy().astype("<i2").tobytes()

    def _unpack(self, message: Message) -> Tensor:
        if len(message.payload) != 2 * math.prod(message.shape):
            raise ValueError(f"coded latents must hold 2 bytes a value: {message} does not")
        values = torch.from_numpy(np.frombuffer(message.payload, "<i2").astype(np.int16))
        return values.view(getattr(torch, self.dtype)).reshape(message.shape).to(message.dtype)

    def _quantise(self, row: Tensor, seed: int | None) -> Tensor:
        return self._sent(row).to(row.dtype)

    def _sent(self, row: Tensor) -> Tensor:
        sent = row.to(getattr(torch, self.dtype))
        if not torch.isfinite(sent.to(row.dtype)).all():
            raise ValueError(f"dtype {self.dtype} cannot hold latents as large as {row.abs().max():.4g}")
        return sent


class IndexCodec(RowCodec):
    """A codec that sends integers, by an entropy stage, and a few bytes of side information."""

    entropy: str
    _sides: ClassVar[range] = range(1)  # numbers of bytes that the side information may take

    def indices(self, row: Tensor, seed: int | None = None) -> Integers:
        """What is sent of a row (channels, height, width): integers (channels, height * width)."""
        return self._analyse(row, seed)[1]

    def layout(self, shape: Shape) -> Layout:
        """How the integers of a row of this shape are ordered."""
        return Layout(shape, (shape[1] * shape[2],))

    def _pack(self, row: Tensor, seed: int | None) -> bytes:
        side, indices = self._analyse(row, seed)
        return bytes([len(side)]) + side + pack(self.entropy, indices, self.layout(shape_of(row)))

    def _unpack(self, message: Message) -> Tensor:
        start = 1 + (message.payload[0] if message.payload else 0)
        if start - 1 not in self._sides or len(message.payload) < start:
            allowed = f"{self._sides[0]}..{self._sides[-1]}"
            raise ValueError(f"coded latents must begin with {allowed} bytes of side information")
        indices = unpack(self.entropy, message.payload[start:], self.layout(message.shape))
        return self._synthesised(message.payload[1:start], indices, message.shape, message.dtype)

    def _quantise(self, row: Tensor, seed: int | None) -> Tensor:
        return self._synthesised(*self._analyse(row, seed), shape_of(row), row.dtype)

    def _synthesised(self, side: bytes, indices: Integers, shape: Shape, dtype: torch.dtype) -> Tensor:
        limit = torch.finfo(dtype).max  # the level next to the largest float may lie beyond it
        return self._synthesise(side, indices, shape, dtype).clamp(-limit, limit).to(dtype)

    def _analyse(self, row: Tensor, seed: int | None) -> tuple[bytes, Integers]:
        """Side information and integers (channels, values) of a row (channels, height, width)."""
        raise NotImplementedError

    def _synthesise(self, side: bytes, indices: Integers, shape: Shape, dtype: torch.dtype) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class DecimalRounding(IndexCodec):
    """The published first quantiser: y = round(a x) / a, half to even, in the dtype of the latents.

    A uniform quantiser of step 1 / a with zero among its levels. The publication passes a "ratio" r with
    a = round(1 / r, 2), so that r is the step: 1.0 is the coarsest setting, not the lossless one.

    Args:
        scale: a > 0.
        entropy: "range" or "deflate" for the integers round(a x).
    """

    name: ClassVar[str] = "decimal"
    scale: float = 100.0
    entropy: str = "range"

    def __post_init__(self) -> None:
        _check_positive("scale", self.scale)
        check_stage(self.entropy, ("range", "deflate"))

    @classmethod
    def from_ratio(cls, ratio: float, entropy: str = "range") -> DecimalRounding:
        """The codec of a published "ratio" (0.25 to 1.0)."""
        _check_positive("ratio", ratio)
        return cls(round(1 / ratio, 2), entropy)

    def _analyse(self, row: Tensor, seed: int | None) -> tuple[bytes, Integers]:
        return b"", _integers(torch.round(row * self.scale), self, row.dtype)

    def _synthesise(self, side: bytes, indices: Integers, shape: Shape, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(indices).reshape(shape).to(dtype) / self.scale


@dataclass(frozen=True)
class MinMax(IndexCodec):
    """The published second quantiser: 2^bits levels between minimum and maximum of the row, computed in float32.

    K = 2^bits - 1, D = (hi - lo + 1e-8) / K, q = clip(round((x - lo) / D), 0, K), y = q D + lo.

    Args:
        bits: 1 to 16.
        entropy: "range" or "deflate" for q; up to 8 bits also "png" or "webp", lossless pictures with the channels as
            tiles: at 8 bits the image-style baseline.
    """

    name: ClassVar[str] = "minmax"
    _sides: ClassVar[range] = range(8, 9)
    bits: int = 8
    entropy: str = "range"

    def __post_init__(self) -> None:
        if not isinstance(self.bits, Integral) or not 1 <= self.bits <= 16:
            raise ValueError(f"bits must be a whole number in 1..16, got {self.bits!r}")
        check_stage(self.entropy, STAGES)
        if self.entropy in PICTURES and self.bits > 8:
            raise ValueError(f"entropy {self.entropy} needs bits of at most 8, got {self.bits}")

    @classmethod
    def from_rate(cls, rate: float, entropy: str = "range") -> MinMax:
        """The codec of a published "rate" in [0, 1): bits = round(16 (1 - rate)), clamped to 1..16."""
        if not isinstance(rate, Real):
            raise TypeError(f"rate must be a number, got {rate!r}")
        if not 0 <= rate < 1:
            raise ValueError(f"rate must lie in [0, 1), got {rate}")
        return cls(min(max(round(16 * (1 - rate)), 1), 16), entropy)

    def _analyse(self, row: Tensor, seed: int | None) -> tuple[bytes, Integers]:
        values = row.float()
        low, high = values.min(), values.max()
        step = self._step(low, high)
        indices = torch.round((values - low) / step).clamp(0, (1 << self.bits) - 1)
        return struct.pack("<ff", low, high), _integers(indices, self, row.dtype)

    def _synthesise(self, side: bytes, indices: Integers, shape: Shape, dtype: torch.dtype) -> Tensor:
        low, high = torch.tensor(struct.unpack("<ff", side), dtype=torch.float32)
        if not (torch.isfinite(torch.stack([low, high])).all() and low <= high):
            raise ValueError(f"coded latents must tell a minimum and a maximum, got {low:.4g} and {high:.4g}")
        return torch.from_numpy(indices).reshape(shape).float() * self._step(low, high) + low

    def _step(self, low: Tensor, high: Tensor) -> Tensor:
        return (high - low + 1e-8) / ((1 << self.bits) - 1)


@dataclass(frozen=True)
class Adaptive(IndexCodec):
    """Ours: the part of the latents that the seed does not tell, block transformed, quantised and range-coded.

    At noise level sigma the latents are still close to sigma times the initial noise, and whoever knows the seed can
    draw that. So with a seed the message carries the seed and one coefficient alpha (least squares) and codes
    x - alpha * noise only, unless that would save less than it takes to say so: little at high noise levels, and
    smooth. It goes through an orthonormal cosine transform
    over blocks of up to 8 x 8, where a uniform step is best for squared error in every channel and band alike; the
    range coder knows a standard deviation for each. Without a seed alpha is zero.

    Noise level and smoothness are thus measured on each row; `step` stays absolute, as that of `DecimalRounding`
    (1 / scale), and the squared error is at most about step^2 / 12.

    Exact round trips hold on one machine; another one's matrix product may differ in the last bit of float32.

    Args:
        step: quantisation step, in units of the latents.
        thrift: 0 rounds to the nearest level. Above, coefficients next to zero become zero where the bits saved are
            worth the error; at 1 a bit is worth what it buys at fine steps, step^2 ln(2) / 6.
    """

    name: ClassVar[str] = "adaptive"
    entropy: ClassVar[str] = "range"  # type: ignore[misc]
    _sides: ClassVar[range] = range(11)
    step: float = 0.25
    thrift: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("step", self.step)
        if not isinstance(self.thrift, Real):
            raise TypeError(f"thrift must be a number, got {self.thrift!r}")
        if not (math.isfinite(self.thrift) and self.thrift >= 0):
            raise ValueError(f"thrift must be finite and not negative, got {self.thrift}")

    def layout(self, shape: Shape) -> Layout:
        """Columns ordered by frequency band, coefficients of all blocks side by side."""
        _, height, width = shape
        _, counts = _basis(_block(height), _block(width))
        blocks = height * width // sum(counts)
        return Layout(shape, tuple(count * blocks for count in counts), centred=False)

    def _analyse(self, row: Tensor, seed: int | None) -> tuple[bytes, Integers]:
        channels, height, width = row.shape
        values, side = row.float().numpy(), b""
        if seed is not None:
            if not -(1 << 63) <= seed < 1 << 63:
                raise ValueError(f"seeds must fit in 64 bits with sign, got {seed}")
            noise = initial_noise(seed, channels, height, width)[0].numpy()
            fit = np.vdot(values, noise) / np.vdot(noise, noise)
            alpha = np.float16(np.clip(fit, -1e4, 1e4))
            rest = values - np.float32(alpha) * noise
            told = struct.pack("<eq", alpha, seed).rstrip(b"\0")  # a small seed takes few bytes
            # Half a bit a value for each factor of two in energy must pay for telling the seed.
            with np.errstate(over="ignore"):  # latents so large are refused below
                whole, left = float(np.vdot(values, values)), float(np.vdot(rest, rest))
            if whole > left * 4 ** (8 * len(told) / values.size):
                values, side = rest, told
        basis, _ = _basis(_block(height), _block(width))
        scaled = (basis @ _to_blocks(values)).reshape(channels, -1) / np.float32(self.step)
        widths = self.layout(shape_of(row)).widths
        return side, _integers(torch.from_numpy(_thrifty(scaled, widths, self.thrift)), self, row.dtype)

    def _synthesise(self, side: bytes, indices: Integers, shape: Shape, dtype: torch.dtype) -> Tensor:
        channels, height, width = shape
        basis, counts = _basis(_block(height), _block(width))
        coefficients = indices.reshape(channels, sum(counts), -1).astype(np.float32) * np.float32(self.step)
        values = _from_blocks(basis.T @ coefficients, height, width)
        if side:
            alpha, seed = struct.unpack("<eq", side.ljust(10, b"\0"))
            if not math.isfinite(alpha):
                raise ValueError(f"coded latents must tell a finite share of the noise, got {alpha}")
            noise = initial_noise(seed, *shape)[0].numpy()
            noise *= np.float32(alpha)
            values += noise
        return torch.from_numpy(values)


def _check_positive(parameter: str, value: float) -> None:
    if not isinstance(value, Real):
        raise TypeError(f"{parameter} must be a number, got {value!r}")
    if not 1e-30 <= value <= 1e30:  # beyond, float32 would take it for 0 or infinity
        raise ValueError(f"{parameter} must be finite and above 0 (1e-30 to 1e30), got {value}")


def _integers(values: Tensor, codec: RowCodec, dtype: torch.dtype) -> Integers:
    """Whole numbers (channels, ...) as (channels, values), refused where they are too large."""
    if not values.abs().max() < LIMIT:
        raise ValueError(f"latents are too large for codec {codec.specification} in {dtype}: indices reach {LIMIT}")
    return values.reshape(len(values), -1).to(torch.int32).numpy()


def _thrifty(scaled: NDArray[np.float32], widths: tuple[int, ...], thrift: float) -> NDArray[np.float32]:
    """Coefficients (channels, values), in steps, rounded; some of those that would become 1 or -1 become 0.

    Zero in place of one adds 2 |x| - 1 squared steps of error and saves the bits by which zero is the commoner in its
    class (channel, band).
    """
    indices, magnitudes = np.rint(scaled), np.abs(scaled)
    starts = np.cumsum((0, *widths[:-1]))
    zeros = np.add.reduceat(magnitudes <= 0.5, starts, axis=1, dtype=np.int64)
    ones = np.add.reduceat(magnitudes <= 1.5, starts, axis=1, dtype=np.int64) - zeros
    saved = np.maximum(np.log2((2 * zeros + 1) / (ones + 1)), 0)
    threshold = 0.5 + thrift * np.log(2) / 12 * saved
    indices[magnitudes < np.repeat(np.minimum(threshold, 1.5), widths, axis=1)] = 0
    return indices


def _block(side: int) -> int:
    """Side of a transform block: the largest divisor up to 8."""
    return next(size for size in range(min(side, 8), 0, -1) if side % size == 0)


@lru_cache
def _basis(height: int, width: int) -> tuple[NDArray[np.float32], tuple[int, ...]]:
    """Orthonormal cosine basis of a block (frequencies, pixels), by diagonal band, and the frequencies in each band."""
    basis = np.kron(_cosines(height), _cosines(width))
    band = (np.arange(height)[:, None] + np.arange(width)).ravel()
    return basis[np.argsort(band, kind="stable")].astype(np.float32), tuple(np.bincount(band).tolist())


def _cosines(size: int) -> NDArray[np.float64]:
    """The orthonormal DCT-II of `size` points, (frequencies, points)."""
    rows = np.cos(np.pi * np.arange(size)[:, None] * (np.arange(size) + 0.5) / size)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _to_blocks(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(channels, height, width) to (channels, pixels of a block, blocks)."""
    channels, height, width = values.shape
    rows, columns = _block(height), _block(width)
    blocks = values.reshape(channels, height // rows, rows, width // columns, columns).transpose(0, 2, 4, 1, 3)
    return blocks.reshape(channels, rows * columns, -1)


def _from_blocks(blocks: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Inverse of `_to_blocks`."""
    rows, columns = _block(height), _block(width)
    planes = blocks.reshape(-1, rows, columns, height // rows, width // columns).transpose(0, 3, 1, 4, 2)
    return planes.reshape(-1, height, width)
