"""The GPU benchmark runs whole on tiny models; plans are followed on a GPU that is only pretended, byte by byte."""

from __future__ import annotations

import importlib.util
import json
import sys

import diffusers
import pandas as pd
import pytest
import torch

from hybridlib.codecs import codec
from hybridlib.denoising import memory, models, texts
from hybridlib.denoising.blueprints import BLUEPRINTS
from hybridlib.denoising.footprint import needs_of
from hybridlib.denoising.tree import Tree
from hybridlib.paths import ROOT


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses, and benchmarks each other, look modules up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gpu():
    yield loaded("gpu")
    del sys.modules["gpu"]


@pytest.fixture(scope="module")
def pretended(gpu):
    yield loaded("pretended")
    del sys.modules["pretended"]


def test_slices_have_the_published_number_of_evaluations(gpu):
    """1 public prompt, 20 personal ones, 28 common steps: 0.52 of what one image at a time takes."""
    paths = gpu.slices(20, 28, flux=False)["similarity"]
    cost = Tree(paths).cost
    assert (len(paths), cost.tree, cost.one_at_a_time) == (560, 2 * (27 + 20 * sum(range(1, 29))), 2 * 560 * 28)
    assert round(cost.tree / cost.one_at_a_time, 2) == 0.52
    for paths in gpu.slices(4, 28, flux=True).values():
        segments = [segment for path in paths for segment in path.segments]
        assert not any(segment.negative_prompt for segment in segments)
        assert all(segment.guidance_scale >= 1 for segment in segments)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the model does not know")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.1)])  # a GPU's is bfloat16
def test_it_runs_whole_where_there_is_no_gpu(gpu, tmp_path, capsys, monkeypatch, dtype, tolerance):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    page = ROOT / "docs" / "performance.md"
    before = page.read_bytes()
    options = ["--personal", "2", "--stock-images", "1", "--dtype", dtype, "--out", str(tmp_path), "--write"]
    gpu.main(["--size", "sd3-medium", *options])
    told = capsys.readouterr().out
    assert "no GPU here: sd3-medium would take hours; tiny models run instead" in told
    assert "random weights" in told
    assert page.read_bytes() == before  # tiny models say nothing of speed
    table = pd.read_parquet(tmp_path / "tiny.parquet")
    record = json.loads((tmp_path / "tiny.json").read_text())
    assert len(record["rows"]) == len(table)
    assert record["facts"]["matrix product (TFLOP/s)"] > 0
    sides = ["stock, one at a time", "stock, best batch", "ours"]
    for name, rows in table[table["side"].isin(sides)].groupby("slice"):
        assert list(rows["side"]) == sides, name
        assert (rows["seconds an image"] > 0).all()
        assert rows["NFE an image"].iloc[:2].tolist() == [8.0, 8.0]  # 4 guided steps
        assert rows["NFE an image"].iloc[2] < 8
    ours = table[(table["slice"] == "similarity") & (table["side"] == "ours")].iloc[0]
    assert ours["images"] == 8
    assert ours["NFE an image"] == 2 * (3 + 2 * 10) / 8
    plans = table[table["slice"] == "memory plan"].set_index("side")
    assert list(plans.index) == list(memory.PLACEMENTS)
    assert plans["latents differ by"].max() < tolerance
    assert plans.loc["resident", "latents differ by"] == 0
    assert set(table[table["slice"] == "speed option"]["side"]) == {"none", "channels_last"}


@pytest.mark.slow
def test_true_size_on_a_cpu_has_to_be_asked_for(gpu, capsys, monkeypatch):
    with pytest.raises(SystemExit, match="on a CPU memory plans have nowhere to move weights: leave plans out"):
        gpu.main(["--size", "sd3-medium", "--device", "cpu"])
    monkeypatch.setattr(gpu.Job, "pipeline", lambda self, device: pytest.fail(f"{self.blueprint}, {self.side} pixels"))
    with pytest.raises(pytest.fail.Exception, match="StableDiffusion3Pipeline.*, 256 pixels"):
        gpu.main(["--size", "sd3-medium", "--device", "cpu", "--image-size", "256", "--parts", "slices"])
    assert "tiny" not in capsys.readouterr().out


