"""The quality surface over noise levels, its plans, and what validates it, on scores from a known surface."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from hybridlib.fits import sigmoid
from hybridlib.hybrid import hiqm, planning, validation
from hybridlib.hybrid.schedules import PLAIN, Schedule
from hybridlib.study import results

PROMPTS = 14
TRUTH = (0.9, 0.05, 0.3, 1.0, 1.2, 0.8)  # U, c0, c1, k, a0, a1
STEPS_28 = Schedule(28, 0.35, "euler")


def truth(sigma, similarity):
    x = hiqm.log_snr(sigma)
    U, c0, c1, k, a0, a1 = TRUTH
    floor = c0 + c1 * similarity
    return sigmoid(x, U - floor, k, a0 + a1 * similarity, floor)


def scores_of(schedule=STEPS_28, noise=0.02, spread=0.05, common_steps=None, prompts=PROMPTS, seed=0):
    """Every ordered pair of prompts; each personal prompt has a level of its own."""
    rng = np.random.default_rng(seed)
    similarity = 0.15 + 0.7 * rng.random((prompts, prompts))
    similarity = (similarity + similarity.T) / 2
    np.fill_diagonal(similarity, 1.0)
    level = rng.normal(0, spread, prompts)
    levels = schedule.noise_levels()
    steps = np.arange(len(levels)) if common_steps is None else np.asarray(common_steps)
    public, personal, step = (
        axis.ravel() for axis in np.meshgrid(range(prompts), range(prompts), steps, indexing="ij")
    )
    m, sigma = similarity[public, personal], levels[step]
    clip = truth(sigma, m) + level[personal] + noise * rng.standard_normal(len(step))
    columns = {"public": public, "personal": personal, "common_step": step, "similarity": m, "sigma": sigma}
    return pd.DataFrame({"variant": "a", "seed": 1, **columns, "clip": clip})


def cube_of(*args, **kwargs):
    return hiqm.cube(scores_of(*args, **kwargs), "a")


@pytest.mark.parametrize(("steps", "shift"), [(28, 0.35), (14, 3.0), (50, 1.0)])
@pytest.mark.parametrize("solver", ["euler", "dpm-solver++"])
def test_a_schedule_knows_its_noise_levels(steps, shift, solver):
    scheduler = (
        FlowMatchEulerDiscreteScheduler(shift=shift)
        if solver == "euler"
        else DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    )
    scheduler.set_timesteps(steps)
    np.testing.assert_array_equal(Schedule(steps, shift, solver).noise_levels(), scheduler.sigmas[:-1].double())


def test_surface_recovers_what_made_the_data():
    exact = planning.fit_surface(cube_of(noise=0.0, spread=0.0), rounds=2)
    np.testing.assert_allclose(exact.parameters, TRUTH, rtol=1e-5)
    noisy = planning.fit_surface(cube_of(), rounds=40)
    grid = np.linspace(1, 0.01, 10)[:, None], np.linspace(0.2, 0.8, 5)[None]
    np.testing.assert_allclose(noisy(*grid), truth(*grid), atol=0.03)  # levels of 14 prompts remain: 0.05 / sqrt(14)
    assert noisy.replicates.shape == (40, 6)
    assert "RMSE" in repr(noisy)
    assert len(repr(noisy)) < 100


def test_weights_by_spread_find_the_early_losses():
    """Scatter that grows with the step, and a late floor that is no line in similarity, which the surface cannot show.

    Plain least squares bends the early part to mend the late one; weighted by the spread the early part is right.
    """
    table = scores_of(noise=0.0, spread=0.0)
    late = 1 / (1 + np.exp(-2 * (hiqm.log_snr(table["sigma"]) - 2.5)))
    scatter = np.random.default_rng(1).standard_normal(len(table)) * (0.002 + 0.2 * late)
    table["clip"] += scatter + 1.5 * late * (table["similarity"] - 0.5) ** 2
    levels, m = STEPS_28.noise_levels()[3:9, None], np.array([[0.25, 0.5, 0.75]])
    cube = hiqm.cube(table, "a")
    errors = {
        weighted: np.abs(planning.fit_surface(cube, rounds=0, by_spread=weighted)(levels, m) - truth(levels, m)).max()
        for weighted in (False, True)
    }
    assert errors[True] < 0.5 * errors[False]
    exact = planning.fit_surface(cube_of(noise=0.0, spread=0.0), rounds=2, by_spread=True)
    np.testing.assert_allclose(exact.parameters, TRUTH, rtol=1e-5)


def test_one_surface_serves_several_schedules():
    cubes = [cube_of(Schedule(*s), noise=0.0, spread=0.0) for s in ((28, 3.0, "euler"), (14, 0.35, "dpm-solver++"))]
    np.testing.assert_allclose(planning.fit_surface(*cubes, rounds=0).parameters, TRUTH, rtol=1e-5)


@pytest.mark.parametrize("text", ["28/0.35/euler", "50/0.35/euler", "28/3/euler", "14/1/dpm-solver++"])
def test_plans_of_any_schedule_match_a_scan(text):
    surface = planning.fit_surface(cube_of(), rounds=60)
    levels = Schedule.parse(text).noise_levels()
    for m in (0.3, 0.5, 0.7):
        for floor in (0.8, 0.6):
            plan = surface.max_common_step(m, floor, levels)
            kept = [s for s in range(len(levels)) if surface(levels[s], m) >= floor]
            assert plan.estimate == max(kept, default=0)
            assert plan.common_step <= plan.estimate
            assert plan.low <= plan.quality
            exact = max((s for s in range(len(levels)) if truth(levels[s], m) >= floor), default=0)
            assert abs(plan.estimate - exact) <= 0.04 * len(levels) + 1
    assert surface.max_common_step(0.5, 2.0, levels).common_step == 0
    assert surface.max_common_step(0.5, -1.0, levels).common_step == len(levels) - 1
    # a scheduler's own levels end in 0, which is no handover
    assert surface.max_common_step(0.5, 0.7, [*levels, 0.0]) == surface.max_common_step(0.5, 0.7, levels)


def test_plans_of_a_thinned_study_are_steps_that_it_measured():
    whole, thinned = cube_of(noise=0.0), cube_of(noise=0.0, common_steps=(0, 4, 8, 12, 16, 20, 24))
    plans = [planning.fit_surface(cube, rounds=30).max_common_step(0.5, 0.6) for cube in (whole, thinned)]
    assert plans[1].estimate == plans[0].estimate // 4 * 4 > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.01, 0.3), "similarity must lie in the fitted range"),
        ((0.5, float("nan")), "quality_floor must be finite"),
        ((0.5, 0.5, [0.2, 0.9]), "sigmas must be flow-matching noise levels that fall"),
        ((0.5, 0.5, [14.6, 1.0]), "sigmas must be flow-matching noise levels"),
        ((0.5, 0.5, []), "sigmas must be flow-matching noise levels"),
        ((0.5, 0.5, None, 95), "level must lie between .5 and 1, got 95"),
    ],
)
def test_a_bad_question_is_one_sentence(arguments, message):
    surface = planning.fit_surface(cube_of(), rounds=2)
    with pytest.raises(ValueError, match=message):
        surface.max_common_step(*arguments)


def test_what_cannot_be_planned_is_refused():
    scores = scores_of()
    with pytest.raises(ValueError, match="quality must fall as more is shared, these scores go from"):
        planning.fit_surface(hiqm.cube(scores.assign(clip=-scores["clip"]), "a"), rounds=0)
    with pytest.raises(ValueError, match="lack the column 'sigma'"):
        planning.fit_surface(hiqm.cube(scores.drop(columns="sigma"), "a"), rounds=0)
    # BRISQUE, of which less is better, is turned by its name and can be planned with a floor of its own.
    brisque = planning.fit_surface(hiqm.cube(scores.assign(brisque=60 - 30 * scores["clip"]), "a", "brisque"), rounds=2)
    assert brisque.max_common_step(0.5, -45.0).estimate > 0


@pytest.mark.slow
def test_redrawn_prompts_give_the_spread_of_a_fresh_list():
    """`predict` promises the mean over another list of as many prompts: draw such lists and count."""
    kept = []
    for seed in range(40):
        fitted = planning.fit_surface(cube_of(seed=2 * seed), rounds=40)
        fresh = cube_of(seed=2 * seed + 1)
        for step in (6, 14):
            expected = fitted.predict(fresh.sigmas[step], 0.5, level=0.9)
            # what this list shows at this step, moved to similarity .5 by the truth
            cells = fresh.measured[:, :, step]
            moved = fresh.quality[:, :, step] - truth(fresh.sigmas[step], fresh.similarity)
            kept.append(moved[cells].mean() + truth(fresh.sigmas[step], 0.5) >= expected.low)
    # 40 independent draws at 90 %: standard deviation 4.7 points
    assert 0.78 <= np.mean(kept) <= 0.99


def test_across_prompts_ranks_what_made_the_data():
    errors = validation.across_prompts(cube_of(noise=0.03))
    assert len(errors) == PROMPTS
    assert errors["surface"].mean() < errors["per_bin"].mean()  # the data come from a surface
    assert errors["surface"].mean() < errors["mean_curve"].mean()
    flat = scores_of(noise=0.03, spread=0.0)
    flat["clip"] += truth(flat["sigma"], 0.5) - truth(flat["sigma"], flat["similarity"])  # similarity is no help
    errors = validation.across_prompts(hiqm.cube(flat, "a"))
    assert errors["mean_curve"].mean() < errors["per_bin"].mean()


def test_across_schedules_tells_noise_levels_from_steps():
    """The control: where quality belongs to the share of steps, the surface over noise levels must lose."""
    schedules = [Schedule(28, 0.35, "euler"), Schedule(28, 1.0, "euler"), Schedule(14, 3.0, "euler")]
    by_level = {s: cube_of(s) for s in schedules}
    errors = validation.across_schedules(by_level, folds=3)[["others", "own", "others_by_share"]].mean() ** 0.5
    assert errors["others"] < 1.05 * errors["own"]
    assert errors["others"] < 0.5 * errors["others_by_share"]
    by_share = {}
    for schedule in schedules:
        table = scores_of(schedule)
        table["clip"] = truth(1 - table["common_step"] / schedule.num_inference_steps, table["similarity"])
        by_share[schedule] = hiqm.cube(table, "a")
    errors = validation.across_schedules(by_share, folds=3)[["others", "others_by_share"]].mean() ** 0.5
    assert errors["others"] > 2 * errors["others_by_share"]
    with pytest.raises(ValueError, match="two or more"):
        validation.across_schedules({schedules[0]: by_level[schedules[0]]})


@pytest.mark.slow
def test_the_collapse_holds_on_the_shipped_schedules():
    """Eleven schedules of mini-sd3: a surface fitted to the ten others predicts as well as the schedule's own."""
    from hybridlib.hybrid import schedules

    errors = validation.across_schedules(schedules.cubes(results.load("05_schedules")))
    means = errors.groupby("schedule")[["others", "own", "others_by_share"]].mean() ** 0.5
    assert len(means) == 11
    assert (means["others"] / means["own"]).max() < 1.01
    assert (means["others_by_share"] / means["own"]).max() > 1.5


@pytest.mark.slow
def test_promises_are_kept_on_fresh_prompts_and_the_estimate_is_no_promise():
    """Shipped scores: the safe step keeps the floor about as often as it says, the best estimate half of the time."""
    plain = hiqm.cube(results.load("05_image_quality"), PLAIN)
    table = validation.kept_promises(plain, 0.9, splits=20, rounds=30)
    assert table["kept_at_common_step"].mean() >= 0.75  # promised 90 % of 20 splits, which share their prompts
    assert table["kept_at_estimate"].mean() < table["kept_at_common_step"].mean()
    assert (table["common_step"] <= table["estimate"]).all()
