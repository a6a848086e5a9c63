"""The same pairs of prompts under several noise schedules, and which schedule makes a miniature behave like SD3.

Noise of one level destroys more of a small latent than of a large one, so a schedule belongs to a resolution. The shift
of a miniature is chosen once: the SD3 authors' rule (shift proportional to the square root of the number of latent
pixels; Esser et al. 2024, arXiv 2403.03206, section 5.3.2) is the prior, and among values around it the one is taken
whose quality curves *without* SIM and NPI lie closest to the published ones. All else stays a test.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from ..files import write_json, write_table
from ..paths import PUBLISHED
from ..prompts import PromptSet
from ..study import runner
from . import grids, hiqm

if TYPE_CHECKING:
    from ..denoising.pipelines import HybridStableDiffusion3Pipeline
    from ..intervals import Array
    from ..metrics import Metric
    from ..study.parameters import SamplingParameters

PLAIN = "woSIM_woNPI"
COMPARED_BINS = (0.3, 0.4, 0.5, 0.6, 0.7)  # similarity bins that the published curves and ours both fill


class Schedule(NamedTuple):
    """Steps, shift and solver of a generation; written "28/0.5/euler" in parameter files."""

    num_inference_steps: int
    shift: float
    solver: str

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """From "steps/shift/solver".

        Raises:
            ValueError: one sentence, if the text is anything else.
        """
        from ..denoising.solvers import SOLVERS

        try:
            steps, shift, solver = text.split("/")
            schedule = cls(int(steps), float(shift), solver)
        except ValueError:
            raise ValueError(f"schedule {text!r} must read steps/shift/solver, such as 28/0.5/euler") from None
        if not 1 <= schedule.num_inference_steps <= 1000 or not 0 < schedule.shift <= 100 or solver not in SOLVERS:
            raise ValueError(
                f"schedule {text!r} needs 1..1000 steps, a shift above 0 and at most 100, and a solver of {SOLVERS}"
            )
        return schedule

    def noise_levels(self) -> Array:
        """Flow-matching noise levels before each update, falling from 1, (num_inference_steps,)."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        from ..denoising.solvers import noise_levels, solver_of

        scheduler = solver_of(FlowMatchEulerDiscreteScheduler(shift=self.shift).config, self.solver)
        scheduler.set_timesteps(self.num_inference_steps)
        return noise_levels(scheduler)[:-1].double().numpy()

    def __str__(self) -> str:
        return f"{self.num_inference_steps}/{self.shift:g}/{self.solver}"


PUBLISHED_SCHEDULE = Schedule(28, 3.0, "euler")  # of the published curves, at 1024 pixels


def grid(
    schedule: Schedule, shares: Sequence[float], prompts: PromptSet, chosen: Sequence[int], seeds: Sequence[int]
) -> pd.DataFrame:
    """The similarity study without SIM and NPI under one schedule; for the arguments see `run`."""
    steps = schedule.num_inference_steps
    common_steps = sorted({min(round(share * steps), steps - 1) for share in shares})
    variants = {PLAIN: grids.PUBLISHED_VARIANTS[PLAIN]}
    return grids.similarity_study(prompts, variants, seeds, common_steps, chosen, steps)


def place(folder: Path, schedule: Schedule) -> Path:
    """Where the images of a schedule lie."""
    return folder / str(schedule).replace("/", "_")


def run(
    schedules: Sequence[Schedule],
    shares: Sequence[float],
    prompts: PromptSet,
    chosen: Sequence[int],
    seeds: Sequence[int],
    similarity: Array,
    pipeline: HybridStableDiffusion3Pipeline,
    folder: Path,
    parameters: SamplingParameters,
    metrics: Sequence[Metric],
) -> pd.DataFrame:
    """Scores of the similarity study without SIM and NPI under every schedule; also `folder / scores.parquet`.

    Args:
        shares: of the steps that are shared, in [0, 1); the common step of a schedule is the nearest whole one.
        chosen: joint indices of the prompts.

    Returns:
        The tables of all runs, one below the other, with a column `schedule`.
    """
    from ..denoising.solvers import with_solver

    tables = []
    for schedule in schedules:
        pairs = grid(schedule, shares, prompts, chosen, seeds)
        pairs["similarity"] = similarity[pairs["public"], pairs["personal"]]
        own = parameters.model_copy(
            update={"num_inference_steps": schedule.num_inference_steps, "shift": schedule.shift}
        )
        solved = with_solver(pipeline, schedule.solver)
        scores, _ = runner.run(pairs, solved, place(folder, schedule), own, metrics)
        tables.append(scores.assign(schedule=str(schedule)))
    table = pd.concat(tables, ignore_index=True)
    table.attrs = tables[0].attrs
    write_table(table, folder / "scores.parquet")
    write_json(runner.provenance(pipeline, parameters, metrics), folder / "scores.json")
    return table