def test_the_page_keeps_what_is_around_the_tables(gpu, tmp_path):
    page, begin = tmp_path / "performance.md", gpu.BEGIN["cuda"]
    after = f"After.\n\n{gpu.BEGIN['cpu']}\n\nof a CPU\n\n{gpu.END}\n"
    page.write_text(f"# Title\n\n{begin}\n\nold\n\n{gpu.END}\n\n{after}")
    rows = [{"part": "slices", "slice": "similarity", "side": "ours", "images": 8, "seconds an image": 0.12345}]
    rows += [{"part": "plans", "slice": "memory plan", "side": "stream", "images": 2, "peak GB": 7.9}]
    for _ in range(2):
        gpu.write_page({"device": "a GPU"}, pd.DataFrame(rows), page, begin)
    text = page.read_text()
    assert text.startswith(f"# Title\n\n{begin}\n\n- device: a GPU\n")
    assert text.endswith(f"\n{gpu.END}\n\n{after}")
    assert "old" not in text
    assert "| similarity | ours | 8 | 0.123 |" in text
    assert "| memory plan | stream | 2 | 7.9 |" in text
    slices = text.split("**slices**")[1].split("**plans**")[0]
    assert "peak GB" not in slices  # a column that is empty in a table is left out
    shipped = (ROOT / "docs" / "performance.md").read_text()
    assert [shipped.count(mark) for mark in gpu.BEGIN.values()] == [1, 1]


def test_a_later_run_of_one_part_keeps_the_others_of_the_same_device(gpu, tmp_path):
    facts = {"device": "a GPU", "model": "m", "job": "j", "versions": "v"}
    rows = [{"part": "slices", "images": 1}, {"part": "plans", "images": 2}]
    (tmp_path / "x.json").write_text(json.dumps({"facts": facts, "rows": rows}))
    assert gpu.kept_rows(tmp_path / "x.json", facts, ["plans"]) == rows[:1]
    assert gpu.kept_rows(tmp_path / "x.json", facts | {"versions": "w"}, ["plans"]) == []
    assert gpu.kept_rows(tmp_path / "none.json", facts, ["plans"]) == []


# --- on a GPU that is not there


POSITIONS = 2e-6  # GB of integers that a plan leaves out: the numbers of CLIP's positions


def tiny_plan(gpu, placement):
    parts = gpu._job(gpu._parser().parse_args(["--size", "tiny"]), torch.device("cpu")).blueprint
    side, needs = needs_of(parts, "bfloat16", 64)
    batches = {"batch_size": 8, "decode_batch_size": 2, "text_batch_size": 4 if "stream" in placement else 1}
    return parts, memory.MemoryPlan("tiny", side, "bfloat16", placement, "full", needs=needs, **batches)


@pytest.mark.slow
@pytest.mark.parametrize("placement", memory.PLACEMENTS)
def test_a_plan_stays_below_what_it_says(gpu, pretended, placement):
    """Every tensor of a run is counted where it lies; one that lies elsewhere than its partner stops the run."""
    parts, plan = tiny_plan(gpu, placement)
    before = torch.nn.Module._apply, torch.Tensor.pin_memory, torch.cuda.Stream
    row = pretended.count(parts, plan, 64, 32)
    assert (torch.nn.Module._apply, torch.Tensor.pin_memory, torch.cuda.Stream) == before
    at_rest = 0 if placement == "model" else plan.on_device / 1e9  # that one fetches a part when it is asked for
    assert row["weights GB"] == pytest.approx(at_rest, abs=POSITIONS)
    assert row["peak GB"] == max(row["reading GB"], row["walking GB"], row["decoding GB"])
    assert at_rest < row["peak GB"] <= row["planned GB"]


@pytest.mark.slow
def test_what_is_left_on_another_device_is_found(gpu, pretended, monkeypatch):
    parts, plan = tiny_plan(gpu, "stream text")
    monkeypatch.setattr(
        texts.EncodesTexts,
        "_encoded",
        lambda self, asked: tuple(
            torch.cat(rows) for rows in zip(*(self._embeds[text] for text in asked), strict=True)
        ),
    )
    with pytest.raises(RuntimeError, match="cpu.*cuda|cuda.*cpu"):
        pretended.count(parts, plan, 4, 4)


