from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hybridlib.fits import sigmoid
from hybridlib.hybrid import hiqm, planning
from hybridlib.paths import PUBLISHED

PROMPTS, STEPS = 14, np.arange(0.0, 28.0)


def synthetic_scores(variants=("a",), seeds=(1, 2), noise=0.01, spread=0.02, shift=None):
    """Cells from a known surface, every pair of prompts, with levels of their own for the personal prompts."""
    rng = np.random.default_rng(0)
    similarity = 0.15 + 0.7 * rng.random((PROMPTS, PROMPTS))
    similarity = (similarity + similarity.T) / 2
    np.fill_diagonal(similarity, 1.0)
    level = rng.normal(0, spread, PROMPTS)
    tables = []
    for variant in variants:
        later = 0 if shift is None else shift[variant]
        public, personal, step, seed = (
            axis.ravel() for axis in np.meshgrid(range(PROMPTS), range(PROMPTS), STEPS, seeds, indexing="ij")
        )
        m = similarity[public, personal]
        clip = truth(step, m, later) + level[personal] + noise * rng.standard_normal(len(step))
        tables.append(
            pd.DataFrame(
                {
                    "variant": variant,
                    "public": public,
                    "personal": personal,
                    "common_step": step.astype(int),
                    "seed": seed,
                    "similarity": m,
                    "clip": clip,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def truth(step, m, later=0.0):
    floor = 0.02 + 0.3 * m
    return sigmoid(step, 0.33 - floor, 0.3, 13.0 + later + 1.5 * m, floor)


def test_binning_equals_a_plain_loop():
    scores = synthetic_scores()
    curves = hiqm.binned(hiqm.cube(scores, "a"), rounds=0)
    for bin_, pairs, mean in zip(curves.similarity, curves.pairs, curves.mean, strict=True):
        for step in (0, 9, 27):
            cells = {}
            for row in scores[scores["common_step"] == step].itertuples():
                if row.public != row.personal and round(row.similarity, 1) == round(bin_, 1):
                    cells.setdefault((row.public, row.personal), []).append(row.clip)
            assert len(cells) == pairs
            expected = np.mean([np.mean(values) for values in cells.values()])
            assert mean[step] == pytest.approx(expected, abs=1e-12)


def test_smoothing_turns_released_curves_into_the_published_ones():
    raw = pd.read_csv(PUBLISHED / "clip_by_similarity_unsmoothed.csv")
    raw = raw[raw["similarity_bin"] < 1].pivot(index="similarity_bin", columns="common_step", values="clip_mean")
    published = pd.read_csv(PUBLISHED / "clip_by_similarity.csv").query("variant == 'woSIM_woNPI'")
    published = published.pivot(index="similarity", columns="common_step", values="clip_score")
    smooth = hiqm.smoothed(raw.to_numpy(), raw.index.to_numpy())
    np.testing.assert_allclose(smooth[:6], published.to_numpy(), atol=1e-9)  # both are printed to nine decimals


def test_smoothed_bins_are_plain_means_of_neighbours():
    cube = hiqm.cube(synthetic_scores(), "a")
    plain, smooth = hiqm.binned(cube, rounds=3), hiqm.binned(cube, smooth=True, rounds=3)
    np.testing.assert_allclose(smooth.mean[0], plain.mean[:2].mean(axis=0))
    np.testing.assert_allclose(smooth.mean[2], plain.mean[1:4].mean(axis=0))
    np.testing.assert_allclose(smooth.replicates[:, 2], plain.replicates[:, 1:4].mean(axis=1))


def test_bands_cover_the_truth_of_redrawn_prompts():
    curves = hiqm.binned(hiqm.cube(synthetic_scores(), "a"), rounds=300)
    table = curves.table("a")
    assert (table["low"] <= table["score"]).all()
    assert (table["score"] <= table["high"]).all()
    # prompts have levels with a standard deviation of 0.02, so a mean over 14 of them cannot be known to 0.004
    assert (table["high"] - table["low"]).median() > 0.008


def test_retained_quality_starts_at_one_and_keeps_the_shape():
    cube = hiqm.cube(synthetic_scores(noise=0.0), "a")
    retained = cube.retained().quality
    np.testing.assert_allclose(retained[:, :, 0], 1.0, atol=0.01)
    level = np.nanmean(cube.quality[:, :, 0])
    drop = (cube.quality[:, :, 0] - cube.quality[:, :, 20]) / level
    # the published-like surface has slightly different values at step 0 for different similarity: 0.01 allows that
    np.testing.assert_allclose(1 - retained[:, :, 20], drop, atol=0.02)


def test_surface_recovers_what_made_the_data():
    exact = planning.fit_surface(hiqm.cube(synthetic_scores(noise=0.0, spread=0.0), "a"), rounds=2)
    np.testing.assert_allclose(exact.parameters, [0.33, 0.02, 0.3, 0.3, 13.0, 1.5], rtol=1e-5)
    noisy = planning.fit_surface(hiqm.cube(synthetic_scores(), "a"), rounds=40)
    grid = np.linspace(0, 27, 10)[:, None], np.linspace(0.2, 0.8, 5)[None]
    np.testing.assert_allclose(noisy(*grid), truth(*grid), atol=0.012)  # levels of 14 prompts remain: 0.02 / sqrt(14)
    assert noisy.replicates.shape == (40, 6)


def test_planner_matches_a_scan_and_knows_its_uncertainty():
    surface = planning.fit_surface(hiqm.cube(synthetic_scores(), "a"), rounds=60)
    for m in (0.25, 0.5, 0.75):
        scan = [s for s in range(28) if surface(float(s), m) >= 0.28]
        plan = surface.max_common_step(m, 0.28)
        assert plan.common_step == max(scan)
        assert plan.low <= plan.common_step <= plan.high
        true_answer = max(s for s in range(28) if truth(np.array(float(s)), np.array(m)) >= 0.28)
        assert plan.low - 1 <= true_answer <= plan.high + 1
    assert surface.max_common_step(0.5, 0.9).common_step == 0
    assert surface.max_common_step(0.5, 0.0).common_step == 27
    with pytest.raises(ValueError, match="similarity must lie in the fitted range"):
        surface.max_common_step(0.01, 0.3)
    with pytest.raises(ValueError, match="quality_floor must be finite"):
        surface.max_common_step(0.5, float("nan"))


def test_cross_validation_prefers_the_truth():
    errors = planning.cross_validate(hiqm.cube(synthetic_scores(noise=0.03), "a"))
    assert len(errors) == PROMPTS
    assert errors["surface"].mean() < errors["per_bin"].mean()  # the data come from a surface


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="similarity"), "lack the column 'similarity'"),
        (lambda t: t.assign(variant="b"), "no scores of variant 'a'; there are"),
    ],
)
def test_bad_scores_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        hiqm.cube(change(synthetic_scores(seeds=(1,))), "a")


