# No `from __future__ import annotations`: a user's module may have real types where ours has their names.
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from hybridlib.codecs import codec, decode
from hybridlib.codecs.codec import RowCodec


@dataclass(frozen=True)
class Halves(RowCodec):
    """A codec as a user would write it: halves of the values, rounded."""

    name: ClassVar[str] = "test-halves"
    step: float = 0.5
    offset: int = 0

    def _pack(self, row, seed):
        return ((row / self.step).round() + self.offset).to(torch.int8).numpy().tobytes()

    def _unpack(self, message):
        values = torch.frombuffer(bytearray(message.payload), dtype=torch.int8).reshape(message.shape)
        return ((values - self.offset) * self.step).to(message.dtype)

    def _quantise(self, row, seed):
        return (row / self.step).round() * self.step


RowCodec._registry.pop("test-halves")  # other tests list the shipped codecs


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(RowCodec, "_registry", RowCodec._registry | {"test-halves": Halves})


def test_a_users_codec_decodes_what_it_encodes():
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    own = Halves(0.25, 3)
    assert torch.equal(decode(own.encode(latents)), own.quantise(latents))
    assert codec.parse("test-halves:0.25,3") == own


@pytest.mark.parametrize("text", ["test-halves:a,3", "test-halves:0.25,1.5"])
def test_wrong_parameters_are_one_sentence(text):
    with pytest.raises(ValueError, match="codec test-halves takes step: float, offset: int, got"):
        codec.parse(text)
