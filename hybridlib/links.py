"""Latents that cross a link: the published compression grids, what they do to the image, and how many bytes they are.

A published strength is compared at its measured rate: the bytes that a codec really makes, header and side information
included, never the name of the setting.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from .codecs import Codec, DecimalRounding, MinMax
from .codecs.message import Message
from .files import read_image, write_atomically, write_table
from .trajectory import Trajectory

if TYPE_CHECKING:
    from PIL.Image import Image

    from .pipelines import HybridStableDiffusion3Pipeline
    from .study import Settings

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


# ---- what it does to the image ---------------------------------------------------------------------------------------


def distort(table: pd.DataFrame, folder: Path, name: str, chunk: int = 256) -> pd.DataFrame:
    """PSNR (dB) and SSIM of every compressed image against its reference, in the published convention.

    Both on 8-bit BT.601 luma with scikit-image's definitions; the PSNR of identical images is infinite. Writes
    `folder / <name>.parquet`.

    Returns:
        The rows with a step, without trajectories, with columns psnr and ssim.
    """
    from .metrics.distortion import psnr, ssim

    rows = table[table["step"].notna()].drop(columns="trajectory").reset_index(drop=True)
    scores: dict[str, list[np.ndarray]] = {"psnr": [], "ssim": []}
    for first in range(0, len(rows), chunk):
        part = rows.iloc[first : first + chunk]
        references = {path: read_image(folder / path) for path in part["original"].unique()}
        images = [read_image(folder / path) for path in part["path"]]
        originals = [references[path] for path in part["original"]]
        scores["psnr"].append(psnr(images, originals, grey=True))
        scores["ssim"].append(ssim(images, originals, grey=True))
    rows["step"] = rows["step"].astype(int)
    for column, parts in scores.items():
        rows[column] = np.concatenate(parts)
    write_table(rows, folder / f"{name}.parquet")
    return rows


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


# ---- how many bytes it is --------------------------------------------------------------------------------------------


def measure_rates(
    pipeline: HybridStableDiffusion3Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: Sequence[int],
    codecs: Mapping[str, Sequence[Codec]],
    settings: Settings,
) -> pd.DataFrame:
    """Bytes of the latents after update `step`, as every codec really writes them.

    Returns:
        One row per prompt, seed, step and codec: family, codec, prompt_index, seed, step, message_bytes (with header),
        payload_bytes, bits_per_value (of the message), latent_mse.
    """
    from .sampler import sample

    paths = [
        Trajectory.plain(prompt, seed, GUIDANCE_SCALE, num_inference_steps=settings.num_inference_steps)
        for prompt in prompts
        for seed in seeds
    ]
    samples = sample(pipeline, paths, keep=[step + 1 for step in steps], **settings.sampling())
    rows = []
    for step in steps:
        latents = samples.latents(step + 1).float().cpu()
        for family, codec in ((name, codec) for name, settings_ in codecs.items() for codec in settings_):
            noise = [path.seed for path in paths]
            errors = (codec.quantise(latents, noise) - latents).square().mean(dim=(1, 2, 3)).tolist()
            for number, message in enumerate(codec.encode(latents, noise)):
                index, seed = divmod(number, len(seeds))
                rows.append(
                    {
                        "family": family,
                        "codec": codec.specification,
                        "prompt_index": index,
                        "seed": seeds[seed],
                        "step": step,
                        "message_bytes": len(message),
                        "payload_bytes": len(Message.open(message).payload),
                        "bits_per_value": 8 * len(message) / latents[0].numel(),
                        "latent_mse": errors[number],
                    }
                )
    return pd.DataFrame(rows)


def image_rates(images: Iterable[Image], qualities: Sequence[int] = (50, 75, 90, 95)) -> pd.DataFrame:
    """Bytes and PSNR of final images as PNG, WebP and JPEG: what it costs to send the picture instead of latents."""
    from PIL import Image as Pillow

    from .metrics.distortion import psnr

    images = list(images)
    formats: list[tuple[str, dict[str, Any]]] = [("PNG", {"optimize": True}), ("WebP lossless", {"lossless": True})]
    formats += [(f"{name} {quality}", {"quality": quality}) for name in ("WebP", "JPEG") for quality in qualities]
    rows = []
    for name, options in formats:
        sizes, decoded = [], []
        for image in images:
            buffer = BytesIO()
            image.save(buffer, name.split()[0], **options)
            sizes.append(buffer.tell())
            decoded.append(Pillow.open(buffer).convert("RGB"))
        rows.append((name, float(np.mean(sizes)), float(np.mean(psnr(decoded, images, grey=True)))))
    return pd.DataFrame(rows, columns=["format", "bytes", "psnr"])


def cheapest(rates: pd.DataFrame, quality: str, floor: float) -> pd.DataFrame:
    """The setting of fewest bytes at each step whose mean `quality` is at least `floor`.

    Args:
        rates: one row per image: step, family, codec, message_bytes and the quality's column.

    Returns:
        One row per step that has such a setting: step, family, codec, and the means of message_bytes and quality.
    """
    means = rates.groupby(["step", "family", "codec"], as_index=False)[["message_bytes", quality]].mean()
    enough = means[means[quality] >= floor]
    return enough.loc[enough.groupby("step")["message_bytes"].idxmin()].reset_index(drop=True)


def best_step(rates: pd.DataFrame, quality: str, budget_bytes: float) -> pd.DataFrame:
    """For each codec family the step and setting of best mean `quality` within a byte budget."""
    means = rates.groupby(["step", "family", "codec"], as_index=False)[["message_bytes", quality]].mean()
    affordable = means[means["message_bytes"] <= budget_bytes]
    return affordable.loc[affordable.groupby("family")[quality].idxmax()].reset_index(drop=True)
