"""Turns a table of trajectories into images and scores on disk; a killed run goes on where it stopped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
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
    write_atomically,
    write_image,
    write_json,
    write_table,
)
from . import spent
from .certificate import check_exact
from .cluster import Crew
from .origin import Models as Models
from .origin import provenance as provenance
from .origin import versions as versions
from .workers import Shard, fingerprints, recipe_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..denoising.denoisers import GuidedDenoiser
    from ..denoising.hybrid_call import HybridPipeline
    from ..denoising.trajectory import Conditioning
    from ..metrics import Metric
    from .parameters import SamplingParameters, Settings


SCHEDULE_COLUMNS = ("num_inference_steps", "shift", "sigma")  # of every table of scores
LOCK = ".lock"  # of a folder that a run writes to
CLUSTERS = ("local", "ray")
IMAGES_PER_CHUNK = 128  # scored, and remembered as scored, together


class Outcome(NamedTuple):
    """What a study cost. `seconds` adds up over workers, and over the sessions of a run that was killed and resumed."""

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
    cluster: str = "local",
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
        cluster: where shards are made: "local", in this process, or "ray", on workers (`study.cluster`); same bytes.

    Raises:
        ValueError: before any denoising, if paths repeat or leave the folder, a trajectory leaves the schedule,
            `settings.exact` cannot be kept, or there is no such cluster or no way for its workers to load the models.
        OSError: naming the file that cannot be written; what is finished is kept.
    """
    from ..denoising.families import collect, denoiser_of, nfe_of
    from ..denoising.sampler import progress_bar
    from ..denoising.texts import encode_ahead, follows_plan

    if duplicates := table["path"][table["path"].duplicated()].tolist():
        raise ValueError(f"every image needs its own path, {duplicates[0]!r} occurs more than once")
    check_inside(table["path"])
    if cluster not in CLUSTERS:
        raise ValueError(f"cluster must be one of {CLUSTERS}, got {cluster!r}")
    models = models or Models()
    first = denoiser_of(pipeline, settings.batch_size, settings.max_sequence_length)
    denoisers = collect(first, models.denoisers)
    costs, trees, planned = list[Cost](), list[Tree](), follows_plan(denoisers)
    if planned and cluster == "ray":
        raise ValueError("cluster = 'ray': workers load models whole; a memory plan works with cluster = 'local'")
    for tree in _trees(table, nfe_of(denoisers), settings):
        costs.append(tree.cost)
        trees += [tree] * planned  # else not kept: together they are larger than the table
    cost = Cost.total(costs)
    if settings.exact:
        check_exact(pipeline, settings, models)
    recipe = recipe_of(pipeline, models) if cluster == "ray" else None
    context = _context(pipeline, settings, models, denoisers)
    seconds: list[float] = []
    lock: contextlib.AbstractContextManager[None] = contextlib.nullcontext() if shared else locked(folder / LOCK)
    with lock, progress_bar(cost.tree, "generate", progress) as bar:

        def unfinished() -> Iterator[Shard]:
            for number, (rows, cost) in enumerate(zip(shards_of(table), costs, strict=True)):
                shard = _shard(rows, folder, context, cost.tree)
                if (done := _finished_seconds(shard.ledger, folder)) is None:
                    if planned:
                        encode_ahead(denoisers, trees, number, whole=True)
                    yield shard
                else:
                    seconds.append(done)
                    bar.update(shard.nfe)

        shards = unfinished()
        if recipe is None:
            seconds += [_run_shard(shard, pipeline, folder, settings, bar, models) for shard in shards]
        elif (first_shard := next(shards, None)) is not None:
            crew = Crew.of(recipe, len(costs))
            expected = fingerprints(pipeline, models)
            made = crew.work(chain([first_shard], shards), pipeline.scheduler, settings, expected, bar)
            seconds += [_write_shard(shard, images, took, folder) for shard, (images, took) in made]
    return Outcome(len(table), cost, sum(seconds))


