"""Published claims about hybrid inference, each tested on measured curves: holds, does not hold, or cannot be told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..fits import SigmoidFit
from ..intervals import NEGATIVE, POSITIVE, Array, Integers, interval, paired_changes, verdict
from ..paths import PUBLISHED
from .hiqm import Curves, fit_replicates


class Claim(NamedTuple):
    """A statement that is true where a statistic lies in `allowed`."""

    statement: str
    statistic: Callable[[Sample], float]
    allowed: tuple[float, float]


class Sample(NamedTuple):
    """Mean curves of both variants in the same similarity bins, or one bootstrap replicate of them."""

    similarity: Array  # (bins,)
    common_steps: Array  # (steps,)
    modulated: Array  # (bins, steps), with SIM and NPI
    plain: Array  # (bins, steps), without
    modulated_fits: Sequence[SigmoidFit]
    plain_fits: Sequence[SigmoidFit]

    @property
    def gain(self) -> Array:
        """What SIM and NPI add at each common step, mean over bins."""
        return (self.modulated - self.plain).mean(axis=0)

    @property
    def fits(self) -> list[SigmoidFit]:
        """Of both variants, all bins."""
        return [*self.modulated_fits, *self.plain_fits]


def check(modulated: Curves, plain: Curves, rounds: int = 300, level: float = 0.95) -> pd.DataFrame:
    """Test every claim on the curves with (`modulated`) and without (`plain`) SIM and NPI.

    Both must come from one prompt list and bootstrap seed, so that replicate i redraws the same prompts in both; only
    bins that both have are used.

    Returns:
        One row per claim: claim, published (the same statistic of the published curves), measured, low, high, verdict.
    """
    samples = _samples(modulated, plain, rounds)
    published = _samples(*published_curves(), rounds=0)[0]
    rows = []
    for claim in CLAIMS:
        values = [_value(claim, sample) for sample in samples]
        low, high = interval(values[1:], level)
        rows.append(
            (claim.statement, _value(claim, published), values[0], low, high, verdict(low, high, claim.allowed))
        )
    return pd.DataFrame(rows, columns=["claim", "published", "measured", "low", "high", "verdict"])


def check_sweep(scores: pd.DataFrame, value: str, higher_is_better: bool) -> pd.DataFrame:
    """Test what SIM and NPI are said to do on the scores of a SIM sweep, by changes within prompt, seed and setting.

    Returns:
        One row per claim: claim, measured (mean change), low, high (bootstrap over prompts), verdict.
    """
    steps, scales = sorted(scores["common_step"].unique()), sorted(scores["public_scale"].unique())
    guided = [scale for scale in scales if scale > 1] or scales
    contrasts = [
        (f"a handover at {steps[0]} is better than at {steps[-1]}", "common_step", steps[-1], steps[0]),
        (f"SIM: public scale {guided[0]:g} is better than {guided[-1]:g}", "public_scale", guided[-1], guided[0]),
        ("NPI: with the negative prompt is better than without", "npi", False, True),
    ]
    rows = []
    for claim, factor, before, after in contrasts:
        if before == after:
            continue
        change = paired_changes(scores, value, factor, before, after).iloc[0]
        allowed = POSITIVE if higher_is_better else NEGATIVE
        rows.append(
            (claim, change["mean"], change["low"], change["high"], verdict(change["low"], change["high"], allowed))
        )
    return pd.DataFrame(rows, columns=["claim", "measured", "low", "high", "verdict"])


def published_curves() -> tuple[Curves, Curves]:
    """The published curves with and without SIM and NPI (smoothed across similarity, as published), no replicates."""
    table = pd.read_csv(PUBLISHED / "clip_by_similarity.csv")
    curves = []
    for variant in ("wSIM_wNPI", "woSIM_woNPI"):
        means = table[table["variant"] == variant].pivot(index="similarity", columns="common_step", values="clip_score")
        bins, steps = means.index.to_numpy(float), means.columns.to_numpy(float)
        empty = np.empty((0, len(bins), len(steps)))
        curves.append(Curves(bins, np.zeros(len(bins), dtype=int), steps, means.to_numpy(), empty))
    return curves[0], curves[1]


def _value(claim: Claim, sample: Sample | None) -> float:
    return float("nan") if sample is None else float(claim.statistic(sample))


def _samples(modulated: Curves, plain: Curves, rounds: int) -> list[Sample | None]:
    """The measured sample first, then replicates; None where a bin was empty or no sigmoid could be fitted."""
    common, a, b = np.intersect1d(modulated.similarity, plain.similarity, return_indices=True)
    if len(common) < 2:
        raise ValueError(f"claims about similarity need two bins or more in both variants, got {common.tolist()}")
    with_sim, without = _chosen(modulated, a), _chosen(plain, b)
    samples: list[Sample | None] = []
    curves = zip(
        (with_sim.mean, *with_sim.replicates),
        (without.mean, *without.replicates),
        fit_replicates(with_sim, rounds),
        fit_replicates(without, rounds),
        strict=False,
    )
    for mean_with, mean_without, fits_with, fits_without in curves:
        complete_with = [fit for fit in fits_with if fit is not None and fit.identified]
        complete_without = [fit for fit in fits_without if fit is not None and fit.identified]
        complete = len(complete_with) == len(complete_without) == len(common)
        samples.append(
            Sample(common, modulated.common_steps, mean_with, mean_without, complete_with, complete_without)
            if complete
            else None
        )
    return samples


def _chosen(curves: Curves, bins: Integers) -> Curves:
    return curves._replace(
        similarity=curves.similarity[bins],
        pairs=curves.pairs[bins],
        mean=curves.mean[bins],
        replicates=curves.replicates[:, bins],
    )


def _slope(similarity: Array, values: Sequence[float]) -> float:
    return float(np.polyfit(similarity, values, 1)[0])


def _both_slopes(sample: Sample, name: str) -> list[float]:
    return [
        _slope(sample.similarity, [getattr(fit, name) for fit in fits])
        for fits in (sample.modulated_fits, sample.plain_fits)
    ]


def _kept(fits: Sequence[SigmoidFit]) -> float:
    """Mean common step up to which 95 % of a curve's first value is kept."""
    return float(np.nanmean([fit.retained_until(0.95) for fit in fits]))


