"""Two runs at once, full disks, read-only folders: nothing is lost, nothing is half-written, one sentence is said."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import painted
import pandas as pd
import pytest
from full_disk import Half

from hybridlib.__main__ import main
from hybridlib.files import check_inside, read_image, read_table
from hybridlib.hybrid import grids
from hybridlib.paths import ROOT
from hybridlib.prompts import PromptSet
from hybridlib.study import pieces, preflight, reproduce, runner
from hybridlib.study.parameters import AlignmentParameters, Parameters, base


@pytest.fixture
def paint(monkeypatch):
    for place, name, value in painted.patches():
        monkeypatch.setattr(place, name, value)


def snapshot(folder):
    """All that a run leaves, but for its locks and what it took."""
    files = [p for p in folder.rglob("*") if p.is_file() and ".lock" not in p.parts[-1] and ".locks" not in p.parts]
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in files if ".ledger" not in p.parts and "spent" not in p.name
    }


def leftovers(folder):
    return [p.name for p in folder.rglob("*.partial")]


# --- two runs at once


@pytest.mark.slow
def test_two_runs_in_one_folder_both_finish_right(paint, tmp_path):
    """Of different image sizes: where one scored the other's pictures, its widths would be wrong."""
    command, folder = [sys.executable, str(ROOT / "tests" / "painted.py"), str(tmp_path / "both")], tmp_path / "both"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    runs = [
        subprocess.Popen([*command, str(width), str(tmp_path / f"{width}.parquet")], env=environment)
        for width in (32, 48)
    ]
    assert [run.wait() for run in runs] == [0, 0]
    for width in (32, 48):
        found = read_table(tmp_path / f"{width}.parquet")
        assert set(found["width"]) == {width}
        assert set(found["pieces"]) == {painted.PIECES}
    lines = (folder / "log").read_text().split()
    assert sorted(lines) == [str(i) for i in range(painted.PIECES)]  # no piece was computed twice
    assert leftovers(folder) == []


def test_without_the_lock_one_run_would_score_the_pictures_of_the_other(paint, tmp_path):
    """The control: the order of events that the lock forbids."""
    narrow, wide = (AlignmentParameters(image_size=width).settings() for width in (32, 48))
    runner.generate(painted.table(), None, tmp_path, narrow)
    runner.generate(painted.table(), None, tmp_path, wide)
    assert set(runner.score(painted.table(), tmp_path, [painted.Width()])["width"]) == {48}


def test_a_damaged_piece_is_computed_again(tmp_path):
    made = []

    def compute():
        made.append(1)
        return pd.DataFrame({"a": [1]})

    for _ in range(2):
        pieces.remembered(tmp_path, "p", compute)
    path = tmp_path / pieces.PIECES / "p.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="the piece is computed again: .*p.parquet cannot be read"):
        pieces.remembered(tmp_path, "p", compute)
    assert len(made) == 2
    assert len(list((tmp_path / pieces.PIECES).iterdir())) == 1


@pytest.mark.parametrize("damage", ["{", "[]", '{"seconds": 1}', '{"seconds": "x", "sha256": {}}', '{"sha256": 3}', ""])
def test_a_shard_whose_ledger_is_damaged_is_made_again(paint, tmp_path, damage):
    painted.study(tmp_path)
    whole = snapshot(tmp_path)
    for ledger in (tmp_path / ".ledger").iterdir():
        ledger.write_text(damage)
    (tmp_path / "seed0" / "0.png").unlink()
    painted.study(tmp_path)
    assert snapshot(tmp_path) == whole


def test_damaged_scores_are_made_again(paint, tmp_path):
    painted.study(tmp_path)
    whole = snapshot(tmp_path)
    for file in (tmp_path / ".scores").iterdir():
        data = bytearray(file.read_bytes())
        data[-40] ^= 1  # the last number, before its checksum
        file.write_bytes(data)
    painted.study(tmp_path)
    assert snapshot(tmp_path) == whole


