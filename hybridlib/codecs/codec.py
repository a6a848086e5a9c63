"""What a codec is, and everything codecs have in common: checks, rows, messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from importlib.metadata import entry_points
from numbers import Integral
from typing import ClassVar, Protocol, TypeVar, get_type_hints

import numpy as np
import torch
from torch import Tensor

from ..trust import InvalidInput, refusing, seal, unseal
from .message import DTYPES, LARGEST_SIDE, Message, check_size, shape_of

Seeds = Sequence[int | None] | None
_T = TypeVar("_T")


class Codec(Protocol):
    """A frozen, hashable value that turns rows of latents into bytes.

    latents: (rows, channels, height, width), float16, bfloat16 or float32, finite; on any device.
    seeds: seed of each row's initial noise, which the receiver can draw too. A codec may use it, or ignore it.
    """

    @property
    def specification(self) -> str:
        """Name and parameters in one word, such as "decimal:4.0,range"; `parse` makes the codec of it again."""
        ...

    @property
    def quantiser(self) -> Codec:
        """A codec that gives the same latents: of those that differ in their entropy stage only, the same one."""
        ...

    def encode(self, latents: Tensor, seeds: Seeds = None) -> list[bytes]:
        """One message a row, decodable on its own."""
        ...

    def decode(self, messages: Sequence[bytes]) -> Tensor:
        """Latents (rows, channels, height, width) on the CPU in the dtype they were encoded from."""
        ...

    def quantise(self, latents: Tensor, seeds: Seeds = None) -> Tensor:
        """What `decode` returns for what `encode` makes of these latents, on their device."""
        ...


class RowCodec:
    """Base of the shipped codecs, which say only what happens to one row.

    A subclass is a frozen dataclass with a `name`, its parameters numbers or words, and the three methods at the end:
    `_pack(row, seed)` makes the payload of a row (channels, height, width) on the CPU, `_unpack(message)` the row
    again, `_quantise(row, seed)` the same row without the bytes. A class is known by its name once it is imported; an
    installed package may also name it as an entry point of the group `hybridlib.codecs`.
    """

    name: ClassVar[str]
    _registry: ClassVar[dict[str, type[RowCodec]]] = {}

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):
            RowCodec._registry[cls.name] = cls

    @property
    def specification(self) -> str:
        """Name and parameters as they stand in the header, such as "decimal:4.0,range"; `parse` reads it."""
        return f"{self.name}:" + ",".join(str(getattr(self, f.name)) for f in fields(self))  # type: ignore[arg-type]

    @property
    def quantiser(self) -> RowCodec:
        """The same quantiser with the range coder; the codec itself where it has no other entropy stage."""
        stages = [f for f in fields(self) if f.name == "entropy"]  # type: ignore[arg-type]
        return replace(self, entropy="range") if stages else self  # type: ignore[type-var]

    def encode(self, latents: Tensor, seeds: Seeds = None) -> list[bytes]:
        """One message a row.

        Raises:
            TypeError: if latents are no tensor or a seed is no whole number.
            ValueError: if latents are empty, of another dtype or rank, not finite, or too large for the parameters.
        """
        specification, messages = self.specification, []
        for row, seed in _rows(latents, seeds):
            messages.append(Message(specification, row.dtype, shape_of(row), self._pack(row, seed)).seal())
        return messages

    def decode(self, messages: Sequence[bytes]) -> Tensor:
        """Inverse of `encode` up to quantisation.

        Raises:
            ValueError: if there are no messages; `InvalidInput` if one is truncated, altered, of another shape or
                codec.
        """
        for data in _listed(messages):
            if (found := Message.open(data).specification) != self.specification:
                raise InvalidInput(f"the message was coded by {found}, not by {self.specification}")
        return decode(messages)

    def quantise(self, latents: Tensor, seeds: Seeds = None) -> Tensor:
        """The latents `decode(encode(latents, seeds))`, bit for bit. Raises as `encode`."""
        return torch.stack([self._quantise(row, seed) for row, seed in _rows(latents, seeds)]).to(latents.device)

    def _pack(self, row: Tensor, seed: int | None) -> bytes:
        """Payload of a row (channels, height, width) on the CPU."""
        raise NotImplementedError

    def _unpack(self, message: Message) -> Tensor:
        """The row (channels, height, width) of a message, or ValueError where `_pack` cannot have made the payload."""
        raise NotImplementedError

    def _quantise(self, row: Tensor, seed: int | None) -> Tensor:
        raise NotImplementedError


def parse(specification: str) -> RowCodec:
    """The codec of a specification such as "decimal:4.0,range".

    Raises:
        ValueError: if there is no such codec or its parameters are not legal.
    """
    if not isinstance(specification, str):
        raise TypeError(f"specification must be text, got {type(specification).__name__}")
    name, _, text = specification.partition(":")
    if name not in RowCodec._registry:
        for installed in entry_points(group="hybridlib.codecs", name=name):
            installed.load()  # defining the class registers it
    if name not in RowCodec._registry:
        raise ValueError(f"codec must be one of {', '.join(RowCodec._registry)}, got {name!r}")
    cls = RowCodec._registry[name]
    names, kinds = fields(cls), get_type_hints(cls)  # type: ignore[arg-type]
    values = text.split(",") if text else []
    if len(values) != len(names):
        raise ValueError(f"codec {name} has {len(names)} parameters, got {specification!r}")
    try:
        parameters = [kinds[f.name](value) for f, value in zip(names, values, strict=True)]
    except (TypeError, ValueError):
        wanted = ", ".join(f"{f.name}: {getattr(kinds[f.name], '__name__', kinds[f.name])}" for f in names)
        raise ValueError(f"codec {name} takes {wanted}, got {specification!r}") from None
    return cls(*parameters)


def encode(latents: Tensor, codecs: Sequence[Codec], seeds: Seeds = None, key: bytes | None = None) -> list[bytes]:
    """One message a row, each row by its own codec, sealed where there is a key (`trust.seal`).

    Raises as `Codec.encode`.
    """
    return [seal(codec.encode(row, seed)[0], key) for row, codec, seed in _each(latents, codecs, seeds)]


def decode(messages: Sequence[bytes], key: bytes | None = None) -> Tensor:
    """Latents (rows, channels, height, width) on the CPU, of messages each of which may have its own codec.

    Args:
        key: of the seal that every message must have; without a key, none may have one.

    Raises:
        TypeError: if `messages` is no sequence of bytes.
        ValueError: if there are no messages; `InvalidInput` if one is truncated, altered, of another shape or dtype, or
            not sealed by the key; and if one was made, checksum and all, to say what no encoder says. A message never
            takes more memory than a few times its row of at most `LARGEST_ROW` values.
    """
    opened = [_opened(data, key) for data in _listed(messages)]
    if len(kinds := {(message.shape, message.dtype) for message in opened}) > 1:
        raise InvalidInput(f"messages of one batch must have one shape and dtype, got {sorted(map(str, kinds))}")
    return torch.stack([_decoded(message) for message in opened])


def _listed(messages: Sequence[bytes]) -> Sequence[bytes]:
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes, bytearray, memoryview)):
        raise TypeError(f"messages must be a list of bytes, one a row, got {type(messages).__name__}")
    if not messages:
        raise ValueError("there must be at least one message to decode, got none")
    return messages


def _opened(data: bytes, key: bytes | None) -> Message:
    if isinstance(data, (bytes, bytearray, memoryview)):  # of others, `Message.open` says what they should be
        data = unseal(bytes(data), key, "the message")
    return Message.open(data)


@refusing()
def _decoded(message: Message) -> Tensor:
    codec = parse(message.specification)
    with np.errstate(all="ignore"):  # what overflows is refused just below
        row = codec._unpack(message)
    if tuple(row.shape) != message.shape or row.dtype != message.dtype or not torch.isfinite(row).all():
        raise ValueError(f"coded latents must be finite, {message.dtype} and {message.shape}; {message} is not")
    return row


def quantise(latents: Tensor, codecs: Sequence[Codec | None], seeds: Seeds = None) -> Tensor:
    """What the receiver decodes, each row by its own codec; rows without one stay as they are."""
    rows = [codec.quantise(row, seed) if codec else row for row, codec, seed in _each(latents, codecs, seeds)]
    return torch.cat(rows)


def _each(latents: Tensor, codecs: Sequence[_T], seeds: Seeds) -> Iterator[tuple[Tensor, _T, Seeds]]:
    seeds = _checked_seeds(latents, seeds)
    if strange := [c for c in codecs if c is not None and not isinstance(getattr(c, "specification", None), str)]:
        raise TypeError(f"a codec must be one of those in hybridlib.codecs, or None, got {strange[0]!r}")
    if len(codecs) != len(latents):
        raise ValueError(f"there must be a codec for each of {len(latents)} rows, got {len(codecs)}")
    for row, codec, seed in zip(latents.split(1), codecs, seeds, strict=True):
        yield row, codec, [seed]


def _rows(latents: Tensor, seeds: Seeds) -> Iterator[tuple[Tensor, int | None]]:
    """Rows on the CPU with their seeds, checked."""
    if not isinstance(latents, Tensor):
        raise TypeError(f"latents must be a tensor, got {type(latents).__name__}")
    if latents.ndim != 4 or not all(0 < side <= LARGEST_SIDE for side in latents.shape):
        raise ValueError(
            f"latents must be (rows, channels, height, width), each at least 1, got {tuple(latents.shape)}"
        )
    check_size(shape_of(latents[0]))
    if latents.dtype not in DTYPES:
        raise ValueError(f"latents must be float16, bfloat16 or float32, got {latents.dtype}")
    for number, (row, seed) in enumerate(zip(latents.detach().cpu(), _checked_seeds(latents, seeds), strict=True)):
        if not torch.isfinite(row).all():
            raise ValueError(f"latents must be finite, but row {number} holds NaN or infinity")
        yield row, seed


def _checked_seeds(latents: Tensor, seeds: Seeds) -> Sequence[int | None]:
    if seeds is None:
        return [None] * len(latents)
    if len(seeds) != len(latents):
        raise ValueError(f"there must be a seed for each of {len(latents)} rows, got {len(seeds)}")
    if strange := [seed for seed in seeds if not (seed is None or isinstance(seed, Integral))]:
        raise TypeError(f"a seed must be a whole number or None, got {strange[0]!r}")
    return seeds
