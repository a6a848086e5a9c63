"""Studies made of pieces that are remembered one by one, and the tables that are made of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import locked, read_table, write_json, write_table
from ..trust import InvalidInput

if TYPE_CHECKING:
    import pandas as pd

    from .parameters import Parameters

PIECES = "pieces"  # folder of the pieces in that of a study


def remembered(folder: Path, key: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The table of a finished piece of the study in `folder`, or of the piece now computed.

    Several processes may share the pieces of a folder: one that another process is computing is waited for. A damaged
    piece is computed again, after a warning.

    Args:
        key: all that decides the piece, as a name of a file.
    """
    path = folder / PIECES / f"{key}.parquet"
    if (table := _finished(path)) is None:
        with locked(folder / ".locks" / key):
            if (table := _finished(path)) is None:  # nor has another process made it meanwhile
                write_table(compute(), path)
                table = read_table(path)
    return table


def _finished(path: Path) -> pd.DataFrame | None:
    if not path.exists():
        return None
    try:
        return read_table(path)
    except InvalidInput as error:
        warnings.warn(f"the piece is computed again: {error}", stacklevel=3)
        return None


def written(table: pd.DataFrame, folder: Path, name: str, parameters: Parameters) -> pd.DataFrame:
    """The table, now `folder / name.parquet` as well, its provenance beside it."""
    from .origin import git_revision, versions

    table = table.reset_index(drop=True)
    write_table(table, folder / f"{name}.parquet")
    origin: dict[str, Any] = {"notebook": parameters.notebook, "parameters": parameters.model_dump()}
    origin |= {"versions": versions().to_dict(), "git_revision": git_revision()}
    write_json(origin, folder / f"{name}.json")
    return table
