from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from factories import random_sd, random_unet
from PIL import Image

from hybridlib.denoising.identity import model_identity
from hybridlib.denoising.trajectory import Trajectory
from hybridlib.denoising.tree import Tree
from hybridlib.files import digest, read_image, read_table, table_of, write_image, write_table
from hybridlib.hybrid import grids
from hybridlib.prompts import PromptSet
from hybridlib.study import results
from hybridlib.study import runner as study
from hybridlib.study.parameters import AlignmentParameters, Settings
from hybridlib.study.runner import generate

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


@pytest.mark.slow
def test_same_parameters_twice_give_the_same_bytes(tiny, tmp_path):
    table = small_table()
    first = generate(table, tiny, tmp_path / "a", SETTINGS, progress=False)
    second = generate(table, tiny, tmp_path / "b", SETTINGS, progress=False)
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
    assert set(snapshot(tmp_path / "a")) == set(table["path"])
    assert first.cost == second.cost


@pytest.mark.slow
def test_a_finished_study_is_not_run_again(tiny, tmp_path, monkeypatch):
    generate(small_table(), tiny, tmp_path, SETTINGS, progress=False)
    monkeypatch.setattr(tiny.transformer, "forward", lambda *a, **k: pytest.fail("evaluated the network"))
    generate(small_table(), tiny, tmp_path, SETTINGS, progress=False)


def test_the_ledger_of_one_model_is_named_as_ever(tiny, tmp_path):
    """By model, scheduler, settings, versions and rows, and nothing of what came later."""
    table = small_table(seeds=(1,)).iloc[:1]
    generate(table, tiny, tmp_path, SETTINGS, progress=False)
    scheduler = {k: v for k, v in tiny.scheduler.config.items() if not k.startswith("_")}
    schedule = [type(tiny.scheduler).__name__, scheduler]
    settings = {"num_inference_steps": 6, "image_size": 32, "batch_size": 16, "max_sequence_length": 8, "shift": None}
    context = [model_identity(tiny.transformer), schedule, settings, study.versions().to_dict()]
    rows = [[table["path"].iloc[0], table["trajectory"].iloc[0].as_json()]]
    assert [p.stem for p in (tmp_path / ".ledger").iterdir()] == [digest(context, rows)]


@pytest.mark.slow
def test_a_ledger_tells_denoisers_and_handoffs_apart(tmp_path):
    pipeline, settings = random_sd(), SETTINGS._replace(num_inference_steps=3)
    paths = [Trajectory.plain("a ring", seed, 4.0, "", 3).with_denoisers([("", 1), ("small", 2)]) for seed in (1, 2)]
    table = pd.DataFrame({"path": ["1.png", "2.png"], "trajectory": paths})

    def pictures(seed, handoff="keep"):
        models = study.Models({"small": random_unet(width=16, seed=seed)}, handoff)
        outcome = generate(table, pipeline, tmp_path, settings, progress=False, models=models)
        assert [tuple(part) for part in outcome.cost.by_denoiser] == [("", 4, 4), ("small", 8, 8)]
        return snapshot(tmp_path)

    first = pictures(5)
    assert all(pictures(6)[name] != value for name, value in first.items())
    assert pictures(5) == first
    assert pictures(5, "reset") != first
    assert len(list((tmp_path / ".ledger").iterdir())) == 2 * 3
    with pytest.raises(ValueError, match="a segment asks for denoiser 'small'; there are ''"):
        generate(table, pipeline, tmp_path, settings, progress=False)


@pytest.mark.parametrize("damage", ["truncate", "delete", "alter"])
@pytest.mark.slow
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


@pytest.mark.slow
def test_changed_settings_are_not_mistaken_for_finished_work(tiny, tmp_path):
    table = small_table(seeds=(1,))
    generate(table, tiny, tmp_path, SETTINGS, progress=False)
    generate(table, tiny, tmp_path, SETTINGS._replace(image_size=48), progress=False)
    assert read_image(tmp_path / table["path"].iloc[0]).size == (48, 48)