def scaled(curves: pd.DataFrame) -> pd.DataFrame:
    """Curves (similarity, common_step, score) with each brought to [0, 1] by its own least and largest score."""
    groups = curves.groupby("similarity")["score"]
    least, largest = groups.transform("min"), groups.transform("max")
    return curves.assign(score=(curves["score"] - least) / (largest - least))


def published_curves() -> pd.DataFrame:
    """SD3's curves without SIM and NPI: similarity, common_step, score, log_snr; 28 steps, shift 3, unsmoothed."""
    curves = pd.read_csv(PUBLISHED / "clip_by_similarity_unsmoothed.csv")
    curves = curves.rename(columns={"similarity_bin": "similarity", "clip_mean": "score"})
    return curves[["similarity", "common_step", "score"]].assign(
        log_snr=hiqm.log_snr(PUBLISHED_SCHEDULE.noise_levels())[curves["common_step"]]
    )


def distance(curves: pd.DataFrame, num_inference_steps: int = 28) -> float:
    """Mean absolute difference of scaled curves from SD3's over steps 0..27 and the bins `COMPARED_BINS` in both.

    Between measured common steps the curve is a straight line; schedules of other lengths are stretched to 28 steps.

    Raises:
        ValueError: if the curves fill none of these bins.
    """
    ours, theirs = scaled(curves), scaled(published_curves())
    differences = []
    for similarity in COMPARED_BINS:
        own = ours[np.isclose(ours["similarity"], similarity)].sort_values("common_step")
        reference = theirs[np.isclose(theirs["similarity"], similarity)].sort_values("common_step")
        if len(own) and len(reference):
            place = own["common_step"] * 28 / num_inference_steps
            drawn = np.interp(reference["common_step"], place, own["score"])
            differences.append(np.abs(drawn - reference["score"]).mean())
    if not differences:
        raise ValueError(f"the curves fill none of the similarity bins {COMPARED_BINS}")
    return float(np.mean(differences))


def curves_beside(scores: pd.DataFrame, min_pairs: int = 6) -> pd.DataFrame:
    """Scaled curves of every schedule of a table made by `run`, and SD3's.

    Returns:
        schedule, similarity, common_step, score, log_snr (at the handover). Common steps of schedules of other lengths
        are stretched to 28 steps. Only the bins `COMPARED_BINS` are kept.
    """
    tables = [scaled(published_curves()).assign(schedule="SD3, published")]
    for text, own in scores.groupby("schedule", sort=False):
        cube = hiqm.cube(own, PLAIN)
        curves = hiqm.binned(cube, min_pairs=min_pairs, rounds=0).table(PLAIN)
        curves = scaled(curves[["similarity", "common_step", "score"]])
        curves["log_snr"] = hiqm.log_snr(cube.sigmas)[np.searchsorted(cube.common_steps, curves["common_step"])]
        stretch = 28 / Schedule.parse(str(text)).num_inference_steps
        tables.append(curves.assign(schedule=str(text), common_step=curves["common_step"] * stretch))
    table = pd.concat(tables, ignore_index=True)
    return table[np.isclose(table["similarity"].to_numpy()[:, None], COMPARED_BINS).any(axis=1)]


def cubes(scores: pd.DataFrame) -> dict[Schedule, hiqm.Cube]:
    """Retained quality under every schedule of a table made by `run`, as a share of the schedule's own unshared one."""
    groups = scores.groupby("schedule", sort=False)
    return {Schedule.parse(str(text)): hiqm.cube(own, PLAIN).retained() for text, own in groups}


def distances(scores: pd.DataFrame, min_pairs: int = 6) -> pd.DataFrame:
    """How far each schedule of a table made by `run` lies from SD3: schedule, steps, shift, solver, distance."""
    rows = []
    for text, own in scores.groupby("schedule", sort=False):
        schedule = Schedule.parse(str(text))
        curves = hiqm.binned(hiqm.cube(own, PLAIN), min_pairs=min_pairs, rounds=0).table(PLAIN)
        rows.append((text, *schedule, distance(curves, schedule.num_inference_steps)))
    columns = ["schedule", "num_inference_steps", "shift", "solver", "distance"]
    return pd.DataFrame(rows, columns=columns).sort_values("distance", ignore_index=True)
