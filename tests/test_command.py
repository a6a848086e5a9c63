"""The console command: what it prints, what it refuses, and that nothing starts in a dry run."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys

import pandas as pd
import pytest
from PIL import Image

from hybridlib import __main__ as command
from hybridlib.__main__ import main
from hybridlib.commands import estimates, evaluate, explore
from hybridlib.metrics import named
from hybridlib.paths import MODELS, ROOT
from hybridlib.study import reproduce, spent
from hybridlib.study.parameters import STUDIES


def test_help_is_quick_because_it_imports_nothing_heavy():
    code = """
import sys
from hybridlib.__main__ import main
try:
    main(["--help"])
except SystemExit:
    pass
print({"torch", "pandas", "pydantic", "numpy", "yaml", "diffusers"} & set(sys.modules))
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(name in output for name in command.COMMANDS)
    assert output.strip().endswith("set()")


def test_trained_names_are_those_of_the_trainers():
    from hybridlib.miniature.zoo import TRAINERS

    assert list(command.TRAINED) == list(TRAINERS)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["reprodce"], "error: no command 'reprodce'; did you mean 'reproduce'"),
        (["reproduce", "smok"], "error: no profile 'smok' in params/; did you mean 'smoke'"),
        (["train", "mini-sd4"], "error: no model to train 'mini-sd4'; did you mean 'mini-sd"),
        (["explore", "--port", "0"], "error: port must lie in 1..65535, got 0"),
        (["plan", "--similarity", "0.5", "--quality-floor", "2"], "error: quality floor must lie above 0"),
        (["plan", "--similarity", "0.5", "--steps", "0"], "error: steps must lie in 1..1000, got 0"),
        (["plan", "--similarity", "0.5", "--shift", "-1"], "error: shift must lie above 0"),
        (["plan", "--similarity", "0.5", "--users", "0"], "error: users must be at least 1, got 0"),
    ],
)
def test_what_is_refused_is_one_sentence(capsys, arguments, sentence):
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith(sentence)
    assert told.count("\n") == 1


# --- dry runs


def test_a_dry_run_counts_what_the_studies_make_and_starts_nothing(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(spent, "OUTPUTS", tmp_path)  # runs of one's own would be preferred
    monkeypatch.setattr(reproduce, "reproduce", lambda *a: pytest.fail("started"))
    assert main(["reproduce", "smoke", "--notebooks", "02", "03", "04", "--dry-run"]) == 0
    told = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in told.splitlines() if line}
    # 6 prompts x 3 scales x 1 seed x 3 common steps x with and without negative, each image once for both studies.
    assert lines["02_alignment"][1] == lines["all"][1] == "108"
    assert lines["03_fidelity"][1] == lines["04_similarity"][1] == "0"
    assert "its images are those of a study before it" in told
    assert "05_image_quality, profile miniature-full: 54,208 images" in told
    assert told.endswith("Nothing was started.\n")


def test_counts_are_those_of_the_notebooks():
    """Against what the committed smoke notebooks printed when they really ran."""
    tasks = {task.name: task for task in reproduce.collect("smoke", ["01", "07"])}
    found = {e.name: e for e in estimates.of_studies(list(tasks.values()))}
    notebook = json.loads((ROOT / "notebooks" / "01_figures.ipynb").read_text())
    text = next(
        "".join(o["data"]["text/html"])
        for c in notebook["cells"]
        if "runner.cost_table(" in "".join(c["source"])
        for o in c["outputs"]
    )
    (table,) = [pd.DataFrame(rows) for rows in [_html_rows(text)]]
    assert found["01_figures"].images == table["images"].sum()
    assert found["01_figures"].nfe == table["NFE tree"].sum()
    assert found["01_figures"].one_at_a_time == table["NFE one image at a time"].sum()
    assert found["07_compression_surface"].images > 0


def _html_rows(text):
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in re.findall(r"<tr.*?</tr>", text, re.S)]
    return [dict(zip(rows[0][1:], map(float, row[1:]), strict=True)) for row in rows[1:]]


