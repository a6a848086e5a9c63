"""What is written is whole or not there; what is read is what was written, or one sentence."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import numpy as np
import pandas as pd
import pyarrow.parquet as parquet
import pytest
from full_disk import Half
from PIL import Image

from hybridlib import files
from hybridlib.files import locked, read_array, read_image, read_table, read_yaml, write_array, write_table
from hybridlib.trust import InvalidInput

TABLE = pd.DataFrame({"path": [f"{i}.png" for i in range(30)], "clip": np.linspace(0, 1, 30)})


def flips(data, count, seed=0):
    """Copies of the data, each with one bit changed."""
    rng = random.Random(seed)
    for bit in rng.sample(range(8 * len(data)), min(count, 8 * len(data))):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


# --- what is read is what was written


def test_a_table_with_a_changed_bit_is_refused_or_still_the_same(tmp_path):
    path = tmp_path / "t.parquet"
    TABLE.attrs["metrics"] = {"clip": "which"}
    write_table(TABLE, path)
    honest, refused = path.read_bytes(), 0
    for data in flips(honest, 150):
        path.write_bytes(data)
        try:
            found = read_table(path)
        except InvalidInput as error:
            refused += str(error).startswith(f"{path} cannot be read as a table (") and "\n" not in str(error)
        else:
            pd.testing.assert_frame_equal(found, TABLE)  # the bit was one of the mark that a checksum follows
            refused += 1
    assert refused == 150


def test_without_its_checksum_a_changed_number_would_pass(tmp_path):
    """The control: the footer and the page heads of stock Parquet tell nothing of the numbers."""
    path = tmp_path / "t.parquet"
    TABLE.to_parquet(path, compression=None)
    data = path.read_bytes()
    at = data.index(np.float64(TABLE["clip"][20]).tobytes())
    path.write_bytes(data[:at] + b"\1" + data[at + 1 :])
    assert not read_table(path)["clip"].equals(TABLE["clip"])


def test_a_table_is_plain_parquet_for_everybody(tmp_path):
    path = tmp_path / "t.parquet"
    write_table(TABLE, path)
    pd.testing.assert_frame_equal(pd.read_parquet(path), TABLE)
    assert parquet.ParquetFile(path).metadata.num_rows == 30
    TABLE.to_parquet(tmp_path / "stock.parquet")  # nor need a table be ours
    pd.testing.assert_frame_equal(read_table(tmp_path / "stock.parquet", ("clip",)), TABLE)


def test_a_table_larger_than_memory_may_be_is_refused_from_its_footer(tmp_path, monkeypatch):
    write_table(TABLE, tmp_path / "t.parquet")
    monkeypatch.setattr(files, "LARGEST_TABLE", 59)
    monkeypatch.setattr(pd, "read_parquet", lambda *a, **k: pytest.fail("read the table"))
    with pytest.raises(InvalidInput, match="30 rows of 2 are more than 59 cells"):
        read_table(tmp_path / "t.parquet")


def test_a_damaged_array_is_none(tmp_path):
    path = tmp_path / "a.npy"
    assert read_array(path) is None
    write_array(TABLE["clip"].to_numpy(), path)
    assert np.array_equal(read_array(path), TABLE["clip"])
    assert np.array_equal(np.load(path), TABLE["clip"])  # for everybody
    honest = path.read_bytes()
    for data in [*flips(honest, 200), honest[:-1], honest[: len(honest) // 2], b"", honest + b"x"]:
        path.write_bytes(data)
        assert read_array(path) is None


def test_a_picture_with_a_changed_bit_is_refused_or_still_the_same(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (12, 9, 3)).astype(np.uint8)
    path = tmp_path / "i.png"
    files.write_image(Image.fromarray(pixels), path)
    honest, refused = path.read_bytes(), 0
    for data in flips(honest, 300):
        path.write_bytes(data)
        try:
            assert np.array_equal(read_image(path), pixels)
        except InvalidInput as error:
            refused += str(error).startswith(f"{path} holds no image that can be read (")
    assert refused > 290  # the rest are bits that mean nothing, such as a mode of compression


def saved(size, form):
    file = io.BytesIO()
    Image.new("RGB", size).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "cannot identify"),
        (saved((8, 8), "GIF"), "cannot identify"),
        (saved((8, 8), "TIFF"), "cannot identify"),
        (saved((8, 8), "PNG")[:-20], ""),
    ],
)
def test_other_pictures_are_refused(tmp_path, data, why):
    (tmp_path / "i.png").write_bytes(data)
    with pytest.raises(InvalidInput, match=f"i.png holds no image that can be read .*{why}"):
        read_image(tmp_path / "i.png")


def test_a_picture_bomb_is_refused_from_its_head(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_IMAGE", 63)
    (tmp_path / "i.png").write_bytes(saved((8, 8), "PNG"))
    with pytest.raises(InvalidInput, match="8 x 8 pixels are more than 63"):
        read_image(tmp_path / "i.png")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: &x [1]\nb: *x", "aliases are not read"),
        ("a: &x [*x]", "aliases are not read"),
        ("a: 1\nb: 2\na: 3", "is no text, or stands there twice"),
        ("{1: 2}", "is no text"),
        ("<<: {a: 1}", "is no text"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: 2001-99-99", "month must be"),
        ("a: !!int ''", ""),
        ("[" * 600, ""),
        (b"a: \xff", "can't decode"),
        ("a: [", "line 1"),
    ],
)
def test_yaml_that_grows_hides_or_runs_is_refused(tmp_path, text, why):
    path = tmp_path / "p.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidInput, match=f"p.yaml: cannot be read as YAML .*{why}") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


def test_yaml_from_a_device_or_too_large_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InvalidInput, match="there is no such file"):
        read_yaml(Path("/dev/zero"))
    monkeypatch.setattr(files, "LARGEST_YAML", 3)
    (tmp_path / "p.yaml").write_text("a: 1")
    with pytest.raises(InvalidInput, match="more than 3 bytes"):
        read_yaml(tmp_path / "p.yaml")


@pytest.mark.parametrize(
    "name", ["/etc/x.png", "../x.png", "a/../../x.png", "..", "a/..", "", "a\\..\\x.png", "a//b", "./a", "a/"]
)
def test_paths_that_leave_a_folder_are_refused(name):
    with pytest.raises(ValueError, match="a path must be relative and lie below the folder"):
        files.check_inside(pd.Series(["a/b.png", name]))
    files.check_inside(pd.Series(["a/b.png", "..a/b..png", "a/...png"]))


# --- what is written is whole or not there


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    monkeypatch.setattr(os, "urandom", lambda n: bytes(n))
    (tmp_path / f"t.{os.getpid()}-00000000.partial").symlink_to(victim)
    with pytest.raises(FileExistsError):
        files.write_atomically(tmp_path / "t", b"data")
    assert victim.read_text() == "mine"


def _write_often(path, letter):
    for _ in range(150):
        files.write_atomically(path, letter * 200_000)


def test_writers_of_one_path_never_leave_half_a_file(tmp_path):
    """Under the temporary name that all of them shared, one would rename what another was still writing."""
    path = tmp_path / "f"
    spawn = multiprocessing.get_context("fork")
    writers = [spawn.Process(target=_write_often, args=(path, letter)) for letter in (b"a", b"b")]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            data = path.read_bytes()
            seen.add((len(data), len(set(data))))
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen <= {(200_000, 1)}
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_full_disk_is_named_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    write_table(TABLE, path)
    before, usual = path.read_bytes(), Path.open

    def full(self, mode="r", *a, **k):
        file = usual(self, mode, *a, **k)
        return Half(file) if "x" in mode else file

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match=f"cannot be written: No space left on device: '{path}'") as caught:
        write_table(TABLE.assign(clip=0.0), path)
    assert caught.value.errno == errno.ENOSPC
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]
    assert path.read_bytes() == before


# --- locks

HOLD = """
import sys, time
from pathlib import Path
from hybridlib.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds `tmp_path / ".lock"`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / ".lock")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.slow
def test_a_lock_keeps_others_out_and_dies_with_its_process(tmp_path, holder):
    with (
        pytest.raises(BlockingIOError, match=f"^another run is writing to {tmp_path}; wait until it ends"),
        locked(tmp_path / ".lock", wait=False),
    ):
        pytest.fail("entered")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(tmp_path / ".lock", wait=False):
        pass


@pytest.mark.slow
def test_who_waits_is_told(tmp_path, holder, capsys):
    began = time.monotonic()
    pid = os.fork()
    if not pid:  # ends the holder while the parent waits
        time.sleep(0.5)
        os.kill(holder.pid, signal.SIGKILL)
        os._exit(0)
    with locked(tmp_path / ".lock"):
        assert time.monotonic() > began
    os.waitpid(pid, 0)
    assert capsys.readouterr().err == f"another run is writing to {tmp_path}; waiting until it ends\n"


def test_a_lock_may_be_held_twice_by_one_process(tmp_path):
    with locked(tmp_path / ".lock"), locked(tmp_path / ".lock", wait=False):
        pass


def test_where_there_are_no_locks_a_run_goes_on_after_a_warning(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with pytest.warns(UserWarning, match="lies where there are no locks"), locked(tmp_path / ".lock"):
        pass
