"""Latents that cross a link: the published compression grids, and what they do to the final image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from ..codecs import Codec, DecimalRounding, MinMax
from ..denoising.trajectory import Trajectory
from ..denoising.tree import Tree
from ..files import (
    checksum,
    digest,
    locked,
    read_array,
    read_image,
    write_array,
    write_atomically,
    write_json,
    write_table,
)
from ..study import spent
from ..study.origin import provenance
from ..study.runner import LOCK, Outcome, generate, with_schedule

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..denoising.pipelines import HybridStableDiffusion3Pipeline
    from ..study.parameters import SamplingParameters

GUIDANCE_SCALE = 7.0  # of both published studies
RATIOS = (0.25, 0.33, 0.4, 0.5, 0.66, 0.75, 0.8, 0.9, 1.0)
RATES = (0.0, 0.25, 0.375, 0.5, 0.625, 0.6875, 0.75, 0.8125, 0.875)


def ratio_grid(
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: Sequence[int],
    ratios: Sequence[float] = RATIOS,
    num_inference_steps: int = 28,
) -> pd.DataFrame:
    """The first published study: decimal rounding right after update `step`, and one reference image a seed.

    A "ratio" r is the quantisation step, passed as scale a = round(1 / r, 2): r = 1.0 rounds every value to a whole
    number and is the coarsest setting. Published grid: one prompt, seeds 42..91, steps 2, 4, .., 24, nine ratios:
    5,400 images and 50 references. The published names hold no prompt, so each has a folder.
    """
    settings = []
    for ratio in ratios:
        codec = DecimalRounding.from_ratio(ratio)
        settings.append(_Setting(codec, str(ratio), {"ratio": ratio, "compress_scale": codec.scale}))
    names = "v1/prompt{p}/original_seed{s}.png", "v1/prompt{p}/step{i}_ratio{label}_seed{s}_compressed.png"
    return _grid(prompts, seeds, steps, settings, names, num_inference_steps)


def rate_grid(
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: Sequence[int],
    rates: Sequence[float] = RATES,
    num_inference_steps: int = 28,
) -> pd.DataFrame:
    """The second published study: min-max quantisation to round(16 (1 - rate)) bits right after update `step`.

    Published grid: 10 prompts, seeds 42..46, steps 2, 4, .., 26, nine rates: 5,850 images and 50 references.
    """
    settings = []
    for rate in rates:
        codec = MinMax.from_rate(rate)
        settings.append(_Setting(codec, f"{int(100 * rate):03d}", {"rate": rate, "bits": codec.bits}))
    names = "v2/orig_p{p}_seed{s}.png", "v2/p{p}_step{i}_rate{label}_seed{s}_compressed.png"
    return _grid(prompts, seeds, steps, settings, names, num_inference_steps)


def codec_grid(
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: Sequence[int],
    codecs: Mapping[str, Sequence[Codec]],
    num_inference_steps: int = 28,
) -> pd.DataFrame:
    """Any codecs at any steps: `codecs` maps a family's name to its settings.

    Codecs that differ in their entropy stage only share an image, so paths repeat: make the images of
    `table.drop_duplicates("path")`.
    """
    settings = []
    for family, codec in ((family, codec) for family, members in codecs.items() for codec in members):
        label = codec.quantiser.specification.replace(":", "-").replace(",", "-")
        settings.append(_Setting(codec.quantiser, label, {"family": family, "codec": codec.specification}))
    names = "codecs/prompt{p}/original_seed{s}.png", "codecs/prompt{p}/step{i}_{label}_seed{s}.png"
    return _grid(prompts, seeds, steps, settings, names, num_inference_steps)


class _Setting(NamedTuple):
    codec: Codec
    label: str  # in file names
    columns: dict[str, Any]


def _grid(
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: Sequence[int],
    settings: Sequence[_Setting],
    names: tuple[str, str],
    num_inference_steps: int,
) -> pd.DataFrame:
    """A reference for every prompt and seed, and its compressed versions; `names` are patterns of both paths."""
    rows = []
    for (p, prompt), seed in product(enumerate(prompts), seeds):
        original = names[0].format(p=p, s=seed)
        rows.append(_row(original, original, p, prompt, seed, num_inference_steps))
        for step, setting in product(steps, settings):
            path = names[1].format(p=p, s=seed, i=step, label=setting.label)
            row = _row(path, original, p, prompt, seed, num_inference_steps, step, setting.codec)
            rows.append(row | setting.columns)
    return pd.DataFrame(rows)


def _row(
    path: str,
    original: str,
    index: int,
    prompt: str,
    seed: int,
    num_inference_steps: int,
    step: int | None = None,
    codec: Codec | None = None,
) -> dict[str, Any]:
    trajectory = Trajectory.plain(prompt, seed, GUIDANCE_SCALE, num_inference_steps=num_inference_steps)
    if step is not None and codec is not None:
        if not 0 <= step < num_inference_steps - 1:
            raise ValueError(f"step must lie in 0..{num_inference_steps - 2}, so that updates remain, got {step}")
        trajectory = trajectory.with_codec(step + 1, codec)
    return {
        "path": path,
        "original": original,
        "prompt_index": index,
        "prompt": prompt,
        "seed": seed,
        "step": step,
        "trajectory": trajectory,
    }


def published_costs() -> pd.DataFrame:
    """Updates of both published grids: spent by scripts that denoise each image from the start, and needed.

    One row per study: images, updates spent, updates needed (each prefix once), and their ratio.
    """
    grids = {
        "first study": ratio_grid(["a prompt"], range(42, 92), range(2, 25, 2)),
        "second study": rate_grid([f"prompt {i}" for i in range(10)], range(42, 47), range(2, 27, 2)),
    }
    rows = {}
    for name, grid in grids.items():
        cost = Tree(list(grid["trajectory"])).cost
        spent, needed = cost.one_at_a_time // 2, cost.tree // 2  # guidance makes two evaluations of an update
        rows[name] = {"images": len(grid), "updates spent": spent, "updates needed": needed, "ratio": spent / needed}
    return pd.DataFrame.from_dict(rows, orient="index").round({"ratio": 2})


def repeated(grid: pd.DataFrame) -> pd.DataFrame:
    """The references of a grid once more, each compared with its first run: the noise floor of the measurement."""
    references = grid[grid["path"] == grid["original"]]
    return references.assign(path="repeat/" + references["path"])


# ---- what it does to the image ---------------------------------------------------------------------------------------


def run(
    table: pd.DataFrame,
    pipeline: HybridStableDiffusion3Pipeline,
    folder: Path,
    parameters: SamplingParameters,
    name: str,
) -> tuple[pd.DataFrame, Outcome]:
    """Images, distortion and provenance of a grid: `generate`, `distort`, then `<name>.json` beside the table."""
    settings = parameters.settings()
    unique = table.drop_duplicates("path")
    updates = (table["step"] + 1).fillna(settings.num_inference_steps)  # a reference meets no codec
    with locked(folder / LOCK):  # no other run changes an image before it is compared
        outcome = generate(unique, pipeline, folder, settings, cluster=parameters.cluster)
        scores = distort(with_schedule(table, updates, pipeline, settings), folder, name)
        write_json(provenance(pipeline, parameters, []), folder / f"{name}.json")
        images = (folder / path for path in unique["path"])
        spent.write(parameters, images, outcome.cost.tree, outcome.seconds, folder / f"{name}{spent.SPENT}")
    return scores, outcome


def distort(table: pd.DataFrame, folder: Path, name: str, chunk: int = 256, progress: bool = True) -> pd.DataFrame:
    """PSNR (dB) and SSIM of every image against its reference, in the published convention.

    Both on 8-bit BT.601 luma with scikit-image's definitions; the PSNR of identical images is infinite. Chunks are
    remembered by image bytes, so a killed run goes on where it stopped. Writes `folder / <name>.parquet`.

    Returns:
        The rows that are no reference themselves, without trajectories, with columns psnr, ssim, and run (prompt and
        seed, the unit to redraw in a bootstrap).
    """
    from ..denoising.sampler import progress_bar

    rows = table[table["path"] != table["original"]].drop(columns="trajectory").reset_index(drop=True)
    unique = rows[["path", "original"]].drop_duplicates("path")
    parts = []
    with progress_bar(len(unique), "compare", progress, unit="image") as bar:
        for first in range(0, len(unique), chunk):
            parts.append(_distortion(unique.iloc[first : first + chunk], folder))
            bar.update(parts[-1].shape[1])
    scores = pd.DataFrame(np.concatenate(parts, axis=1).T, index=unique["path"], columns=["psnr", "ssim"])
    rows = rows.join(scores, on="path")
    rows["run"] = rows["prompt_index"].astype(str) + ":" + rows["seed"].astype(str)
    if rows["step"].notna().all():
        rows["step"] = rows["step"].astype(int)
    write_table(rows, folder / f"{name}.parquet")
    return rows


def _distortion(pairs: pd.DataFrame, folder: Path) -> np.ndarray:
    """PSNR and SSIM (2, pairs), computed once for these bytes."""
    from ..metrics.distortion import psnr, ssim

    checksums = {path: checksum(folder / path) for path in {*pairs["path"], *pairs["original"]}}
    key = digest("grey psnr, ssim", [[checksums[a], checksums[b]] for a, b in pairs.to_numpy()])
    file = folder / ".scores" / f"{key}.npy"
    if (result := read_array(file)) is None:
        references = {path: read_image(folder / path) for path in pairs["original"].unique()}
        images = [read_image(folder / path) for path in pairs["path"]]
        originals = [references[path] for path in pairs["original"]]
        result = np.stack([rule(images, originals, grey=True) for rule in (psnr, ssim)])
        write_array(result, file)
    return result


def difference_pictures(scores: pd.DataFrame, folder: Path, columns: str, gain: float = 8.0) -> list[list[Image]]:
    """What coding changed in the images of one prompt and seed, on mid-grey and `gain` times as strong.

    Returns:
        A row per step, a column per value of `columns`, both ascending.
    """
    from PIL import Image as Pillow

    def changed(path: str, original: str) -> Image:
        image, reference = (np.asarray(read_image(folder / name), np.float64) for name in (path, original))
        return Pillow.fromarray(np.clip(128 + gain * (image - reference), 0, 255).astype(np.uint8))

    steps = [part.sort_values(columns) for _, part in scores.groupby("step")]
    return [[changed(*pair) for pair in zip(part["path"], part["original"], strict=True)] for part in steps]


def write_ratio_rows(scores: pd.DataFrame, path: Path) -> None:
    """The first study's CSV: its columns, its roundings (PSNR to 2 decimals, SSIM to 4)."""
    sheet = pd.DataFrame(
        {
            "compress_at_step": scores["step"],
            "compression_ratio": scores["ratio"],
            "compress_scale": scores["compress_scale"],
            "seed": scores["seed"],
            "original_path": scores["original"],
            "compressed_path": scores["path"],
            "PSNR": scores["psnr"].round(2),
            "SSIM": scores["ssim"].round(4),
        }
    )
    write_atomically(path, sheet.to_csv(index=False).encode())


def write_rate_rows(scores: pd.DataFrame, path: Path) -> None:
    """The second study's CSV: prompt_index, prompt_text, step, rate, seed, ssim (4 decimals)."""
    sheet = scores.rename(columns={"prompt": "prompt_text"}).assign(ssim=scores["ssim"].round(4))
    columns = ["prompt_index", "prompt_text", "step", "rate", "seed", "ssim"]
    write_atomically(path, sheet[columns].to_csv(index=False).encode())
