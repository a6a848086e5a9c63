from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hybridlib.fits import sigmoid
from hybridlib.hybrid import hiqm
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


def test_retained_quality_compares_variants_on_one_scale():
    """A variant that is worse from the start must not look as good as the other one by its own measure."""
    scores = synthetic_scores(noise=0.0, spread=0.0)
    plain = hiqm.cube(scores, "a")
    worse = hiqm.cube(scores.assign(clip=0.8 * scores["clip"]), "a")
    np.testing.assert_allclose(worse.retained().quality, plain.retained().quality, atol=1e-12)
    level = np.nanmean(np.nanmean(plain.quality[:, :, 0], axis=0))
    common = worse.retained(plain).quality
    np.testing.assert_allclose(np.nanmean(common[:, :, 0]), 0.8, atol=0.01)
    np.testing.assert_allclose(common - plain.retained().quality, (worse.quality - plain.quality) / level, atol=1e-12)


def test_lower_is_better_is_turned_and_has_no_retained_share():
    scores = synthetic_scores(seeds=(1,)).assign(brisque=lambda t: 60 - 40 * t["clip"])
    turned = hiqm.cube(scores, "a", "brisque")
    np.testing.assert_allclose(turned.quality, -hiqm.cube(scores, "a", "brisque", higher_is_better=True).quality)
    with pytest.raises(ValueError, match="a share of a level above 0, the level at common step 0 is -4"):
        turned.retained()


def test_mixed_schedules_are_refused():
    scores = synthetic_scores(seeds=(1,))
    mixed = pd.concat([scores.assign(sigma=1 - scores["common_step"] / 28), scores.assign(sigma=0.5)])
    with pytest.raises(ValueError, match="common step 0 has several noise levels"):
        hiqm.cube(mixed, "a")


def test_log_snr_is_that_of_the_flow():
    """x_t = (1 - sigma) x0 + sigma noise, so the ratio of powers is ((1 - sigma) / sigma)^2."""
    sigma = np.array([0.9, 0.5, 0.02])
    np.testing.assert_allclose(np.exp(hiqm.log_snr(sigma)), ((1 - sigma) / sigma) ** 2)
    assert hiqm.log_snr(1.0) < -30
    assert hiqm.log_snr(0.0) > 30


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
