from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hybridlib.fits import fit_sigmoid, sigmoid
from hybridlib.intervals import clustered_means, factorial_effects, interval, paired_changes
from hybridlib.paths import PUBLISHED

STEPS = np.arange(28.0)


@pytest.mark.parametrize("name", ["reference", "unsmoothed"])
def test_published_curves_give_the_reference_fits(name):
    # The reference fits were computed elsewhere; issue tolerance 1e-4, and an exact Jacobian reaches it with room.
    reference = pd.read_csv(PUBLISHED / f"hiqm_fit_{name}.csv").set_index(["variant", "similarity"])
    curves = pd.read_csv(
        PUBLISHED / ("clip_by_similarity.csv" if name == "reference" else "clip_by_similarity_unsmoothed.csv")
    )
    curves = curves.rename(columns={"similarity_bin": "similarity", "clip_mean": "score", "clip_score": "score"})
    for key, curve in curves.groupby(["variant", "similarity"]):
        if key[1] == 1.0:  # the diagonal enters no fit
            continue
        fit = fit_sigmoid(curve["common_step"], curve["score"])
        for quantity, value in fit._asdict().items() - {("identified", True)}:
            assert value == pytest.approx(reference.loc[key, quantity], rel=1e-4), (key, quantity)
        assert fit.identified


@pytest.mark.parametrize("truth", [(0.25, 0.27, 16.0, 0.06), (0.1, -0.3, 9.0, 0.5), (60.0, 0.9, 20.0, 5.0)])
def test_data_driven_start_finds_known_curves(truth):
    fit = fit_sigmoid(STEPS, sigmoid(STEPS, *truth))
    np.testing.assert_allclose(fit[:4], truth, rtol=1e-6)
    assert pytest.approx(1) == fit.R2


def test_standard_errors_cover_the_truth_as_often_as_they_say():
    rng, truth = np.random.default_rng(0), np.array([0.25, 0.27, 16.0, 0.06])
    inside = []
    for _ in range(200):
        fit = fit_sigmoid(STEPS, sigmoid(STEPS, *truth) + 0.004 * rng.standard_normal(28))
        errors = np.array([fit.se_L, fit.se_k, fit.se_x0, fit.se_C])
        inside.append(np.abs(np.array(fit[:4]) - truth) < 1.96 * errors)
    share = np.mean(inside, axis=0)
    assert ((share > 0.89) & (share < 0.99)).all(), share  # 95 % +- 4 standard errors of 200 trials


def test_sigmoid_does_not_overflow_and_is_the_textbook_formula():
    assert sigmoid(np.array([0.0, 1e6]), 1.0, 50.0, 10.0, 0.2).tolist() == [1.2, 0.2]
    np.testing.assert_allclose(sigmoid(STEPS, 0.3, 0.2, 12.0, 0.1), 0.3 / (1 + np.exp(0.2 * (STEPS - 12))) + 0.1)


def test_retained_until_solves_for_the_level():
    fit = fit_sigmoid(STEPS, sigmoid(STEPS, 0.25, 0.27, 16.0, 0.06))
    assert float(fit(fit.retained_until(0.95))) == pytest.approx(0.95 * float(fit(0)))
    assert np.isnan(fit.retained_until(0.1))


def test_curve_without_a_floor_is_called_unidentified():
    assert not fit_sigmoid(STEPS, np.exp(STEPS / 6) * -0.01 + 1).identified


@pytest.mark.parametrize(
    ("steps", "scores", "message"),
    [
        ([0, 1, 2, 3], [1, 1, 0, 0], "five points or more"),
        ([0, 1, 2, 3, 4], [1, 1, np.nan, 0, 0], "finite"),
        ([0, 1, 2, 3, 4], [1, 1, 0, 0], "two equal columns"),
    ],
)
def test_bad_curves_are_refused(steps, scores, message):
    with pytest.raises(ValueError, match=message):
        fit_sigmoid(steps, scores)


def scores_with_prompt_effects(prompts=12, images=8, effect=0.02):
    rng = np.random.default_rng(1)
    level = rng.normal(0, 0.1, prompts)
    rows = [
        {
            "personal": p,
            "seed": i,
            "npi": npi,
            "clip": level[p] + effect * npi + rng.normal(0, 0.01),
        }
        for p in range(prompts)
        for i in range(images)
        for npi in (False, True)
    ]
    return pd.DataFrame(rows)


def test_intervals_are_over_prompts_not_images():
    table = scores_with_prompt_effects()
    means = clustered_means(table, "clip", ["npi"])
    np.testing.assert_allclose(means["mean"], table.groupby("npi")["clip"].mean())
    by_prompt = table.groupby(["npi", "personal"])["clip"].mean().groupby("npi").sem()
    width = (means["high"] - means["low"]) / (2 * 1.96)
    np.testing.assert_allclose(width, by_prompt, rtol=0.12)  # percentile bootstrap of 12 prompts: (n-1)/n and noise
    within = clustered_means(table, "clip", ["npi"], within=True)
    np.testing.assert_allclose(within["mean"], means["mean"])
    assert (within["high"] - within["low"]).max() < 0.1 * (means["high"] - means["low"]).min()


def test_paired_changes_remove_prompt_levels():
    change = paired_changes(scores_with_prompt_effects(), "clip", "npi", False, True).iloc[0]
    assert change["low"] < 0.02 < change["high"]
    assert change["high"] - change["low"] < 0.01
    with pytest.raises(ValueError, match=r"no cell has npi = False and = 3; there are \[False, True\]"):
        paired_changes(scores_with_prompt_effects(), "clip", "npi", False, 3)
    with pytest.raises(ValueError, match=r"lacks the columns \['score'\]"):
        clustered_means(scores_with_prompt_effects(), "score", ["npi"])


def test_factorial_effects_are_those_put_in():
    rng, rows = np.random.default_rng(2), []
    for prompt in range(10):
        level = rng.normal()
        for sim, scale, npi in np.ndindex(2, 2, 2):
            value = level + 0.3 * sim - 0.1 * scale + 0.0 * npi + 0.2 * sim * npi
            rows.append({"personal": prompt, "sim": sim, "scale": scale, "npi": bool(npi), "clip": value, "step": 3})
    table = pd.DataFrame(rows)
    factors = {"SIM": ("sim", 0, 1), "scale": ("scale", 0, 1), "NPI": ("npi", False, True)}
    effects = factorial_effects(table, "clip", factors, ["step"], ["personal", "step"]).set_index("effect")["mean"]
    # by hand: main effects average over the other factors, an interaction is half the difference of effects
    expected = {"SIM": 0.4, "scale": -0.1, "NPI": 0.1, "SIM x scale": 0, "SIM x NPI": 0.1, "scale x NPI": 0}
    for name, value in expected.items():
        assert effects[name] == pytest.approx(value, abs=1e-12), name
    with pytest.raises(ValueError, match="every cell needs all 8 settings"):
        factorial_effects(table.iloc[1:], "clip", factors, ["step"], ["personal", "step"])


def test_interval_ignores_what_did_not_exist():
    assert interval([1.0, 2.0, 3.0, np.nan], level=1.0) == (1.0, 3.0)
    assert all(np.isnan(interval([np.nan])))
