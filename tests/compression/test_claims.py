from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hybridlib.compression import claims as link_claims
from hybridlib.paths import PUBLISHED


@pytest.fixture(scope="module")
def published():
    return link_claims.published_rows()


def test_published_statistics_agree_with_the_published_cells(published):
    """The claims' statistics against the released cell table, which was made by another program."""
    cells = pd.read_csv(PUBLISHED / "latent_compression_v1_cells.csv")
    by_step = cells.groupby("step_index")[["psnr_mean", "ssim_mean", "ssim_std"]].mean()
    least = min(part["ssim_mean"].iloc[0] - part["ssim_mean"].iloc[-1] for _, part in cells.groupby("step_index"))
    best = by_step["ssim_mean"].idxmax()
    expected = [
        least,
        5.438,  # of the reference's own fit, to rows in place of cells
        best,
        by_step["psnr_mean"].idxmax(),
        by_step["ssim_mean"].iloc[-1] - by_step["ssim_mean"].max(),
        by_step["ssim_std"].iloc[0] / by_step["ssim_std"][best],
    ]
    table = link_claims.check(published, rounds=20)
    assert table["published"].tolist() == pytest.approx(expected, rel=1e-3)
    assert table["measured"].tolist() == table["published"].tolist()
    assert table["verdict"].tolist()[:2] == ["holds", "holds"]


def test_a_grid_without_the_effect_is_told_apart(published):
    """Scores that do not know of steps nor ratios: no claim about their direction may hold."""
    generator = np.random.default_rng(1)
    noise = published.assign(psnr=30 + generator.normal(size=len(published)), ssim=0.9 + 0.01 * generator.random())
    noise["ssim"] += 1e-3 * generator.normal(size=len(published))
    table = link_claims.check(noise, rounds=100).set_index("claim")
    assert "holds" not in set(table["verdict"].iloc[:2])


def test_incomplete_grids_are_refused(published):
    with pytest.raises(ValueError, match="every run needs every step and ratio"):
        link_claims.cube(published.iloc[1:])


def test_surface_table_leaves_out_what_is_not_identifiable(published):
    fits = link_claims.fit_surfaces(published)
    table = link_claims.surface_table(published=fits)
    assert {"B1", "B2"}.isdisjoint(table.index.get_level_values("parameter"))
    assert table.loc[("sigmoid", "L"), "published"] == "2.0000 (at its bound)"
    assert table.loc[("cell means", "R²"), "published"] == "0.9281"
    assert (link_claims.reference_differences(fits)["difference"] < 1e-4).all()


def test_parabolas_recover_the_published_ones():
    coefficients = pd.read_csv(PUBLISHED / "latent_compression_v2_quadratic.csv")
    rows = [
        (int(row.bits), step, row.a * step**2 + row.b * step + row.c)
        for row in coefficients.itertuples()
        for step in range(2, 27, 2)
    ]
    table = link_claims.parabolas(pd.DataFrame(rows, columns=["bits", "step", "ssim"]))
    for bits in link_claims.PARABOLA_BITS:
        ours, theirs = table.loc[(bits, "measured")], table.loc[(bits, "published")]
        assert ours[["a", "b", "c"]].tolist() == pytest.approx(theirs[["a", "b", "c"]].tolist(), abs=1e-6)
    assert table.loc[(8, "published"), ["best step", "SSIM there"]].tolist() == pytest.approx([18.0, 0.9995], abs=0.05)
