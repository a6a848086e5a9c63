"""The published spreadsheet layouts, for people who go on with the old scripts, in both directions."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd

from ..files import write_atomically


def write_alignment(scores: pd.DataFrame, path: Path, value: str = "clip") -> None:
    """`results-clip.xlsx` of one variant and seed: a row per (public, personal) pair, a column per common step.

    Cells without an image stay empty.

    Raises:
        ValueError: if a column is missing, or the scores mix variants or seeds.
    """
    _require(scores, ("public", "personal", "common_step", value), "the scores")
    if scores.duplicated(["public", "personal", "common_step"]).any():
        raise ValueError("a sheet holds one variant and one seed; select them before writing")
    sheet = scores.pivot(index=["public", "personal"], columns="common_step", values=value)
    sheet.columns = pd.Index([int(step) for step in sheet.columns])
    sheet.index.names = ["Public", "Personal"]
    _write(sheet.reset_index(), path)


def read_alignment(path: Path, value: str = "clip") -> pd.DataFrame:
    """Scores from a sheet of that layout: public, personal, common_step and `value`, empty cells left out.

    Raises:
        ValueError: if the file has no columns Public and Personal, or a step column is no whole number.
    """
    sheet = _read(path)
    _require(sheet, ("Public", "Personal"), str(path))
    steps = [column for column in sheet.columns if column not in ("Public", "Personal")]
    if wrong := [step for step in steps if not str(step).isdigit()]:
        raise ValueError(f"{path}: column {wrong[0]!r} is no common step")
    if not steps:
        raise ValueError(f"{path} has no common step columns beside Public and Personal")
    tidy = sheet.melt(["Public", "Personal"], steps, "common_step", value).dropna(subset=[value])
    tidy = tidy.rename(columns={"Public": "public", "Personal": "personal"}).astype({"common_step": int})
    return tidy.sort_values(["public", "personal", "common_step"], ignore_index=True)


def write_similarity(matrix: np.ndarray, path: Path) -> None:
    """The similarity matrix as published: four decimals, rows and columns labelled from 1 (images count from 0)."""
    labels = range(1, len(matrix) + 1)
    _write(pd.DataFrame(np.round(matrix, 4), index=labels, columns=labels).reset_index(names=""), path)


def read_similarity(path: Path) -> np.ndarray:
    """A similarity matrix from a sheet of that layout.

    Raises:
        ValueError: if it is not square.
    """
    matrix = _read(path).iloc[:, 1:].to_numpy(dtype=float)
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{path}: a similarity matrix is square, this one is {matrix.shape[0]} x {matrix.shape[1]}")
    return matrix


def write_workbook(scores: pd.DataFrame, path: Path, values: list[str], columns: str = "common_step") -> None:
    """The later layout: a raw sheet with a row per image, and one pivot per metric with the mean over seeds."""
    _require(scores, ("public", "personal", columns, *values), "the scores")
    sheets = {"raw": scores.drop(columns="trajectory", errors="ignore")}
    for value in values:
        mean = scores.pivot_table(index=["public", "personal"], columns=columns, values=value)
        sheets[value] = mean.reset_index()
    buffer = BytesIO()
    with pd.ExcelWriter(buffer, engine="openpyxl") as book:
        for name, sheet in sheets.items():
            sheet.to_excel(book, sheet_name=name, index=False)
    write_atomically(path, buffer.getvalue())


def _write(sheet: pd.DataFrame, path: Path) -> None:
    buffer = BytesIO()
    sheet.to_excel(buffer, index=False, engine="openpyxl")
    write_atomically(path, buffer.getvalue())


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise ValueError(f"no spreadsheet {path}")
    return pd.read_excel(path, engine="openpyxl")


def _require(table: pd.DataFrame, columns: tuple[str, ...], name: str) -> None:
    if missing := [column for column in columns if column not in table]:
        raise ValueError(f"{name}: column {missing[0]!r} is missing; there are {list(table.columns)}")
