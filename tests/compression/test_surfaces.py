from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hybridlib.compression import surfaces as compression
from hybridlib.paths import PUBLISHED

# The published fits stop a little before the optimum (their squared error is larger in the ninth digit), so that K1 is
# off by up to 3e-4, which is 1e-4 of its size.
CLOSE = {"rel": 1e-4, "abs": 1e-4}


@pytest.fixture(scope="module")
def rows():
    rows = pd.read_csv(PUBLISHED / "latent_compression_v1_rows.csv")
    rows["q"] = compression.normalise_scores(rows["psnr"], rows["ssim"])
    rows["s"] = compression.min_max("step_index", rows["step_index"])
    rows["r"] = compression.min_max("ratio", rows["ratio"])
    return rows


@pytest.fixture(scope="module")
def published_fits():
    return pd.read_csv(PUBLISHED / "latent_compression_v1_surface_fit.csv", index_col="form")


def test_scores_are_normalised_over_the_table(rows):
    assert len(rows) == 5400
    assert (rows["psnr"].min(), rows["psnr"].max()) == (15.76, 42.24)
    worst, best = rows["q"].idxmin(), rows["q"].idxmax()
    psnr, ssim = rows["psnr"], rows["ssim"]
    for row in (0, 77, worst, best):
        score = (psnr[row] - 15.76) / (42.24 - 15.76) / 2 + (ssim[row] - 0.6539) / (0.9930 - 0.6539) / 2
        assert rows["q"][row] == pytest.approx(np.log(score + 1e-6), abs=1e-12)
    assert rows["q"][worst] == pytest.approx(-3.91, abs=0.01)


def test_sigmoid_agrees_with_the_published_rows_fit(rows, published_fits):
    fit = compression.fit_sigmoid(rows["s"], rows["r"], rows["q"])
    expected = published_fits.loc["sigmoid6_bounded"]
    ours = [fit.parameters[name] for name in ("L", "K1", "K2", "D", "K1*B1+K2*B2")] + [fit.r2, fit.rmse]
    theirs = [expected[name] for name in ("L", "K1", "K2", "a_or_D")] + [-expected["c"]]
    assert ours == pytest.approx([*theirs, expected["R2_rows"], expected["RMSE_rows"]], **CLOSE)
    assert set(fit.errors) == {"K1", "K2", "D", "K1*B1+K2*B2"}  # L is at its bound, B1 and B2 are not identifiable
    assert all(0 < error < 0.2 for error in fit.errors.values())


def test_exponential_agrees_with_the_published_rows_fit(rows, published_fits):
    fit = compression.fit_exponential(rows["s"], rows["r"], rows["q"])
    expected = published_fits.loc["exponential4"]
    theirs = [expected[name] for name in ("a_or_D", "K1", "K2", "c", "R2_rows", "RMSE_rows")]
    assert [*fit.parameters.values(), fit.r2, fit.rmse] == pytest.approx(theirs, **CLOSE)
    assert fit.errors.keys() == fit.parameters.keys()


def test_quadratic_cells_and_psnr_agree_with_the_reference(rows):
    quadratic = compression.fit_quadratic(rows["s"], rows["r"], rows["q"])
    cells = compression.fit_cells(rows["step_index"], rows["ratio"], rows["q"])
    psnr = compression.fit_psnr(rows["step_index"], 1 / rows["scale"], rows["psnr"])
    assert (quadratic.r2, quadratic.rmse) == pytest.approx((0.87827, 0.12590), abs=1e-5)
    assert (cells.r2, cells.rmse, len(cells.parameters)) == pytest.approx((0.92812, 0.0967, 108), abs=5e-5)
    assert psnr.r2 == pytest.approx(0.955, abs=5e-4)
    assert list(psnr.parameters.values()) == pytest.approx([14.55, 1.2921, -0.03022, -5.438], abs=5e-3)


def test_cells_agree_with_the_published_ones(rows):
    published = pd.read_csv(PUBLISHED / "latent_compression_v1_cells.csv")
    fit = compression.fit_cells(rows["step_index"], rows["ratio"], rows["psnr"])
    means = [fit.parameters[f"{i:g},{r:g}"] for i, r in zip(published["step_index"], published["ratio"], strict=True)]
    assert means == pytest.approx(published["psnr_mean"].tolist(), abs=1e-6)
    assert published["scale"].tolist() == pytest.approx((1 / published["ratio"]).round(2).tolist())


def test_parabolas_return_the_published_coefficients():
    published = pd.read_csv(PUBLISHED / "latent_compression_v2_quadratic.csv")
    steps = np.arange(2, 27, 2.0)
    for row in published.itertuples():
        fit = compression.fit_parabola(steps, compression.parabola(steps, row.a, row.b, row.c))
        assert list(fit.parameters.values()) == pytest.approx([row.a, row.b, row.c], abs=1e-12)
        assert fit.r2 == pytest.approx(1)
    assert list(published["n"]) == [len(steps)] * 3
    assert compression.vertex(**fit.parameters) == pytest.approx((14.9, 0.9789), abs=0.05)


def test_standard_errors_cover_the_truth():
    generator = np.random.default_rng(0)
    s, r = generator.random((2, 400))
    truth, hits = (-0.1, -2.0, 1.5, -1.0), np.zeros(4)
    for _ in range(60):
        q = compression.exponential_surface(s, r, *truth) + 0.05 * generator.standard_normal(400)
        fit = compression.fit_exponential(s, r, q)
        hits += [
            abs(fit.parameters[n] - t) < 1.96 * fit.errors[n]
            for n, t in zip(("A", "K1", "K2", "c"), truth, strict=True)
        ]
    assert (hits / 60 > 0.85).all()


def test_bad_columns_are_refused():
    with pytest.raises(ValueError, match="psnr must hold finite numbers only, got \\[inf\\]"):
        compression.normalise_scores([30.0, np.inf], [0.9, 1.0])
    with pytest.raises(ValueError, match="ssim must hold different values"):
        compression.normalise_scores([30.0, 31.0], [0.9, 0.9])
    with pytest.raises(ValueError, match="at least 3 different steps"):
        compression.fit_parabola([2, 2, 4], [0.9, 0.9, 0.8])
    with pytest.raises(ValueError, match="one length"):
        compression.fit_quadratic([1, 2], [1], [1, 2])
