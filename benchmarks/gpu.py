"""True size on the GPU that is there: stock diffusers against the tree, and the peaks of memory plans, in one run.

Stock diffusers one image at a time, stock with its best batch, and ours make the images of three slices of studies:
similarity (one public prompt, each personal prompt at every common step), SIM + NPI, and compression (a codec after
each update). Told are seconds an image, denoiser evaluations (NFE) a second, peak memory, and the share of what a
large matrix product reaches on the same device. Then each memory plan: its peak beside what it had estimated, and how
far its latents lie from those of the resident plan; and each speed option.

Without a folder of weights they are random: speed and memory do not depend on their values. What the images show does,
so none are kept. Without a GPU tiny models run, which shows that the program works, not how fast anything is; unless
`--device cpu` asks for true size on the CPU, which takes an hour for small images.

`python benchmarks/gpu.py --size sd3-medium --personal 4 --write`

`--parts plans` measures one part, and keeps the rows of others that the same device has measured before.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import diffusers
import pandas as pd
import torch
import transformers
from transformers import T5TokenizerFast

from hybridlib.codecs import MinMax
from hybridlib.denoising import memory, models
from hybridlib.denoising.blueprints import BLUEPRINTS, Blueprint, random_pipeline
from hybridlib.denoising.costs import work
from hybridlib.denoising.families import denoiser_of, nfe_of
from hybridlib.denoising.footprint import needs_of
from hybridlib.denoising.sampler import sample
from hybridlib.denoising.speed import SPEED, apply_speed
from hybridlib.denoising.trajectory import Trajectory
from hybridlib.denoising.tree import Tree
from hybridlib.files import write_atomically, write_json, write_table
from hybridlib.miniature.tokens import build_tokenizer
from hybridlib.paths import OUTPUTS, ROOT
from hybridlib.prompts import PromptSet

PAGE = ROOT / "docs" / "performance.md"
BEGIN = {"cuda": "<!-- measured on a GPU -->", "cpu": "<!-- measured on a CPU -->"}
END = "<!-- end -->"
CLIP_TOKENS = 77
PARTS = ("slices", "plans", "speed")
_TINY_CLIP = {"vocab_size": 1024, "hidden_size": 16, "intermediate_size": 32, "projection_dim": 16}
_TINY_CLIP |= {
    "bos_token_id": 1022,
    "eos_token_id": 1023,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": CLIP_TOKENS,
}
_TINY = {  # SD3 made small, with every kind of part
    "text_encoder": _TINY_CLIP,
    "text_encoder_2": _TINY_CLIP,
    "text_encoder_3": {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 2},
    "transformer": {
        **{"sample_size": 8, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4},
        **{"joint_attention_dim": 32, "caption_projection_dim": 32, "pooled_projection_dim": 32},
        "pos_embed_max_size": 12,
    },
    "vae": {"block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 64},
}


@dataclass
class Job:
    """What is measured, on what."""

    device: torch.device
    blueprint: Blueprint
    folder: str | None
    dtype: torch.dtype
    side: int
    steps: int
    batch_size: int
    tokens: int = 256

    def pipeline(self, device: torch.device | str) -> Any:
        """A fresh pipeline, always of the same weights."""
        if self.folder:
            return models.load(self.folder, str(device), str(self.dtype).removeprefix("torch."))
        made = random_pipeline(self.blueprint, tokenizers(self.blueprint), self.device, self.dtype)
        return made.to(device)

    def run(self, pipeline: Any, paths: Sequence[Trajectory], batch_size: int | None = None) -> torch.Tensor:
        """The images of a slice by the tree, decoded and dropped; returns the latents."""
        size = {"height": self.side, "width": self.side, "max_sequence_length": self.tokens}
        samples = sample(pipeline, paths, batch_size=batch_size or self.batch_size, progress=False, **size)
        for _ in samples.each_image():
            pass
        return samples.latents()

    def stock(self, pipeline: Any, path: Trajectory, images: int = 1) -> None:
        """One stock call for whole personal images. It cannot begin in the middle of the schedule."""
        segment, prompts = path.segments[-1], [path.segments[-1].prompt] * images
        negative = (
            {} if "Flux" in self.blueprint.pipeline else {"negative_prompt": [segment.negative_prompt] * len(prompts)}
        )
        pipeline(
            prompts,
            guidance_scale=segment.guidance_scale,
            num_inference_steps=self.steps,
            height=self.side,
            width=self.side,
            max_sequence_length=self.tokens,
            generator=[torch.Generator().manual_seed(path.seed) for _ in prompts],
            **negative,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    given = _parser().parse_args(arguments)
    for library in (diffusers, transformers):  # the stand-in tokenizers cut prompts short
        library.utils.logging.set_verbosity_error()
    device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu" and given.device is None and given.size != "tiny":
        print(
            f"no GPU here: {given.size} would take hours; tiny models run instead, and nothing is written to the docs "
            f"(--device cpu runs {given.size})"
        )
        given.size = "tiny"
    if device.type == "cpu" and given.size != "tiny" and "plans" in given.parts:
        raise SystemExit("on a CPU memory plans have nowhere to move weights: leave plans out of --parts")
    if given.size == "tiny":
        given.write = False
    job = _job(given, device)
    facts = describe(job, given.size)
    print("\n".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
    rows = []
    for part in given.parts:
        measure = {"slices": measure_slices, "plans": measure_plans, "speed": measure_speed}[part]
        rows += [{"part": part} | row for row in measure(job, given, facts)]
    folder = given.out or OUTPUTS / "benchmarks" / "gpu"
    rows = kept_rows(folder / f"{given.size}.json", facts, given.parts) + rows
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    write_table(table, folder / f"{given.size}.parquet")
    write_json(
        {"facts": facts, "rows": table.astype(object).where(table.notna(), None).to_dict("records")},
        folder / f"{given.size}.json",
    )
    print(f"wrote {folder / given.size}.parquet and .json")
    if given.write:
        write_page(facts, table, PAGE, BEGIN[device.type])
        print(f"wrote {PAGE}")


def _job(given: argparse.Namespace, device: torch.device) -> Job:
    dtype = getattr(torch, given.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    if given.size == "tiny":
        whole = BLUEPRINTS["sd3-medium"]
        parts = {name: (kind, {**config, **_TINY[name]}) for name, (kind, config) in whole.networks.items()}
        return Job(device, whole._replace(networks=parts), given.model, dtype, 64, 4, 8, tokens=16)
    blueprint = BLUEPRINTS[given.size]
    tokens = 512 if "Flux" in blueprint.pipeline else 256
    return Job(device, blueprint, given.model, dtype, given.image_size, given.steps, given.batch_size, tokens)


def tokenizers(blueprint: Blueprint) -> dict[str, Any]:
    """Stand-ins that pad to the true lengths: what a prompt costs does not depend on its words."""
    made: dict[str, Any] = {}
    for name, (kind, _) in blueprint.networks.items():
        if name.startswith("text_encoder"):
            if kind == "T5EncoderModel":
                pieces = [
                    ("<pad>", 0.0),
                    ("</s>", 0.0),
                    ("<unk>", 0.0),
                    *((c, -3.0) for c in "abcdefghijklmnopqrstuvwxyz"),
                ]
                tokenizer = T5TokenizerFast(vocab=pieces, extra_ids=0)
            else:
                tokenizer = build_tokenizer()
                tokenizer.model_max_length = CLIP_TOKENS
            made[name.replace("text_encoder", "tokenizer")] = tokenizer
    return made


def slices(personal: int, steps: int, flux: bool) -> dict[str, list[Trajectory]]:
    """The trajectories of each slice; FLUX.1 takes no negative prompt, and its scales are lower."""
    prompts = PromptSet.load("miniature")
    public, low, high = prompts.public[0], 1.5 if flux else 2.0, 3.5 if flux else 7.0
    few = sorted({max(1, steps * part // 28) for part in (3, 12, 21)})

    def path(j: int, step: int, scale: float, negative: str = "") -> Trajectory:
        return Trajectory.hybrid(public, prompts.personal[j], step, 1, scale, high, negative, steps)

    negatives = ("",) if flux else ("", prompts.negative[0])
    plain = Trajectory.plain(prompts.personal[0], 1, high, "", steps)
    return {
        "similarity": [path(j, step, high) for j in range(personal) for step in range(steps)],
        "SIM + NPI": [path(j, step, low, n) for j in range(min(personal, 4)) for step in few for n in negatives],
        "compression": [plain.with_codec(step, MinMax(8)) for step in range(1, steps)],
    }


def measure_slices(job: Job, given: argparse.Namespace, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Stock one at a time, stock with its best batch, ours: a row each for every slice."""
    pipeline = job.pipeline(job.device)
    denoiser = denoiser_of(pipeline, max_sequence_length=job.tokens)
    flops = work(denoiser, job.side, job.side).flops
    plain = getattr(diffusers, job.blueprint.pipeline)(**pipeline.components)
    plain.set_progress_bar_config(disable=True)
    rows, best, peak_flops = [], None, facts["matrix product (TFLOP/s)"] * 1e12

    def add(name: str, side: str, images: int, seconds: float, nfe: float, peak: float, stock: list[float]) -> None:
        rate, each = nfe * images / seconds, seconds / images
        row = {"slice": name, "side": side, "images": images, "seconds an image": each}
        row |= {"NFE an image": nfe, "NFE a second": rate, "peak GB": peak}
        row |= {"share of matrix product": rate * flops / peak_flops}
        row |= {"time / stock": each / mean(stock), "least": each / max(stock), "most": each / min(stock)}
        rows.append(row)
        print(row, flush=True)

    for name, paths in slices(given.personal, job.steps, "Flux" in job.blueprint.pipeline).items():
        tree = Tree(paths, nfe=nfe_of({"": denoiser}))
        nfe = denoiser.nfe(paths[0].segments[-1].conditioning) * job.steps
        chosen = paths[:: max(1, len(paths) // given.stock_images)][: given.stock_images]
        job.stock(plain, chosen[0])  # warm
        alone = [timed(lambda path=path: job.stock(plain, path), job.device) for path in chosen]
        stock = [seconds for seconds, _ in alone]
        add(name, "stock, one at a time", len(chosen), sum(stock), nfe, max(peak for _, peak in alone), stock)
        best = best or best_batch(job, plain, chosen[0])  # a whole image costs the same in every slice
        add(name, "stock, best batch", *best[:2], nfe, best[2], stock)
        job.run(pipeline, paths[:2])  # warm
        seconds, peak = timed(lambda paths=paths: job.run(pipeline, paths), job.device)
        add(name, "ours", len(paths), seconds, tree.cost.tree / len(paths), peak, stock)
    return rows


def best_batch(job: Job, plain: Any, path: Trajectory) -> tuple[int, float, float]:
    """Images, seconds and peak of the stock call that is fastest an image, of batches that double while that gains."""
    best: tuple[int, float, float] | None = None
    for number in (2, 4, 8, 16, 32):
        try:
            seconds, peak = timed(lambda number=number: job.stock(plain, path, number), job.device)
        except torch.OutOfMemoryError:
            break
        if best is not None and seconds / number > 0.97 * best[1] / best[0]:
            break
        best = (number, seconds, peak)
    if best is None:
        raise RuntimeError("not even two images fit the device with stock diffusers")
    return best


def measure_plans(job: Job, given: argparse.Namespace, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Every placement: its peak and its estimate, its time, and how far its latents are from the resident ones."""
    paths, rows, reference = slices(2, job.steps, "Flux" in job.blueprint.pipeline)["SIM + NPI"], [], None
    _, needs = needs_of(job.blueprint, str(job.dtype).removeprefix("torch."), job.side)
    for placement in memory.PLACEMENTS:
        _clear()
        pipeline = job.pipeline("cpu" if placement != "resident" else job.device)
        _clear()
        batches = {"batch_size": 4, "decode_batch_size": 1, "text_batch_size": 4 if "stream" in placement else 1}
        plan = memory.MemoryPlan("", job.side, "", placement, "full", needs=needs, **batches)
        memory.follow(pipeline, plan, job.device) if job.device.type == "cuda" else _attend(pipeline, plan)
        latents: list[torch.Tensor] = []
        seconds, peak = timed(lambda p=pipeline, kept=latents: kept.append(job.run(p, paths)), job.device)
        reference = latents[0].float().cpu() if reference is None else reference
        far = (latents[0].float().cpu() - reference).abs().max().item()
        row = {
            "slice": "memory plan",
            "side": placement,
            "images": len(paths),
            "seconds an image": seconds / len(paths),
        }
        rows.append(row | {"peak GB": peak, "estimated peak GB": plan.peak / 1e9, "latents differ by": far})
        print(rows[-1], flush=True)
        del pipeline
    return rows


def _attend(pipeline: Any, plan: memory.MemoryPlan) -> None:
    """A plan as on a GPU, the CPU standing in for it, so that its code runs here, too."""
    memory.place(pipeline, plan.placement, torch.device("cpu"))
    pipeline.memory_plan, pipeline.encoded_texts = plan, {}


def measure_speed(job: Job, given: argparse.Namespace, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The compression slice, whose rows keep their number, plain and with each speed option; the second run counts."""
    rows = []
    for options in ((), *((name,) for name in SPEED), tuple(SPEED)):
        if "compile" in options and job.device.type == "cpu":
            continue
        _clear()
        pipeline = apply_speed(job.pipeline(job.device), options)
        paths = slices(1, job.steps, "Flux" in job.blueprint.pipeline)["compression"][:8]
        job.run(pipeline, paths)
        seconds, peak = timed(lambda p=pipeline, paths=paths: job.run(p, paths), job.device)
        row = {"slice": "speed option", "side": " + ".join(options) or "none", "images": len(paths)}
        rows.append(row | {"seconds an image": seconds / len(paths), "peak GB": peak})
        print(rows[-1], flush=True)
        del pipeline
    return rows


def kept_rows(file: Path, facts: dict[str, Any], parts: Sequence[str]) -> list[dict[str, Any]]:
    """What an earlier run measured of other parts, on the same device, model and versions."""
    if not file.is_file():
        return []
    record = json.loads(file.read_text(encoding="utf-8"))
    same = all(record["facts"][name] == facts[name] for name in ("device", "model", "job", "versions"))
    return [row for row in record["rows"] if same and row["part"] not in parts]


def timed(run: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Seconds, and the most memory that PyTorch held on the device in GB (nan on a CPU)."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    run()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return seconds, torch.cuda.max_memory_allocated() / 1e9 if on_gpu else float("nan")


def matrix_product(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of a large square matrix product: the best of ten."""
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = min(timed(lambda: left @ right, device)[0] for _ in range(10))
    return 2 * side**3 / seconds / 1e12


def describe(job: Job, size: str) -> dict[str, Any]:
    """Machine, versions, and what is measured."""
    on_gpu = job.device.type == "cuda"
    machine = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    versions = ", ".join(f"{name} {version(name)}" for name in ("hybridlib", "torch", "diffusers", "transformers"))
    return {
        "device": machine,
        "memory (GB)": round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1) if on_gpu else None,
        "matrix product (TFLOP/s)": matrix_product(job.device, job.dtype),
        "model": f"{size}, {f'weights of {job.folder}' if job.folder else 'random weights'}, {job.dtype}",
        "job": f"{job.side} pixels, {job.steps} steps, at most {job.batch_size} evaluations in a forward",
        "versions": f"{versions}, CUDA {torch.version.cuda}, Python {platform.python_version()}",
        "date": date.today().isoformat(),
    }


def write_page(facts: dict[str, Any], table: pd.DataFrame, page: Path, begin: str) -> None:
    """Put the tables into the page, after the mark of the device."""
    lines = [f"- {name}: {value}" for name, value in facts.items() if value is not None]
    for kind, rows in table.groupby("part", sort=False):
        lines += ["", f"**{kind}**", "", *table_lines(rows.drop(columns="part").dropna(axis=1, how="all"))]
    put_between(page, begin, lines)


def table_lines(shown: pd.DataFrame) -> list[str]:
    """A table in Markdown, numbers to three digits."""
    cells = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row] for row in shown.to_numpy()]
    head = ["| " + " | ".join(shown.columns) + " |", "|---" * len(shown.columns) + "|"]
    return head + ["| " + " | ".join(row) + " |" for row in cells]


def put_between(page: Path, begin: str, lines: Sequence[str]) -> None:
    """Replace what a page has between a mark and the next end."""
    head, _, rest = page.read_text(encoding="utf-8").partition(begin)
    write_atomically(page, "\n".join([head + begin, "", *lines, "", END + rest.partition(END)[2]]).encode())


def _clear() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="sd3-medium", choices=[*BLUEPRINTS, "tiny"], help="which model (sd3-medium)")
    parser.add_argument("--model", help="a folder with its weights; random ones by default")
    parser.add_argument("--device", choices=BEGIN, help="cuda where there is a GPU; cpu runs true size on the CPU")
    parser.add_argument("--dtype", choices=models.DTYPES, help="bfloat16 by default, float32 on a CPU")
    parser.add_argument("--image-size", type=int, default=1024, help="pixels (1024)")
    parser.add_argument("--steps", type=int, default=28, help="of the schedule (28)")
    parser.add_argument("--batch-size", type=int, default=16, help="most evaluations in a forward of ours (16)")
    parser.add_argument("--personal", type=int, default=20, help="personal prompts of the similarity slice (20)")
    parser.add_argument("--stock-images", type=int, default=4, help="images that stock makes one at a time (4)")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="what is measured; a later run adds")
    parser.add_argument("--out", type=Path, help="folder of table and JSON (outputs/benchmarks/gpu)")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/performance.md")
    return parser


if __name__ == "__main__":
    main()
