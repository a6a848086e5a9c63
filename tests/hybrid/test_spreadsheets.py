from __future__ import annotations

import numpy as np
import openpyxl
import pandas as pd
import pytest

from hybridlib.hybrid import hiqm, spreadsheets
from hybridlib.paths import PUBLISHED
from hybridlib.study import results


def grid(prompts=22, steps=28):
    rng = np.random.default_rng(0)
    pairs = [(i, j, s) for i in range(prompts) for j in range(prompts) for s in range(steps)]
    table = pd.DataFrame(pairs, columns=["public", "personal", "common_step"])
    return table.assign(clip=rng.random(len(table)), seed=1)


def published_sheet(path, quality):
    """A sheet as the published script makes it: every pair of the list, headers and step columns of its data frame."""
    prompts, _, steps = quality.shape
    index = pd.MultiIndex.from_product([range(prompts), range(prompts)], names=["Public Prompt", "Personal Prompt"])
    pd.DataFrame(quality.reshape(-1, steps), index, range(steps)).reset_index().to_excel(path, index=False)


def published_similarity(path, matrix):
    """The same for the similarity sheet."""
    labels = [f"prompt{i + 1}" for i in range(len(matrix))]
    pd.DataFrame(matrix, columns=labels, index=labels).round(4).to_excel(path)


def test_alignment_sheet_has_the_published_shape_and_headers(tmp_path):
    spreadsheets.write_alignment(grid(), tmp_path / "results-clip.xlsx")
    sheet = openpyxl.load_workbook(tmp_path / "results-clip.xlsx").active
    assert (sheet.max_row, sheet.max_column) == (485, 30)
    assert [cell.value for cell in sheet[1]] == ["Public Prompt", "Personal Prompt", *range(28)]


def test_alignment_sheet_reads_back_with_empty_cells_left_out(tmp_path):
    scores = grid(4, 5).drop(index=[3, 17])
    spreadsheets.write_alignment(scores, tmp_path / "a.xlsx")
    again = spreadsheets.read_alignment(tmp_path / "a.xlsx")
    columns = ["public", "personal", "common_step", "clip"]
    pd.testing.assert_frame_equal(again[columns], scores[columns].reset_index(drop=True), check_dtype=False)


def test_similarity_sheet_is_labelled_as_published_and_rounds(tmp_path):
    matrix = np.array([[1.0, 0.123456], [0.123456, 1.0]])
    spreadsheets.write_similarity(matrix, tmp_path / "s.xlsx")
    sheet = openpyxl.load_workbook(tmp_path / "s.xlsx").active
    assert [cell.value for cell in sheet[1]] == [None, "prompt1", "prompt2"]
    assert [cell.value for cell in sheet[2]] == ["prompt1", 1, 0.1235]
    np.testing.assert_array_equal(spreadsheets.read_similarity(tmp_path / "s.xlsx"), np.round(matrix, 4))


def test_what_is_written_is_what_the_published_scripts_write(tmp_path):
    """Cell by cell, against sheets made by their data frames."""
    quality = np.random.default_rng(0).random((3, 3, 4))
    cells = [(i, j, s, quality[i, j, s]) for i in range(3) for j in range(3) for s in range(4)]
    scores = pd.DataFrame(cells, columns=["public", "personal", "common_step", "clip"])
    published_sheet(tmp_path / "theirs.xlsx", quality)
    spreadsheets.write_alignment(scores, tmp_path / "ours.xlsx")
    matrix = np.corrcoef(quality.reshape(3, -1))
    published_similarity(tmp_path / "their matrix.xlsx", matrix)
    spreadsheets.write_similarity(matrix, tmp_path / "our matrix.xlsx")
    for theirs, ours in (("theirs", "ours"), ("their matrix", "our matrix")):
        values = [
            [[cell.value for cell in row] for row in openpyxl.load_workbook(tmp_path / f"{name}.xlsx").active]
            for name in (theirs, ours)
        ]
        assert values[0] == values[1]


