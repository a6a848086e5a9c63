"""Turns a table of trajectories into images and scores on disk; a killed run goes on where it stopped."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from ..denoising.tree import Cost, Tree
from ..files import (
    check_inside,
    checksum,
    digest,
    locked,
    read_array,
    read_image,
    read_json,
    write_array,
    write_image,
    write_json,
    write_table,
)
from ..paths import IS_CLONE, ROOT
from . import spent

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..denoising.denoisers import GuidedDenoiser
    from ..denoising.hybrid_call import HybridPipeline
    from ..metrics import Metric
    from .parameters import Parameters, SamplingParameters, Settings


PACKAGES = ("hybridlib", "torch", "diffusers", "transformers")
SCHEDULE_COLUMNS = ("num_inference_steps", "shift", "sigma")  # of every table of scores
LOCK = ".lock"  # of a folder that a run writes to
IMAGES_PER_CHUNK = 128  # scored, and remembered as scored, together


class Models(NamedTuple):
    """The denoisers of a study beside the pipeline's own, and what a solver remembers at a handoff; see `sample`."""

    denoisers: Mapping[str, Any] | None = None
    handoff: str = "keep"

    def __repr__(self) -> str:
        return f"Models({', '.join(self.denoisers or ())}, handoff={self.handoff!r})"


class Outcome(NamedTuple):
    """What a study cost. `seconds` adds up over the sessions of a run that was killed and resumed."""

    images: int
    cost: Cost
    seconds: float


def generate(
    table: pd.DataFrame,
    pipeline: HybridPipeline,
    folder: Path,
    settings: Settings,
    progress: bool = True,
    models: Models | None = None,
    shared: bool = False,
) -> Outcome:
    """Write the image of every row's `trajectory` to `folder / path` (PNG).

    The unit is a shard: all trajectories that grow from one root, that is one seed, first conditioning and denoiser;
    no work is shared between shards. A finished shard leaves a ledger of its files' checksums; it is skipped next time
    only if trajectories, settings, models and versions are the same and every file is intact. Otherwise the whole
    shard is made again, so its bytes never depend on where an earlier run was killed.

    Args:
        table: columns `path` (unique, relative) and `trajectory`, and where images share no root and would each be a
            shard of one, `shard`, which names the rows to denoise together; other columns are ignored.
        models: the denoisers beside the pipeline's own, where trajectories name others.
        shared: whether other runs write other rows into the folder meanwhile; else another run is waited for.

    Raises:
        ValueError: before any denoising, if paths repeat or leave the folder, or a trajectory leaves the schedule.
        OSError: naming the file that cannot be written; what is finished is kept.
    """
    from ..denoising.families import collect, denoiser_of, nfe_of
    from ..denoising.sampler import progress_bar

    if duplicates := table["path"][table["path"].duplicated()].tolist():
        raise ValueError(f"every image needs its own path, {duplicates[0]!r} occurs more than once")
    check_inside(table["path"])
    shards = list(shards_of(table))
    models = models or Models()
    denoisers = collect(denoiser_of(pipeline), models.denoisers)
    trees = [Tree(list(shard["trajectory"]), nfe=nfe_of(denoisers)) for shard in shards]
    if beyond := [tree.stop for tree in trees if tree.stop > settings.num_inference_steps]:
        raise ValueError(
            f"a trajectory stops at {beyond[0]}, beyond num_inference_steps={settings.num_inference_steps}"
        )
    context = _context(pipeline, settings, models, denoisers)
    cost = Cost.total(tree.cost for tree in trees)
    seconds = 0.0
    lock: contextlib.AbstractContextManager[None] = contextlib.nullcontext() if shared else locked(folder / LOCK)
    with lock, progress_bar(cost.tree, "generate", progress) as bar:
        for shard, tree in zip(shards, trees, strict=True):
            rows = [[path, t.as_json()] for path, t in zip(shard["path"], shard["trajectory"], strict=True)]
            ledger = folder / ".ledger" / f"{digest(context, rows)}.json"
            done = _finished_seconds(ledger, folder)
            if done is None:
                done = _run_shard(shard, pipeline, folder, settings, ledger, bar, models)
            else:
                bar.update(tree.cost.tree)
            seconds += done
    return Outcome(len(table), cost, seconds)


