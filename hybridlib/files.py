"""Reading and writing of images, tables and parameters: written whole or not at all, read with care.

What is read may come from anywhere. It is refused with `InvalidInput`, and sizes are bounded before memory is taken.
Tables and arrays that are written here carry a checksum of all their bytes, images have their format's own.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import yaml

from .trust import InvalidInput, reason

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from PIL.Image import Image

LARGEST_IMAGE = 1 << 26  # pixels: 8,192 x 8,192
LARGEST_TABLE = 1 << 27  # cells
LARGEST_YAML = 1 << 24  # bytes
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")  # Pillow knows dozens more, each one more way in
_MARK = b"\x00HL-SHA-256:"  # in a table before its footer, which readers find from the end of the file
_TAIL = 8  # bytes after a Parquet footer: its length and a mark
_SHA = hashlib.sha256().digest_size


# --- writing


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place at the end, and is gone if anything fails.

    Its name is that of no other process and of no file or link that is there, so any number of processes may write
    the same path: the last one wins, whole. What a killed one leaves ends with .partial and is read by nobody.

    Raises:
        OSError: naming `path`, if the folder is read-only, the disk is full, and so on.
    """
    partial = path.with_name(f"{path.name[:50]}.{os.getpid()}-{os.urandom(4).hex()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        _remove(partial)
        raise OSError(error.errno, f"cannot be written: {error.strerror or reason(error)}", str(path)) from None
    except BaseException:
        _remove(partial)
        raise


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # as read-only as the folder; what was wrong with the write is told
        return


def write_atomically(path: Path, data: bytes) -> str:
    """Write by temporary file and rename, so that `path` is never half-written; returns the SHA-256.

    Raises:
        OSError: naming `path`, if it cannot be written; what was there before is untouched.
    """
    with replacing(path) as partial, partial.open("xb") as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def png(image: Image) -> bytes:
    """An image as PNG; what is written of every image."""
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_image(image: Image, path: Path) -> str:
    """Write a PNG whole or not at all; returns the SHA-256 of its bytes."""
    return write_atomically(path, png(image))


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
    """Write Parquet whole or not at all; `table.attrs` travel in the file's metadata. Returns the SHA-256.

    A checksum of the rest of the file stands between data and footer, where every reader of Parquet passes over it.
    """
    buffer = BytesIO()
    table.to_parquet(buffer, index=False, write_page_checksum=True)
    data = buffer.getvalue()
    footer = _footer(data)
    return write_atomically(path, data[:footer] + _MARK + hashlib.sha256(data).digest() + data[footer:])


def write_array(array: np.ndarray, path: Path) -> str:
    """Write a NumPy array, its checksum behind it, whole or not at all; returns the SHA-256."""
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return write_atomically(path, buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())


def write_json(content: dict[str, Any], path: Path) -> str:
    """Write JSON whole or not at all; returns the SHA-256."""
    return write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


# --- reading


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_image(path: Path) -> Image:
    """An RGB image, its file closed again. Every checksum of a PNG is compared.

    Raises:
        OSError: if the file cannot be read.
        InvalidInput: if it holds no whole picture of `IMAGE_FORMATS`, or one of more than `LARGEST_IMAGE` pixels.
    """
    from PIL import Image as Pillow

    data = path.read_bytes()  # small files decode a quarter faster from memory than through a file object
    try:
        image: Image = Pillow.open(BytesIO(data), formats=IMAGE_FORMATS)
        if image.width * image.height > LARGEST_IMAGE:
            raise InvalidInput(f"{image.width} x {image.height} pixels are more than {LARGEST_IMAGE}")
        if image.format == "PNG":
            image.verify()  # Pillow's decoder passes over the checksums of the pixels, and a verified image is spent
            image = Pillow.open(BytesIO(data), formats=("PNG",))
        return image.convert("RGB")
    except Exception as error:  # Pillow raises a dozen kinds, from SyntaxError to struct.error
        raise InvalidInput(f"{path} holds no image that can be read ({reason(error)})") from None


def read_table(path: Path, columns: tuple[str, ...] = ()) -> pd.DataFrame:
    """A Parquet table that must hold `columns`.

    Raises:
        InvalidInput: one sentence naming the file, if it is missing, damaged, of more than `LARGEST_TABLE` cells, no
            table, or lacks a column.
    """
    import pyarrow.parquet as parquet

    if not path.is_file():
        raise InvalidInput(f"no table {path}; run the study that writes it first")
    data = path.read_bytes()
    try:
        _check_whole(data)
        about = parquet.read_metadata(BytesIO(data))
        if about.num_rows * about.num_columns > LARGEST_TABLE:
            raise InvalidInput(f"{about.num_rows} rows of {about.num_columns} are more than {LARGEST_TABLE} cells")
        table = pd.read_parquet(BytesIO(data), page_checksum_verification=True)
    except Exception as error:  # what pandas and Arrow raise is of many kinds, KeyError and NotImplementedError too
        raise InvalidInput(f"{path} cannot be read as a table ({reason(error)})") from None
    if missing := [column for column in columns if column not in table]:
        raise InvalidInput(f"{path} lacks the column {missing[0]!r}; it has {list(table.columns)}")
    return table


def _check_whole(data: bytes) -> None:
    """Raise InvalidInput if a table's checksum is there and wrong; tables of others have none."""
    if (footer := _footer(data)) < 0:
        raise InvalidInput("it ends before its footer")
    start = footer - _SHA - len(_MARK)
    if start >= 0 and data[start : start + len(_MARK)] == _MARK:
        rest = hashlib.sha256(data[:start])
        rest.update(data[footer:])
        if rest.digest() != data[footer - _SHA : footer]:
            raise InvalidInput("it was altered after it was written: its checksum does not match")


def _footer(data: bytes) -> int:
    """Where the footer of a Parquet file begins; negative if it has none."""
    return len(data) - _TAIL - int.from_bytes(data[-_TAIL:-4], "little")


def read_array(path: Path) -> np.ndarray | None:
    """What `write_array` wrote; None if it is not there, or damaged, and has to be made again."""
    if not path.is_file():
        return None
    data = path.read_bytes()
    if hashlib.sha256(data[:-_SHA]).digest() != data[-_SHA:]:
        return None
    try:
        array: np.ndarray = np.lib.format.read_array(BytesIO(data[:-_SHA]), allow_pickle=False)  # no zip files
    except Exception:  # not ours, though its checksum is right
        return None
    return array


class _PlainLoader(yaml.SafeLoader):
    """Plain values only, without what lets a short file grow or hide: aliases, repeated keys, keys that are no text."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        names = {key.value for key, _ in pairs if isinstance(key, yaml.ScalarNode) and key.tag.endswith(":str")}
        if len(names) < len(pairs):
            raise yaml.YAMLError(f"a key in line {node.start_mark.line + 1} or below is no text, or stands there twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The plain values of a YAML file of at most `LARGEST_YAML` bytes.

    Raises:
        InvalidInput: one sentence naming the file, if it is missing, too large or no plain YAML: aliases, of which a
            few lines make gigabytes, repeated keys, and keys that are no text are refused, too.
    """
    if not path.is_file():
        raise InvalidInput(f"{path}: cannot be read as YAML (there is no such file)")
    try:
        if path.stat().st_size > LARGEST_YAML:
            raise InvalidInput(f"it has more than {LARGEST_YAML} bytes")
        return yaml.load(path.read_text(encoding="utf-8"), _PlainLoader)
    except Exception as error:  # the loader raises a dozen kinds: for dates, numbers, depth, encodings
        raise InvalidInput(f"{path}: cannot be read as YAML ({reason(error)})") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InvalidInput: one sentence naming the file, if it is missing or holds anything else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} cannot be read as JSON ({reason(error)})") from None
    if not isinstance(content, dict):
        raise InvalidInput(f"{path} must hold a JSON object, it holds a {type(content).__name__}")
    return content


