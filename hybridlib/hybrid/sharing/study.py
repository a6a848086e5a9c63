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
from ...paths import RESULTS
from ...prompts import PromptSet
from ...study import results, runner, spent
from .. import grids, hiqm
from ..planning import QualitySurface, fit_surface
from . import rivals
from .groups import remembered
from .measured import ALONE, EACH, OURS, PROMPTS, PUBLIC, REUSE, SAGE, SHARING, SHORTER, beside_alone
from .plan import SharingPlan, expected
from .planner import ask, share
from .quality import EXPECTED, RULES, SHIPPED_STEPS, kept_by_steps

if TYPE_CHECKING:
    from ...denoising.hybrid_call import HybridPipeline
    from ...metrics import Metric
    from ...study.parameters import SharingParameters


PAIRS = "13_pairs"  # shipped scores, which the surface is fitted to


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
    """The surface of SIM alone, of pairs of these prompts; the scores are `folder / scores.parquet`.

    With `figures_from = "shipped"` the pairs are run and scored, too, but the surface is that of the shipped run.

    Raises:
        ValueError: if the shipped run was of another model.
    """
    from ...denoising.families import denoiser_of

    model = denoiser_of(pipeline).identity
    _check_shipped(model, parameters)
    scores, _ = runner.run(pair_grid(prompts, similarity, parameters), pipeline, folder, parameters, [metric])
    scores = results.choose(PAIRS, scores, parameters.figures_from, parameters.profile)
    shared, alone = (hiqm.cube(scores, variant, metric.name) for variant in ("wSIM", "woSIM"))
    return fit_surface(shared.retained(alone), rounds=parameters.bootstrap_rounds, model=model, by_spread=True)


def steps_scores(
    prompts: Sequence[str], pipeline: HybridPipeline, folder: Path, parameters: SharingParameters, metric: Metric
) -> pd.DataFrame:
    """Every prompt alone at full length and at every shorter one, scored; also `folder / scores.parquet`."""
    from ...denoising.families import denoiser_of
    from ...denoising.trajectory import Segment, Trajectory

    _check_shipped(denoiser_of(pipeline).identity, parameters)
    rows = [
        {
            "path": f"steps{steps}/prompt{number}_seed{seed}.png",
            **{"prompt": prompt, "personal": number, "seed": seed, "shard": seed, "common_step": 0},
            "trajectory": Trajectory(seed, (Segment(prompt, 0, steps, parameters.guidance_scale),)),
        }
        for steps in (parameters.num_inference_steps, *parameters.shorter)
        for seed in parameters.step_seeds
        for number, prompt in enumerate(prompts)
    ]
    table = _scored(pd.DataFrame(rows), pipeline, folder, parameters, [metric])
    write_table(table, folder / "scores.parquet")
    write_json(runner.provenance(pipeline, parameters, [metric]), folder / "scores.json")
    return results.choose(SHIPPED_STEPS, table, parameters.figures_from, parameters.profile)


def _check_shipped(model: str, parameters: SharingParameters) -> None:
    if parameters.figures_from == "shipped" and results.model_of(PAIRS) != model:
        raise ValueError(
            f"figures_from = 'shipped': the shipped surface is of {results.model_of(PAIRS)}, this model is {model}; "
            f"figures_from = 'own' measures its own"
        )


def seconds_per_nfe(folder: Path, parameters: SharingParameters) -> float:
    """Wall time of one evaluation in the run of the pairs (own, in `folder`, or shipped): what planning stands beside.

    Raises:
        ValueError: if there is no such run, or it was too short to tell.
    """
    own = parameters.figures_from == "own"
    file = folder / f"scores{spent.SPENT}" if own else RESULTS / f"{PAIRS}{spent.SPENT}"
    if (told := spent.read(file)) is None or not told.seconds:
        raise ValueError(f"{file} does not tell what the pairs took")
    return told.seconds_per_nfe


# --- the plans


def plans(
    prompts: Sequence[str], parameters: SharingParameters, steps: pd.DataFrame, **options: Any
) -> Iterator[Setting]:
    """Every plan of a list.

    Args:
        steps: as `steps_scores` returns it.
        options: of `planner.ask`: surface, similarity, sigmas.
    """
    question = ask(prompts, conditioning="prompt", **options)
    free = options | {"sigmas": None}
    kept = {each: kept_by_steps(steps, len(prompts), each) for each in (False, True)}
    yield Setting(ALONE, 1.0, rivals.alone(question))
    for floor in parameters.floors:
        yield Setting(OURS, floor, share(prompts, floor, **free | {"num_inference_steps": kept[False]}))
        yield Setting(EACH, floor, share(prompts, floor, each=True, **free | {"num_inference_steps": kept[True]}))
        yield Setting(SHARING, floor, share(prompts, floor, **options))
        yield Setting(PROMPTS, floor, share(prompts, floor, conditioning="prompt", **options))
        yield Setting(PUBLIC, floor, rivals.public_prompt(question, floor))
    for tau in parameters.taus:
        yield Setting(REUSE, tau, rivals.clustered(question, tau))
    for part in parameters.sage_shares:
        yield Setting(SAGE, part, rivals.semantic_groups(question, parameters.sage_threshold, part))
    for number in parameters.shorter:
        shorter = ask(prompts, **free | {"num_inference_steps": number})
        yield Setting(SHORTER, float(number), rivals.fewer_steps(question, shorter))


