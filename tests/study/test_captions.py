"""A file of captions in, images and delays out: what is read, what is drawn, and that a killed job goes on."""

from __future__ import annotations

import pandas as pd
import pytest
from factories import random_sd3

from hybridlib.__main__ import main
from hybridlib.files import checksum
from hybridlib.study import captions, runner
from hybridlib.study.parameters import Settings

JOB = captions.Job(Settings(0, 32, 2, max_sequence_length=12), steps=(2, 3), first_seed=5)
LINES = ["a red star", "a blue ring", "a red star", "a ring on snow", "a star"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sd3")
    random_sd3().save_pretrained(path)
    return path


def written(tmp_path, text):
    path = tmp_path / "captions.txt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a dog, running\n\n  a cat \n", [("", "a dog, running"), ("", "a cat")]),
        (
            "1.jpg#0\tA dog .\n1.jpg#1\tThe dog runs .\n2.jpg#0\tA cat .\n",
            [("1.jpg", "A dog ."), ("1.jpg", "The dog runs ."), ("2.jpg", "A cat .")],
        ),
        (
            'image,caption\n1.jpg,"A dog, running ."\n2.jpg,A cat .\n',
            [("1.jpg", "A dog, running ."), ("2.jpg", "A cat .")],
        ),
        ("caption,comment\nA dog .,none\n", [("", "A dog .")]),
        ("\ufeffa dog\n", [("", "a dog")]),
    ],
)
def test_three_kinds_of_files_are_read(tmp_path, text, expected):
    table = captions.read_captions(written(tmp_path, text))
    assert list(table.itertuples(index=False, name=None)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n \n", "holds no caption"),
        ("1.jpg#0\tA dog .\nA cat .\n", "line 2 is no picture, '#', number, tab and caption, as other lines are"),
        ("image,caption\n1.jpg,A dog\n2.jpg,\n", "the caption of data row 2 is empty"),
        ("caption\n", "holds no caption"),
    ],
)
def test_a_file_that_is_none_of_them_is_one_sentence(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        captions.read_captions(written(tmp_path, text))


def test_a_file_that_is_no_text_is_one_sentence(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_bytes(b"\xff\xfe\x00\x9f")
    for missing in (path, tmp_path / "none.txt"):
        with pytest.raises(ValueError, match="cannot be read as text"):
            captions.read_captions(missing)


def test_tasks_have_seeds_names_and_steps_of_their_own():
    table = captions.tasks(pd.DataFrame({"image": "", "caption": LINES * 20}), JOB)
    assert list(table["caption"]) == LINES * 20
    assert list(table["seed"]) == list(range(5, 105))
    assert table["path"].is_unique
    assert set(table["num_inference_steps"]) == {2, 3}
    assert 30 < (table["num_inference_steps"] == 2).sum() < 70  # both ends of the range are drawn, evenly
    for row in table.itertuples():
        assert (row.trajectory.stop, row.trajectory.segments[0].prompt) == (row.num_inference_steps, row.caption)
    assert table.groupby(["num_inference_steps", "shard"]).size().max() == 2
    few = captions.tasks(pd.DataFrame({"image": "", "caption": LINES}), JOB, count=3)
    again = captions.tasks(pd.DataFrame({"image": "", "caption": LINES}), JOB, count=3)
    assert list(few["caption"]) == list(again["caption"])
    with pytest.raises(ValueError, match=r"count must lie in 1..5, the number of captions, got 6"):
        captions.tasks(pd.DataFrame({"image": "", "caption": LINES}), JOB, count=6)


@pytest.mark.parametrize("text", ["", "0", "20-10", "1-2-3", "ten", "5-1001", "-3"])
def test_steps_that_are_no_range_are_refused(text):
    with pytest.raises(ValueError, match="steps must be a"):
        captions.parse_steps(text)


def test_a_killed_job_ends_in_the_same_files_and_its_delays_are_those_of_the_ledgers(tmp_path, monkeypatch):
    pipeline, table = random_sd3(), captions.tasks(pd.DataFrame({"image": "", "caption": LINES}), JOB)
    delays = captions.run(table, pipeline, tmp_path / "whole", JOB)
    whole = {path: checksum(tmp_path / "whole" / path) for path in table["path"]}
    assert len(set(whole.values())) == len(LINES)

    run_shard, done = runner._run_shard, []

    def killed(*given):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(1)
        return run_shard(*given)

    monkeypatch.setattr(runner, "_run_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        captions.run(table, pipeline, tmp_path / "killed", JOB)
    monkeypatch.undo()
    captions.run(table, pipeline, tmp_path / "killed", JOB)
    assert {path: checksum(tmp_path / "killed" / path) for path in table["path"]} == whole

    read = pd.read_parquet(tmp_path / "whole" / "delays.parquet")
    pd.testing.assert_frame_equal(read, delays)
    assert list(delays["caption"]) == LINES
    assert (delays["delay_s"] > 0).all()
    assert (delays["delay_s"] == delays["seconds_an_image"] * delays["together"]).all()
    again = captions.run(table, pipeline, tmp_path / "whole", JOB)  # nothing is made, the delays are remembered
    pd.testing.assert_frame_equal(again, delays)
    assert captions.by_steps(delays)["tasks"].sum() == len(LINES)


def test_the_command_draws_a_token_file(folder, tmp_path, capsys):
    file = written(tmp_path, "".join(f"{i}.jpg#0\t{text}\n" for i, text in enumerate(LINES)))
    sizes = ["--steps", "2", "--batch-size", "2", "--max-sequence-length", "12", "--model", str(folder)]
    assert main(["captions", str(file), str(tmp_path / "out"), "--count", "3", "--budget-gb", "1", *sizes]) == 0
    told = capsys.readouterr().out
    assert "peak about" in told  # of the plan
    assert "3 images and delays.parquet are in" in told
    delays = pd.read_parquet(tmp_path / "out" / "delays.parquet")
    assert set(delays["image"]) <= {f"{i}.jpg" for i in range(5)}
    assert all((tmp_path / "out" / path).is_file() for path in delays["path"])
    assert main(["captions", str(tmp_path / "none.txt"), str(tmp_path / "out"), *sizes]) == 2
    assert "cannot be read as text" in capsys.readouterr().err
