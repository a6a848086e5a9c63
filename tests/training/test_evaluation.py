from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import ttest_rel

from hybridlib.training.evaluation import class_mean_error, compare_couplings, steps_to_reach, straightness


def states(path, sigmas, rows=5):
    """States (T + 1, rows, 2) on a curve in the plane, each row scaled by its own factor."""
    factors = torch.arange(1.0, rows + 1)[None, :, None]
    return factors * path(sigmas)[:, None]


class TestStraightness:
    sigmas = torch.linspace(1, 0, 1001, dtype=torch.float64)

    def test_straight_paths_have_none(self):
        line = states(lambda s: torch.stack([3 * s, 1 - s], dim=1), self.sigmas)
        assert straightness(line, self.sigmas) == pytest.approx(0, abs=1e-12)

    def test_a_quarter_circle_at_even_speed(self):
        """|v| = pi / 2 and |d| = sqrt(2), and the mean of |v - d|^2 is |v|^2 - |d|^2: S = pi^2 / 8 - 1."""

        def circle(s):
            return torch.stack([torch.cos(s * math.pi / 2), torch.sin(s * math.pi / 2)], dim=1)

        assert straightness(states(circle, self.sigmas), self.sigmas) == pytest.approx(math.pi**2 / 8 - 1, rel=1e-5)

    def test_uneven_speed_counts_even_on_a_line(self):
        """x = s^2, v = 2 s, d = 1: S = integral of (2 s - 1)^2 = 1/3."""
        line = states(lambda s: torch.stack([s**2, 0 * s], dim=1), self.sigmas)
        assert straightness(line, self.sigmas) == pytest.approx(1 / 3, rel=1e-5)

    def test_steps_are_weighted_by_their_length(self):
        uneven = torch.cat([torch.linspace(1, 0.5, 2001), torch.linspace(0.5, 0, 101)[1:]]).double()
        line = states(lambda s: torch.stack([s**2, 0 * s], dim=1), uneven)
        assert straightness(line, uneven) == pytest.approx(1 / 3, rel=1e-3)

    def test_bad_paths_are_refused(self):
        with pytest.raises(ValueError, match="states and sigmas must be as many"):
            straightness(torch.zeros(3, 1, 2), self.sigmas)
        with pytest.raises(ValueError, match="sigmas must fall strictly"):
            straightness(torch.zeros(3, 1, 2), torch.tensor([1.0, 0.5, 0.5]))


def test_class_mean_error_by_hand_and_its_floor():
    means = torch.tensor([[1.0, 0.0], [-1.0, 2.0]])
    samples = torch.tensor([[1.5, 0.0], [1.5, 1.0], [-1.0, 2.0]])
    assert class_mean_error(samples, torch.tensor([0, 0, 1]), means) == pytest.approx((0.25 + 0.25) / 4)
    labels = torch.arange(2000) % 2
    drawn = means[labels] + 0.5 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    assert class_mean_error(drawn, labels, means) < 4 * 0.25 / 1000
    with pytest.raises(ValueError, match="every one of 2 classes needs samples"):
        class_mean_error(samples, torch.tensor([0, 0, 0]), means)
    with pytest.raises(ValueError, match="every one of 2 classes needs samples"):
        class_mean_error(samples, torch.tensor([0, 1, 2]), means)


def test_steps_to_reach():
    steps, values = [100, 200, 400], [9.0, 5.0, 1.0]
    assert steps_to_reach(steps, values, 7) == 150
    assert steps_to_reach(steps, values, 1) == 400
    assert steps_to_reach(steps, values, 10) == 100
    assert math.isnan(steps_to_reach(steps, values, 0.5))
    assert steps_to_reach(steps, [9, 3, 5], 4) == pytest.approx(100 + 100 * 5 / 6)  # the first crossing counts
    with pytest.raises(ValueError, match="steps must rise strictly"):
        steps_to_reach([100, 100], [2.0, 1.0], 1)
    with pytest.raises(ValueError, match="steps must rise strictly"):
        steps_to_reach([100], [2.0, 1.0], 1)


class TestComparison:
    def table(self, change=0.8):
        generator = np.random.default_rng(0)
        shared = np.exp(generator.normal(0, 0.5, 5))
        own = np.exp(generator.normal(0, 0.02, (2, 5)))
        return pd.DataFrame(
            {
                "coupling": ["independent"] * 5 + ["linear"] * 5,
                "seed": [*range(5), 3, 1, 4, 0, 2],
                "S": [*shared * own[0], *(shared * own[1] * change)[[3, 1, 4, 0, 2]]],
            }
        )

    def test_pairs_by_seed_as_scipy_does(self):
        found = compare_couplings(self.table()).set_index("coupling")
        table = self.table().sort_values("seed").groupby("coupling")["S"].apply(np.array)
        theirs = ttest_rel(np.log(table["linear"]), np.log(table["independent"])).confidence_interval()
        row = found.loc["linear"]
        assert (row["low"], row["high"]) == pytest.approx((100 * np.expm1(theirs.low), 100 * np.expm1(theirs.high)))
        assert row["low"] < -20 < row["high"] < -15  # seeds scatter by half, their pairs by 3 %
        assert row["mean"] == pytest.approx(table["linear"].mean())
        assert row["sd"] == pytest.approx(table["linear"].std(ddof=1))
        assert found.loc["independent", ["change", "low", "high"]].tolist() == [0, 0, 0]

    def test_no_change_is_not_found(self):
        row = compare_couplings(self.table(change=1)).set_index("coupling").loc["linear"]
        assert row["low"] < 0 < row["high"]

    def test_gaps_are_refused(self):
        with pytest.raises(ValueError, match="needs one row for each seed"):
            compare_couplings(self.table()[:9])
        with pytest.raises(ValueError, match="'none' among them"):
            compare_couplings(self.table(), baseline="none")