@pytest.mark.slow
def test_encoders_that_stay_are_counted(gpu, pretended, monkeypatch):
    parts, plan = tiny_plan(gpu, "stream text")
    monkeypatch.setattr(memory, "place", lambda pipeline, placement, device: pipeline.to(device))
    row = pretended.count(parts, plan, 4, 4)
    assert row["weights GB"] == pytest.approx(sum(plan.needs.weights.values()) / 1e9, abs=POSITIONS)
    assert row["weights GB"] > 1.2 * plan.on_device / 1e9


@pytest.mark.slow
def test_sd3_medium_in_8_gb_byte_by_byte(pretended):
    """The promise of the plan at true size, with T5 used: 256 images in work, 128 prompts."""
    plan = models.plan("sd3-medium", 8)
    row = pretended.count(BLUEPRINTS["sd3-medium"], plan)
    assert plan.placement == "stream text"
    assert 0.9 * row["planned GB"] < row["peak GB"] <= row["planned GB"] <= 8
    (line,) = pretended.table_lines(pd.DataFrame([row]))[2:]
    assert f"| sd3-medium | 8 | stream text {line}" in pretended.PAGE.read_text()  # as shipped


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_benchmark_of_a_gpu_runs_on_a_pretended_one(gpu, pretended, monkeypatch):
    """Every line that a GPU would run, stock diffusers and compiled blocks included; what needs values is given."""
    job = gpu._job(gpu._parser().parse_args(["--size", "tiny", "--dtype", "bfloat16"]), torch.device("cuda"))
    given = gpu._parser().parse_args(["--size", "tiny", "--personal", "2", "--stock-images", "2"])
    parts, compiled = job.blueprint, []
    networks = [{name: pretended.network(*entry) for name, entry in parts.networks.items()} for _ in range(9)]
    made = [pretended.assemble(parts, found, gpu.tokenizers(parts)) for found in networks]
    needs = needs_of(parts, "bfloat16", job.side)
    flops = gpu.work(gpu.denoiser_of(made[0], max_sequence_length=job.tokens), job.side, job.side)

    def pipeline(*_):
        for part in parts.networks:
            pretended._without_values(getattr(made[-1], part), torch.bfloat16)
        return made.pop().to("cuda")

    def timed(run, device):
        run()
        return 1.0, 0.1

    for owner, name, stand_in in (
        (gpu, "random_pipeline", pipeline),
        (gpu, "needs_of", lambda *_: needs),
        (gpu, "work", lambda *_: flops),
        (gpu, "timed", timed),
        (gpu, "_clear", lambda: None),
        (torch, "equal", lambda *_: True),  # whether a prompt was cut
        (torch.Tensor, "item", lambda _: 0.0),  # by how much latents differ
        (torch.nn.Module, "compile", lambda module, **_: compiled.append(type(module).__name__)),
        (diffusers.FlowMatchEulerDiscreteScheduler, "_init_step_index", lambda s, _: setattr(s, "_step_index", 0)),
        (diffusers.image_processor.VaeImageProcessor, "postprocess", lambda _, pictures, **o: [None] * len(pictures)),
        (codec.RowCodec, "quantise", lambda _, latents, seeds=None: latents.cpu().to(latents.device)),
    ):
        monkeypatch.setattr(owner, name, stand_in)
    with pretended.pretended_gpu():
        rows = gpu.measure_slices(job, given, {"matrix product (TFLOP/s)": 1.0})
        rows += gpu.measure_plans(job, given, {})
        rows += gpu.measure_speed(job, given, {})
    sides = [row["side"] for row in rows]
    assert sides[:3] == ["stock, one at a time", "stock, best batch", "ours"]
    assert sides[9:] == [*memory.PLACEMENTS, "none", "compile", "channels_last", "compile + channels_last"]
    assert compiled == ["JointTransformerBlock"] * 4  # two blocks, twice