def test_a_study_holds_one_tree_at_a_time(tiny, tmp_path, monkeypatch):
    """Trees of a million images would be larger than their table."""
    alive, most = weakref.WeakSet(), []

    class Watched(Tree):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            alive.add(self)
            most.append(len(alive))

    monkeypatch.setattr(study, "Tree", Watched)
    monkeypatch.setattr(study, "_run_shard", lambda *arguments: 0.0)
    generate(small_table(range(6)), tiny, tmp_path, SETTINGS, progress=False)
    assert len(most) == len(list(study.shards_of(small_table(range(6))))) > 10
    assert max(most) <= 2  # the last one goes when the next one is there


def test_shards_are_roots_in_their_order():
    table = small_table().sample(frac=1, random_state=0)  # whose index does not count up
    by_hand: dict[object, list[str]] = {}
    for path, trajectory in zip(table["path"], table["trajectory"], strict=True):
        first = trajectory.segments[0]
        by_hand.setdefault((trajectory.seed, first.conditioning, first.denoiser), []).append(path)
    assert [list(rows["path"]) for rows in study.shards_of(table)] == list(by_hand.values())
    numbered = table.assign(shard=range(len(table)))
    assert [list(rows["path"]) for rows in study.shards_of(numbered)] == [[path] for path in table["path"]]


def test_a_table_of_rows_that_are_not_held():
    rows = [{"a": i, "b": f"text {i}", "c": i % 2 == 0, "d": i / 3} for i in range(5)]
    pd.testing.assert_frame_equal(table_of(iter(rows)), pd.DataFrame(rows))
    with pytest.raises(ValueError, match=r"every row needs the columns \['a'\], got \['b'\]"):
        table_of([{"a": 1}, {"b": 2}])


def test_trajectories_share_equal_segments():
    one, other = (Trajectory.hybrid("a", "b", 3, seed, 2.0, 7.0) for seed in (1, 2))
    assert one.segments[0] is other.segments[0]
    assert one.segments[1] is other.segments[1]
    whole = Trajectory.hybrid("a", "b", 3, 1, 2, 7)  # equal numbers that JSON, and so a ledger, tells otherwise
    assert whole == one
    assert '"guidance_scale": 2,' in json.dumps(whole.as_json())
    assert '"guidance_scale": 2.0,' in json.dumps(one.as_json())
    with pytest.raises(TypeError, match="prompt must be text"):
        Trajectory.plain(["a"], 1)


def test_repeated_paths_are_refused(tiny, tmp_path):
    rows = [{"path": "a.png", "trajectory": Trajectory.plain("a", seed, num_inference_steps=6)} for seed in (1, 2)]
    with pytest.raises(ValueError, match=r"'a.png' occurs more than once"):
        generate(pd.DataFrame(rows), tiny, tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="beyond num_inference_steps=6"):
        generate(small_table().assign(trajectory=Trajectory.plain("a", 1)), tiny, tmp_path, SETTINGS)


WORKER = """
import sys
from pathlib import Path
from hybridlib.denoising import models
from hybridlib.hybrid import grids
from hybridlib.metrics.alignment import ClipAlignment
from hybridlib.metrics.fidelity import Brisque
from hybridlib.paths import ROOT
from hybridlib.prompts import PromptSet
from hybridlib.study import runner
from hybridlib.study.parameters import AlignmentParameters

p = AlignmentParameters.from_yaml(ROOT / "params" / "smoke" / "02_alignment.yaml")
table = grids.sim_sweep(
    PromptSet.load(p.prompts), p.personal_prompts, p.public_scales, p.seeds, p.common_steps
)
metrics = [ClipAlignment.load(p.clip_model), Brisque.load("shipped")]
runner.run(table, models.load(p.model), Path(sys.argv[1]), p, metrics)
"""


