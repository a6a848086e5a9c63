"""Turns a table of trajectories into images on disk, shard by shard; a killed run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from tqdm import tqdm

from .trajectory import Cost, Tree

if TYPE_CHECKING:
    from PIL.Image import Image

    from .pipelines import HybridStableDiffusion3Pipeline


PACKAGES = ("hybridlib", "torch", "diffusers", "transformers")


class Outcome(NamedTuple):
    """What a study cost. `seconds` adds up over the sessions of a run that was killed and resumed."""

    images: int
    cost: Cost
    seconds: float


class Settings(NamedTuple):
    """Everything beside the trajectories that decides the bytes of an image."""

    num_inference_steps: int = 28
    image_size: int = 64
    batch_size: int = 64
    max_sequence_length: int = 256

    def sampling(self, **changes: Any) -> dict[str, Any]:
        """Keyword arguments for `sampler.sample`."""
        kept = self._replace(**changes)
        return {
            "num_inference_steps": kept.num_inference_steps,
            "height": kept.image_size,
            "width": kept.image_size,
            "batch_size": kept.batch_size,
            "max_sequence_length": kept.max_sequence_length,
        }


def generate(
    table: pd.DataFrame,
    pipeline: HybridStableDiffusion3Pipeline,
    folder: Path,
    settings: Settings,
    progress: bool = True,
) -> Outcome:
    """Write the image of every row's `trajectory` to `folder / path` (PNG).

    The unit is a shard: all trajectories that grow from one root, that is one seed and first conditioning; no work is
    shared between shards. A finished shard leaves a ledger of its files' checksums; it is skipped next time only if
    trajectories, settings, model and versions are the same and every file is intact. Otherwise the whole shard is made
    again, so its bytes never depend on where an earlier run was killed.

    Args:
        table: columns `path` (unique, relative) and `trajectory`; other columns are ignored.

    Raises:
        ValueError: before any denoising, if paths repeat or a trajectory leaves the schedule.
    """
    from .sampler import progress_bar

    if duplicates := table["path"][table["path"].duplicated()].tolist():
        raise ValueError(f"every image needs its own path, {duplicates[0]!r} occurs more than once")
    shards = list(_shards(table))
    trees = [Tree(list(shard["trajectory"])) for shard in shards]
    if beyond := [tree.stop for tree in trees if tree.stop > settings.num_inference_steps]:
        raise ValueError(
            f"a trajectory stops at {beyond[0]}, beyond num_inference_steps={settings.num_inference_steps}"
        )
    context = _context(pipeline, settings)
    cost = Cost(sum(t.cost.tree for t in trees), sum(t.cost.one_at_a_time for t in trees))
    seconds = 0.0
    with progress_bar(cost.tree, "generate", progress) as bar:
        for shard, tree in zip(shards, trees, strict=True):
            ledger = folder / ".ledger" / f"{_digest(shard, context)}.json"
            done = _finished_seconds(ledger, folder)
            if done is None:
                done = _run_shard(shard, pipeline, folder, settings, ledger, bar)
            else:
                bar.update(tree.cost.tree)
            seconds += done
    return Outcome(len(table), cost, seconds)


def _shards(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    keys = [(t.seed, t.segments[0].conditioning) for t in table["trajectory"]]
    for _, rows in table.groupby(pd.Series(keys, index=table.index), sort=False):
        yield rows


def _run_shard(
    shard: pd.DataFrame,
    pipeline: HybridStableDiffusion3Pipeline,
    folder: Path,
    settings: Settings,
    ledger: Path,
    bar: tqdm,
) -> float:
    from .sampler import sample

    began = time.perf_counter()
    samples = sample(pipeline, list(shard["trajectory"]), progress=bar, **settings.sampling())
    paths = list(shard["path"])
    checksums = {paths[index]: write_image(image, folder / paths[index]) for index, image in samples.each_image()}
    seconds = time.perf_counter() - began
    write_atomically(ledger, json.dumps({"seconds": seconds, "sha256": checksums}, indent=1).encode())
    return seconds


def _finished_seconds(ledger: Path, folder: Path) -> float | None:
    """How long the shard took, if its ledger is there and every file still has the checksum that it records."""
    if not ledger.is_file():
        return None
    record = json.loads(ledger.read_text())
    for path, checksum in record["sha256"].items():
        file = folder / path
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != checksum:
            return None
    return record["seconds"]


def _context(pipeline: HybridStableDiffusion3Pipeline, settings: Settings) -> str:
    from .state import model_identity

    return json.dumps([model_identity(pipeline), settings._asdict(), versions().to_dict()], sort_keys=True)


def _digest(shard: pd.DataFrame, context: str) -> str:
    rows = [[path, asdict(t)] for path, t in zip(shard["path"], shard["trajectory"], strict=True)]
    return hashlib.sha256((context + json.dumps(rows)).encode()).hexdigest()[:24]


def picture_table(
    table: pd.DataFrame, folder: Path, rows: str | list[str], columns: str | list[str]
) -> list[list[Image | None]]:
    """The images of `table` arranged by the values of its columns `rows` and `columns`, both in ascending order."""
    paths = table.pivot(index=rows, columns=columns, values="path")
    return [[None if pd.isna(path) else read_image(folder / path) for path in row] for row in paths.to_numpy()]


def read_image(path: Path) -> Image:
    """An RGB image, its file closed again."""
    from PIL import Image as Pillow

    with Pillow.open(path) as file:
        return file.convert("RGB")


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


def write_image(image: Image, path: Path) -> str:
    """Write a PNG by temporary file and rename; returns the SHA-256 of its bytes."""
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return write_atomically(path, buffer.getvalue())


def write_atomically(path: Path, data: bytes) -> str:
    """Write by temporary file and rename, so that `path` is never half-written; returns the SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)
    return hashlib.sha256(data).hexdigest()
