"""A file of captions in, images and a table of delays out: the job of an image service at the edge, as DEdgeAI runs it.

There each task is a caption of Flickr8k and a number of denoising steps, drawn from 10 to 19. Here captions come from
a plain text file, a CSV table or a token file of Flickr8k, and tasks of as many steps are denoised together, in shards
that resume.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from ..files import write_json, write_table
from . import bulk
from .parameters import Settings

if TYPE_CHECKING:
    from ..denoising.hybrid_call import HybridPipeline

COLUMNS = ("image", "caption")
DELAYS = "delays"
_TOKEN = re.compile(r"^(?P<image>[^\t]+)#\d+\t(?P<caption>.+)$")


class Job(NamedTuple):
    """What is made of the captions. `steps` are drawn for each task from the first to the last, both included."""

    settings: Settings  # its number of steps is not used
    steps: tuple[int, int] = (10, 19)
    guidance_scale: float = 5.0
    first_seed: int = 0

    def __repr__(self) -> str:
        return f"Job(steps {self.steps[0]}..{self.steps[1]}, guidance scale {self.guidance_scale})"


def read_captions(path: Path) -> pd.DataFrame:
    """Captions of a file, in its order: columns image (the picture that a caption describes, or "") and caption.

    The file is a CSV table with a column `caption` and perhaps `image`; or a token file of Flickr8k, in which each
    line is a picture, "#", a number, a tab and a caption; or a plain text file, a caption a line.

    Raises:
        ValueError: one sentence naming file and line, if it cannot be read as text, holds no caption, or some lines of
            a token file are none of that form.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as text ({error})") from None
    filled = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not filled:
        raise ValueError(f"{path} holds no caption")
    if "caption" in [word.strip() for word in filled[0][1].split(",")]:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True, encoding="utf-8-sig")
        if (table["caption"].str.strip() == "").any():
            row = int((table["caption"].str.strip() == "").argmax())
            raise ValueError(f"{path}: the caption of data row {row + 1} is empty")
        table = table if "image" in table else table.assign(image="")
        if table.empty:
            raise ValueError(f"{path} holds no caption")
        return table[list(COLUMNS)]
    found = [(number, _TOKEN.match(line)) for number, line in filled]
    if not any(match for _, match in found):
        return pd.DataFrame([("", line) for _, line in filled], columns=list(COLUMNS))
    if strange := [number for number, match in found if match is None]:
        raise ValueError(f"{path}: line {strange[0]} is no picture, '#', number, tab and caption, as other lines are")
    rows = [(match["image"], match["caption"].strip()) for _, match in found if match]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def parse_steps(text: str) -> tuple[int, int]:
    """The range of steps that "20" or "10-19" stands for.

    Raises:
        ValueError: if it is neither, or the range is empty or outside 1..1000.
    """
    words = text.split("-")
    if len(words) > 2 or not all(word.strip().isdecimal() for word in words):
        raise ValueError(f"steps must be a number or a range of numbers, such as 20 or 10-19, got {text!r}")
    first, last = int(words[0]), int(words[-1])
    if not 1 <= first <= last <= 1000:
        raise ValueError(f"steps must be a range within 1..1000, got {text!r}")
    return first, last


def tasks(captions: pd.DataFrame, job: Job, count: int | None = None) -> pd.DataFrame:
    """The tasks of a job: image, caption, path, seed, num_inference_steps, and the trajectory and shard of each.

    Args:
        count: how many captions are drawn from the file, each at most once; all, in their order, by default.

    Raises:
        ValueError: if there are not so many.
    """
    random = np.random.default_rng(job.first_seed)
    if count is not None:
        if not 1 <= count <= len(captions):
            raise ValueError(f"count must lie in 1..{len(captions)}, the number of captions, got {count}")
        captions = captions.iloc[random.permutation(len(captions))[:count]]
    steps = random.integers(job.steps[0], job.steps[1] + 1, len(captions))
    texts, parts = list(captions["caption"]), []
    for number in np.unique(steps):
        settings = job.settings._replace(num_inference_steps=int(number))
        whole = bulk.plan(texts, len(texts), settings, job.guidance_scale, job.first_seed)
        mine = whole[steps == number].assign(num_inference_steps=int(number))
        parts.append(mine.assign(shard=np.arange(len(mine)) // settings.batch_size))
    made = pd.concat(parts).sort_index().assign(image=list(captions["image"]))
    made["seed"] = [trajectory.seed for trajectory in made["trajectory"]]
    return made.rename(columns={"prompt": "caption"})


def run(table: pd.DataFrame, pipeline: HybridPipeline, folder: Path, job: Job) -> pd.DataFrame:
    """Make the images that are missing, and write `delays.parquet` and `delays.json` beside them.

    Images of a shard are finished together: the delay of each is that of its shard. It is what denoising, decoding and
    writing took, in whichever session that was; encoding prompts ahead and loading the model are not in it.

    Returns:
        One row a task: path, image, caption, seed, num_inference_steps, shard, `together` (images in its shard),
        `delay_s` (of its shard) and `seconds_an_image`.
    """
    from .origin import git_revision, versions
    from .runner import generate

    delays = []
    for number, group in table.groupby("num_inference_steps"):
        settings = job.settings._replace(num_inference_steps=int(str(number)))
        generate(group, pipeline, folder, settings)
        for _, shard in group.groupby("shard"):
            seconds = generate(shard, pipeline, folder, settings, progress=False).seconds  # as its ledger has it
            delays.append(shard.assign(together=len(shard), delay_s=seconds, seconds_an_image=seconds / len(shard)))
    made = pd.concat(delays).sort_index().drop(columns="trajectory").reset_index(drop=True)
    write_table(made, folder / f"{DELAYS}.parquet")
    told = {"tasks": len(made), "job": job._asdict() | {"settings": job.settings._asdict()}}
    told |= {"mean_delay_s": made["delay_s"].mean(), "mean_seconds_an_image": made["seconds_an_image"].mean()}
    write_json(told | {"versions": versions().to_dict(), "git_revision": git_revision()}, folder / f"{DELAYS}.json")
    return made


def by_steps(delays: pd.DataFrame, columns: Sequence[str] = ("delay_s", "seconds_an_image")) -> pd.DataFrame:
    """Number of tasks and mean delays for each number of steps."""
    groups = delays.groupby("num_inference_steps")
    return groups[list(columns)].mean().assign(tasks=groups.size()).reset_index()