@pytest.mark.slow
def test_killed_runs_finish_with_identical_bytes(tmp_path):
    """The smoke profile of study 02, killed at three moments: images, table and provenance come out the same."""

    def start(folder):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        return subprocess.Popen([sys.executable, "-c", WORKER, str(folder)], env=environment)

    def files(folder):
        return [p for p in folder.rglob("*") if p.is_file()] if folder.exists() else []

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    number = len(files(whole))
    for moment in sorted(random.Random(0).uniform(0.05, 0.98) for _ in range(3)):
        process = start(killed)
        while process.poll() is None and len(files(killed)) < moment * number:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(files(killed)) < number
    for path in killed.rglob("*.png"):
        read_image(path)  # raises on a half-written file
    assert start(killed).wait() == 0
    assert snapshot(killed) == snapshot(whole)
    for name in ("scores.parquet", "scores.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert read_table(whole / "scores.parquet")["clip"].notna().all()


class Brightness:
    """A metric one can check by hand."""

    name, identity = "brightness", "mean of 8-bit values"

    def __init__(self):
        self.calls = 0

    def score(self, images, prompts):
        self.calls += 1
        return np.array([np.asarray(image).mean() + len(prompt) for image, prompt in zip(images, prompts, strict=True)])


@pytest.mark.slow
def test_scores_are_one_tidy_row_an_image(tiny, tmp_path):
    table, metric = small_table(), Brightness()
    generate(table, tiny, tmp_path, SETTINGS, progress=False)
    scores = study.score(table, tmp_path, [metric], progress=False)
    for row in scores.itertuples():
        assert row.brightness == pytest.approx(np.asarray(read_image(tmp_path / row.path)).mean() + len(row.prompt))
    assert "trajectory" not in scores
    written = read_table(tmp_path / "scores.parquet", ("brightness", "common_step"))
    pd.testing.assert_frame_equal(written, scores)
    assert written.attrs["metrics"] == {"brightness": "mean of 8-bit values"}


def test_only_what_changed_is_scored_again(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "IMAGES_PER_CHUNK", 8)
    table, metric = small_table().query("common_step == 3"), Brightness()  # at 0 the public scale changes nothing
    generate(table, tiny, tmp_path, SETTINGS, progress=False)
    first = study.score(table, tmp_path, [metric], progress=False)
    chunks = metric.calls
    assert chunks == -(-len(table) // 8)
    study.score(table, tmp_path, [metric], progress=False)
    assert metric.calls == chunks
    write_image(Image.new("RGB", (32, 32), "white"), tmp_path / table["path"].iloc[9])
    again = study.score(table, tmp_path, [metric], progress=False)
    assert metric.calls == chunks + 1
    assert (again["brightness"] != first["brightness"]).sum() == 1


def test_missing_tables_and_columns_are_named(tmp_path):
    with pytest.raises(ValueError, match="no table .*run the study that writes it first"):
        read_table(tmp_path / "nothing.parquet")
    write_table(pd.DataFrame({"a": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="lacks the column 'b'"):
        read_table(tmp_path / "a.parquet", ("a", "b"))


def test_provenance_says_what_made_a_table(tiny):
    record = study.provenance(tiny, AlignmentParameters(), [Brightness()])
    assert record["parameters"]["public_scales"] == [1.0, 3.0, 7.0]
    assert record["metrics"] == {"brightness": "mean of 8-bit values"}
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    json.dumps(record)


@pytest.mark.slow
def test_similarity_study_is_the_published_grid():
    prompts = PromptSet.load("miniature")
    grid = grids.similarity_study(prompts, grids.PUBLISHED_VARIANTS, (1, 2), range(28))
    assert len(grid) == 54_208
    names = grid["path"].str.rsplit("/", n=1).str[-1]
    assert names.nunique() == 13_552
    assert "Public21_Personal0_CommonStep27.png" in set(names)
    row = grid.set_index("path").loc["wSIM_wNPI/seed2/Public0_Personal21_CommonStep9.png"]
    public, personal = row["trajectory"].segments
    assert (public.prompt, public.stop, public.guidance_scale) == (prompts.public[0], 9, 2.0)
    assert (personal.prompt, personal.guidance_scale) == (prompts.personal[19], 8.0)
    assert personal.negative_prompt == prompts.negative[19]
    own = grid.set_index("path").loc["wSIM_wNPI/seed1/Public5_Personal1_CommonStep3.png", "trajectory"].segments[1]
    assert own.negative_prompt == ""  # public prompts have no negative


@pytest.mark.slow
def test_anchored_study_is_the_published_grid():
    grid = grids.anchored_study(PromptSet.load("miniature"), grids.LATER_VARIANTS, (1, 2, 3), range(28))
    assert len(grid) == 70_560
    names = set(grid["path"].str.rsplit("/", n=1).str[-1])
    assert {"PAnchor0_POther19_CommonStep27_Seed3.png", "Public1_Personal19_CommonStep0_Seed1.png"} <= names
    assert "PAnchor3_POther3_CommonStep0_Seed1.png" not in names


def test_factorial_variants_are_all_eight():
    settings = set(grids.FACTORIAL_VARIANTS.values())
    assert settings == {grids.Variant(a, b, c) for a in (2.0, 7.0) for b in (7.0, 8.0) for c in (False, True)}


def test_prompt_outside_the_set_is_refused():
    with pytest.raises(ValueError, match=r"personal prompt index 22 lies outside 0\.\.21"):
        grids.similarity_study(PromptSet.load("miniature"), grids.PUBLISHED_VARIANTS, (1,), (3,), (0, 22))
    with pytest.raises(ValueError, match="common_step must lie in"):
        grids.similarity_study(PromptSet.load("miniature"), grids.PUBLISHED_VARIANTS, (1,), (29,), (0, 1))


def test_results_are_taken_over_with_their_provenance(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    with pytest.raises(ValueError, match="run the study that writes it first"):
        results.take_over("toy", "02_alignment")
    row = {"path": "a.png", "common_step": 3, "public_scale": 1.0, "personal": 0, "seed": 1, "npi": True, "clip": 0.5}
    row |= {"num_inference_steps": 28, "shift": 0.35, "sigma": 0.7}
    table = pd.DataFrame([row])
    table.attrs["metrics"] = {"clip": "which"}
    write_table(table, tmp_path / "outputs" / "toy" / "sim_sweep" / "alignment.parquet")
    (tmp_path / "outputs" / "toy" / "sim_sweep" / "alignment.json").write_text("{}")
    results.take_over("toy", "02_alignment")
    taken = results.load("02_alignment")
    kept = ["common_step", "public_scale", "personal", "seed", "npi", "clip", "num_inference_steps", "shift", "sigma"]
    assert list(taken) == kept
    assert taken.attrs == {"metrics": {"clip": "which"}, "profile": "toy"}
    assert (tmp_path / "results" / "02_alignment.json").read_text() == "{}"
    own = taken.assign(clip=0.9)
    assert results.choose("02_alignment", own, "shipped", "smoke")["clip"].tolist() == [0.5]
    chosen = results.choose("02_alignment", own, "own", "smoke")
    assert (chosen["clip"].tolist(), chosen.attrs["profile"]) == ([0.9], "smoke")


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
    columns = ["public_scale", "common_step"]
    shuffled = table[table["npi"]].sample(frac=1, random_state=1)
    first = shuffled[shuffled["personal"] == shuffled["personal"].min()].sort_values(columns)
    expected = [read_image(tmp_path / path).tobytes() for path in first["path"]]
    row = study.picture_table(shuffled, tmp_path, "personal", columns)[0]
    assert [picture.tobytes() for picture in row] == expected
