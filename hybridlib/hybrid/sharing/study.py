"""Study 13: saved work against measured quality, for planned trees and the rules of others, list by list.

Every method is a list of plans of rising saving, every plan a set of trajectories; all are run from the same seeds and
scored alike. The quality surface is fitted to pairs of prompts from lists of their own, so all lists that plans are
tried on are fresh.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from ...files import write_json, write_table
from ...prompts import PromptSet
from ...runs import t_interval
from ...study import runner
from .. import grids, hiqm
from ..planning import QualitySurface, fit_surface
from . import rivals
from .plan import SharingPlan, expected
from .planner import ask, share
from .quality import EXPECTED, RULES

if TYPE_CHECKING:
    from ...denoising.hybrid_call import HybridPipeline
    from ...metrics import Metric
    from ...study.parameters import SharingParameters

ALONE, SHORTER, PUBLIC = "nothing shared", "fewer steps", "one public prompt"
OURS, EACH, BLENDS = "ours", "ours, each prompt", "ours, blends"
REUSE, SAGE = "2508.21032", "SAGE"
CELL = ["list", "prompt", "seed"]
EQUAL = 0.01  # within which two qualities count as equal


class Setting(NamedTuple):
    """A plan of a method; what its setting is depends on the method (a floor, a threshold, a share)."""

    method: str
    setting: float
    plan: SharingPlan


# --- the surface


def pair_grid(prompts: Sequence[str], similarity: np.ndarray, parameters: SharingParameters) -> pd.DataFrame:
    """Every prompt as public prompt of every other, with SIM and without: what a surface is fitted to."""
    rest = len(prompts) - 1
    texts = PromptSet(tuple(prompts[:1]), tuple(prompts[1:]), ("",) * rest, (0,) * rest, "pairs of study 13")
    table = grids.similarity_study(
        texts,
        grids.LATER_VARIANTS,
        parameters.pair_seeds,
        parameters.pair_common_steps,
        num_inference_steps=parameters.num_inference_steps,
    )
    return table.assign(similarity=similarity[table["public"], table["personal"]])


def measured_surface(
    prompts: Sequence[str],
    similarity: np.ndarray,
    pipeline: HybridPipeline,
    folder: Path,
    parameters: SharingParameters,
    metric: Metric,
) -> QualitySurface:
    """The surface of SIM alone, of pairs of these prompts; the scores are `folder / scores.parquet`."""
    from ...denoising.families import denoiser_of

    table = pair_grid(prompts, similarity, parameters)
    scores, _ = runner.run(table, pipeline, folder, parameters, [metric])
    shared, alone = (hiqm.cube(scores, variant, metric.name) for variant in ("wSIM", "woSIM"))
    model = denoiser_of(pipeline).identity
    return fit_surface(shared.retained(alone), rounds=parameters.bootstrap_rounds, model=model)


# --- the plans


def plans(prompts: Sequence[str], parameters: SharingParameters, **options: Any) -> Iterator[Setting]:
    """Every plan of a list. `options` are those of `planner.ask`: surface, similarity, sigmas."""
    question = ask(prompts, **options)
    yield Setting(ALONE, 1.0, rivals.alone(question))
    ours = []
    for floor in parameters.floors:
        ours.append(share(prompts, floor, **options))
        yield Setting(OURS, floor, ours[-1])
        yield Setting(EACH, floor, share(prompts, floor, each=True, **options))
        yield Setting(BLENDS, floor, share(prompts, floor, conditioning="blend", **options))
        yield Setting(PUBLIC, floor, rivals.public_prompt(question, floor))
    for tau in parameters.taus:
        yield Setting(REUSE, tau, rivals.clustered(question, tau))
    for part in parameters.sage_shares:
        yield Setting(SAGE, part, rivals.semantic_groups(question, parameters.sage_threshold, part))
    wanted = {rivals.steps_for(question, plan.nfe) for plan in ours} - {question.conditioner.forecast.steps}
    for steps in sorted(wanted, reverse=True):
        shorter = ask(prompts, **options | {"sigmas": None, "num_inference_steps": steps})
        yield Setting(SHORTER, float(steps), rivals.fewer_steps(question, shorter))


def grid(name: str, kind: str, settings: Sequence[Setting], seeds: Sequence[int]) -> pd.DataFrame:
    """One row per image of a list: kind, list, method, setting, prompt, number, seed, path, trajectory, and of its plan
    the NFE a seed (`nfe`, `nfe_share`), the last shared step (`common_step`) and quality, low, high."""
    rows = []
    for method, setting, plan in settings:
        place = f"{name}/{method}_{setting:g}".replace(" ", "_").replace(",", "")
        told = plan.table
        for seed in seeds:
            for number, way in enumerate(plan.trajectories(seed)):
                row = told.iloc[number]
                rows.append(
                    {
                        "path": f"{place}/prompt{number}_seed{seed}.png",
                        **{"kind": kind, "list": name, "method": method, "setting": setting, "number": number},
                        **{"seed": seed, "prompt": row["prompt"], "common_step": int(row["shared"])},
                        **{"nfe": plan.nfe, "nfe_share": plan.nfe / plan.one_at_a_time},
                        **{"quality": row["quality"], "low": row["low"], "high": row["high"]},
                        "trajectory": way,
                    }
                )
    return pd.DataFrame(rows)


def run(
    lists: Mapping[str, tuple[str, Sequence[str]]],
    pipeline: HybridPipeline,
    folder: Path,
    parameters: SharingParameters,
    metrics: Sequence[Metric],
    **options: Any,
) -> pd.DataFrame:
    """Images and scores of every plan of every list; also `folder / scores.parquet`. A killed run goes on.

    Args:
        lists: name -> kind and prompts.
        options: of `planner.ask`, the same for all.

    Returns:
        The table of `grid` without trajectories, with a column for each metric and the columns of `beside_alone`, and
        `added`, `worst`, `product`: the quality that each rule expects.
    """
    grids_of, rules = [], []
    for name, (kind, prompts) in lists.items():
        settings = list(plans(prompts, parameters, **options))
        grids_of.append(grid(name, kind, settings, parameters.seeds))
        rules.append(_by_rule(name, settings, prompts, options))
    table = pd.concat(grids_of, ignore_index=True)
    lengths = table["trajectory"].map(lambda way: way.stop)
    tables = []
    for steps, part in table.groupby(lengths, sort=True):
        own = parameters.model_copy(update={"num_inference_steps": int(steps)})
        scores, _ = runner.run(part.reset_index(drop=True), pipeline, folder, own, metrics, f"scores_{steps}_steps")
        tables.append(scores)
    scores = pd.concat(tables, ignore_index=True).merge(
        pd.concat(rules, ignore_index=True), on=["list", "method", "setting", "prompt"], how="left"
    )
    scores = beside_alone(scores, metrics[0].name)
    scores.attrs = tables[0].attrs
    write_table(scores, folder / "scores.parquet")
    write_json(runner.provenance(pipeline, parameters, metrics), folder / "scores.json")
    return scores


def _by_rule(
    name: str, settings: Sequence[Setting], prompts: Sequence[str], options: Mapping[str, Any]
) -> pd.DataFrame:
    question, tables = ask(prompts, **options), []
    for method, setting, plan in settings:
        if plan.num_inference_steps != question.conditioner.forecast.steps:
            continue
        found = {
            rule: expected(plan.paths, plan.texts, question.vectors, question.conditioner.forecast, way)[EXPECTED]
            for rule, way in RULES.items()
        }
        found |= {"list": name, "method": method, "setting": setting, "prompt": plan.texts}
        tables.append(pd.DataFrame(found))
    return pd.concat(tables, ignore_index=True)


# --- what was measured


def beside_alone(scores: pd.DataFrame, value: str = "clip") -> pd.DataFrame:
    """The table with `retained`: the score as a share of what nothing shared gives, same prompt and seed.

    As in `hiqm.Cube.retained`, the prompt's own score is subtracted before the list's mean level divides.

    Raises:
        ValueError: if a prompt and seed have no image with nothing shared, or the level of a list is not above 0.
    """
    reference = scores[scores["method"] == ALONE].set_index(CELL)[value]
    if not reference.index.is_unique:
        raise ValueError("every prompt and seed of a list needs one image with nothing shared, some have several")
    own = reference.reindex(pd.MultiIndex.from_frame(scores[CELL])).to_numpy()
    if np.isnan(own).any():
        raise ValueError("every prompt and seed of a list needs an image with nothing shared")
    level = scores["list"].map(reference.groupby("list").mean()).to_numpy()
    if not (level > 0).all():
        raise ValueError(f"retained quality is a share of a level above 0, one list has {level.min():g}")
    return scores.assign(retained=(scores[value] - own + level) / level)


def by_list(scores: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """Means of each plan over its prompts and seeds: kind, list, method, setting, nfe_share, and the values."""
    keys = ["kind", "list", "method", "setting"]
    return scores.groupby(keys, sort=False)[["nfe_share", *values]].mean().reset_index()


def summary(scores: pd.DataFrame, values: Sequence[str], confidence: float = 0.95) -> pd.DataFrame:
    """Means of each method and setting over the lists of a kind, with Student's t intervals over lists.

    Returns:
        kind, method, setting, lists, nfe_share, and for each value its mean, `<value>_low` and `<value>_high`.
    """
    rows = []
    for (kind, method, setting), part in by_list(scores, values).groupby(["kind", "method", "setting"], sort=False):
        row = {"kind": kind, "method": method, "setting": setting, "lists": len(part)}
        row["nfe_share"] = part["nfe_share"].mean()
        for value in values:
            row[value], row[f"{value}_low"], row[f"{value}_high"] = t_interval(part[value], confidence)
        rows.append(row)
    return pd.DataFrame(rows)


def calibration(scores: pd.DataFrame) -> pd.DataFrame:
    """Expected beside measured quality of every plan that shares, for each rule, over its prompts and seeds.

    Returns:
        rule, kind, list, method, setting, predicted, measured, low, high (t interval of the measured mean over
        prompts), prompts. Plans of which nothing is expected, as their prompts are less alike than was fitted, are
        left out.
    """
    rows = []
    sharing = scores[(scores["nfe_share"] < 1) & (scores["method"] != SHORTER)]
    for (kind, name, method, setting), part in sharing.groupby(["kind", "list", "method", "setting"], sort=False):
        means = part.groupby("prompt")[["retained", *RULES]].mean()
        for rule in RULES:
            if means[rule].notna().all():
                told = dict(zip(("measured", "low", "high"), t_interval(means["retained"]), strict=True))
                cell = {"rule": rule, "kind": kind, "list": name, "method": method, "setting": setting}
                rows.append(cell | {"predicted": means[rule].mean()} | told | {"prompts": len(means)})
    return pd.DataFrame(rows)


def calibration_errors(table: pd.DataFrame) -> pd.DataFrame:
    """For each rule: plans, mean of measured minus predicted (below 0: promised too much) and root mean square."""
    error = (table["measured"] - table["predicted"]).groupby(table["rule"], sort=False)
    squares = lambda values: float(np.sqrt((values**2).mean()))  # noqa: E731
    return pd.DataFrame({"plans": error.size(), "mean": error.mean(), "rms": error.agg(squares)})


def promises(scores: pd.DataFrame) -> pd.DataFrame:
    """How often a floor was kept: by single prompts (means over seeds) and by lists, for each method that has a floor.

    Returns:
        kind, method, floor, prompts, prompts_above, lists, lists_above (shares).
    """
    rows = []
    floors = scores[scores["method"].isin([OURS, EACH, BLENDS, PUBLIC])]
    for (kind, method, floor), part in floors.groupby(["kind", "method", "setting"], sort=False):
        single, whole = (part.groupby(keys)["retained"].mean() for keys in (["list", "prompt"], "list"))
        kept = {"prompts": len(single), "prompts_above": (single >= floor).mean()}
        kept |= {"lists": len(whole), "lists_above": (whole >= floor).mean()}
        rows.append({"kind": kind, "method": method, "floor": floor} | kept)
    return pd.DataFrame(rows)


def at_equal_quality(scores: pd.DataFrame, value: str = "retained", method: str = OURS) -> pd.DataFrame:
    """NFE that each rival needs for the quality of our plans, within `EQUAL`, minus ours, list by list.

    Between two settings of a rival the straight line is taken, and nothing shared closes its line. Of each list the
    mean over our settings is taken first.

    Returns:
        kind, rival, mean, low, high (share of the NFE of nothing shared; above 0: ours needs less), lists.
    """
    means = by_list(scores, [value])
    rows = []
    for (kind, name), part in means.groupby(["kind", "list"], sort=False):
        alone = part[part["method"] == ALONE]
        ours = part[part["method"] == method]
        for rival in (PUBLIC, REUSE, SAGE, SHORTER, ALONE):
            line = pd.concat([part[part["method"] == rival], alone])
            needed = [_nfe_for(line, value, quality - EQUAL) for quality in ours[value]]
            rows.append((kind, name, rival, float(np.mean(needed - ours["nfe_share"].to_numpy()))))
    table = pd.DataFrame(rows, columns=["kind", "list", "rival", "difference"])
    groups = table.groupby(["kind", "rival"], sort=False)["difference"]
    found = [(*key, *t_interval(values), len(values)) for key, values in groups]
    return pd.DataFrame(found, columns=["kind", "rival", "mean", "low", "high", "lists"])


def _nfe_for(line: pd.DataFrame, value: str, wanted: float) -> float:
    """Least share of NFE at which a line of plans reaches a quality; all of them where it never does."""
    points = line.sort_values("nfe_share")
    nfe, quality = points["nfe_share"].to_numpy(), np.maximum.accumulate(points[value].to_numpy())
    if quality[0] >= wanted:
        return float(nfe[0])
    reached = np.flatnonzero(quality >= wanted)
    if not len(reached):
        return 1.0
    at = reached[0]
    share_of = (wanted - quality[at - 1]) / (quality[at] - quality[at - 1])
    return float(nfe[at - 1] + share_of * (nfe[at] - nfe[at - 1]))


def savings(
    numbers: Sequence[int],
    kinds: Sequence[str],
    list_of: Callable[[str, int, int], Sequence[str]],
    floor: float,
    similarity: Any,
    **options: Any,
) -> pd.DataFrame:
    """How much planned trees save on longer and longer lists. Planned only, nothing is drawn.

    Args:
        list_of: kind, number and seed to prompts.
        similarity: with `vectors`; its time is told apart from that of planning.

    Returns:
        kind, prompts, nfe, nfe_share, quality, encoding_s, planning_s (wall time).
    """
    rows = []
    for kind in kinds:
        for number in numbers:
            prompts = list_of(kind, number, 0)
            began = time.perf_counter()
            known = dict(zip(prompts, similarity.vectors(prompts), strict=True))
            encoded = time.perf_counter()
            plan = share(prompts, floor, similarity=lambda t, k=known: np.array([k[text] for text in t]), **options)
            planned = time.perf_counter()
            cost = {"nfe": plan.nfe, "nfe_share": plan.nfe / plan.one_at_a_time}
            cost |= {"quality": float(plan.quality[EXPECTED].mean())}
            cost |= {"encoding_s": encoded - began, "planning_s": planned - encoded}
            rows.append({"kind": kind, "prompts": number} | cost)
    return pd.DataFrame(rows)
