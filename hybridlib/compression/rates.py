"""Latents on a link at measured rates: bytes that codecs really make, and what quality they buy.

A published strength is compared by its bytes, header and side information included, never by the name of the setting.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..codecs import Adaptive, Codec, DecimalRounding, MinMax
from ..denoising.trajectory import Trajectory
from ..files import write_json, write_table
from ..intervals import Array, interval, resamples
from ..study.origin import provenance
from ..study.runner import SCHEDULE_COLUMNS
from . import grids

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..denoising.pipelines import HybridStableDiffusion3Pipeline
    from ..study.parameters import CompressionParameters, Settings


def families(steps: Sequence[float], bits: Sequence[int], adaptive_steps: Sequence[float]) -> dict[str, list[Codec]]:
    """The codecs that the study compares, by family.

    Args:
        steps: quantisation steps of the published rounding, its "ratios".
        bits: of the published min-max quantiser, at most 8.
        adaptive_steps: quantisation steps of ours.
    """
    return {
        "adaptive (ours)": [Adaptive(step) for step in adaptive_steps],
        "rounding, deflate": [DecimalRounding.from_ratio(step, "deflate") for step in steps],
        "rounding, range coder": [DecimalRounding.from_ratio(step) for step in steps],
        "min-max, range coder": [MinMax(b) for b in bits],
        "min-max, as WebP": [MinMax(b, "webp") for b in bits],
    }


def run(
    prompts: Sequence[str], pipeline: HybridStableDiffusion3Pipeline, folder: Path, parameters: CompressionParameters
) -> pd.DataFrame:
    """Bytes and image quality of every codec that the parameters name; writes `folder / links.parquet`.

    Returns:
        What `measure_rates` returns, with original (path of the reference image), run, psnr and ssim.
    """
    seeds, steps = parameters.link_seeds, parameters.link_steps
    codecs = families(parameters.rounding_steps, parameters.min_max_bits, parameters.adaptive_steps)
    grid = grids.codec_grid(prompts, seeds, steps, codecs, parameters.num_inference_steps)
    scores, _ = grids.run(grid, pipeline, folder, parameters, "link_images")
    rates = measure_rates(pipeline, prompts, seeds, steps, codecs, parameters.settings())
    keys = ["family", "codec", "prompt_index", "seed", "step"]
    table = rates.merge(
        scores[[*keys, *SCHEDULE_COLUMNS, "original", "run", "psnr", "ssim"]], on=keys, validate="one_to_one"
    )
    write_table(table, folder / "links.parquet")
    write_json(provenance(pipeline, parameters, []), folder / "links.json")
    return table


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
        bits_per_value (of the message), latent_mse.
    """
    from ..denoising.sampler import sample

    paths = [
        Trajectory.plain(prompt, seed, grids.GUIDANCE_SCALE, num_inference_steps=settings.num_inference_steps)
        for prompt in prompts
        for seed in seeds
    ]
    samples = sample(pipeline, paths, keep=[step + 1 for step in steps], **settings.sampling())
    rows = []
    for step in steps:
        latents = samples.latents(step + 1).cpu()
        for family, codec in ((name, codec) for name, members in codecs.items() for codec in members):
            noise = [path.seed for path in paths]
            decoded = codec.quantise(latents, noise)
            errors = (decoded.float() - latents.float()).square().mean(dim=(1, 2, 3)).tolist()
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
                        "bits_per_value": 8 * len(message) / latents[0].numel(),
                        "latent_mse": errors[number],
                    }
                )
    return pd.DataFrame(rows)


def raw_bytes(rates: pd.DataFrame) -> float:
    """Bytes of the same latents as 16-bit floats."""
    return float((16 * rates["message_bytes"] / rates["bits_per_value"]).mean())


def image_rates(images: Iterable[Image], qualities: Sequence[int] = (50, 75, 90, 95)) -> pd.DataFrame:
    """Bytes and PSNR of final images as PNG, WebP and JPEG: what it costs to send the picture instead of latents."""
    from PIL import Image as Pillow

    from ..metrics.distortion import psnr

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


def bytes_at(rates: pd.DataFrame, quality: str, target: float) -> pd.DataFrame:
    """Bytes that each family needs at each step for a mean `quality` of `target`, interpolated between its settings.

    Between two settings log bytes are linear in quality. A family that is better than the target at its coarsest
    setting is charged that setting; one that never reaches the target has no number.

    Returns:
        One row per step, one column per family.
    """
    means = rates.groupby(["step", "family", "codec"], as_index=False, sort=False)[["message_bytes", quality]].mean()
    lines = means.groupby(["step", "family"], sort=False)[["message_bytes", quality]]
    needed = lines.apply(lambda line: _bytes_at(line["message_bytes"].to_numpy(), line[quality].to_numpy(), target))
    return needed.unstack("family")[list(dict.fromkeys(rates["family"]))].sort_index()


def _bytes_at(sizes: Array, quality: Array, target: float) -> float:
    order = np.argsort(sizes, kind="stable")
    best = np.maximum.accumulate(quality[order])  # more bytes never have to be worse
    if target > best[-1]:
        return float("nan")
    return float(np.exp(np.interp(target, best, np.log(sizes[order]))))


def savings(
    rates: pd.DataFrame, ours: str, reference: str, quality: str = "psnr", rounds: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Bytes of a family relative to those of a reference family's settings, at the quality that these reach.

    Returns:
        One row per step and setting of the reference: step, codec, its mean message_bytes and quality, ratio (1 is no
        saving), low and high (95 % bootstrap over runs, both families redrawn together). There is no ratio where the
        family never reaches the target, and no interval where it fails to in a draw.
    """
    part = rates[rates["family"].isin([ours, reference])]
    sizes, scores = (
        part.pivot(index="run", columns=["family", "step", "codec"], values=v) for v in ("message_bytes", quality)
    )
    if sizes.isna().any().any():
        raise ValueError("every run needs every step and setting of both families")
    weights = np.vstack([np.ones(len(sizes)), resamples(len(sizes), rounds, seed)]) / len(sizes)
    mean_sizes = pd.DataFrame(weights @ sizes.to_numpy(), columns=sizes.columns)
    mean_scores = pd.DataFrame(weights @ scores.to_numpy(), columns=sizes.columns)
    rows = []
    for step in sorted(part["step"].unique()):
        a, q = mean_sizes[ours][step].to_numpy(), mean_scores[ours][step].to_numpy()
        for codec in mean_sizes[reference][step]:
            b, target = mean_sizes[reference][step][codec].to_numpy(), mean_scores[reference][step][codec].to_numpy()
            ratios = np.array([_bytes_at(*line) for line in zip(a, q, target, strict=True)]) / b
            known = np.isfinite(ratios).all()  # else ours never reaches the target in some draw
            rows.append((step, codec, b[0], target[0], ratios[0], *interval(ratios[1:] if known else [])))
    return pd.DataFrame(rows, columns=["step", "codec", "message_bytes", quality, "ratio", "low", "high"])
