from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from hybridlib import grids, study
from hybridlib.prompts import PromptSet
from hybridlib.study import Settings, generate, read_image
from hybridlib.trajectory import Trajectory

SETTINGS = Settings(num_inference_steps=6, image_size=32, batch_size=16, max_sequence_length=8)


def small_table(seeds=(1, 2)):
    return grids.sim_sweep(PromptSet.load("miniature"), [0, 10], [0.0, 2.0], seeds, [0, 3], 8.0, 6)


def snapshot(folder: Path) -> dict[str, str]:
    files = list(folder.rglob("*.png"))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_published_file_names():
    prompts = PromptSet.load("miniature")
    sim = grids.sim_sweep(prompts, range(20), range(8), (1, 2, 3), range(3, 22, 3))
    npi = grids.npi_set(prompts, range(20), range(1, 10), range(3, 22, 3))
    assert (len(sim), len(npi)) == (6720, 2520)
    names = set(sim["path"].str.rsplit("/").str[-1])
    assert len(names) == 960
    assert {"scale0_prompt0_seed1_wNPG.png", "scale7_prompt19_seed3_woNPG.png"} <= names
    assert set(npi["path"].str.rsplit("/").str[-1]) >= {"prompt0_seed1_wNPG.png", "prompt19_seed9_woNPG.png"}
    assert sim["path"].is_unique
    assert sim["path"].str.rsplit("/").str[-2].nunique() == 7


def test_public_prompt_follows_the_group():
    prompts = PromptSet.load("miniature")
    sim = grids.sim_sweep(prompts, [9, 10], [2.0], [1], [3])
    assert [t.segments[0].prompt for t in sim["trajectory"]] == [prompts.public[0]] * 2 + [prompts.public[1]] * 2
    assert [t.segments[1].negative_prompt for t in sim["trajectory"]] == [
        prompts.negative[9],
        "",
        prompts.negative[10],
        "",
    ]


def test_same_parameters_twice_give_the_same_bytes(tiny, tmp_path):
    table = small_table()
    first = generate(table, tiny, tmp_path / "a", SETTINGS, progress=False)
    second = generate(table, tiny, tmp_path / "b", SETTINGS, progress=False)
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
    assert set(snapshot(tmp_path / "a")) == set(table["path"])
    assert first.cost == second.cost


def test_a_finished_study_is_not_run_again(tiny, tmp_path, monkeypatch):
    generate(small_table(), tiny, tmp_path, SETTINGS, progress=False)
    monkeypatch.setattr(tiny.transformer, "forward", lambda *a, **k: pytest.fail("evaluated the network"))
    generate(small_table(), tiny, tmp_path, SETTINGS, progress=False)


@pytest.mark.parametrize("damage", ["truncate", "delete", "alter"])
def test_damaged_images_are_made_again(tiny, tmp_path, damage):
    table = small_table()
    generate(table, tiny, tmp_path, SETTINGS, progress=False)
    whole = snapshot(tmp_path)
    victim = tmp_path / table["path"].iloc[5]
    data = victim.read_bytes()
    if damage == "delete":
        victim.unlink()
    else:
        victim.write_bytes(data[: len(data) // 2] if damage == "truncate" else data[:-1] + b"x")
    generate(table, tiny, tmp_path, SETTINGS, progress=False)
    assert snapshot(tmp_path) == whole


def test_changed_settings_are_not_mistaken_for_finished_work(tiny, tmp_path):
    table = small_table(seeds=(1,))
    generate(table, tiny, tmp_path, SETTINGS, progress=False)
    generate(table, tiny, tmp_path, SETTINGS._replace(image_size=48), progress=False)
    assert read_image(tmp_path / table["path"].iloc[0]).size == (48, 48)


def test_repeated_paths_are_refused(tiny, tmp_path):
    rows = [{"path": "a.png", "trajectory": Trajectory.plain("a", seed, num_inference_steps=6)} for seed in (1, 2)]
    with pytest.raises(ValueError, match=r"'a.png' occurs more than once"):
        generate(pd.DataFrame(rows), tiny, tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="beyond num_inference_steps=6"):
        generate(small_table().assign(trajectory=Trajectory.plain("a", 1)), tiny, tmp_path, SETTINGS)


WORKER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from factories import random_sd3
from test_study import SETTINGS, small_table
from hybridlib.study import generate
generate(small_table(seeds=range(1, 9)), random_sd3(), Path(sys.argv[1]), SETTINGS, progress=False)
"""


@pytest.mark.slow
def test_killed_runs_finish_with_identical_bytes(tmp_path):
    code = WORKER.format(tests=str(Path(__file__).parent))

    def start(folder):
        return subprocess.Popen([sys.executable, "-c", code, str(folder)], env=os.environ | {"OMP_NUM_THREADS": "1"})

    assert start(tmp_path / "whole").wait() == 0
    images = len(snapshot(tmp_path / "whole"))
    for share in (0.2, 0.6):  # kill once this share of the images is there
        process = start(tmp_path / "killed")
        while process.poll() is None and len(snapshot_names(tmp_path / "killed")) < share * images:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(snapshot_names(tmp_path / "killed")) < images
    for path in (tmp_path / "killed").rglob("*.png"):
        read_image(path)  # raises on a half-written file
    assert start(tmp_path / "killed").wait() == 0
    assert snapshot(tmp_path / "killed") == snapshot(tmp_path / "whole")


def snapshot_names(folder: Path) -> list[Path]:
    return list(folder.rglob("*.png"))


def test_cost_table_and_pictures(tiny, tmp_path):
    table = small_table(seeds=(1,))
    outcome = generate(table, tiny, tmp_path, SETTINGS, progress=False)
    spend = grids.published_spend(table)
    costs = study.cost_table({"sim": (spend.nfe, outcome)})
    # by hand, per prompt: public runs of 1 and 4 steps at scale 0 (1 NFE) and 2 (2 NFE), two personal runs each
    assert spend.nfe == 2 * ((1 + 4) * (1 + 2) + 2 * 2 * (6 + 3) * 2)
    assert costs.loc["sim", "images"] == len(table)
    pictures = study.picture_table(table[table["npi"]], tmp_path, ["personal", "public_scale"], "common_step")
    assert (len(pictures), len(pictures[0])) == (4, 2)
    assert pictures[0][0].size == (32, 32)
