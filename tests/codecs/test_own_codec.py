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


def test_an_installed_package_names_its_codec_as_an_entry_point(tmp_path, monkeypatch):
    module = """
from dataclasses import dataclass
from typing import ClassVar
from hybridlib.codecs import RowCodec

@dataclass(frozen=True)
class Tenths(RowCodec):
    name: ClassVar[str] = "test-tenths"
    step: float = 0.1
"""
    (tmp_path / "packaged_codec.py").write_text(module)
    metadata = tmp_path / "packaged_codec-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: packaged-codec\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[hybridlib.codecs]\ntest-tenths = packaged_codec:Tenths\n")
    with pytest.raises(ValueError, match="codec must be one of .*, got 'test-tenths'"):
        codec.parse("test-tenths:0.5")
    monkeypatch.syspath_prepend(tmp_path)  # as if it were installed
    assert codec.parse("test-tenths:0.5").specification == "test-tenths:0.5"