def _late(sample: Sample) -> Array:
    last = sample.common_steps.max()
    return sample.gain[sample.common_steps >= last - 5]


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "quality falls with the common step (least drop of any curve)",
        lambda x: float(min((c[:, 0] - c[:, -1]).min() for c in (x.modulated, x.plain))),
        POSITIVE,
    ),
    Claim(
        "each curve is a sigmoid (least R2)",
        lambda x: min(fit.R2 for fit in x.fits),
        (0.99, 1.0),
    ),
    Claim(
        "the sigmoid misses the plateau: L + C overshoots the score at 0 (largest)",
        lambda x: max(fit.L + fit.C - first for fit, first in zip(x.plain_fits, x.plain[:, 0], strict=True)),
        POSITIVE,
    ),
    Claim(
        "C grows with similarity (smaller slope of the two variants)",
        lambda x: min(_both_slopes(x, "C")),
        POSITIVE,
    ),
    Claim(
        "L shrinks with similarity (larger slope of the two variants)",
        lambda x: max(_both_slopes(x, "L")),
        NEGATIVE,
    ),
    Claim(
        "both are nearly linear in similarity (least r2 of C and L)",
        lambda x: min(
            np.corrcoef(x.similarity, [getattr(fit, name) for fit in fits])[0, 1] ** 2
            for name in ("C", "L")
            for fits in (x.modulated_fits, x.plain_fits)
        ),
        (0.95, 1.0),
    ),
    Claim(
        "SIM + NPI keeps 95 % of the quality up to step",
        lambda x: _kept(x.modulated_fits),
        (7.0, np.inf),
    ),
    Claim(
        "that is later than without (steps)",
        lambda x: _kept(x.modulated_fits) - _kept(x.plain_fits),
        POSITIVE,
    ),
    Claim(
        "SIM + NPI moves the inflection x0 back (steps)",
        lambda x: float(np.mean([a.x0 - b.x0 for a, b in zip(x.modulated_fits, x.plain_fits, strict=True)])),
        POSITIVE,
    ),
    Claim(
        "SIM + NPI gains quality at its best common step",
        lambda x: float(x.gain.max()),
        POSITIVE,
    ),
    Claim(
        "the gain is largest at common steps 10 to 14",
        lambda x: float(x.common_steps[x.gain.argmax()]),
        (10.0, 14.0),
    ),
    Claim(
        "the gain turns into a loss in the last steps (22 to 27)",
        lambda x: float(_late(x).mean()),
        NEGATIVE,
    ),
)