def test_time_and_disk_are_scaled_from_a_known_run(monkeypatch, tmp_path):
    known = spent.Spent("05, profile x", "mini-sd3", 64, images=100, nfe=1000, seconds=50.0, bytes=700, machine="m")
    (tmp_path / "p" / "05").mkdir(parents=True)
    (tmp_path / "p" / "05" / "scores.spent.json").write_text(json.dumps(known._asdict()))
    monkeypatch.setattr(spent, "OUTPUTS", tmp_path)
    assert spent.known("mini-sd3", 64) == [known]
    assert spent.known("mini-sd3", 128) == []
    (task,) = reproduce.collect("smoke", ["02"])
    monkeypatch.setattr(estimates, "OUTPUTS", tmp_path)
    (estimate,) = estimates.of_studies([task])
    assert estimate.seconds == pytest.approx(estimate.nfe * 0.05)
    assert estimate.bytes == pytest.approx(108 * 7)
    there = tmp_path / "smoke" / "sim_sweep"
    for _, table in estimates._grids(task.checked):
        for path in table["path"].iloc[:27]:
            (there / path).parent.mkdir(parents=True, exist_ok=True)
            (there / path).touch()
    (later,) = estimates.of_studies([task])
    assert (later.here, later.seconds) == (27, pytest.approx(0.75 * estimate.seconds))


def test_an_unknown_model_has_no_time_but_a_most_of_disk():
    own = STUDIES["02_alignment"](model="stabilityai/sd3", image_size=1024)
    (estimate,) = estimates.of_studies([reproduce.Task(ROOT / "02_alignment.ipynb", ROOT, own)])
    assert estimate.seconds is None
    assert estimate.bytes == 108 * 3 * 1024**2
    assert "time is not" in estimate.basis


def test_a_training_is_told_by_the_one_that_shipped(capsys):
    assert main(["train", "mini-clip", "--dry-run"]) == 0
    told = capsys.readouterr().out
    recipe = json.loads((MODELS / "mini-clip" / "training.json").read_text())["clip"]["recipe"]
    assert f"{recipe['steps']:,} updates of {recipe['batch_size']} images" in told
    assert told.endswith("Nothing was started.\n")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (120, "2 min"), (5399, "90 min"), (7200, "2.0 h")]
)
def test_durations(seconds, text):
    assert spent.duration(seconds) == text


# --- evaluate


@pytest.fixture
def images(tmp_path):
    """Three images with prompts in a CSV file."""
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{number}.png")
    rows = {"path": [f"{i}.png" for i in range(3)], "prompt": ["a star"] * 3, "kind": ["a", "b", "c"]}
    pd.DataFrame(rows).to_csv(tmp_path / "p.csv", index=False)
    return tmp_path


class Redness:
    """A metric one can check by hand."""

    name, identity = "brisque", "share of red"
    calls = 0

    def score(self, images, prompts):
        Redness.calls += 1
        return pd.Series([image.getpixel((0, 0))[0] / 255 for image in images]).to_numpy()


def test_a_folder_is_scored_once(images, monkeypatch, capsys):
    monkeypatch.setattr(named, "load", lambda name: Redness())
    arguments = ["evaluate", str(images), "--prompts", str(images / "p.csv"), "--metrics", "brisque"]
    for _ in range(2):
        assert main(arguments) == 0
    assert Redness.calls == 1  # the second run remembers
    table = pd.read_parquet(images / "scores.parquet")
    assert table["brisque"].tolist() == [1.0, 0.0, 0.0]
    assert table["kind"].tolist() == ["a", "b", "c"]
    assert table.attrs["metrics"] == {"brisque": "share of red"}
    assert "mean 0.3333" in capsys.readouterr().out
    Image.new("RGB", (64, 64), "white").save(images / "1.png")
    main(arguments)
    assert pd.read_parquet(images / "scores.parquet")["brisque"].tolist() == [1.0, 1.0, 0.0]


def test_a_dry_run_scores_nothing(images, monkeypatch, capsys):
    monkeypatch.setattr(named, "load", lambda name: pytest.fail("loaded a metric"))
    csv = str(images / "p.csv")
    for metric, time in (("brisque", "time: 1 s"), ("clip", "time: not known, because that of clip is not")):
        assert main(["evaluate", str(images), "--prompts", csv, "--metrics", metric, "--dry-run"]) == 0
        told = capsys.readouterr().out
        assert told.startswith(f"3 images (0.0 MB to read), {metric}: 3 scores\nNFE: 0")
        assert time in told
    assert not (images / "scores.parquet").exists()


