"""How models trained under different couplings compare: straight paths, class means, steps to a threshold, seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pandas as pd
import torch
from torch import Tensor

from ..runs import percent_above
from .assignment import class_means


def straightness(states: Tensor, sigmas: Tensor) -> float:
    """`S = mean |v - d|^2 / mean |d|^2` along sampled paths; 0 for straight ones, where one step is as good as many.

    v is the velocity between two states, d that of the straight line from the start noise to the model's own end
    point; the mean over a path is weighted by the length of each step in sigma.

    Args:
        states: (T + 1, B, ...) latents from noise to image, of a flow model as they are. For an epsilon or v model pass
            x / alpha, and sigma / alpha as sigmas: in these coordinates its paths are those of a flow.
        sigmas: (T + 1,) strictly decreasing.

    Raises:
        ValueError: if shapes do not fit or sigmas do not fall.
    """
    steps = sigmas[:-1] - sigmas[1:]
    if len(states) != len(sigmas) or len(states) < 2:
        raise ValueError(f"states and sigmas must be as many and at least 2, got {len(states)} and {len(sigmas)}")
    if not (steps > 0).all():
        raise ValueError("sigmas must fall strictly")
    straight = (states[0] - states[-1]).double() / (sigmas[0] - sigmas[-1])
    bent = torch.zeros((), dtype=torch.float64)
    for before, after, step in zip(states[:-1], states[1:], steps, strict=True):
        bent += step / steps.sum() * ((before - after).double() / step - straight).square().mean()
    return float(bent / straight.square().mean())


def class_mean_error(samples: Tensor, labels: Tensor, means: Tensor) -> float:
    """Mean squared difference, per dimension, between the class means of samples (B, ...) and the true ones (C, ...).

    The prior of a class that training bent shows here. n samples a class leave a floor of (variance in the class) / n.

    Raises:
        ValueError: if a class has no sample.
    """
    counts = labels.bincount(minlength=len(means))
    if len(counts) > len(means) or not counts.all():
        raise ValueError(f"every one of {len(means)} classes needs samples, got {counts.tolist()} a class")
    return float((class_means(samples.double(), labels) - means.double()).square().mean())


def steps_to_reach(steps: Sequence[float], values: Sequence[float], threshold: float) -> float:
    """The training step at which a falling measure first reaches `threshold`, linear between checkpoints; nan if never.

    The ratio of two couplings' steps is the speed-up. A measure need not fall steadily, so give it several checkpoints.

    Raises:
        ValueError: if steps do not rise, or are not as many as values.
    """
    if len(steps) != len(values) or any(b <= a for a, b in pairwise(steps)):
        raise ValueError("steps must rise strictly, one for each value")
    for index, (step, value) in enumerate(zip(steps, values, strict=True)):
        if value <= threshold:
            if index == 0:
                return float(step)
            earlier, higher = steps[index - 1], values[index - 1]
            return earlier + (step - earlier) * (higher - threshold) / (higher - value)
    return math.nan


def compare_couplings(results: pd.DataFrame, baseline: str = "independent") -> pd.DataFrame:
    """Every measure of every coupling against the baseline, paired by seed.

    Args:
        results: columns coupling, seed, and one for each measure, all above 0; one row per coupling and seed.

    Returns:
        One row per measure and coupling: measure, coupling, mean, sd, seeds, then change, low, high: by how many
        per cent the coupling lies above the baseline, with the 95 % Student-t interval of the paired log ratios.

    Raises:
        ValueError: if the baseline is missing, or a coupling lacks a seed that the baseline has.
    """
    measures = [column for column in results if column not in ("coupling", "seed")]
    wide = results.pivot(index="seed", columns="coupling")
    if baseline not in set(results["coupling"]) or wide.isna().any().any():
        raise ValueError(f"every coupling, {baseline!r} among them, needs one row for each seed, without gaps")
    rows = []
    for measure in measures:
        for coupling in results["coupling"].unique():
            values = wide[measure][coupling]
            change = percent_above(values, wide[measure][baseline])
            spread = values.std(ddof=1)
            rows.append([measure, coupling, values.mean(), spread, len(values), *change])
    return pd.DataFrame(rows, columns=["measure", "coupling", "mean", "sd", "seeds", "change", "low", "high"])