@pytest.mark.slow
def test_published_sheets_give_the_published_curves(tmp_path):
    """From sheets to curves, against the released means of each bin and the published smoothed curves.

    The released cells are not part of this repository, their means are. Any cells with these means must lead back to
    them: here each bin's mean plus noise that sums to zero.
    """
    released = pd.read_csv(PUBLISHED / "clip_by_similarity_unsmoothed.csv")
    released = released[released["similarity_bin"] < 1]
    bins = released["similarity_bin"].unique()
    prompts, rng = 22, np.random.default_rng(0)
    matrix = np.eye(prompts)
    upper = np.triu_indices(prompts, 1)
    pairs_of_bin = released.groupby("similarity_bin")["n_ordered_pairs"].first().to_numpy() // 2  # 231 in all
    matrix[upper] = rng.permutation(np.repeat(bins, pairs_of_bin)) + rng.uniform(-0.049, 0.049, len(upper[0]))
    matrix = np.maximum(matrix, matrix.T)
    bin_of = np.round(matrix.round(4), 1)
    sheets = []
    for seed in (1, 2):
        means = released.pivot(index="similarity_bin", columns="common_step", values=f"clip_mean_seed{seed}")
        quality = rng.random((prompts, prompts, 28))  # the diagonal stays noise: it must not enter
        for similarity, curve in means.iterrows():
            cells = (bin_of == similarity) & ~np.eye(prompts, dtype=bool)
            noise = rng.normal(size=(cells.sum(), 28))
            quality[cells] = curve.to_numpy() + noise - noise.mean(axis=0)
        sheets.append((tmp_path / f"seed{seed}.xlsx", "woSIM_woNPI", seed))
        published_sheet(sheets[-1][0], quality)
    published_similarity(tmp_path / "similarity.xlsx", matrix)
    scores = spreadsheets.read_scores(sheets, tmp_path / "similarity.xlsx")
    curves = hiqm.binned(hiqm.cube(scores, "woSIM_woNPI"), rounds=0)
    np.testing.assert_array_equal(curves.pairs, 2 * pairs_of_bin)
    expected = released.pivot(index="similarity_bin", columns="common_step", values="clip_mean").to_numpy()
    np.testing.assert_allclose(curves.mean, expected, atol=1e-9)  # printed to nine decimals
    smooth = hiqm.binned(hiqm.cube(scores, "woSIM_woNPI"), smooth=True, rounds=0)
    published = pd.read_csv(PUBLISHED / "clip_by_similarity.csv").query("variant == 'woSIM_woNPI'")
    published = published.pivot(index="similarity", columns="common_step", values="clip_score").to_numpy()
    np.testing.assert_allclose(smooth.mean[:6], published, atol=1e-9)


def test_sheets_of_our_own_study_lead_back_to_its_cube(tmp_path):
    scores = results.load("05_image_quality")
    scores = scores[(scores["personal"] < 6) & (scores["public"] < 6)].reset_index(drop=True)
    sheets = []
    for (variant, seed), sheet in scores.groupby(["variant", "seed"]):
        sheets.append((tmp_path / f"{variant}{seed}.xlsx", variant, seed))
        spreadsheets.write_alignment(sheet, sheets[-1][0])
    matrix = hiqm.cube(scores, "woSIM_woNPI").similarity
    spreadsheets.write_similarity(matrix, tmp_path / "s.xlsx")
    again = spreadsheets.read_scores(sheets, tmp_path / "s.xlsx")
    for variant in ("wSIM_wNPI", "woSIM_woNPI"):
        theirs, ours = hiqm.cube(again, variant), hiqm.cube(scores, variant)
        np.testing.assert_allclose(theirs.quality, ours.quality, rtol=1e-6)  # the shipped scores are float32
        np.testing.assert_array_equal(theirs.similarity, matrix.round(4))


def test_workbook_of_the_later_layout(tmp_path):
    scores = pd.concat([grid(3, 2).assign(seed=s, brisque=50.0 + s) for s in (1, 2)])
    spreadsheets.write_workbook(scores, tmp_path / "w.xlsx", ["clip", "brisque"])
    book = pd.read_excel(tmp_path / "w.xlsx", sheet_name=None)
    assert list(book) == ["raw", "clip", "brisque"]
    assert len(book["raw"]) == len(scores)
    assert (book["brisque"][0] == 51.5).all()