@pytest.mark.parametrize(
    ("csv", "metrics", "sentence"),
    [
        ("path,prompt\n0.png,a", ["brisk"], "no metric 'brisk'; did you mean 'brisque'"),
        ("path,prompt\n0.png,a", ["musiq:x"], "musiq has no variants"),
        ("path,prompt\n0.png,a", ["clip", "clip:mini-clip"], "name it once"),
        ("path,text\n0.png,a", ["brisque"], "column 'prompt' is missing"),
        ("path,prompt\n9.png,a", ["brisque"], "no image"),
        ("path,prompt\n0.png,", ["brisque"], "the prompt of 0.png is empty"),
        ("path,prompt\n0.png,a\n0.png,b", ["brisque"], "'0.png' occurs more than once"),
        ("path,prompt", ["brisque"], "names no image"),
        ("", ["brisque"], "cannot be read as CSV"),
    ],
)
def test_bad_folders_are_refused(images, csv, metrics, sentence):
    (images / "p.csv").write_text(csv)
    with pytest.raises(ValueError, match=sentence):
        evaluate.evaluate(images, images / "p.csv", metrics)


def test_metrics_by_name():
    assert named.load("clip:mini-clip", "cpu").name == "clip"
    assert named.load("brisque").name == "brisque"
    with pytest.raises(ValueError, match="no shipped model"):
        named.load("clip:nothing")


# --- plan and explore


def test_a_plan_is_the_planners(capsys):
    from hybridlib.hybrid import hiqm, planning
    from hybridlib.study import results

    assert main(["plan", "--similarity", "0.6", "--quality-floor", "0.9", "--steps", "14", "--users", "4"]) == 0
    told = capsys.readouterr().out
    scores = results.load("05_anchored")
    shared, alone = (hiqm.cube(scores, variant) for variant in ("wSIM", "woSIM"))
    # SD3's published rule for the noise levels of a shift, written out: s t / (1 + (s - 1) t), t from 1 to 1/1000.
    t = pd.Series([1 - i * (1 - 1 / 1000) / 13 for i in range(14)])
    t = 0.35 * t / (1 + (0.35 - 1) * t)
    expected = planning.fit_surface(shared.retained(alone)).max_common_step(0.6, 0.9, t)
    k = expected.common_step
    assert f"common step {k}: the mean quality is expected at {expected.quality:.2f} ({expected.low:.2f} to" in told
    assert f"4 users: {2 * (k + 4 * (14 - k))} NFE, {2 * 4 * 14} one at a time" in told


@pytest.fixture
def by_hand(monkeypatch):
    """A surface and a comparison of prompts that need neither tables nor MiniLM."""
    import sharing_cases

    from hybridlib.hybrid.sharing import planner

    encoded = planner.encoded
    monkeypatch.setattr(planner, "shipped_surface", lambda *scales: sharing_cases.SURFACE)
    monkeypatch.setattr(planner, "encoded", lambda texts, similarity: encoded(texts, sharing_cases.words))


def test_a_list_of_prompts_is_planned_and_told(by_hand, capsys, tmp_path):
    from sharing_cases import PROMPTS, SIGMAS, SURFACE, words

    from hybridlib.hybrid import share

    file = tmp_path / "prompts.txt"
    file.write_text("\n".join([*PROMPTS[:5], "", PROMPTS[0]]) + "\n")
    assert main(["share", str(file), "--floor", "0.8", "--seeds", "1", "2", "--dry-run"]) == 0
    told = capsys.readouterr().out
    plan = share([*PROMPTS[:5], PROMPTS[0]], 0.8, sigmas=SIGMAS, surface=SURFACE, similarity=words)
    assert told.startswith("6 prompts, 1 of them repeated\n")
    assert f"{2 * plan.nfe:,} NFE for 2 seed(s); one at a time {2 * 6 * 56:,}" in told
    assert told.endswith("Nothing was started.\n")
    assert main(["share", str(file), "--floor", "1", "--each", "--dry-run"]) == 0
    assert "nothing is shared" in capsys.readouterr().out