def grid(name: str, kind: str, settings: Sequence[Setting], seeds: Sequence[int]) -> pd.DataFrame:
    """One row per image of a list: kind, list, method, setting, prompt, number, seed, shard, path, trajectory, and of
    its plan the NFE a seed (`nfe`, and `nfe_share` of what nothing shared takes at full length), the last shared step
    (`common_step`) and quality, low, high."""
    rows: list[dict[str, Any]] = []
    whole = next(plan.nfe for method, _, plan in settings if method == ALONE)
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
                        "shard": f"{name} {seed}",  # else nearly every plan has roots of its own, and batches are small
                        **{"seed": seed, "prompt": row["prompt"], "common_step": int(row["shared"])},
                        **{"nfe": plan.nfe, "nfe_share": plan.nfe / whole},
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
    steps: pd.DataFrame,
    **options: Any,
) -> pd.DataFrame:
    """Images and scores of every plan of every list; also `folder / scores.parquet`. A killed run goes on.

    Args:
        lists: name -> kind and prompts.
        steps: as `steps_scores` returns it.
        options: of `planner.ask`, the same for all.

    Returns:
        The table of `grid` without trajectories, with a column for each metric and the columns of `beside_alone`, and
        `added`, `worst`, `product`: the quality that each rule expects.
    """
    grids_of, rules = [], []
    for name, (kind, prompts) in lists.items():
        own = {**options, "similarity": remembered(prompts, options.get("similarity"))}
        settings = list(plans(prompts, parameters, steps, **own))
        grids_of.append(grid(name, kind, settings, parameters.seeds))
        rules.append(_by_rule(name, settings, prompts, own))
    table = pd.concat(grids_of, ignore_index=True)
    scored = _scored(table, pipeline, folder, parameters, metrics)
    scores = scored.merge(pd.concat(rules, ignore_index=True), on=["list", "method", "setting", "prompt"], how="left")
    scores = beside_alone(scores, metrics[0].name)
    scores.attrs = scored.attrs
    write_table(scores, folder / "scores.parquet")
    write_json(runner.provenance(pipeline, parameters, metrics), folder / "scores.json")
    return scores


def _scored(
    table: pd.DataFrame,
    pipeline: HybridPipeline,
    folder: Path,
    parameters: SharingParameters,
    metrics: Sequence[Metric],
) -> pd.DataFrame:
    """Images and scores of trajectories of several lengths, each length on a schedule of its own, the longest first."""
    lengths, tables = table["trajectory"].map(lambda way: way.stop), []
    for length, part in reversed(list(table.groupby(lengths, sort=True))):
        chosen = parameters.model_copy(update={"num_inference_steps": int(length)})
        scores, _ = runner.run(part.reset_index(drop=True), pipeline, folder, chosen, metrics, f"scores_{length}_steps")
        tables.append(scores)
    scores = pd.concat(tables, ignore_index=True)
    scores.attrs = tables[0].attrs
    return scores


def _by_rule(
    name: str, settings: Sequence[Setting], prompts: Sequence[str], options: Mapping[str, Any]
) -> pd.DataFrame:
    question, tables = ask(prompts, **options), []
    for method, setting, plan in settings:
        if plan.num_inference_steps != question.conditioner.forecast.steps:
            continue
        found: dict[str, Any] = {
            rule: expected(plan.paths, plan.texts, question.vectors, question.conditioner.forecast, way)[EXPECTED]
            for rule, way in RULES.items()
        }
        found |= {"list": name, "method": method, "setting": setting, "prompt": plan.texts}
        tables.append(pd.DataFrame(found))
    return pd.concat(tables, ignore_index=True)


def savings(
    kinds: Sequence[str],
    list_of: Callable[[str, int, int], Sequence[str]],
    pipeline: HybridPipeline,
    folder: Path,
    parameters: SharingParameters,
    similarity: Any = None,
    **options: Any,
) -> pd.DataFrame:
    """How much planned trees save on lists of `parameters.numbers` prompts. Planned only, nothing is drawn.

    Args:
        list_of: kind, number and seed to prompts.
        similarity: as in `planner.share`; its time is told apart from that of planning.

    Returns:
        kind, prompts, nfe, nfe_share, quality, encoding_s, planning_s (wall time); also `folder / savings.parquet`.
    """
    rows = []
    for kind in kinds:
        for number in parameters.numbers:
            prompts = list_of(kind, number, 0)
            began = time.perf_counter()
            known = remembered(prompts, similarity)
            compared = time.perf_counter()
            plan = share(prompts, parameters.savings_floor, similarity=known, **options)
            planned = time.perf_counter()
            cost: dict[str, Any] = {"nfe": plan.nfe, "nfe_share": plan.nfe / plan.one_at_a_time}
            cost |= {"quality": float(plan.quality[EXPECTED].mean())}
            cost |= {"encoding_s": compared - began, "planning_s": planned - compared}
            rows.append({"kind": kind, "prompts": number} | cost)
    table = pd.DataFrame(rows)
    write_table(table, folder / "savings.parquet")
    write_json(runner.provenance(pipeline, parameters, []), folder / "savings.json")
    return table
