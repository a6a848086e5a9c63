"""The pieces of study 11, in parallel: `python -m hybridlib.miniature.immiscible --profile miniature-full --workers 2`.

Each process computes with one thread. Finished pieces are remembered and a killed one goes on from its checkpoint, so
the command may be stopped and started at will; the notebook then reads what is there.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from ...paths import OUTPUTS, PARAMETERS
from ...progress import bar

if TYPE_CHECKING:
    from .study import Piece, Study

NOTEBOOK = "11_immiscible"


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 2 if the profile has no such study."""
    parser = argparse.ArgumentParser(prog="python -m hybridlib.miniature.immiscible", description=__doc__)
    parser.add_argument("--profile", default="miniature-full", help="a folder of params/ (default: miniature-full)")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each (default: 1)")
    given = parser.parse_args(arguments)
    file = PARAMETERS / given.profile / f"{NOTEBOOK}.yaml"
    if given.workers < 1 or not file.is_file():
        print(f"error: workers must be at least 1 and {file} must exist, got {given.workers}", file=sys.stderr)
        return 2
    folder = OUTPUTS / given.profile / NOTEBOOK
    study = _study(file, folder)
    study.prepare()
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
        tasks = [pool.submit(_work, file, folder, piece) for piece in study.pieces()]
        try:
            for task in bar(as_completed(tasks), total=len(tasks), desc="pieces"):
                task.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    from .mechanism import measured

    print(f"wrote {len(study.results())} rows to {folder / 'results.parquet'}")
    print(f"wrote {', '.join(measured(study))}")
    return 0


def _study(file: Path, folder: Path) -> Study:
    import torch

    from ...study.parameters import ImmiscibleParameters
    from .study import Study

    torch.set_num_threads(1)
    return Study(ImmiscibleParameters.from_yaml(file), folder)


_kept: dict[Path, Study] = {}  # what a process has loaded already


def _work(file: Path, folder: Path, piece: Piece) -> None:
    import os

    os.environ.setdefault("TQDM_DISABLE", "1")  # the bar over pieces is enough
    if folder not in _kept:
        _kept[folder] = _study(file, folder)
    _kept[folder].piece(piece)