def test_too_few_pairs_are_refused():
    with pytest.raises(ValueError, match="no similarity bin holds min_pairs = 1000 pairs"):
        hiqm.binned(hiqm.cube(synthetic_scores(seeds=(1,)), "a"), min_pairs=1000)


def test_fits_that_are_not_identified_show_no_numbers():
    line = pd.DataFrame({"variant": "a", "similarity": 0.5, "common_step": STEPS, "score": 1 - 0.01 * STEPS})
    curved = line.assign(similarity=0.6, score=sigmoid(STEPS, 0.25, 0.27, 16.0, 0.06))
    fits = hiqm.fit_curves(pd.concat([line, curved])).set_index("similarity")
    assert fits["identified"].tolist() == [False, True]
    parameters = ["L", "k", "x0", "C", "se_L", "se_k", "se_x0", "se_C"]
    assert fits.loc[0.5, parameters].isna().all()
    assert fits.loc[0.6, ["L", "k", "x0", "C"]].tolist() == pytest.approx([0.25, 0.27, 16.0, 0.06], rel=1e-5)
    assert fits.loc[0.5, "R2"] > 0.999  # the curve itself is determined


def test_replicates_keep_fits_that_are_not_identified_and_end_in_time():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(1, 3, 28))  # a search for its sigmoid may take a million evaluations
    noise[0, 1] = 1 - 0.01 * STEPS
    noise[0, 2] = np.nan
    curves = hiqm.Curves(np.array([0.4, 0.5, 0.6]), np.full(3, 6), STEPS, noise[0] * 0 + STEPS, noise)
    first, line, empty = hiqm.fit_replicates(curves, 1)[1]
    assert np.isfinite(first.R2)
    assert not line.identified
    assert line(7.0) == pytest.approx(0.93, abs=1e-3)
    assert empty is None
