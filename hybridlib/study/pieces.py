"""Studies made of pieces that are remembered one by one, and the tables that are made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import read_table, write_json, write_table

if TYPE_CHECKING:
    import pandas as pd

    from .parameters import Parameters

PIECES = "pieces"  # folder of the pieces in that of a study


def remembered(folder: Path, key: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The table of a finished piece of the study in `folder`, or of the piece now computed.

    Args:
        key: all that decides the piece, as a name of a file.
    """
    path = folder / PIECES / f"{key}.parquet"
    if not path.exists():
        write_table(compute(), path)
    return read_table(path)


def written(table: pd.DataFrame, folder: Path, name: str, parameters: Parameters) -> pd.DataFrame:
    """The table, now `folder / name.parquet` as well, its provenance beside it."""
    from .origin import git_revision, versions

    table = table.reset_index(drop=True)
    write_table(table, folder / f"{name}.parquet")
    origin: dict[str, Any] = {"notebook": parameters.notebook, "parameters": parameters.model_dump()}
    origin |= {"versions": versions().to_dict(), "git_revision": git_revision()}
    write_json(origin, folder / f"{name}.json")
    return table
