from __future__ import annotations

import numpy as np
import openpyxl
import pandas as pd
import pytest

from hybridlib.hybrid import spreadsheets


def grid(prompts=22, steps=28):
    rng = np.random.default_rng(0)
    pairs = [(i, j, s) for i in range(prompts) for j in range(prompts) for s in range(steps)]
    table = pd.DataFrame(pairs, columns=["public", "personal", "common_step"])
    return table.assign(clip=rng.random(len(table)), seed=1)


def test_alignment_sheet_has_the_published_shape(tmp_path):
    spreadsheets.write_alignment(grid(), tmp_path / "results-clip.xlsx")
    sheet = openpyxl.load_workbook(tmp_path / "results-clip.xlsx").active
    assert (sheet.max_row, sheet.max_column) == (485, 30)
    assert [cell.value for cell in sheet[1]][:4] == ["Public", "Personal", 0, 1]


def test_alignment_sheet_reads_back_with_empty_cells_left_out(tmp_path):
    scores = grid(4, 5).drop(index=[3, 17])
    spreadsheets.write_alignment(scores, tmp_path / "a.xlsx")
    again = spreadsheets.read_alignment(tmp_path / "a.xlsx")
    columns = ["public", "personal", "common_step", "clip"]
    pd.testing.assert_frame_equal(again[columns], scores[columns].reset_index(drop=True), check_dtype=False)


def test_similarity_sheet_counts_from_one_and_rounds(tmp_path):
    matrix = np.array([[1.0, 0.123456], [0.123456, 1.0]])
    spreadsheets.write_similarity(matrix, tmp_path / "s.xlsx")
    sheet = openpyxl.load_workbook(tmp_path / "s.xlsx").active
    assert [cell.value for cell in sheet[1]][1:] == [1, 2]
    assert [cell.value for cell in sheet[2]] == [1, 1, 0.1235]
    np.testing.assert_array_equal(spreadsheets.read_similarity(tmp_path / "s.xlsx"), np.round(matrix, 4))


def test_workbook_of_the_later_layout(tmp_path):
    scores = pd.concat([grid(3, 2).assign(seed=s, brisque=50.0 + s) for s in (1, 2)])
    spreadsheets.write_workbook(scores, tmp_path / "w.xlsx", ["clip", "brisque"])
    book = pd.read_excel(tmp_path / "w.xlsx", sheet_name=None)
    assert list(book) == ["raw", "clip", "brisque"]
    assert len(book["raw"]) == len(scores)
    assert (book["brisque"][0] == 51.5).all()


def write_sheet(path, columns):
    pd.DataFrame([[0] * len(columns)], columns=columns).to_excel(path, index=False)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["Public", 0, 1], "column 'Personal' is missing"),
        (["Public", "Personal", "zero"], "column 'zero' is no common step"),
        (["Public", "Personal"], "has no common step columns"),
    ],
)
def test_bad_sheets_are_refused(tmp_path, columns, message):
    write_sheet(tmp_path / "bad.xlsx", columns)
    with pytest.raises(ValueError, match=message):
        spreadsheets.read_alignment(tmp_path / "bad.xlsx")


def test_mixed_seeds_missing_files_and_oblong_matrices_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one variant and one seed"):
        spreadsheets.write_alignment(pd.concat([grid(2, 2), grid(2, 2)]), tmp_path / "a.xlsx")
    with pytest.raises(ValueError, match="no spreadsheet"):
        spreadsheets.read_alignment(tmp_path / "nothing.xlsx")
    write_sheet(tmp_path / "oblong.xlsx", ["", 1, 2])
    with pytest.raises(ValueError, match="square, this one is 1 x 2"):
        spreadsheets.read_similarity(tmp_path / "oblong.xlsx")
