from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from hybridlib.scheduling.study.statistics import bootstrap_interval, difference_interval, interquartile_mean, mean


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (4, 3), (7, 5), (10, 2)])
def test_interquartile_mean_is_scipys_trimmed_mean(shape):
    scores = np.random.default_rng(0).normal(size=shape)
    assert interquartile_mean(scores) == pytest.approx(stats.trim_mean(scores.ravel(), 0.25), rel=1e-12)
    assert interquartile_mean(np.stack([scores, 2 * scores])).tolist() == pytest.approx(
        [float(interquartile_mean(scores)), 2 * float(interquartile_mean(scores))]
    )


def test_outliers_do_not_move_it():
    assert interquartile_mean([[1.0], [2.0], [3.0], [1e9]]) == 2.5


@pytest.mark.parametrize("statistic", [mean, interquartile_mean])
def test_interval_equals_the_enumerated_bootstrap(statistic):
    """Three runs and two tasks: all 3^6 stratified resamples, each task's runs drawn on their own."""
    scores = np.array([[1.0, 10.0], [2.0, 13.0], [4.0, 20.0]])
    every = [
        float(statistic(np.array([scores[list(a), 0], scores[list(b), 1]]).T))
        for a, b in product(product(range(3), repeat=3), repeat=2)
    ]
    interval = bootstrap_interval(scores, statistic, confidence=0.8, resamples=40_000)
    assert interval.estimate == pytest.approx(float(statistic(scores)))
    # A discrete distribution: quantiles within the neighbouring values of the enumeration.
    ordered = np.sort(every)
    for found, quantile in ((interval.low, 0.1), (interval.high, 0.9)):
        near = np.quantile(ordered, [quantile - 0.02, quantile + 0.02])
        assert near[0] <= found <= near[1]


def test_interval_covers_as_often_as_it_says():
    """200 experiments of 12 normal runs: the percentile bootstrap of a mean covers about 91 %, not less than 85 %."""
    generator = np.random.default_rng(1)
    intervals = [bootstrap_interval(generator.normal(size=(12, 1)), mean, resamples=300) for _ in range(200)]
    assert np.mean([i.low <= 0 <= i.high for i in intervals]) == pytest.approx(0.91, abs=0.06)


def test_pairs_cancel_what_they_share():
    generator = np.random.default_rng(2)
    shared, effect = generator.normal(size=(8, 1)), 0.1
    interval = difference_interval(shared + effect, shared, mean)
    assert interval.low == pytest.approx(effect)
    assert interval.high == pytest.approx(effect)
    assert interval.estimate == pytest.approx(effect)


def test_bad_scores_are_refused():
    with pytest.raises(ValueError, match="scores must be finite, got nan"):
        interquartile_mean([[1.0, np.nan]])
    with pytest.raises(ValueError, match=r"\(runs, tasks\) with at least one of each, got \(3,\)"):
        interquartile_mean([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1, got 95"):
        bootstrap_interval([[1.0], [2.0]], confidence=95)
    with pytest.raises(ValueError, match="paired scores must have one shape"):
        difference_interval([[1.0], [2.0]], [[1.0]])
