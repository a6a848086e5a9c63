"""Scores of a folder of images, each with a prompt from a CSV file, in one resumable table."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..metrics import named
from ..paths import RESULTS
from ..study.spent import duration

if TYPE_CHECKING:
    import pandas as pd

NAME = "scores"  # of the table in the folder


def read_prompts(folder: Path, prompts: Path) -> pd.DataFrame:
    """The CSV file: `path` of each image below the folder, `prompt`, and any other columns, which are kept.

    Raises:
        ValueError: one sentence, if the folder, the file, a column, an image or a prompt is missing, or a path repeats.
    """
    import pandas as pd

    if not folder.is_dir():
        raise ValueError(f"no folder {folder}")
    if not prompts.is_file():
        raise ValueError(f"no file {prompts}; it needs the columns path and prompt")
    try:
        table = pd.read_csv(prompts, dtype={"path": str, "prompt": str}, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as failure:  # pandas' own errors of reading are ValueErrors
        raise ValueError(f"{prompts} cannot be read as CSV: {str(failure).splitlines()[0]}") from None
    for column in ("path", "prompt"):
        if column not in table:
            raise ValueError(f"{prompts}: column {column!r} is missing; there are {list(table.columns)}")
    if table.empty:
        raise ValueError(f"{prompts} names no image")
    if repeated := table["path"][table["path"].duplicated()].tolist():
        raise ValueError(f"{prompts}: {repeated[0]!r} occurs more than once")
    for path, prompt in zip(table["path"], table["prompt"], strict=True):
        if not (folder / path).is_file():
            raise ValueError(f"{prompts}: no image {folder / path}")
        if not prompt.strip():
            raise ValueError(f"{prompts}: the prompt of {path} is empty")
    return table


def evaluate(folder: Path, prompts: Path, metrics: Sequence[str], dry_run: bool = False) -> int:
    """Score, write `folder / scores.parquet` and print means; a killed run goes on where it stopped.

    Scores are remembered by image bytes, prompt and metric, so what is unchanged is not scored again.

    Args:
        metrics: names, as in `metrics.named.load`.
        dry_run: count, tell what it will take, and start nothing.
    """
    for name in metrics:
        named.check(name)
    if len({name.partition(":")[0] for name in metrics}) < len(metrics):
        raise ValueError(f"each kind of metric fills one column: name it once, got {' '.join(metrics)}")
    table = read_prompts(folder, prompts)
    if dry_run:
        print_estimate(folder, table, metrics)
        return 0
    from ..files import write_json
    from ..study.origin import versions
    from ..study.runner import score

    loaded = [named.load(name) for name in metrics]
    began = time.perf_counter()
    scores = score(table, folder, loaded, NAME)
    made: dict[str, Any] = {"prompts": str(prompts), "metrics": {m.name: m.identity for m in loaded}}
    write_json(made | {"versions": versions().to_dict()}, folder / f"{NAME}.json")
    for metric in loaded:
        values = scores[metric.name]
        print(f"{metric.name}: mean {values.mean():.4f}, least {values.min():.4f}, largest {values.max():.4f}")
        if undefined := int(values.isna().sum()):
            print(f"  {undefined} of {len(values)} images have no score")
    print(f"{len(scores):,} images in {duration(time.perf_counter() - began)}: {folder / NAME}.parquet")
    return 0


def print_estimate(folder: Path, table: pd.DataFrame, metrics: Sequence[str]) -> None:
    """Images, NFE, time and disk of an evaluation."""
    size = sum((folder / path).stat().st_size for path in table["path"])
    cells = len(table) * len(metrics)
    print(f"{len(table):,} images ({size / 1e6:,.1f} MB to read), {', '.join(metrics)}: {cells:,} scores")
    print("NFE: 0, no denoiser runs")
    speeds = json.loads((RESULTS / "scoring.json").read_text(encoding="utf-8"))
    rates = speeds["seconds_per_image"]
    if unknown := [name for name in metrics if name not in rates]:
        print(f"time: not known, because that of {', '.join(unknown)} is not")
    else:
        seconds = len(table) * sum(rates[name] for name in metrics)
        print(f"time: {duration(seconds)}, less where scores are remembered; it rests on {speeds['of']}")
    print(f"disk: {8 * cells / 1e6 + 0.01:.2f} MB in {folder / NAME}.parquet, and as much in {folder / '.scores'}")
    print("Nothing was started.")
