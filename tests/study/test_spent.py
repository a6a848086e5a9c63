from __future__ import annotations

import json

from hybridlib.hybrid import grids
from hybridlib.prompts import PromptSet
from hybridlib.study import results, runner, spent
from hybridlib.study.parameters import SamplingParameters


def test_a_run_leaves_what_it_took(tiny, tmp_path):
    parameters = SamplingParameters(num_inference_steps=3, image_size=32, max_sequence_length=8, model="tiny")
    table = grids.sim_sweep(PromptSet.load("miniature"), [0], [2.0], [1], [0, 1], 8.0, 3)
    _, outcome = runner.run(table, tiny, tmp_path, parameters, [])
    record = spent.Spent(**json.loads((tmp_path / "scores.spent.json").read_text()))
    # With and without negative: each alone for 3 updates, and for 2 after a shared one; all guided.
    assert (record.images, record.nfe) == (4, 2 * (2 * 3 + 1 + 2 * 2)) == (outcome.images, outcome.cost.tree)
    assert record.bytes == sum(path.stat().st_size for path in tmp_path.rglob("*.png"))
    assert abs(record.seconds - outcome.seconds) <= 0.05
    assert (record.model, record.image_size) == ("tiny", 32)


def test_own_runs_come_before_shipped_ones_unless_they_are_short(tmp_path, monkeypatch):
    record = spent.Spent("05, profile x", "mini-sd3", 64, images=10, nfe=100, seconds=60.0, bytes=1000, machine="m")
    monkeypatch.setattr(spent, "OUTPUTS", tmp_path)
    shipped = spent.known("mini-sd3", 64)
    assert shipped[0].images == 54_208
    (tmp_path / "p" / "s").mkdir(parents=True)
    for seconds, expected in ((2.0, shipped), (60.0, [record])):
        own = record._replace(seconds=seconds)
        (tmp_path / "p" / "s" / "scores.spent.json").write_text(json.dumps(own._asdict()))
        assert spent.known("mini-sd3", 64) == expected


def test_what_a_full_run_took_is_taken_over_with_its_table(tmp_path, monkeypatch):
    source = tmp_path / "full" / "sim_sweep"
    table = results.load("02_alignment").head(3)
    monkeypatch.setattr(results, "OUTPUTS", tmp_path)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    results.write_table(table, source / "alignment.parquet")
    (source / "alignment.json").write_text("{}")
    results.take_over("full", "02_alignment")
    assert not (tmp_path / "results" / "02_alignment.spent.json").exists()  # an older run does not tell
    (source / "alignment.spent.json").write_text("{1}")
    results.take_over("full", "02_alignment")
    assert (tmp_path / "results" / "02_alignment.spent.json").read_text() == "{1}"
