"""How far a quality surface can be trusted: on prompts and on noise schedules that it has not seen."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from ..fits import fit_sigmoid
from . import planning
from .hiqm import Cube, binned
from .schedules import Schedule


def across_prompts(cube: Cube, min_pairs: int = 6) -> pd.DataFrame:
    """Prediction error on left-out prompts: the surface against one sigmoid per bin, and against no similarity at all.

    Each prompt in turn is left out in both of its roles; its cells are predicted from the others' cells.

    Returns:
        One row per prompt: prompt, cells, and the root mean squared errors `surface`, `per_bin` and `mean_curve` (the
        mean over all pairs at each common step, the baseline that ignores similarity) over the cells whose bin the
        remaining prompts still fill.
    """
    public, personal, step = np.nonzero(cube.measured)
    m, q = cube.similarity[public, personal], cube.quality[public, personal, step]
    bin_of, rows = np.round(m, 1), []
    for prompt in np.unique(np.concatenate([public, personal])):
        rest = cube.without([prompt])
        kept = binned(rest, min_pairs=min_pairs, rounds=0)
        fits = [fit_sigmoid(kept.common_steps, mean)(cube.common_steps) for mean in kept.mean]
        out = (public == prompt) | (personal == prompt)
        test = out & np.isin(bin_of, kept.similarity)
        mean_curve = np.bincount(step[~out], q[~out]) / np.bincount(step[~out])
        predicted = {
            "surface": planning.fit_surface(rest, rounds=0)(cube.sigmas[step[test]], m[test]),
            "per_bin": np.array(fits)[np.searchsorted(kept.similarity, bin_of[test]), step[test]],
            "mean_curve": mean_curve[step[test]],
        }
        errors = {name: float(np.sqrt(((q[test] - values) ** 2).mean())) for name, values in predicted.items()}
        rows.append({"prompt": int(prompt), "cells": int(test.sum()), **errors})
    return pd.DataFrame(rows)


def across_schedules(cubes: Mapping[Schedule, Cube], folds: int = 7, seed: int = 0) -> pd.DataFrame:
    """Does one surface over noise levels predict a schedule that it has never seen?

    In turn each schedule is left out, and each of `folds` groups of prompts with it. Its cells of those prompts are
    predicted by three surfaces that know none of these prompts: one over noise levels fitted to the *other* schedules
    (`others`), one fitted to this very schedule (`own`), and, as the control that should fail, one over the share of
    steps taken fitted to the other schedules (`others_by_share`).

    Args:
        cubes: of one prompt list, quality on one scale.

    Returns:
        One row per schedule and fold: schedule, fold, cells, and the mean squared errors of the three.

    Raises:
        ValueError: if there are fewer than two schedules.
    """
    if len(cubes) < 2:
        raise ValueError(f"a comparison of schedules needs two or more, got {[str(s) for s in cubes]}")
    # A share of steps stands in the place of the noise level; it is the noise level of shift 1.
    shares = {s: c._replace(sigmas=1 - c.common_steps / s.num_inference_steps) for s, c in cubes.items()}
    pairs = np.any([cube.measured.any(axis=2) for cube in cubes.values()], axis=0)
    prompts = np.flatnonzero(pairs.any(axis=0) | pairs.any(axis=1))
    rows = []
    for fold, group in enumerate(np.array_split(np.random.default_rng(seed).permutation(prompts), folds)):
        for schedule, cube in cubes.items():
            others, others_by_share = (
                planning.fit_surface(*(c.without(group) for s, c in known.items() if s != schedule), rounds=0)
                for known in (cubes, shares)
            )
            own = planning.fit_surface(cube.without(group), rounds=0)
            public, personal, step = np.nonzero(cube.measured & ~cube.without(group).measured)
            m, q = cube.similarity[public, personal], cube.quality[public, personal, step]
            predicted = {
                "others": others(cube.sigmas[step], m),
                "own": own(cube.sigmas[step], m),
                "others_by_share": others_by_share(shares[schedule].sigmas[step], m),
            }
            errors = {name: float(((q - values) ** 2).mean()) for name, values in predicted.items()}
            rows.append({"schedule": str(schedule), "fold": fold, "cells": len(q), **errors})
    return pd.DataFrame(rows)


def kept_promises(
    cube: Cube, quality_floor: float, reference: Cube | None = None, splits: int = 40, rounds: int = 60, seed: int = 0
) -> pd.DataFrame:
    """What plans promise, held against prompts that the surface has not seen.

    The prompts are split in half at random; a surface fitted to one half plans every pair of the other, which then
    shows its measured quality at the planned steps.

    Args:
        cube: scores as measured; retained quality is taken within each half, against `reference` if given.

    Returns:
        One row per split: split; for the safe `common_step` and the `estimate` of the plans their mean over pairs, the
        mean measured quality there (`quality_at_...`) and whether it keeps the floor (`kept_at_...`).
    """
    pairs = np.any(cube.measured, axis=2)
    used = np.flatnonzero(np.any(pairs, axis=0) | np.any(pairs, axis=1))
    rng, rows = np.random.default_rng(seed), []
    for split in range(splits):
        order = rng.permutation(used)
        fitted, fresh = (
            cube.of(half).retained(None if reference is None else reference.of(half))
            for half in (order[: len(order) // 2], order[len(order) // 2 :])
        )
        surface = planning.fit_surface(fitted, rounds=rounds, seed=split)
        public, personal = np.nonzero(fresh.measured.all(axis=2))
        # Plans for similarities to two decimals; beyond the fitted range the nearest one stands in.
        similarity = fresh.similarity[public, personal].round(2).clip(*surface.similarity_range)
        plans = {m: surface.max_common_step(m, quality_floor) for m in np.unique(similarity)}
        row: dict[str, float] = {"split": split}
        for planned in ("common_step", "estimate"):
            steps = np.array([getattr(plans[m], planned) for m in similarity])
            quality = fresh.quality[public, personal, np.searchsorted(fresh.common_steps, steps)].mean()
            row |= {
                planned: steps.mean(),
                f"quality_at_{planned}": quality,
                f"kept_at_{planned}": quality >= quality_floor,
            }
        rows.append(row)
    return pd.DataFrame(rows)


def compared(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Errors of several cubes by `across_prompts`, and what the surface gains on the mean curve.

    Returns:
        One row per cube: mean errors over prompts, `gain` (mean curve minus surface, above 0 where similarity helps)
        and its standard error over prompts, which share their pairs, so read it as a lower bound.
    """
    rows = {}
    for name, table in tables.items():
        gain = table["mean_curve"] - table["surface"]
        errors = table[["surface", "per_bin", "mean_curve"]].mean().to_dict()
        rows[name] = {**errors, "gain": gain.mean(), "se_gain": gain.sem()}
    return pd.DataFrame.from_dict(rows, orient="index")
