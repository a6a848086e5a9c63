"""What the table of study 11 supports: every arm against independent noise, paired by seed, and verdicts in words."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ...runs import Interval, percent_above, t_interval
from .study import FARTHEST, INDEPENDENT, UNCONDITIONAL

FEW, MANY = 4, 28  # steps of sampling: few are at most, many at least
MARGIN = 5.0  # per cent by which many-step distance may rise at most if the guard is to hold
MIN_SEEDS = 5  # below which no verdict is given
POINTS = "prompt correct"  # a share, compared by differences in percentage points; the rest by ratios


def changes(results: pd.DataFrame) -> pd.DataFrame:
    """Every arm against its baseline, paired by seed, with 95 % Student-t intervals.

    Args:
        results: as `Study.results` returns it.

    Returns:
        One row per model, start, arm, measure and steps: mean and baseline (of the values), change, low, high (in per
        cent of the baseline, or points for "prompt correct"), and seeds. Without a second seed the interval is nan.
    """
    rows = []
    for (model, start, measure, steps), part in results.groupby(["model", "start", "measure", "steps"], sort=False):
        wide = part.pivot(index="seed", columns="arm", values="value")
        for arm in part["arm"].unique():
            baseline = UNCONDITIONAL + INDEPENDENT if arm.startswith(UNCONDITIONAL) else INDEPENDENT
            if arm == baseline or baseline not in wide:
                continue
            both = wide[[arm, baseline]].dropna()
            first, second = both[arm].to_numpy(), both[baseline].to_numpy()
            found = _compared(str(measure), first, second)
            if found is not None:
                rows.append([model, start, arm, measure, steps, first.mean(), second.mean(), *found, len(both)])
    columns = ["model", "start", "arm", "measure", "steps", "mean", "baseline", "change", "low", "high", "seeds"]
    return pd.DataFrame(rows, columns=columns)


def _compared(measure: str, first: NDArray[np.float64], second: NDArray[np.float64]) -> Interval | None:
    if measure == POINTS:
        return Interval(*(100 * value for value in t_interval(first - second)))
    if min(first.min(), second.min()) <= 0:
        return None
    return percent_above(first, second)


def verdicts(found: pd.DataFrame) -> pd.DataFrame:
    """For each model, start and arm: is it better at few steps, and does the guard at many steps hold?

    "few steps": yes if the distance falls at some count of at most 4 steps, its whole interval below 0, and rises at
    none; no if it rises at one of them; else it cannot be told. Told is the best count, if no the worst. "guard": at
    28 or more steps (the most there are, if fewer) "fails" if an interval lies wholly above 0, "holds" if all lie
    wholly below +5 %, else it cannot be told. The claim of section 7 of the reference holds for an arm with yes and
    holds. With fewer than five seeds nothing can be told: the interval of two runs that agree by chance is as narrow
    as that of many.
    """
    distances, rows = found[found["measure"] == "Frechet distance"], []
    for (model, start, arm), part in distances.groupby(["model", "start", "arm"], sort=False):
        few = part[part["steps"] <= FEW]
        many = part[part["steps"] >= min(MANY, part["steps"].max())]
        worse, better = (few["low"] > 0).any(), (few["high"] < 0).any()
        enough = part["seeds"].min() >= MIN_SEEDS
        gain = "cannot be told" if not enough else "no" if worse else "yes" if better else "cannot be told"
        bent, kept = (many["low"] > 0).any(), (many["high"] < MARGIN).all()
        guard = "cannot be told" if not enough else "fails" if bent else "holds" if kept else "cannot be told"
        told, last = few.sort_values("change").iloc[-1 if gain == "no" else 0], many.sort_values("steps").iloc[-1]
        rows.append([model, start, arm, gain, told["steps"], told["change"], guard, last["change"], last["high"]])
    columns = ["model", "start", "arm", "few steps", "told at", "change there", "guard", "change at most", "up to"]
    return pd.DataFrame(rows, columns=columns)


def conclusion(results: pd.DataFrame) -> list[str]:
    """One sentence for each network and start, and one for each claim, written from the table whatever it says."""
    found = changes(results)
    judged, sentences = verdicts(found), []
    if found["seeds"].min() < MIN_SEEDS:
        seeds = found["seeds"].min()
        return [f"With {seeds} paired seeds nothing can be told; verdicts need {MIN_SEEDS} (profile miniature-full)."]
    for (model, start), part in judged.groupby(["model", "start"], sort=False):
        arms = {word: _names(part[(part["few steps"] == "yes") & (part["guard"] == word)]) for word in GUARDS}
        none = _names(part[part["few steps"] == "no"])
        seeds = int(found[(found["model"] == model) & (found["start"] == start)]["seeds"].max())
        sentences.append(
            f"{model}, {start} ({seeds} paired seeds): better at few steps with the guard holding: {arms['holds']}; "
            f"better at few steps with the guard failing: {arms['fails']}; better at few steps, guard open: "
            f"{arms['cannot be told']}; worse at few steps: {none}."
        )
        sentences += _asked(found[(found["model"] == model) & (found["start"] == start)])
    sentences.append(_section_seven(judged))
    return sentences


def _asked(found: pd.DataFrame) -> list[str]:
    """Which arms draw more or fewer images that show what was asked, and class means further off, at the most steps."""
    rows = found[found["steps"] == found["steps"].max()]
    shares, errors = (rows[rows["measure"] == name] for name in (POINTS, "class mean error"))
    sentences = []
    if not shares.empty:
        more, fewer = _names(shares[shares["low"] > 0], POINTS), _names(shares[shares["high"] < 0], POINTS)
        sentences.append(
            f"At {shares['steps'].iloc[0]} steps {100 * shares['baseline'].iloc[0]:.0f} % of its images show what was "
            f"asked with independent noise; more with: {more}; fewer with: {fewer}."
        )
    if not errors.empty:
        more, less = _names(errors[errors["low"] > 0], "error"), _names(errors[errors["high"] < 0], "error")
        sentences.append(f"Its class means are further off with: {more}; closer with: {less}.")
    return sentences


GUARDS = ("holds", "fails", "cannot be told")
AWARE = ("linear, within condition", "linear, caption price", "semidiscrete, within condition")
UNAWARE = ("linear", "KNN, as published", "semidiscrete")


def _section_seven(judged: pd.DataFrame) -> str:
    """Is there a few-step gain with the guard holding for condition-aware arms alone?

    Networks whose control, noise assigned the wrong way, is not worse at few steps are left out: what their distances
    measure is something else.
    """
    scratch, told = judged[judged["start"] == "scratch"], ""
    control = scratch[scratch["arm"] == FARTHEST]
    if failed := control[control["few steps"] != "no"]["model"].tolist():
        scratch = scratch[~scratch["model"].isin(failed)]
        told = (
            f"The control, noise assigned the wrong way, must be worse at few steps and is not for "
            f"{' and '.join(failed)}: its distances say nothing about assignment, and it is left out of what follows. "
        )
    aware, unaware = (scratch[scratch["arm"].isin(names)] for names in (AWARE, UNAWARE))
    if aware.empty or unaware.empty:
        return f"{told}The table holds too few arms to say whether only condition-aware assignment keeps the guard."
    good = (aware["few steps"] == "yes") & (aware["guard"] == "holds")
    bad = unaware["guard"] == "fails"
    word = "neither confirmed nor refuted"
    if good.all() and bad.all():
        word = "confirmed"
    elif (aware[["few steps", "guard"]] == ["no", "fails"]).any(axis=None) or (unaware["guard"] == "holds").any():
        word = "refuted"
    return (
        f"{told}A gain at few steps with the guard holding was found for {good.sum()} of {len(good)} condition-aware "
        f"arms, and the guard failed for {bad.sum()} of {len(bad)} arms that ignore the condition: the reference's "
        f"result is {word} on these images."
    )


def _names(part: pd.DataFrame, measure: str = "") -> str:
    changes, unit = part["change" if measure else "change there"], "points" if measure == POINTS else "%"
    told = [f"{arm} ({change:+.0f} {unit})" for arm, change in zip(part["arm"], changes, strict=True)]
    return ", ".join(told) or "none"
