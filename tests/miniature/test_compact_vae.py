"""The recipes of the compact autoencoders, run for a few steps and shipped to a folder of their own."""

from __future__ import annotations

import json
import math

import pytest
import torch
from diffusers import AutoencoderTiny

from hybridlib.miniature import cards, compact_vae, records, vae, zoo
from hybridlib.miniature.corpus import corpus_scenes
from hybridlib.paths import MODELS
from hybridlib.training import decoders


@pytest.fixture
def short(monkeypatch, tmp_path):
    """Recipes of six steps on sixteen scenes; models are shipped to `tmp_path`."""
    (tmp_path / "mini-sd3").symlink_to(MODELS / "mini-sd3")
    scenes = corpus_scenes(16)
    latents = torch.randn(16, 16, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    monkeypatch.setattr(compact_vae, "corpus", lambda folder, original: (scenes, latents))
    monkeypatch.setattr(compact_vae, "TIMED_ROUNDS", 3)
    for module in (compact_vae, zoo, records):
        monkeypatch.setattr(module, "MODELS", tmp_path)
    monkeypatch.setattr(zoo, "RUNS", tmp_path / "runs")
    for name in ("TINY", "SMALL"):
        monkeypatch.setattr(compact_vae, name, getattr(compact_vae, name)._replace(steps=6, batch_size=4))
    return tmp_path


def bytes_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


@pytest.mark.slow
def test_both_are_trained_shipped_and_measured(short):
    for train in (zoo.train_mini_tiny_vae, zoo.train_mini_small_vae):
        cards.write(train())
    assert bytes_of(short / "mini-tiny-vae") < 1e6
    assert bytes_of(short / "mini-small-vae") < 1e6
    stock = AutoencoderTiny.from_pretrained(short / "mini-tiny-vae", torch_dtype=torch.float32)
    assert stock.decode(torch.zeros(1, 16, 8, 8)).sample.shape == (1, 3, 64, 64)
    with pytest.raises(ValueError, match="holds a decoder alone"):
        decoders.load(short / "mini-small-vae")
    small = compact_vae.shipped("mini-small-vae")
    encoders = zip(small.encoder.parameters(), vae.shipped().encoder.parameters(), strict=True)
    assert all(torch.equal(own, original) for own, original in encoders)
    assert decoders.widths_of(small) == (8, 16, 32, 32)
    terms, steps = records.curves("mini-tiny-vae", "mini-small-vae")
    assert set(terms["mini-tiny-vae: tiny-vae"]) == {"perceptual", "pixel", "adversarial", "encoder", "discriminator"}
    assert steps == {"mini-tiny-vae: tiny-vae": 6, "mini-small-vae: small-vae": 6}
    times = json.loads((short / "mini-tiny-vae" / "decode_times.json").read_text())
    assert f"{times['times faster']:.1f} times faster" in (short / "mini-tiny-vae" / "README.md").read_text()
    table = compact_vae.table(scenes=8, rounds=3).set_index("model")
    assert table.psnr_to_original["mini-sd3"] == math.inf
    assert table.peak_kib.is_monotonic_decreasing
    assert table.decode_ms.is_monotonic_decreasing
    assert table.lower_quartile["mini-tiny-vae"] > 1.5  # it was at least four when measured on a quiet machine
    rows = compact_vae.pictures(count=2)
    assert list(rows) == ["scene", *compact_vae.NAMES]
    assert {image.size for row in rows.values() for image in row} == {(64, 64)}


def test_quality_is_that_of_mini_sd3s_own_card():
    """Three ways to the same reconstruction: through normalised latents, by itself, and as mini-sd3 measures it."""
    found = compact_vae.quality(vae.shipped(), count=16)
    expected = vae.reconstruction_psnr(vae.shipped(), count=16)
    first, second, third = found.values()
    assert (first, third) == (pytest.approx(expected, abs=1e-3), pytest.approx(expected, abs=1e-6))
    assert second == math.inf


@pytest.mark.parametrize("name", ["mini-tiny-vae", "mini-small-vae"])
def test_shipped_ones_hold_what_their_folders_record(name):
    recorded = json.loads((MODELS / name / "evaluation.json").read_text())
    measured = compact_vae.quality(compact_vae.shipped(name), count=64)
    for quality, value in measured.items():
        assert value == pytest.approx(recorded[quality], abs=0.6), quality  # 64 of 256 scenes; they spread by 2.5 dB
