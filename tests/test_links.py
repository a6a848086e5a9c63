from __future__ import annotations

import pandas as pd
import pytest

from hybridlib import links
from hybridlib.codecs import DecimalRounding, MinMax


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


def test_entropy_stages_share_an_image():
    codecs = {"deflate": [DecimalRounding(2.0, "deflate")], "range": [DecimalRounding(2.0)], "v2": [MinMax(4)]}
    grid = links.codec_grid(["a city"], [1], [3], codecs)
    assert len(grid) == 4
    assert len(grid.drop_duplicates("path")) == 3


def test_step_without_updates_left_is_refused():
    with pytest.raises(ValueError, match=r"step must lie in 0\.\.26"):
        links.ratio_grid(["a city"], [1], [27])


RATES = pd.DataFrame(
    [(2, "a", "fine", 900, 44.0), (2, "a", "coarse", 300, 38.0), (2, "b", "x", 500, 41.0), (8, "a", "fine", 700, 46.0)],
    columns=["step", "family", "codec", "message_bytes", "psnr"],
)


def test_cheapest_setting_and_best_step():
    best = links.cheapest(RATES, "psnr", 40.0).set_index("step")
    assert best.loc[2, "codec"] == "x"
    assert best.loc[8, "message_bytes"] == 700
    within = links.best_step(RATES, "psnr", 750).set_index("family")
    assert (within.loc["a", "step"], within.loc["b", "step"]) == (8, 2)
