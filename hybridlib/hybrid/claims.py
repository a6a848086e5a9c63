"""Published claims about hybrid inference, each tested on measured scores: holds, does not hold, or cannot be told.

What is redrawn are prompts, in both of their roles. Every replicate counts in which a claim's statistic exists:

* A redraw may leave a similarity bin without pairs. That depends on the prompts drawn, not on their scores, so the
  replicate goes on with the bins that are filled, in both variants alike; claims say how many bins they need.
* A fit that is not identified stays. To drop its replicate would keep the draws in which curves happen to look like
  sigmoids, and bias what is said about sigmoids. Instead the statistics bear fits that run away: medians over bins
  (Theil-Sen slopes, the median shift of x0), or values of the fitted curve itself, which do not run away. A mean would
  not: one bin with L = 1e5 decides it.
* A replicate in which the statistic does not exist is not used. The table says how many were, and where fewer than half
  were, or too few for the ends of the interval, nothing can be told: the interval would speak for the minority of draws
  in which the statistic happened to exist.
* Intervals are widened for the small number of prompts, see `intervals.interval`.
* R2 and r2 are lowered by noise alone, so a low one refutes nothing: these claims hold or cannot be told.

No statistic may choose what it then tests: the best common step is chosen on the pairs of one half of the prompts and
tried on those of the other half. `tests/hybrid/test_claims.py` runs every claim on data without the effect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..fits import SigmoidFit
from ..intervals import (
    FAILS,
    NEGATIVE,
    POSITIVE,
    UNDECIDED,
    Array,
    interval,
    paired_changes,
    tail_share,
    verdict,
)
from ..paths import PUBLISHED
from .hiqm import Cube, Curves, fit_replicates
from .samples import Sample, samples, taking_part

PLATEAU = 4.0  # the published scores hardly fall up to this common step
LATE = 5.0  # the last steps begin this many before the last common step


class Claim(NamedTuple):
    """A statement that is true where a statistic lies in `allowed`."""

    statement: str
    statistic: Callable[[Sample], float]
    allowed: tuple[float, float]
    on_fits: bool = False  # needs sigmoids
    bins: int = 1  # fewer filled bins are not enough
    refutable: bool = True  # False where noise alone drives the statistic out of `allowed`

    def value(self, sample: Sample) -> float:
        """The statistic; nan where the sample has too few filled bins."""
        return float(self.statistic(sample)) if len(sample.similarity) >= self.bins else float("nan")

    def answer(self, low: float, high: float) -> str:
        """The verdict that an interval of the statistic supports."""
        answer = verdict(low, high, self.allowed)
        return UNDECIDED if answer == FAILS and not self.refutable else answer


def check(
    modulated: Cube,
    plain: Cube,
    min_pairs: int = 6,
    rounds: int = 300,
    level: float = 0.95,
    seed: int = 0,
    claims: Sequence[Claim] | None = None,
) -> pd.DataFrame:
    """Test claims on the scores with (`modulated`) and without (`plain`) SIM and NPI of one list of prompts.

    Only pairs that were scored in both variants enter. A claim *holds* if the interval lies wholly in what it allows,
    so it holds by chance in at most (1 - `level`) / 2 of the data without the effect.

    Args:
        modulated, plain: cubes with the same prompts and common steps, as `hiqm.cube` returns them.
        min_pairs: a similarity bin of fewer ordered pairs is left out.
        rounds: bootstrap replicates.
        level: of the intervals.
        seed: of the redraws and of the halves.
        claims: those of `CLAIMS` where None.

    Returns:
        One row per claim: claim, published (the same statistic of the published curves, of which no halves exist: for
        the best common step it is the largest gain itself), measured, low, high, used (replicates with a statistic),
        rounds, verdict. low and high are nan where too few were used.

    Raises:
        ValueError: if the cubes differ in prompts or common steps, or have fewer than two bins in common.
    """
    chosen = CLAIMS if claims is None else tuple(claims)
    drawn = samples(modulated, plain, min_pairs, rounds, seed, any(claim.on_fits for claim in chosen))
    published = _published_sample()
    prompts = int(taking_part(modulated.quality - plain.quality).sum())
    enough = max(rounds / 2, 1 / tail_share(level, prompts) - 1)  # else the ends are just the extreme replicates
    rows = []
    for claim in chosen:
        measured, *values = (claim.value(sample) for sample in drawn)
        used = int(np.isfinite(values).sum())
        low, high = interval(values, level, prompts) if used >= enough else (np.nan, np.nan)
        answer = claim.answer(low, high) if np.isfinite(measured) else UNDECIDED
        rows.append((claim.statement, claim.value(published), measured, low, high, used, rounds, answer))
    columns = ["claim", "published", "measured", "low", "high", "used", "rounds", "verdict"]
    return pd.DataFrame(rows, columns=columns)


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


def _published_sample() -> Sample:
    with_sim, without = published_curves()
    gain = (with_sim.mean - without.mean).mean(axis=0)
    halves = np.stack([gain, gain])[None]  # no pairs were published, so chosen and tried on the same
    fits = [[fit for fit in fit_replicates(curves, 0)[0] if fit is not None] for curves in (with_sim, without)]
    return Sample(with_sim.similarity, with_sim.common_steps, with_sim.mean, without.mean, halves, *fits)


def _slope(similarity: Array, values: Sequence[float]) -> float:
    """Theil-Sen: the median slope between two bins; one bin that runs away does not move it."""
    i, j = np.triu_indices(len(similarity), 1)
    return float(np.median((np.asarray(values)[j] - np.asarray(values)[i]) / (similarity[j] - similarity[i])))


def _both_slopes(sample: Sample, name: str) -> list[float]:
    return [
        _slope(sample.similarity, [getattr(fit, name) for fit in fits])
        for fits in (sample.modulated_fits, sample.plain_fits)
    ]


def _linearity(sample: Sample) -> float:
    return min(
        np.corrcoef(sample.similarity, [getattr(fit, name) for fit in fits])[0, 1] ** 2
        for name in ("C", "L")
        for fits in (sample.modulated_fits, sample.plain_fits)
    )


def _kept(sample: Sample, fits: Sequence[SigmoidFit]) -> float:
    """Common step up to which 95 % of a fitted curve's first value is kept, mean over bins; the last if it never falls.

    A curve that rises, or does not fall that far, keeps its quality to the end; to leave it out would hide that.
    """
    last = float(sample.common_steps.max())
    steps = [fit.retained_until(0.95) if fit.k > 0 else last for fit in fits]
    return float(np.mean([step if 0 <= step <= last else last for step in steps]))


def _missed_plateau(sample: Sample) -> float:
    """How much further the fitted curves fall than the scores up to the end of the plateau, mean over bins.

    Not L + C against the first score: a true sigmoid, too, is below its asymptote there.
    """
    fitted = [float(fit(0.0) - fit(PLATEAU)) for fit in sample.plain_fits]
    scored = [curve[0] - np.interp(PLATEAU, sample.common_steps, curve) for curve in sample.plain]
    return float(np.mean(np.subtract(fitted, scored)))


def _gain_at_chosen_step(sample: Sample) -> float:
    """The gain, on one half of the prompts, at the step where the other half gains most; both ways, all splits."""
    whole = sample.halves[np.isfinite(sample.halves).all(axis=(1, 2))]
    if not len(whole):
        return float("nan")
    chosen = whole.argmax(axis=2)[:, ::-1]
    return float(np.take_along_axis(whole, chosen[..., None], axis=2).mean())


def _late_gain(sample: Sample) -> float:
    return float(sample.gain[sample.common_steps >= sample.common_steps.max() - LATE].mean())


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
        on_fits=True,
        refutable=False,
    ),
    Claim(
        "the sigmoid misses the plateau: up to step 4 it falls further than the scores (without)",
        _missed_plateau,
        POSITIVE,
        on_fits=True,
    ),
    Claim(
        "C grows with similarity (smaller slope of the two variants)",
        lambda x: min(_both_slopes(x, "C")),
        POSITIVE,
        on_fits=True,
        bins=2,
    ),
    Claim(
        "L shrinks with similarity (larger slope of the two variants)",
        lambda x: max(_both_slopes(x, "L")),
        NEGATIVE,
        on_fits=True,
        bins=2,
    ),
    Claim(
        "both are nearly linear in similarity (least r2 of C and L)",
        _linearity,
        (0.95, 1.0),
        on_fits=True,
        bins=3,  # two points always lie on a line
        refutable=False,
    ),
    Claim(
        "SIM + NPI keeps 95 % of the quality up to step",
        lambda x: _kept(x, x.modulated_fits),
        (7.0, np.inf),
        on_fits=True,
    ),
    Claim(
        "that is later than without (steps)",
        lambda x: _kept(x, x.modulated_fits) - _kept(x, x.plain_fits),
        POSITIVE,
        on_fits=True,
    ),
    Claim(
        "SIM + NPI moves the inflection x0 back (steps, median over bins)",
        lambda x: float(np.median([a.x0 - b.x0 for a, b in zip(x.modulated_fits, x.plain_fits, strict=True)])),
        POSITIVE,
        on_fits=True,
    ),
    Claim(
        "SIM + NPI gains quality at its best common step (chosen on other prompts)",
        _gain_at_chosen_step,
        POSITIVE,
    ),
    Claim(
        "the gain is largest at common steps 10 to 14",
        lambda x: float(x.common_steps[x.gain.argmax()]),
        (10.0, 14.0),
    ),
    Claim(
        "the gain turns into a loss in the last steps (22 to 27)",
        _late_gain,
        NEGATIVE,
    ),
)