def test_texts_come_after_the_published_sheet_and_reading_ignores_them(tmp_path):
    texts = [f"a prompt {i}" for i in range(3)]
    matrix = np.eye(3)
    writers = {
        "alignment": lambda path, **given: spreadsheets.write_alignment(grid(3, 2), path, **given),
        "similarity": lambda path, **given: spreadsheets.write_similarity(matrix, path, **given),
        "workbook": lambda path, **given: spreadsheets.write_workbook(grid(3, 2), path, ["clip"], **given),
    }
    for name, write in writers.items():
        write(tmp_path / "bare.xlsx")
        write(tmp_path / f"{name}.xlsx", prompts=texts)
        bare, full = (openpyxl.load_workbook(tmp_path / f"{stem}.xlsx") for stem in ("bare", name))
        assert full.sheetnames == [*bare.sheetnames, "prompts"]
        for sheet in bare.sheetnames:
            assert [[c.value for c in row] for row in full[sheet]] == [[c.value for c in row] for row in bare[sheet]]
        rows = [[c.value for c in row] for row in full["prompts"]]
        assert rows[0] == ["index", "label", "prompt"]
        assert rows[3] == [2, "prompt3", "a prompt 2"]
    assert len(spreadsheets.read_alignment(tmp_path / "alignment.xlsx")) == 3 * 3 * 2
    np.testing.assert_array_equal(spreadsheets.read_similarity(tmp_path / "similarity.xlsx"), matrix)
    with pytest.raises(ValueError, match=r"the scores have prompt 2, counted from 0; prompts holds 2"):
        spreadsheets.write_alignment(grid(3, 2), tmp_path / "a.xlsx", prompts=texts[:2])
    with pytest.raises(ValueError, match="prompts must be 3, one for each row of the matrix, got 2"):
        spreadsheets.write_similarity(matrix, tmp_path / "s.xlsx", texts[:2])


def write_sheet(path, columns, *rows):
    pd.DataFrame(rows or [[0] * len(columns)], columns=columns).to_excel(path, index=False)


PAIR = ["Public Prompt", "Personal Prompt"]


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        (["Public", "Personal", 0, 1], [], "column 'Public Prompt' is missing"),
        ([PAIR[0], 0, 1], [], "column 'Personal Prompt' is missing"),
        ([*PAIR, "zero"], [], "column 'zero' is no common step"),
        (PAIR, [], "has no common step columns"),
        ([*PAIR, 0], [["a cat", 0, 0.3]], "must hold the indices of prompts"),
        ([*PAIR, 0], [[0, 0.5, 0.3]], "must hold the indices of prompts"),
        ([*PAIR, 0], [[0, 0, "none yet"]], "a score is not a number"),
        ([*PAIR, 0], [[0, 1, 0.3], [0, 1, 0.4]], "more than one row"),
    ],
)
def test_bad_sheets_are_refused(tmp_path, columns, rows, message):
    write_sheet(tmp_path / "bad.xlsx", columns, *rows)
    with pytest.raises(ValueError, match=message):
        spreadsheets.read_alignment(tmp_path / "bad.xlsx")


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        (["", "prompt1", "prompt2"], [["prompt1", 1, 0.5]], "square, this one is 1 x 2"),
        (["", "prompt2", "prompt1"], [["prompt2", 1, 0.5], ["prompt1", 0.5, 1]], "labelled prompt1, prompt2"),
        (["", "prompt1"], [["prompt1", 7.0]], "a number from -1 to 1"),
        (["", "prompt1"], [["prompt1", "high"]], "a number from -1 to 1"),
    ],
)
def test_bad_similarity_sheets_are_refused(tmp_path, columns, rows, message):
    write_sheet(tmp_path / "bad.xlsx", columns, *rows)
    with pytest.raises(ValueError, match=message):
        spreadsheets.read_similarity(tmp_path / "bad.xlsx")


def test_mixed_seeds_missing_files_and_foreign_prompts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one variant and one seed"):
        spreadsheets.write_alignment(pd.concat([grid(2, 2), grid(2, 2)]), tmp_path / "a.xlsx")
    with pytest.raises(ValueError, match="no spreadsheet"):
        spreadsheets.read_alignment(tmp_path / "nothing.xlsx")
    spreadsheets.write_alignment(grid(3, 2), tmp_path / "a.xlsx")
    spreadsheets.write_similarity(np.eye(2), tmp_path / "s.xlsx")
    with pytest.raises(ValueError, match=r"has prompt 2, counted from 0; .* holds 2 prompts"):
        spreadsheets.read_scores([(tmp_path / "a.xlsx", "v", 1)], tmp_path / "s.xlsx")
    spreadsheets.write_similarity(np.eye(3), tmp_path / "s.xlsx")
    with pytest.raises(ValueError, match="variant 'v', seed 1 has a sheet already"):
        spreadsheets.read_scores([(tmp_path / "a.xlsx", "v", 1)] * 2, tmp_path / "s.xlsx")
    with pytest.raises(ValueError, match="sheets is empty"):
        spreadsheets.read_scores([], tmp_path / "s.xlsx")
