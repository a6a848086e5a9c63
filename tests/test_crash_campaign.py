"""The crash campaign finds nothing lost where nothing is, and all that a careless study loses."""

from __future__ import annotations

import importlib.util
import random
import sys

import pytest

from hybridlib.paths import ROOT

CAREFUL = """
import sys, time
from pathlib import Path
import pandas as pd
from hybridlib.files import write_table
from hybridlib.study.pieces import remembered

folder = Path(sys.argv[1])

def piece(number):
    time.sleep(0.05)
    return pd.DataFrame({"piece": [number] * 3, "value": range(3)})

parts = [remembered(folder, str(number), lambda: piece(number)) for number in range(12)]
table = pd.concat(parts, ignore_index=True)
write_table(table.assign(seconds=time.time()), folder / "all.parquet")
"""
# Says that a piece is there before it is.
CARELESS = CAREFUL.replace(
    "parts = [remembered(folder, str(number), lambda: piece(number)) for number in range(12)]",
    """
parts = []
for number in range(12):
    mark = folder / f"{number}.done"
    if not mark.exists():
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        write_table(piece(number), folder / "pieces" / f"{number}.parquet")
parts = [pd.read_parquet(path) for path in sorted((folder / "pieces").iterdir())]
""",
)


@pytest.fixture(scope="module")
def crash():
    spec = importlib.util.spec_from_file_location("crash_campaign", ROOT / "benchmarks" / "campaigns" / "crash.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.slow
@pytest.mark.parametrize(("study", "is_whole"), [(CAREFUL, True), (CARELESS, False)])
def test_a_campaign_counts_what_is_lost(crash, tmp_path, study, is_whole):
    command = [sys.executable, "-c", study, str(tmp_path / "run")]
    report = crash.campaign("toy", command, tmp_path / "run", tmp_path / "kept", 3, random.Random(1))
    assert report.varying == ["all.parquet seconds"]  # a time, and nothing else
    assert report.runs >= 3 + report.kills
    assert report.kills == 3
    assert report.rows == 2 * 36
    assert report.whole == is_whole
    assert (report.rows_lost > 0) == (not is_whole)
    assert report.rows_wrong == 0 or not is_whole


def test_rows_are_counted_one_by_one(crash, tmp_path):
    import pandas as pd

    from hybridlib.files import write_table

    table = pd.DataFrame({"a": [1, 2, 3], "b": [0.5, None, 1.5]})
    table.attrs["metrics"] = {"b": "x"}
    others = {
        "same": table,
        "other": table.assign(a=[1, 5, 6]),
        "short": table.head(2),
        "named": table.rename(columns={"a": "c"}),
    }
    for name, other in others.items():
        write_table(other, tmp_path / f"{name}.parquet")
    whole = tmp_path / "whole.parquet"
    write_table(table.assign(a=[1, 2, 3]), whole)
    assert crash.differing(whole, tmp_path / "same.parquet") == set()
    assert crash.differing(whole, tmp_path / "other.parquet") == {"a"}
    assert crash._rows_apart(whole, tmp_path / "other.parquet", {"a"}) == (0, 2)
    assert crash._rows_apart(whole, tmp_path / "short.parquet", {""}) == (1, 0)
    assert crash._rows_apart(whole, tmp_path / "named.parquet", {""}) == (3, 0)
    told = table.copy()
    told.attrs["metrics"] = {"b": "y"}
    write_table(told, tmp_path / "told.parquet")
    assert crash.differing(whole, tmp_path / "told.parquet") == {""}


def test_arrays_are_compared_by_what_they_hold(crash, tmp_path):
    import torch
    from safetensors.torch import save

    def written(name, tensors, notes):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(save(tensors, notes))
        return path

    notes = {str(number): str(number) for number in range(20)}
    tensors = {"a": torch.arange(4.0), "b": torch.tensor([float("nan")])}
    files = [written(f"same {i}", tensors, notes) for i in range(4)]
    assert len({path.read_bytes() for path in files}) > 1  # their notes stand in no order
    assert not any(crash.differing(files[0], path) for path in files)
    others = [tensors | {"a": torch.tensor([0.0, 1.0, 2.0, 3.0001])}, tensors | {"a": torch.arange(4)}, {}]
    for other in others:
        assert crash.differing(files[0], written("other", other, notes)) == {""}
    assert crash.differing(files[0], written("other", tensors, notes | {"0": "1"})) == {""}