def digest(*parts: Any) -> str:
    """Short SHA-256 of anything JSON can hold: the key under which finished work is found again."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


# --- several runs at once


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path` while the block runs, against other processes; within one it may be held repeatedly.

    The system's own lock (flock): it is gone with the process, however that ends. The file stays.

    Args:
        wait: for another holder, after saying so; else it is an error.

    Raises:
        BlockingIOError: one sentence, if another process holds it and `wait` is False.
        OSError: naming the folder, if nothing can be written there.
    """
    lock = _acquired(path, wait)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _acquired(path: Path, wait: bool) -> BaseFileLock | None:
    from filelock import FileLock, Timeout

    here = f"another run is writing to {path.parent}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, is_singleton=True, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if not wait:
                raise BlockingIOError(f"{here}; wait until it ends, or give this one another profile") from None
            print(f"{here}; waiting until it ends", file=sys.stderr, flush=True)
            lock.acquire()
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):  # some file systems of clusters
            warnings.warn(f"{path.parent} lies where there are no locks: let no other run write there", stacklevel=4)
            return None
        raise OSError(error.errno, f"cannot be written: {error.strerror or reason(error)}", str(path.parent)) from None
    return lock


def check_inside(paths: pd.Series) -> None:
    """Raise ValueError unless every path is relative and names a file below the folder that it is joined to."""
    outside = paths[paths.str.contains(r"(?:^|/)\.{0,2}(?:/|$)|\\|\x00", regex=True)]
    if len(outside):
        raise ValueError(f"a path must be relative and lie below the folder of the study, got {outside.iloc[0]!r}")
