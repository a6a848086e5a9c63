"""Reading and writing of images and tables: whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from PIL.Image import Image


def write_atomically(path: Path, data: bytes) -> str:
    """Write by temporary file and rename, so that `path` is never half-written; returns the SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)
    return hashlib.sha256(data).hexdigest()


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def png(image: Image) -> bytes:
    """An image as PNG; what is written of every image."""
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_image(image: Image, path: Path) -> str:
    """Write a PNG whole or not at all; returns the SHA-256 of its bytes."""
    return write_atomically(path, png(image))


def read_image(path: Path) -> Image:
    """An RGB image, its file closed again."""
    from PIL import Image as Pillow

    # Small files decode a quarter faster from memory than through a file object.
    return Pillow.open(BytesIO(path.read_bytes())).convert("RGB")


def table_of(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A table of rows that come one by one and are not held: a million dictionaries take more memory than the table.

    Raises:
        ValueError: if a row has other columns than the first.
    """
    columns: dict[str, list[Any]] = {}
    for row in rows:
        columns = columns or {name: [] for name in row}
        if row.keys() != columns.keys():
            raise ValueError(f"every row needs the columns {list(columns)}, got {list(row)}")
        for name, values in columns.items():
            values.append(row[name])
    return pd.DataFrame(columns)


def write_table(table: pd.DataFrame, path: Path) -> str:
    """Write Parquet whole or not at all; `table.attrs` travel in the file's metadata. Returns the SHA-256."""
    buffer = BytesIO()
    table.to_parquet(buffer, index=False)
    return write_atomically(path, buffer.getvalue())


def read_table(path: Path, columns: tuple[str, ...] = ()) -> pd.DataFrame:
    """A Parquet table that must hold `columns`.

    Raises:
        ValueError: one sentence naming the file, if it is missing or lacks a column.
    """
    if not path.is_file():
        raise ValueError(f"no table {path}; run the study that writes it first")
    table = pd.read_parquet(path)
    if missing := [column for column in columns if column not in table]:
        raise ValueError(f"{path} lacks the column {missing[0]!r}; it has {list(table.columns)}")
    return table


def write_array(array: np.ndarray, path: Path) -> str:
    """Write a NumPy array whole or not at all; returns the SHA-256."""
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return write_atomically(path, buffer.getvalue())


def write_json(content: dict[str, Any], path: Path) -> str:
    """Write JSON whole or not at all; returns the SHA-256."""
    return write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def digest(*parts: Any) -> str:
    """Short SHA-256 of anything JSON can hold: the key under which finished work is found again."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
