"""The published spreadsheet layouts, for people who go on with the old scripts, in both directions.

The first sheet is as published, cell by cell. Where prompts are given, a sheet of their texts comes after it, so that a
file says what its indices mean; scripts that read the first sheet do not see it.

`read_scores` leads from published sheets to the table that `hiqm.cube` takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd

from ..files import write_atomically

PAIR = ["Public Prompt", "Personal Prompt"]  # the index columns of a published alignment sheet, counted from 0
PROMPTS = "prompts"  # name of the sheet of texts


def write_alignment(scores: pd.DataFrame, path: Path, value: str = "clip", prompts: Sequence[str] = ()) -> None:
    """`results-clip.xlsx` of one variant and seed: a row per (public, personal) pair, a column per common step.

    Cells without an image stay empty. `prompts` are the joint ones, for the sheet of texts.

    Raises:
        ValueError: if a column is missing, the scores mix variants or seeds, or a pair has no prompt in the list.
    """
    _require(scores, ("public", "personal", "common_step", value), "the scores")
    if scores.duplicated(["public", "personal", "common_step"]).any():
        raise ValueError("a sheet holds one variant and one seed; select them before writing")
    sheet = scores.pivot(index=["public", "personal"], columns="common_step", values=value)
    sheet.columns = pd.Index([int(step) for step in sheet.columns])
    sheet.index.names = PAIR
    _write({"Sheet1": (sheet.reset_index(), False)} | _texts(prompts, scores), path)


def read_alignment(path: Path, value: str = "clip") -> pd.DataFrame:
    """Scores from a sheet of that layout: public, personal, common_step and `value`, empty cells left out.

    Raises:
        ValueError: if the file has no columns Public Prompt and Personal Prompt, these hold anything but whole numbers
            from 0, a step column is no whole number, a score is no number, or a pair has more than one row.
    """
    sheet = _read(path)
    _require(sheet, PAIR, str(path))
    steps = [column for column in sheet.columns if column not in PAIR]
    if wrong := [step for step in steps if not str(step).isdigit()]:
        raise ValueError(f"{path}: column {wrong[0]!r} is no common step")
    if not steps:
        raise ValueError(f"{path} has no common step columns beside {PAIR[0]} and {PAIR[1]}")
    numbers = sheet.apply(pd.to_numeric, errors="coerce")
    pairs = numbers[PAIR]
    if not ((pairs >= 0) & (pairs % 1 == 0)).all(axis=None):
        raise ValueError(f"{path}: {PAIR[0]} and {PAIR[1]} must hold the indices of prompts, whole numbers from 0")
    if (numbers.isna() & sheet.notna()).any(axis=None):
        raise ValueError(f"{path}: a score is not a number")
    if pairs.duplicated().any():
        raise ValueError(f"{path}: a pair of prompts has more than one row")
    tidy = numbers.melt(PAIR, steps, "common_step", value).dropna(subset=[value])
    tidy = tidy.rename(columns=dict(zip(PAIR, ("public", "personal"), strict=True)))
    tidy = tidy.astype({"public": int, "personal": int, "common_step": int, value: float})
    return tidy.sort_values(["public", "personal", "common_step"], ignore_index=True)


def write_similarity(matrix: np.ndarray, path: Path, prompts: Sequence[str] = ()) -> None:
    """The similarity matrix as published: four decimals, labels prompt1, prompt2, ... (images count from 0).

    Raises:
        ValueError: if there are prompts, but not one for each row.
    """
    if prompts and len(prompts) != len(matrix):
        raise ValueError(f"prompts must be {len(matrix)}, one for each row of the matrix, got {len(prompts)}")
    labels = _labels(len(matrix))
    sheet = pd.DataFrame(np.round(matrix, 4), index=labels, columns=labels)
    _write({"Sheet1": (sheet, True)} | _texts(prompts), path)


def read_similarity(path: Path) -> np.ndarray:
    """A similarity matrix from a sheet of that layout, float64, (prompts, prompts).

    Raises:
        ValueError: if it is not square, rows and columns are not labelled prompt1, prompt2, ... in this order, or a
            cell lies outside -1..1.
    """
    sheet = _read(path)
    if len(sheet) != sheet.shape[1] - 1:
        raise ValueError(f"{path}: a similarity matrix is square, this one is {len(sheet)} x {sheet.shape[1] - 1}")
    labels = _labels(len(sheet))
    if sheet.iloc[:, 0].tolist() != labels or sheet.columns[1:].tolist() != labels:
        raise ValueError(f"{path}: rows and columns must be labelled prompt1, prompt2, ... in this order")
    matrix = sheet.iloc[:, 1:].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    if not (np.abs(matrix) <= 1).all():
        raise ValueError(f"{path}: every similarity must be a number from -1 to 1")
    return matrix


def read_scores(sheets: Iterable[tuple[Path, str, int]], similarity: Path, value: str = "clip") -> pd.DataFrame:
    """The scores of a whole study from its published sheets, ready for `hiqm.cube`.

    Args:
        sheets: the alignment sheets, each as (file, variant, seed); the published file names tell neither.
        similarity: the similarity sheet of the same list of prompts; its four decimals are binned, as published.
        value: name of the column that holds the scores.

    Returns:
        One row per image: variant, public, personal, common_step, seed, similarity, `value`.

    Raises:
        ValueError: if there is no sheet, two have the same variant and seed, or the similarity lacks a prompt.
    """
    matrix = read_similarity(similarity)
    tables: dict[tuple[str, int], pd.DataFrame] = {}
    for path, variant, seed in sheets:
        if (variant, seed) in tables:
            raise ValueError(f"{path}: variant {variant!r}, seed {seed} has a sheet already")
        table = read_alignment(path, value)
        last = int(table[["public", "personal"]].to_numpy().max(initial=-1))
        if last >= len(matrix):
            raise ValueError(f"{path} has prompt {last}, counted from 0; {similarity} holds {len(matrix)} prompts")
        table.insert(0, "variant", variant)
        table.insert(4, "seed", seed)
        table.insert(5, "similarity", matrix[table["public"], table["personal"]])
        tables[variant, seed] = table
    if not tables:
        raise ValueError("sheets is empty; at least one (file, variant, seed) is needed")
    return pd.concat(tables.values(), ignore_index=True)


def write_workbook(
    scores: pd.DataFrame,
    path: Path,
    values: list[str],
    columns: str = "common_step",
    prompts: Sequence[str] = (),
) -> None:
    """The later layout: a raw sheet with a row per image, and one pivot per metric with the mean over seeds."""
    _require(scores, ("public", "personal", columns, *values), "the scores")
    sheets = {"raw": (scores.drop(columns="trajectory", errors="ignore"), False)}
    for value in values:
        mean = scores.pivot_table(index=["public", "personal"], columns=columns, values=value)
        sheets[value] = mean.reset_index(), False
    _write(sheets | _texts(prompts, scores), path)


def _labels(prompts: int) -> list[str]:
    return [f"prompt{number}" for number in range(1, prompts + 1)]


def _texts(prompts: Sequence[str], scores: pd.DataFrame | None = None) -> dict[str, tuple[pd.DataFrame, bool]]:
    """The sheet of texts, by both names that the published sheets give a prompt; none where there are no prompts."""
    if not prompts:
        return {}
    if scores is not None and (last := int(scores[["public", "personal"]].to_numpy().max(initial=-1))) >= len(prompts):
        raise ValueError(f"the scores have prompt {last}, counted from 0; prompts holds {len(prompts)}")
    names = {"index": range(len(prompts)), "label": _labels(len(prompts)), "prompt": list(prompts)}
    return {PROMPTS: (pd.DataFrame(names), False)}


def _write(sheets: Mapping[str, tuple[pd.DataFrame, bool]], path: Path) -> None:
    """Sheets by name, each with whether its index is written."""
    buffer = BytesIO()
    with pd.ExcelWriter(buffer, engine="openpyxl") as book:
        for name, (sheet, index) in sheets.items():
            sheet.to_excel(book, sheet_name=name, index=index)
    write_atomically(path, buffer.getvalue())


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise ValueError(f"no spreadsheet {path}")
    return pd.read_excel(path, engine="openpyxl")


def _require(table: pd.DataFrame, columns: Iterable[str], name: str) -> None:
    if missing := [column for column in columns if column not in table]:
        raise ValueError(f"{name}: column {missing[0]!r} is missing; there are {list(table.columns)}")