def shards_of(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The rows of each shard of a table with a column `trajectory`, or of each value of its column `shard`."""
    numbers: dict[Any, int] = {}
    if "shard" in table:
        keys = table["shard"]
    else:
        roots = ((t.seed, t.segments[0].conditioning, t.segments[0].denoiser) for t in table["trajectory"])
        keys = pd.Series([numbers.setdefault(root, len(numbers)) for root in roots], index=table.index)
    for _, rows in table.groupby(keys, sort=False):
        yield rows


def _trees(table: pd.DataFrame, nfe: Callable[[str, Conditioning], int], settings: Settings) -> Iterator[Tree]:
    """The tree of each shard, checked."""
    for rows in shards_of(table):
        tree = Tree(list(rows["trajectory"]), nfe=nfe)
        if tree.stop > settings.num_inference_steps:
            raise ValueError(
                f"a trajectory stops at {tree.stop}, beyond num_inference_steps={settings.num_inference_steps}"
            )
        yield tree


def _shard(rows: pd.DataFrame, folder: Path, context: list[Any], nfe: int) -> Shard:
    paths, trajectories = list(rows["path"]), list(rows["trajectory"])
    told = [[path, t.as_json()] for path, t in zip(paths, trajectories, strict=True)]
    return Shard(paths, trajectories, folder / ".ledger" / f"{digest(context, told)}.json", nfe)


def _run_shard(
    shard: Shard, pipeline: HybridPipeline, folder: Path, settings: Settings, bar: tqdm, models: Models
) -> float:
    from ..denoising.sampler import sample

    began, paths = time.perf_counter(), shard.paths
    samples = sample(pipeline, shard.trajectories, progress=bar, **models._asdict(), **settings.sampling())
    checksums = {paths[index]: write_image(image, folder / paths[index]) for index, image in samples.each_image()}
    seconds = time.perf_counter() - began
    write_json({"seconds": seconds, "sha256": checksums}, shard.ledger)
    return seconds


def _write_shard(shard: Shard, images: Sequence[bytes], seconds: float, folder: Path) -> float:
    """What `_run_shard` writes, of images that a worker made."""
    pairs = zip(shard.paths, images, strict=True)
    checksums = {path: write_atomically(folder / path, image) for path, image in pairs}
    write_json({"seconds": seconds, "sha256": checksums}, shard.ledger)
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
    context = [denoisers[""].identity, schedule, settings.as_json(), versions().to_dict()]
    if (plan := getattr(pipeline, "memory_plan", None)) is not None:
        context.append(plan.as_key())
    if not models.denoisers:  # as ledgers were before there were any
        return context
    return [*context, models.handoff, {name: denoiser.identity for name, denoiser in denoisers.items()}]


def score(
    table: pd.DataFrame,
    folder: Path,
    metrics: Sequence[Metric],
    name: str = "scores",
    progress: bool = True,
    exact: bool = False,
) -> pd.DataFrame:
    """Score every row's image `folder / path` against its `prompt`, and write `folder / <name>.parquet`.

    Scores are remembered by image bytes, prompt and metric, so a killed run goes on where it stopped and a changed
    image is scored again.

    Args:
        exact: score each image by itself, so that no score depends on the others of a batch.

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
                key = [metric.identity, checksums, prompts, *(["exact"] if exact else [])]
                file = remembered / f"{digest(*key)}.npy"
                if (values := read_array(file)) is None:
                    images = images or [read_image(path) for path in paths]
                    values = _scores(metric, images, prompts, exact)
                    write_array(values, file)
                columns[metric.name].append(values)
            bar.update(len(chunk))
    scores = table.drop(columns="trajectory", errors="ignore").reset_index(drop=True)
    for column, parts in columns.items():
        scores[column] = np.concatenate(parts)
    scores.attrs["metrics"] = {metric.name: metric.identity for metric in metrics}
    write_table(scores, folder / f"{name}.parquet")
    return scores


def _scores(metric: Metric, images: Sequence[Image], prompts: Sequence[str], exact: bool) -> np.ndarray:
    if not exact:
        return metric.score(images, prompts)
    return np.concatenate([metric.score([i], [p]) for i, p in zip(images, prompts, strict=True)])


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
        outcome = generate(table, pipeline, folder, settings, models=models, cluster=parameters.cluster)
        told = with_schedule(table, table["common_step"], pipeline, settings)
        scores = score(told, folder, metrics, name, exact=settings.exact)
        write_json(provenance(pipeline, parameters, metrics, models), folder / f"{name}.json")
        images = (folder / path for path in table["path"])
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


def picture_table(
    table: pd.DataFrame, folder: Path, rows: str | list[str], columns: str | list[str]
) -> list[list[Image | None]]:
    """The images of `table` arranged by the values of its columns `rows` and `columns`, both in ascending order."""
    paths = table.pivot(index=rows, columns=columns, values="path").sort_index().sort_index(axis=1)
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
