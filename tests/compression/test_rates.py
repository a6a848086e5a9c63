from __future__ import annotations

from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hybridlib.codecs import Adaptive, DecimalRounding, decode
from hybridlib.compression import grids as links
from hybridlib.compression import rates
from hybridlib.denoising.sampler import sample
from hybridlib.denoising.trajectory import Trajectory
from hybridlib.files import read_table
from hybridlib.noise import initial_noise
from hybridlib.study.parameters import CompressionParameters, Settings

RATES = pd.DataFrame(
    [(2, "a", "fine", 900, 44.0), (2, "a", "coarse", 300, 38.0), (2, "b", "x", 500, 41.0), (8, "a", "fine", 700, 46.0)],
    columns=["step", "family", "codec", "message_bytes", "psnr"],
)


def test_cheapest_setting_and_best_step():
    best = rates.cheapest(RATES, "psnr", 40.0).set_index("step")
    assert best.loc[2, "codec"] == "x"
    assert best.loc[8, "message_bytes"] == 700
    within = rates.best_step(RATES, "psnr", 750).set_index("family")
    assert (within.loc["a", "step"], within.loc["b", "step"]) == (8, 2)


def test_bytes_between_settings_are_geometric():
    needed = rates.bytes_at(RATES, "psnr", 41.0)
    assert needed.loc[2, "a"] == pytest.approx(np.sqrt(900 * 300))  # half-way in quality
    assert needed.loc[2, "b"] == pytest.approx(500)
    assert needed.loc[8, "a"] == pytest.approx(700)  # its only setting is better than asked for
    assert np.isnan(rates.bytes_at(RATES, "psnr", 44.5).loc[2, "a"])  # never reached


def test_savings_against_a_family_that_costs_a_known_multiple():
    """Ours makes the same images for 60 % of the bytes, in every run, so the ratio is certain."""
    rows = []
    for run in range(6):
        for step, (size, psnr) in [(2, (400, 40)), (2, (200, 30)), (9, (300, 45)), (9, (150, 35))]:
            size, psnr = size + run, psnr + run / 10
            rows += [(f"0:{run}", step, "theirs", f"t{size - run}", size, psnr)]
            rows += [(f"0:{run}", step, "ours", f"o{size - run}", 0.6 * size, psnr)]
    table = pd.DataFrame(rows, columns=["run", "step", "family", "codec", "message_bytes", "psnr"])
    saved = rates.savings(table, "ours", "theirs")
    assert len(saved) == 4
    assert saved[["ratio", "low", "high"]].to_numpy() == pytest.approx(0.6)
    with pytest.raises(ValueError, match="every run needs every step"):
        rates.savings(table.iloc[1:], "ours", "theirs")


def test_measured_rates_are_those_of_the_messages(mini):
    """Against latents kept by the sampler, encoded and decoded one by one."""
    codecs = {"theirs": [DecimalRounding(2.0, "deflate")], "ours": [Adaptive(0.5)]}
    settings = Settings(4, 64, 8, 1)
    table = rates.measure_rates(mini, ["a red circle", "a star"], [3, 4], [1], codecs, settings)
    assert len(table) == 8
    path = Trajectory.plain("a star", 3, 7.0, num_inference_steps=4)
    latents = sample(mini, [path], keep=[2], **settings.sampling()).latents(2)
    for family, codec in (("theirs", DecimalRounding(2.0, "deflate")), ("ours", Adaptive(0.5))):
        row = table[(table["family"] == family) & (table["prompt_index"] == 1) & (table["seed"] == 3)].iloc[0]
        (message,) = codec.encode(latents, [3])
        # Rows of a batch agree to float rounding only, which may move an index and so a byte or two.
        assert abs(row["message_bytes"] - len(message)) <= 2
        error = (decode([message]) - latents).square().mean().item()
        assert row["latent_mse"] == pytest.approx(error, rel=1e-2)
        assert row["bits_per_value"] == pytest.approx(8 * row["message_bytes"] / latents.numel())
    assert initial_noise(3, 16, 8, 8).shape == latents.shape == torch.Size([1, 16, 8, 8])


def test_a_run_joins_bytes_and_images(mini, tmp_path):
    parameters = CompressionParameters(
        num_inference_steps=4,
        ratio_steps=[0, 1, 2],
        rate_steps=[0, 1, 2],
        link_steps=[1],
        rounding_steps=[0.5],
        min_max_bits=[4],
        adaptive_steps=[0.5],
    )
    table = rates.run(["a red circle"], mini, tmp_path, parameters)
    assert len(table) == 5 * 2  # codecs and seeds
    assert table[["message_bytes", "psnr", "ssim"]].notna().all(axis=None)
    wide = table.pivot(index="run", columns="family", values="psnr")
    assert (wide["rounding, deflate"] == wide["rounding, range coder"]).all()  # one image, another entropy stage
    assert read_table(tmp_path / "links.parquet").equals(table)
    assert (tmp_path / "links.json").is_file()
    assert rates.raw_bytes(table) == pytest.approx(2 * 16 * 8 * 8)


def test_picture_formats_are_measured_and_lossless_ones_are_lossless():
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    images = [Image.fromarray(noise), Image.new("RGB", (32, 32), "navy")]
    table = rates.image_rates(images, qualities=(50, 95)).set_index("format")
    assert np.isinf(table.loc[["PNG", "WebP lossless"], "psnr"]).all()
    assert table.loc["JPEG 50", "bytes"] < table.loc["JPEG 95", "bytes"]
    assert table.loc["JPEG 50", "psnr"] < table.loc["JPEG 95", "psnr"]
    sizes = []
    for image in images:
        buffer = BytesIO()
        image.save(buffer, "PNG", optimize=True)
        sizes.append(buffer.tell())
    assert table.loc["PNG", "bytes"] == np.mean(sizes)


def test_families_are_a_grid_of_their_settings():
    families = rates.families([0.5, 1.0], [3], [0.5])
    grid = links.codec_grid(["a star"], [1], [2], families, 4)
    assert grid["family"].nunique() == 5
    assert grid["path"].nunique() == 1 + 2 + 1 + 1  # entropy stages share images