def shards_of(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The rows of each shard of a table with a column `trajectory`, or of each value of its column `shard`."""
    keys = pd.Series([(t.seed, t.segments[0].conditioning, t.segments[0].denoiser) for t in table["trajectory"]])
    for _, rows in table.groupby(table["shard"] if "shard" in table else keys.set_axis(table.index), sort=False):
        yield rows


def _run_shard(
    shard: pd.DataFrame,
    pipeline: HybridPipeline,
    folder: Path,
    settings: Settings,
    ledger: Path,
    bar: tqdm,
    models: Models,
) -> float:
    from ..denoising.sampler import sample

    began = time.perf_counter()
    samples = sample(pipeline, list(shard["trajectory"]), progress=bar, **models._asdict(), **settings.sampling())
    paths = list(shard["path"])
    checksums = {paths[index]: write_image(image, folder / paths[index]) for index, image in samples.each_image()}
    seconds = time.perf_counter() - began
    write_json({"seconds": seconds, "sha256": checksums}, ledger)
    return seconds


def _finished_seconds(ledger: Path, folder: Path) -> float | None:
    """How long the shard took, if its ledger is there and every file still has the checksum that it records."""
    if not ledger.is_file():
        return None
    try:
        record = read_json(ledger)
        files, seconds = dict(record["sha256"]), float(record["seconds"])
    except (ValueError, KeyError, TypeError):  # damaged: the shard is made again
        return None
    for path, expected in files.items():
        file = folder / path
        if not file.is_file() or checksum(file) != expected:
            return None
    return seconds


def _context(
    pipeline: HybridPipeline, settings: Settings, models: Models, denoisers: Mapping[str, GuidedDenoiser]
) -> list[Any]:
    scheduler = pipeline.scheduler
    schedule = [type(scheduler).__name__, {k: v for k, v in scheduler.config.items() if not k.startswith("_")}]
    context = [denoisers[""].identity, schedule, settings._asdict(), versions().to_dict()]
    if not models.denoisers:  # as ledgers were before there were any
        return context
    return [*context, models.handoff, {name: denoiser.identity for name, denoiser in denoisers.items()}]


def score(
    table: pd.DataFrame, folder: Path, metrics: Sequence[Metric], name: str = "scores", progress: bool = True
) -> pd.DataFrame:
    """Score every row's image `folder / path` against its `prompt`, and write `folder / <name>.parquet`.

    Scores are remembered by image bytes, prompt and metric, so a killed run goes on where it stopped and a changed
    image is scored again.

    Returns:
        The table without its trajectories, with one column per metric; `attrs["metrics"]` says what each one is, in
        memory and in the file.
    """
    from ..denoising.sampler import progress_bar

    remembered = folder / ".scores"
    columns: dict[str, list[np.ndarray]] = {metric.name: [] for metric in metrics}
    with locked(folder / LOCK), progress_bar(len(table), "score", progress, unit="image") as bar:
        for first in range(0, len(table), IMAGES_PER_CHUNK):
            chunk = table.iloc[first : first + IMAGES_PER_CHUNK]
            paths, prompts = [folder / path for path in chunk["path"]], list(chunk["prompt"])
            checksums = [checksum(path) for path in paths]
            images: list[Image] = []
            for metric in metrics:
                file = remembered / f"{digest(metric.identity, checksums, prompts)}.npy"
                if (values := read_array(file)) is None:
                    images = images or [read_image(path) for path in paths]
                    values = metric.score(images, prompts)
                    write_array(values, file)
                columns[metric.name].append(values)
            bar.update(len(chunk))
    scores = table.drop(columns="trajectory", errors="ignore").reset_index(drop=True)
    for column, parts in columns.items():
        scores[column] = np.concatenate(parts)
    scores.attrs["metrics"] = {metric.name: metric.identity for metric in metrics}
    write_table(scores, folder / f"{name}.parquet")
    return scores


def run(
    table: pd.DataFrame,
    pipeline: HybridPipeline,
    folder: Path,
    parameters: SamplingParameters,
    metrics: Sequence[Metric],
    name: str = "scores",
    models: Models | None = None,
) -> tuple[pd.DataFrame, Outcome]:
    """Images, scores and provenance of a study: `generate`, then `score`, then `<name>.json` beside the table.

    The table tells its noise schedule: `num_inference_steps`, `shift`, and `sigma`, the noise level of the handover
    at `common_step`.
    """
    settings = parameters.settings()
    with locked(folder / LOCK):  # no other run changes an image before it is scored
        outcome = generate(table, pipeline, folder, settings, models=models)
        scores = score(with_schedule(table, table["common_step"], pipeline, settings), folder, metrics, name)
        write_json(provenance(pipeline, parameters, metrics, models), folder / f"{name}.json")
        images = [folder / path for path in table["path"]]
        spent.write(parameters, images, outcome.cost.tree, outcome.seconds, folder / f"{name}{spent.SPENT}")
    return scores, outcome


def with_schedule(
    table: pd.DataFrame, updates: pd.Series, pipeline: HybridPipeline, settings: Settings
) -> pd.DataFrame:
    """The table with the columns `SCHEDULE_COLUMNS`, `sigma` being the noise level after `updates` updates.

    `shift` is nan where the scheduler takes it from the image size.
    """
    from ..denoising.families import denoiser_of
    from ..denoising.solvers import noise_levels, prepared_scheduler

    side = settings.image_size // pipeline.vae_scale_factor
    scheduler = prepared_scheduler(
        denoiser_of(pipeline), settings.num_inference_steps, (side, side), shift=settings.shift
    )
    config = scheduler.config
    shift = None if config.get("use_dynamic_shifting") else config.get("shift", config.get("flow_shift"))
    sigma = noise_levels(scheduler).double().numpy()[updates.astype(int)]
    return table.assign(
        num_inference_steps=settings.num_inference_steps, shift=np.nan if shift is None else float(shift), sigma=sigma
    )


def provenance(
    pipeline: HybridPipeline, parameters: Parameters, metrics: Sequence[Metric], models: Models | None = None
) -> dict[str, Any]:
    """What a table was made from: parameters, versions, git revision, model and metric identities."""
    from ..denoising.families import collect, denoiser_of

    denoisers = collect(denoiser_of(pipeline), models.denoisers if models else None)
    others = {name: denoiser.identity for name, denoiser in denoisers.items() if name}
    return {
        "notebook": parameters.notebook,
        "parameters": parameters.model_dump(),
        "versions": versions().to_dict(),
        "git_revision": git_revision(),
        "model": denoisers[""].identity,
        **({"denoisers": others, "handoff": models.handoff} if models and others else {}),
        "scheduler": {"class": type(pipeline.scheduler).__name__, "shift": pipeline.scheduler.config.get("shift")},
        "metrics": {metric.name: metric.identity for metric in metrics},
    }


def git_revision() -> str:
    """The commit of this clone, with `+changes` where files differ from it; "unknown" outside a clone."""
    if not IS_CLONE:
        return "unknown"
    try:
        run_git = [
            subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run_git[0] + ("+changes" if run_git[1] else "")


def picture_table(
    table: pd.DataFrame, folder: Path, rows: str | list[str], columns: str | list[str]
) -> list[list[Image | None]]:
    """The images of `table` arranged by the values of its columns `rows` and `columns`, both in ascending order."""
    paths = table.pivot(index=rows, columns=columns, values="path")
    return [[None if pd.isna(path) else read_image(folder / path) for path in row] for row in paths.to_numpy()]


def cost_table(costs: dict[str, tuple[int, Outcome]]) -> pd.DataFrame:
    """One row per set of images, from the published scripts' NFE and what `generate` returned."""
    rows = {
        name: {
            "images": outcome.images,
            "NFE published scripts": published,
            "NFE one image at a time": outcome.cost.one_at_a_time,
            "NFE tree": outcome.cost.tree,
            "published / tree": round(published / outcome.cost.tree, 2),
            "wall time (s)": round(outcome.seconds, 1),
        }
        for name, (published, outcome) in costs.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def versions() -> pd.Series:
    """Versions of the packages that decide the bytes of an image."""
    return pd.Series({package: version(package) for package in PACKAGES}, name="version")