def test_a_notebook_that_another_run_executes_is_not_touched(tmp_path, monkeypatch):
    target = tmp_path / "02_good"
    target.mkdir()
    (target / "executed.ipynb").write_text("theirs")
    hold = (
        "import sys, time\nfrom pathlib import Path\nfrom hybridlib.files import locked\n"
        "with locked(Path(sys.argv[1])):\n    print(flush=True)\n    time.sleep(600)"
    )
    lock = str(target / ".notebook.lock")
    with subprocess.Popen([sys.executable, "-c", hold, lock], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        monkeypatch.setattr(reproduce, "_executed", lambda *a: pytest.fail("executed"))
        try:
            result = reproduce.run(Path("02_good.ipynb"), Path("none.yaml"), tmp_path)
        finally:
            other.kill()
    assert result.error == f"another run is writing to {target}; wait until it ends, or give this one another profile"
    assert not result.traced
    assert (target / "executed.ipynb").read_text() == "theirs"


# --- disk full, folder read-only


@pytest.mark.slow
def test_a_disk_that_fills_at_any_write_costs_nothing(paint, tmp_path, monkeypatch):
    usual, writes, failing = Path.open, 0, None

    def counted(self, mode="r", *a, **k):
        nonlocal writes
        file = usual(self, mode, *a, **k)
        if "x" not in mode:
            return file
        writes += 1
        return Half(file) if writes == failing else file

    monkeypatch.setattr(Path, "open", counted)
    painted.study(tmp_path / "whole")
    whole, total = snapshot(tmp_path / "whole"), writes
    assert total >= 16 + 4 + 1 + 3  # images, ledgers, scores; table, provenance, what it took
    for failing in range(1, total + 1):
        writes, folder = 0, tmp_path / str(failing)
        with pytest.raises(OSError, match=f"cannot be written: No space left on device: '{folder}") as caught:
            painted.study(folder)
        assert caught.value.errno == errno.ENOSPC
        assert leftovers(folder) == []
        assert all(whole[name] == data for name, data in snapshot(folder).items())  # nothing half-written
        writes, kept = -total, len(snapshot(folder))
        painted.study(folder)
        assert snapshot(folder) == whole
        assert kept >= failing - 1 - 4 - 1  # all but ledgers and what it took are seen in a snapshot


@pytest.fixture
def small_disk(tmp_path):
    """A folder that is a file system of its own, and a function that mounts it anew with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip("no file system can be mounted here: that takes root and its capabilities")

    mount("size=40k")
    yield folder, mount
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("size", ["12k", "40k", "64k"])
def test_a_run_on_a_full_disk_is_resumed_when_there_is_room(paint, tmp_path, small_disk, size):
    folder, mount = small_disk
    mount(f"remount,size={size}")
    painted.study(tmp_path / "whole")
    with pytest.raises(OSError, match=f"cannot be written: No space left on device: '{folder}"):
        painted.study(folder)
    assert leftovers(folder) == []
    for path in folder.rglob("*.png"):
        read_image(path)
    mount("remount,size=4m")
    painted.study(folder)
    assert snapshot(folder) == snapshot(tmp_path / "whole")


@pytest.fixture
def read_only(tmp_path):
    """A folder that may be read only, and a function that ends this."""
    folder = tmp_path / "folder"
    folder.mkdir()
    if os.geteuid():
        folder.chmod(0o555)
        yield folder, lambda: folder.chmod(0o755)
        folder.chmod(0o755)
        return
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("root may write everywhere, and nothing can be mounted here")
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_read_only_folder_is_named_and_a_run_goes_on_when_it_is_not(paint, tmp_path, read_only):
    folder, release = read_only
    with pytest.raises(OSError, match=f"cannot be written: .*: '{folder}"):
        painted.study(folder / "outputs")
    release()
    painted.study(folder / "outputs")
    painted.study(tmp_path / "whole")
    assert snapshot(folder / "outputs") == snapshot(tmp_path / "whole")


def test_read_only_outputs_are_told_before_anything_starts(read_only, monkeypatch, capsys):
    folder, _ = read_only
    monkeypatch.setattr(preflight, "OUTPUTS", folder / "outputs")
    monkeypatch.setattr(reproduce, "reproduce", lambda *a: pytest.fail("started"))
    assert main(["reproduce", "smoke", "--notebooks", "04"]) == 2
    told = capsys.readouterr().err
    assert told == f"error: {folder}/outputs/smoke: outputs cannot be written there: {folder} is read-only for you\n"


# --- nothing outside


def test_a_profile_that_is_a_link_out_of_outputs_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "OUTPUTS", tmp_path / "outputs")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="link is a link to another place; link .*outputs itself instead"):
        Parameters(profile="link")
    (tmp_path / "outputs" / "link").unlink()
    (tmp_path / "outputs").rmdir()
    (tmp_path / "outputs").symlink_to(tmp_path / "elsewhere")  # a large disk, say
    assert Parameters(profile="link").profile == "link"


def test_a_table_whose_paths_leave_the_folder_is_refused_before_anything_is_made(paint, tmp_path):
    for path in ("/tmp/x.png", "../x.png", "a/../../x.png"):
        table = painted.table().assign(path=lambda t, p=path: [p, *t["path"][1:]])
        with pytest.raises(ValueError, match="a path must be relative and lie below the folder of the study, got"):
            runner.generate(table, None, tmp_path / "folder", AlignmentParameters().settings())
    assert list(tmp_path.iterdir()) == []


def test_published_names_lie_inside():
    check_inside(grids.sim_sweep(PromptSet.load("miniature"), [0, 10], [0.0, 2.0], [1], [0, 3])["path"])
