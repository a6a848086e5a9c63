from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hybridlib.hybrid import schedules
from hybridlib.hybrid.schedules import Schedule
from hybridlib.miniature import diffusion
from hybridlib.prompts import PromptSet
from hybridlib.study import results
from hybridlib.study.parameters import QualityParameters


@pytest.mark.parametrize("text", ["28/0.5", "28/a/euler", "0/1/euler", "28/0/euler", "28/nan/euler", "28/1/heun", ""])
def test_a_wrong_schedule_is_one_sentence(text):
    with pytest.raises(ValueError, match="schedule '.*' (must read|needs)"):
        Schedule.parse(text)


def test_a_schedule_reads_as_it_is_written():
    assert str(Schedule.parse("14/0.35/dpm-solver++")) == "14/0.35/dpm-solver++"
    assert Schedule.parse("28/3/euler") == (28, 3.0, "euler")


def test_sd3_lies_at_distance_zero_from_itself_whatever_its_scale_and_length():
    curves = schedules.published_curves()
    assert schedules.distance(curves) == pytest.approx(0, abs=1e-12)
    assert schedules.distance(curves.assign(score=0.3 + 2 * curves["score"])) == pytest.approx(0, abs=1e-12)
    # Every other step of 28 as 14 steps: what is lost lies between straight lines.
    half = curves[curves["common_step"] % 2 == 0]
    half = half.assign(common_step=half["common_step"] // 2)
    assert schedules.distance(half, 14) < 0.03
    # Turned around, the curves are far away: the measure can fail.
    assert schedules.distance(curves.assign(score=-curves["score"])) > 0.3


def test_curves_of_no_common_bin_are_refused():
    curves = pd.DataFrame({"similarity": 0.9, "common_step": range(5), "score": np.linspace(1, 0, 5)})
    with pytest.raises(ValueError, match="none of the similarity bins"):
        schedules.distance(curves)


def test_the_shipped_shift_comes_closest_to_sd3(mini):
    """The documented choice: least distance among shifts of 28 Euler steps, and within the promised .08."""
    table = schedules.distances(results.load("05_schedules"))
    candidates = table[(table["num_inference_steps"] == 28) & (table["solver"] == "euler")]
    best = candidates.loc[candidates["distance"].idxmin()]
    assert mini.scheduler.config.shift == diffusion.SHIFT == best["shift"]
    assert best["distance"] < 0.08
    # SD3's own shift, which the miniature had before, is the control that must fail.
    assert candidates.set_index("shift").loc[3.0, "distance"] > 0.2


def test_the_whole_grid_lies_within_the_promise():
    """Curves without SIM and NPI of the full study, mean absolute difference over steps and bins .3 to .7."""
    table = results.load("05_image_quality")
    plain = table[table["variant"] == schedules.PLAIN].assign(schedule="28/0.35/euler")
    assert schedules.distances(plain).loc[0, "distance"] < 0.08


@pytest.mark.parametrize("text", ["6/0.5/euler", "5/2/dpm-solver++"])
def test_every_schedule_leaves_its_noise_levels_in_the_table(tiny, tmp_path, text):
    prompts = PromptSet.load("miniature")
    parameters = QualityParameters(image_size=32, batch_size=8)
    similarity = np.full((22, 22), 0.5)
    metrics = []
    shares = [0.0, 0.5, 0.97]
    schedule = Schedule.parse(text)
    table = schedules.run([schedule], shares, prompts, [0, 2], [1], similarity, tiny, tmp_path, parameters, metrics)
    steps, shift, _ = schedule
    assert set(table["schedule"]) == {text}
    assert sorted(table["common_step"].unique()) == [0, round(0.5 * steps), steps - 1]
    evenly = {"euler": np.linspace(1, 1 / 1000, steps), "dpm-solver++": np.linspace(1, 1 / 1000, steps + 1)[:-1]}
    levels = evenly[schedule.solver][table["common_step"]]
    np.testing.assert_allclose(table["sigma"], shift * levels / (1 + (shift - 1) * levels), atol=2e-3)
    assert (table["shift"] == shift).all()