def test_a_list_of_prompts_is_drawn(by_hand, capsys, tmp_path):
    import json

    from PIL import Image

    file, out = tmp_path / "prompts.txt", tmp_path / "drawn"
    file.write_text("a red star\na blue star\na red star\n")
    assert main(["share", str(file), "--floor", "0.5", "--steps", "4", "--seeds", "1", "2", "--out", str(out)]) == 0
    assert "6 images in" in capsys.readouterr().out
    images = sorted(path.name for path in out.glob("prompt*.png"))
    assert images == [f"prompt{number}_seed{seed}.png" for number in range(3) for seed in (1, 2)]
    assert (out / images[0]).read_bytes() == (out / images[4]).read_bytes()  # the same prompt and seed
    assert (out / images[0]).read_bytes() != (out / images[2]).read_bytes()
    told = json.loads((out / "plan.json").read_text())
    assert sorted(name for prompt in told["prompts"] for name in prompt["images"]) == images
    with Image.open(out / "tree.png") as tree:
        assert tree.width > tree.height > 50


def test_a_list_may_have_as_few_steps_as_its_floor_allows(by_hand, capsys, tmp_path):
    from sharing_cases import PROMPTS

    from hybridlib.hybrid.sharing.quality import kept_by_steps
    from hybridlib.study import results

    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS[:5]) + "\n")
    kept = kept_by_steps(results.load("13_steps"), 5)
    floor = (kept[10] + kept[12]) / 2  # 12 steps keep it by themselves
    assert main(["share", str(file), "--floor", f"{floor}", "--steps", "any", "--dry-run"]) == 0
    told = capsys.readouterr().out
    steps = int(re.search(r"(\d+) steps instead of 28", told)[1])
    assert steps >= 12
    assert kept[steps] >= floor
    nfe = int(re.search(r"([\d,]+) NFE", told)[1].replace(",", ""))
    assert nfe <= 5 * 2 * 12
    assert f"one at a time {5 * 2 * 28}" in told


@pytest.mark.parametrize(
    ("text", "arguments", "sentence"),
    [
        (None, ["--dry-run"], "error: no file"),
        ("\n \n", ["--dry-run"], "error: .* holds no prompt"),
        ("a star", [], "error: images need a folder: pass --out"),
        ("a star", ["--seeds", "1", "1", "--dry-run"], "error: seeds must be different, got 1 1"),
        ("a star", ["--floor", "1.5", "--dry-run"], "error: quality_floor must lie above 0"),
        ("a star", ["--conditioning", "blnd", "--dry-run"], "error: no conditioning 'blnd'; did you mean 'blend'"),
        ("a star", ["--steps", "few", "--dry-run"], "error: num_inference_steps must be a number, or 'any', got 'few'"),
        ("a star", ["--budget", "3", "--dry-run"], "error: budget must be at least 56 NFE"),
    ],
)
def test_a_list_that_cannot_be_planned_is_refused(by_hand, capsys, tmp_path, text, arguments, sentence):
    file = tmp_path / "prompts.txt"
    if text is not None:
        file.write_text(text)
    assert main(["share", str(file), *arguments]) == 2
    told = capsys.readouterr().err
    assert re.match(sentence, told)
    assert told.count("\n") == 1


def test_a_port_in_use_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(explore.subprocess, "run", lambda *a, **k: pytest.fail("started JupyterLab"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["explore", "--port", str(port)]) == 2
    assert capsys.readouterr().err == f"error: port {port} is in use; choose another one, such as --port {port + 1}\n"


def test_explore_opens_notebook_00(monkeypatch):
    commands = []

    def note(command):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(explore.subprocess, "run", note)
    monkeypatch.setattr(explore, "in_use", lambda port: False)
    assert main(["explore", "--port", "8899", "--no-browser"]) == 0
    assert str(ROOT / "notebooks" / "00_explorer.ipynb") in commands[0]
    assert {"--port=8899", "--no-browser"} <= {*commands[0]}
