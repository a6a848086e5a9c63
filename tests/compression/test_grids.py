from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from hybridlib.codecs import DecimalRounding, MinMax
from hybridlib.compression import grids as links
from hybridlib.study.parameters import CompressionParameters


def test_published_grids_and_names():
    first = links.ratio_grid(["a city"], range(42, 92), range(2, 25, 2))
    assert (first["step"].notna().sum(), first["step"].isna().sum()) == (5400, 50)
    assert first["path"].is_unique
    row = first.set_index("path").loc["v1/prompt0/step2_ratio0.33_seed42_compressed.png"]
    assert row["compress_scale"] == 3.03  # published: 1 / ratio, rounded to two decimals
    assert row["trajectory"].segments[1].codec == DecimalRounding(3.03)
    assert row["trajectory"].segments[1].start == 3  # right after update 2
    second = links.rate_grid([f"a city {i}" for i in range(10)], range(42, 47), range(2, 27, 2))
    assert (second["step"].notna().sum(), second["step"].isna().sum()) == (5850, 50)
    row = second.set_index("path").loc["v2/p3_step26_rate037_seed46_compressed.png"]
    assert (row["rate"], row["bits"]) == (0.375, 10)


@pytest.mark.slow
def test_costs_are_the_counted_ones():
    """Against the reference's counts: 5,450 and 5,900 runs of 28; 50 whole runs and 9 x 50 tails of 168 and 169."""
    costs = links.published_costs()
    assert costs["updates spent"].tolist() == [5450 * 28, 5900 * 28]
    assert costs["updates needed"].tolist() == [77_000, 77_450]


def test_entropy_stages_share_an_image():
    codecs = {"deflate": [DecimalRounding(2.0, "deflate")], "range": [DecimalRounding(2.0)], "v2": [MinMax(4)]}
    grid = links.codec_grid(["a city"], [1], [3], codecs)
    assert len(grid) == 4
    assert len(grid.drop_duplicates("path")) == 3


def test_step_without_updates_left_is_refused():
    with pytest.raises(ValueError, match=r"step must lie in 0\.\.26"):
        links.ratio_grid(["a city"], [1], [27])


@pytest.fixture(scope="module")
def grid(tmp_path_factory, mini):
    """A small first grid, run once: two seeds, two steps, two ratios."""
    folder = tmp_path_factory.mktemp("links")
    table = links.ratio_grid(["a red circle"], [1, 2], [0, 2], [0.25, 1.0], num_inference_steps=4)
    parameters = CompressionParameters(num_inference_steps=4, **STEPS)
    scores, outcome = links.run(table, mini, folder, parameters, "ratios")
    return folder, table, scores, outcome, parameters


STEPS = {"ratio_steps": [0, 1, 2], "rate_steps": [0, 1, 2], "link_steps": [0, 1, 2]}


def test_scores_are_those_of_scikit_image(grid):
    folder, _, scores, _, _ = grid
    assert len(scores) == 8
    row = scores.iloc[3]
    image, reference = (np.asarray(Image.open(folder / row[name]).convert("L")) / 255 for name in ("path", "original"))
    assert row["psnr"] == pytest.approx(peak_signal_noise_ratio(reference, image, data_range=1), abs=1e-9)
    assert row["ssim"] == pytest.approx(structural_similarity(reference, image, data_range=1), abs=1e-9)
    assert set(scores["run"]) == {"0:1", "0:2"}


def test_prefixes_are_denoised_once(grid):
    _, _, _, outcome, _ = grid
    # two seeds; one full run of 4 updates, and 3 + 1 more for each ratio; guidance costs two
    assert outcome.cost.tree == 2 * 2 * (4 + 2 * (3 + 1))


def test_repeated_references_show_the_noise_floor(grid, mini):
    folder, table, _, _, parameters = grid
    again = links.repeated(table)
    scores, _ = links.run(again, mini, folder, parameters, "repeat")
    assert len(scores) == 2
    # Other rows in the batch change latents by 1e-5, that is at most single grey values of an image.
    assert (scores["psnr"] > 60).all()


def test_a_changed_image_is_scored_again_and_others_are_not(grid):
    folder, table, scores, _, _ = grid
    path = folder / scores["path"][0]
    original = path.read_bytes()
    Image.new("RGB", (64, 64)).save(path)
    assert links.distort(table, folder, "again", chunk=2, progress=False)["psnr"][0] < scores["psnr"][0] - 1
    path.write_bytes(original)
    again = links.distort(table, folder, "again", chunk=2, progress=False)
    assert again["psnr"].tolist() == pytest.approx(scores["psnr"].tolist())


def test_difference_pictures_show_what_changed(grid):
    folder, _, scores, _, _ = grid
    one = scores[scores["seed"] == 1]
    pictures = links.difference_pictures(one, folder, "ratio", gain=2.0)
    assert (len(pictures), len(pictures[0])) == (2, 2)  # steps, ratios
    row = one[(one["step"] == 2) & (one["ratio"] == 1.0)].iloc[0]
    image, reference = (np.asarray(Image.open(folder / row[name]), float) for name in ("path", "original"))
    expected = np.clip(128 + 2 * (image - reference), 0, 255)
    assert np.abs(np.asarray(pictures[1][1], float) - expected).max() < 1
    assert expected.std() > 0


def test_published_columns_and_roundings(grid):
    folder, _, scores, _, _ = grid
    links.write_ratio_rows(scores, folder / "v1_rows.csv")
    sheet = pd.read_csv(folder / "v1_rows.csv")
    columns = "compress_at_step compression_ratio compress_scale seed original_path compressed_path PSNR SSIM"
    assert list(sheet.columns) == columns.split()
    assert sheet["PSNR"].tolist() == pytest.approx(scores["psnr"].tolist(), abs=0.0051)
    assert sheet["compressed_path"][0] == "v1/prompt0/step0_ratio0.25_seed1_compressed.png"
