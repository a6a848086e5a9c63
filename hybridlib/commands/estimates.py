"""Images, denoiser evaluations, time and disk of studies and trainings that have not started.

Images and NFE are counted from the same grids that the notebooks run, exactly. Time and disk are scaled from finished
runs of the same model (`study.spent`), and what an estimate rests on is said beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..paths import MODELS, OUTPUTS
from ..study import spent
from ..study.parameters import (
    CompressionParameters,
    FiguresParameters,
    QualityParameters,
    SamplingParameters,
    SweepParameters,
)

if TYPE_CHECKING:
    import pandas as pd

    from ..study.reproduce import Task

COUNTED = (FiguresParameters, SweepParameters, QualityParameters, CompressionParameters)  # studies of `_grids`
RGB = 3  # bytes of a pixel that PNG did not make smaller: no image takes more


class Estimate(NamedTuple):
    """What one study will take. None is what nobody knows."""

    name: str
    images: int = 0
    here: int = 0  # of these images are in outputs/ already
    nfe: int = 0
    one_at_a_time: int = 0  # NFE if nothing were shared
    seconds: float | None = None
    bytes: float = 0
    basis: str = ""


def of_studies(tasks: list[Task]) -> list[Estimate]:
    """One estimate a study; images that an earlier study of the list makes are not counted again."""
    made: set[tuple[Path, str]] = set()
    return [_of_study(task, made) for task in tasks]


def _of_study(task: Task, made: set[tuple[Path, str]]) -> Estimate:
    parameters = task.checked
    if not isinstance(parameters, COUNTED):
        return Estimate(task.name, basis=_told_by_notebook(task))
    images = here = nfe = alone = 0
    for folder, table in _grids(parameters):
        new = table[[(folder, path) not in made for path in table["path"]]]
        made |= {(folder, path) for path in new["path"]}
        if not len(new):
            continue
        needed, unshared = cost(new)
        images, nfe, alone = images + len(new), nfe + needed, alone + unshared
        here += sum((folder / path).is_file() for path in new["path"])
    if not images:
        return Estimate(task.name, basis="its images are those of a study before it; scoring them takes seconds")
    missing = (images - here) / images
    records = spent.known(parameters.model, parameters.image_size)
    if records:
        seconds, size = nfe * missing * records[0].seconds_per_nfe, images * records[0].bytes_per_image
        basis = str(records[0])
    else:
        seconds, size = None, float(images * RGB * parameters.image_size**2)
        basis = (
            f"no finished run of {parameters.model} at {parameters.image_size} pixels is known, so time is not; "
            "disk is the most that such images can take"
        )
    return Estimate(task.name, images, here, nfe, alone, seconds, size, basis)


def cost(table: pd.DataFrame) -> tuple[int, int]:
    """NFE of a table of trajectories, shard by shard as `runner.generate` runs them, and without any sharing."""
    from ..denoising.tree import Cost, Tree
    from ..study.runner import shards_of

    total = Cost.total(Tree(list(shard["trajectory"])).cost for shard in shards_of(table))
    return total.tree, total.one_at_a_time


def _grids(p: SamplingParameters) -> Iterator[tuple[Path, pd.DataFrame]]:
    """The tables whose images a notebook writes, each with its folder in `outputs/`."""
    from ..compression import grids as coded
    from ..compression.rates import families
    from ..hybrid import grids, schedules
    from ..prompts import PromptSet

    prompts, steps = PromptSet.load(p.prompts), p.num_inference_steps
    folder = OUTPUTS / p.profile / p.notebook
    match p:
        case FiguresParameters():
            chosen, scale = p.personal_prompts, p.personal_guidance_scale
            yield (
                folder,
                grids.sim_sweep(prompts, chosen, p.sim_public_scales, p.sim_seeds, p.sim_common_steps, scale, steps),
            )
            yield (
                folder,
                grids.npi_set(prompts, chosen, p.npi_seeds, p.npi_common_steps, p.npi_public_scale, scale, steps),
            )
        case SweepParameters():
            scale = p.personal_guidance_scale
            yield (
                folder.with_name("sim_sweep"),
                grids.sim_sweep(prompts, p.personal_prompts, p.public_scales, p.seeds, p.common_steps, scale, steps),
            )
        case QualityParameters():
            variants = grids.PUBLISHED_VARIANTS
            yield folder, grids.similarity_study(prompts, variants, p.seeds, p.common_steps, p.joint_prompts, steps)
            yield (
                folder / "factorial",
                grids.factorial_study(prompts, p.factorial_seeds, p.factorial_common_steps, p.factorial_prompts, steps),
            )
            chosen_schedules = [schedules.Schedule.parse(text) for text in p.noise_schedules]
            for schedule in chosen_schedules:
                grid = schedules.grid(schedule, p.schedule_shares, prompts, p.schedule_prompts, p.schedule_seeds)
                yield schedules.place(folder / "schedules", schedule), grid
            yield (
                folder / "anchored",
                grids.anchored_study(
                    prompts,
                    grids.LATER_VARIANTS,
                    p.anchored_seeds,
                    p.anchored_common_steps,
                    p.anchored_prompts,
                    steps,
                ),
            )
        case CompressionParameters():
            texts = prompts.personal
            ratio = coded.ratio_grid([texts[i] for i in p.ratio_prompts], p.ratio_seeds, p.ratio_steps, p.ratios, steps)
            yield folder, ratio
            yield folder, coded.repeated(ratio)
            yield (
                folder,
                coded.rate_grid([texts[i] for i in p.rate_prompts], p.rate_seeds, p.rate_steps, p.rates, steps),
            )
            codecs = families(p.rounding_steps, p.min_max_bits, p.adaptive_steps)
            links = [texts[i] for i in p.link_prompts]
            grid = coded.codec_grid(links, p.link_seeds, p.link_steps, codecs, steps)
            yield folder, grid.drop_duplicates("path")


def _told_by_notebook(task: Task) -> str:
    """What the notebook says about its own time, for a study whose images are not counted here, or that has none."""
    cells = json.loads(task.notebook.read_text(encoding="utf-8"))["cells"]
    text = "".join(cells[0]["source"]) if cells else ""
    found = re.search(r"\*\*Time\*\*(.*)", text)
    return f"not counted; the notebook says of its time{found[1]}" if found else "not counted; its time is not known"


def print_studies(estimates: list[Estimate]) -> None:
    """A line a study, a line of all, and what it rests on."""
    print(f"{'study':26}{'images':>9}{'there':>9}{'NFE':>12}{'one at a time':>15}{'time':>10}{'disk':>10}")
    for e in estimates:
        print(_line(e))
    known = all(e.seconds is not None for e in estimates if e.images)
    total = Estimate(
        "all",
        images=sum(e.images for e in estimates),
        here=sum(e.here for e in estimates),
        nfe=sum(e.nfe for e in estimates),
        one_at_a_time=sum(e.one_at_a_time for e in estimates),
        seconds=sum(e.seconds or 0.0 for e in estimates) if known else None,
        bytes=sum(e.bytes for e in estimates),
    )
    print(_line(total))
    print("What it rests on. Images and NFE are counted. Time and disk of the images:")
    rests: dict[str, list[str]] = {}
    for e in estimates:
        rests.setdefault(e.basis, []).append(e.name)
    for basis, names in rests.items():
        print(f"- {', '.join(names)}: {basis}")
    print("Nothing was started.")


def _line(e: Estimate) -> str:
    time = "-" if not e.images or e.seconds is None else spent.duration(e.seconds)
    disk = f"{e.bytes / 1e6:,.0f} MB" if e.bytes else "-"
    return f"{e.name:26}{e.images:>9,}{e.here:>9,}{e.nfe:>12,}{e.one_at_a_time:>15,}{time:>10}{disk:>10}"


class Part(NamedTuple):
    """One network of a training."""

    name: str
    steps: int
    batch_size: int
    seconds: float


def parts_of(model: str) -> list[Part]:
    """What the training of a shipped model took, from its `training.json`; empty where none is recorded."""
    file = MODELS / model / "training.json"
    if not file.is_file():
        return []
    runs: Mapping[str, dict[str, object]] = json.loads(file.read_text(encoding="utf-8"))
    return [_part(name, run) for name, run in runs.items()]


def _part(name: str, run: Mapping[str, object]) -> Part:
    recipe = run["recipe"]
    assert isinstance(recipe, dict)
    return Part(name, recipe["steps"], recipe["batch_size"], float(str(run["seconds"])))


def print_training(model: str) -> None:
    """Updates, samples, network evaluations, time and disk of a training."""
    parts = parts_of(model)
    if not parts:
        print(f"{model} does not ship yet, so no finished training of it is known: neither its time nor its disk.")
    for part in parts:
        samples = part.steps * part.batch_size
        print(
            f"{part.name}: {part.steps:,} updates of {part.batch_size} images, {samples:,} evaluations of the network "
            f"forward and backward, {spent.duration(part.seconds)}"
        )
    if parts:
        size = sum(file.stat().st_size for file in (MODELS / model).rglob("*") if file.is_file())
        total = spent.duration(sum(part.seconds for part in parts))
        print(
            f"all: {total}, {size / 1e6:.0f} MB in {MODELS / model}, checkpoints in {OUTPUTS / 'training'} beside them"
        )
        print(f"It rests on the training of the {model} that ships (training.json in its folder).")
    print("Nothing was started.")
