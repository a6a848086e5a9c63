"""Metrics in batches against the published way: one image after another, its prompt encoded again each time.

Both sides run in one process on the same machine, in turn, on the same PNG files of 64x64 pixels, once with the images
in memory and once with reading them, which costs both sides the same. There are 20 distinct prompts, as many as the
studies have. For CLIP the published side is open_clip's own transform, tokeniser and model; for BRISQUE it is
`piq.brisque` with its support vectors kept in memory. Prints ratios of time with their spread over rounds, and the
largest difference between the scores of both sides: for BRISQUE that is the rounding of piq's float32 sum.

`python benchmarks/metrics.py --rounds 5`
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import open_clip
import piq
import torch
from PIL import Image

from hybridlib.denoising.models import locate
from hybridlib.files import read_image, write_image
from hybridlib.metrics import Metric
from hybridlib.metrics.alignment import ClipAlignment
from hybridlib.metrics.fidelity import Brisque, SupportVectors
from hybridlib.miniature.scenes import captions, render, sample_scenes

PROMPTS = 20
Score = Callable[[list[Image.Image], list[str]], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="paired rounds (default 5)")
    parser.add_argument("--images", type=int, default=256, help="images the batched side scores each round")
    parser.add_argument("--single-images", type=int, default=64, help="of these, images the published side scores")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a machine that others use")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[arguments.clock]
    print(f"{arguments.images} images of 64x64, {PROMPTS} prompts, {arguments.threads} threads, {arguments.clock} time")
    with tempfile.TemporaryDirectory() as folder:
        paths, prompts = write_scenes(Path(folder), arguments.images)
        for title, sides in (("CLIP (mini-clip)", clip_sides()), ("BRISQUE", brisque_sides())):
            for reading in (False, True):
                name = f"{title}, {'with' if reading else 'without'} reading"
                compare(name, sides, paths, prompts, reading, arguments, clock)


def write_scenes(folder: Path, number: int) -> tuple[list[Path], list[str]]:
    scenes = sample_scenes(number, seed=900_010)
    pixels = render(scenes).permute(0, 2, 3, 1).mul(255).round().byte().numpy()
    paths = [folder / f"{index}.png" for index in range(number)]
    for path, image in zip(paths, pixels, strict=True):
        write_image(Image.fromarray(image), path)
    return paths, (captions(scenes)[:PROMPTS] * (number // PROMPTS + 1))[:number]


def compare(
    title: str,
    sides: tuple[Score, Score],
    paths: list[Path],
    prompts: list[str],
    reading: bool,
    arguments: argparse.Namespace,
    clock: Callable[[], float],
) -> None:
    single, batched = sides
    few, ratios = arguments.single_images, []
    images = read(paths)
    single(images[:2], prompts[:2])
    batched(images, prompts)
    for number in range(arguments.rounds):
        began = clock()
        published = single(read(paths[:few]) if reading else images[:few], prompts[:few])
        middle = clock()
        ours = batched(read(paths) if reading else images, prompts)
        single_s, batched_s = (middle - began) / few, (clock() - middle) / len(paths)
        ratios.append(single_s / batched_s)
        print(
            f"{title}, round {number + 1}: one at a time {1e3 * single_s:.2f}, "
            f"batched {1e3 * batched_s:.2f} ms/image, x{ratios[-1]:.1f}"
        )
    print(
        f"{title}: median x{statistics.median(ratios):.1f}, min x{min(ratios):.1f}, max x{max(ratios):.1f} over "
        f"{len(ratios)} rounds; largest difference of scores {np.abs(ours[:few] - published).max():.1e}"
    )


def read(paths: list[Path]) -> list[Image.Image]:
    return [read_image(path) for path in paths]


def through(metric: Callable[[], Metric]) -> Score:
    """A fresh metric each round, so that prompts are encoded in each."""
    return lambda images, prompts: metric().score(images, prompts)


def clip_sides() -> tuple[Score, Score]:
    loaded = ClipAlignment.load("mini-clip", device="cpu")
    source = f"local-dir:{locate('mini-clip')}"
    model, _, transform = open_clip.create_model_and_transforms(source)
    model.eval()
    tokenizer = open_clip.get_tokenizer(source)

    @torch.no_grad()
    def single(images: list[Image.Image], prompts: list[str]) -> np.ndarray:
        scores = []
        for picture, prompt in zip(images, prompts, strict=True):
            image = model.encode_image(transform(picture)[None])
            text = model.encode_text(tokenizer([prompt]))
            scores.append(((image / image.norm()) * (text / text.norm())).sum().item())
        return np.array(scores)

    return single, through(lambda: ClipAlignment(loaded.model, loaded.tokenizer, loaded.identity))


def brisque_sides() -> tuple[Score, Score]:
    """Both with piq's scaling, and with piq's support vectors where they can be had, else the shipped ones."""
    metric = Brisque.load()
    regression = SupportVectors.as_piq(metric.regression.coefficients, metric.regression.vectors)
    weights = regression.coefficients.float(), regression.vectors.float()
    print(f"both with the vectors of: {metric.identity}")

    def single(images: list[Image.Image], prompts: list[str]) -> np.ndarray:
        scores = []
        with patch.object(sys.modules["piq.brisque"], "load_url", lambda *_, **__: [w.clone() for w in weights]):
            for image in images:
                grey = torch.from_numpy(np.array(image.convert("L"))).float() / 255
                scores.append(piq.brisque(grey[None, None], data_range=1.0, reduction="none").item())
        return np.array(scores)

    return single, through(lambda: Brisque(regression, metric.identity))


if __name__ == "__main__":
    main()
