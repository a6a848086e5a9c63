"""The keyed seal of messages and states: who holds the key knows who made them and that nothing was changed."""

from __future__ import annotations

import hashlib
import struct
import zlib

import pytest
import torch

from hybridlib import codecs, trust
from hybridlib.codecs import Adaptive, DecimalRounding
from hybridlib.denoising.state import DenoiseState
from hybridlib.denoising.trajectory import Trajectory
from hybridlib.trust import KEY_BYTES, SEAL_BYTES, InvalidInput, seal, unseal

KEY, OTHER = bytes(range(KEY_BYTES)), bytes(range(1, KEY_BYTES + 1))


def hmac_by_hand(key, data):
    """RFC 2104, from its formula."""
    key = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in key) + data).digest()
    return hashlib.sha256(bytes(b ^ 0x5C for b in key) + inner).digest()


def a_state():
    return DenoiseState(
        latents=torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)),
        step=2,
        sigmas=torch.linspace(1, 0, 7),
        history={},
        past=Trajectory.plain("a ring", 1, num_inference_steps=2),
        model="a model",
        solver="a solver",
        versions={},
    )


def test_a_seal_is_hmac_over_its_own_head_and_the_data():
    sealed = seal(b"data", KEY)
    assert sealed == b"HLK\x01" + hmac_by_hand(KEY, b"HLK\x01data") + b"data"
    assert len(sealed) == SEAL_BYTES + 4
    assert unseal(sealed, KEY) == b"data"
    assert (seal(b"data", None), unseal(b"data", None)) == (b"data", b"data")


def test_every_changed_bit_and_every_cut_is_refused():
    sealed = seal(b"some data", KEY)
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidInput, match="^the data (has no seal|was sealed by another key)"):
            unseal(bytes(changed), KEY)
    for end in range(len(sealed)):
        with pytest.raises(InvalidInput):
            unseal(sealed[:end], KEY)


@pytest.mark.parametrize(
    ("data", "key", "sentence"),
    [
        (seal(b"data", KEY), OTHER, "it was sealed by another key, or altered since"),
        (b"data", KEY, "it has no seal, and only what is sealed by the key is accepted"),
        (seal(b"data", KEY), None, "it is sealed: it is read only with the key that sealed it"),
        (seal(b"data", KEY)[:SEAL_BYTES] + b"atad", KEY, "it was sealed by another key, or altered since"),
        (b"", KEY, "it has no seal"),
    ],
)
def test_what_is_refused_is_one_sentence(data, key, sentence):
    with pytest.raises(InvalidInput, match=f"^{sentence}") as caught:
        unseal(data, key, "it")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["k" * KEY_BYTES, b"", b"k" * (KEY_BYTES - 1), bytearray(KEY), 7])
def test_a_key_that_is_none_is_refused_and_never_shown(key):
    for call in (lambda: seal(b"data", key), lambda: unseal(b"data", key), lambda: unseal(seal(b"data", KEY), key)):
        with pytest.raises((TypeError, ValueError), match="^key must ") as caught:
            call()
        assert not isinstance(caught.value, InvalidInput)  # the caller's own mistake
        assert "kk" not in str(caught.value)


def test_seals_are_compared_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr(trust.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    unseal(seal(b"data", KEY), KEY)
    assert [len(part) for part in compared[0]] == [32, 32]


def test_a_forged_message_passes_its_checksum_but_not_the_key():
    """Two values swapped and the CRC made right: without a key that is a message like any other."""
    latents = torch.arange(4 * 8 * 8.0).reshape(1, 4, 8, 8).half()
    (honest,) = codecs.encode(latents, [codecs.Raw("float16")])
    start = len(honest) - 4 - 2 * latents.numel()
    body = honest[:start] + honest[start + 2 : start + 4] + honest[start : start + 2] + honest[start + 4 : -4]
    forged = body + struct.pack("<I", zlib.crc32(body))
    assert codecs.decode([forged])[0, 0, 0, 0] == 1  # accepted, and wrong
    (sealed,) = codecs.encode(latents, [codecs.Raw("float16")], key=KEY)
    assert sealed[SEAL_BYTES:] == honest
    assert torch.equal(codecs.decode([sealed], KEY), latents)
    for data in (forged, sealed[:SEAL_BYTES] + forged, honest):
        with pytest.raises(InvalidInput, match="^the message (has no seal|was sealed by another key, or altered)"):
            codecs.decode([data], KEY)
    with pytest.raises(InvalidInput, match="^the message is sealed: it is read only with the key"):
        codecs.decode([sealed])


def test_the_seal_of_one_message_is_none_of_another():
    latents = torch.randn(2, 4, 8, 8)
    first, second = codecs.encode(latents, [Adaptive(0.25), DecimalRounding(4.0)], [1, 2], KEY)
    assert codecs.decode([first, bytearray(second)], KEY).shape == latents.shape
    with pytest.raises(InvalidInput, match="was sealed by another key, or altered since"):
        codecs.decode([first[:SEAL_BYTES] + second[SEAL_BYTES:]], KEY)


def test_states_are_sealed_in_files_and_bytes(tmp_path):
    state = a_state()
    file = tmp_path / "s.safetensors"
    state.save(file, KEY)
    found = DenoiseState.load(file, KEY)
    assert (found.past, found.step, found.model) == (state.past, state.step, state.model)
    assert torch.equal(found.latents, state.latents)
    assert KEY not in file.read_bytes()
    for key in (OTHER, None):
        with pytest.raises(InvalidInput, match=f"^{file} (was sealed by another key|is sealed: it is read only)"):
            DenoiseState.load(file, key)
    state.save(file)
    with pytest.raises(InvalidInput, match=f"^{file} has no seal"):
        DenoiseState.load(file, KEY)
    assert DenoiseState.load(file).past == state.past
