"""Study 01 by the denoising tree against stock diffusers called once per image.

Both sides run in one process on the same machine, in turn, on the same images of the SIM sweep: the tree as
`study.generate` runs it, the stock side one call of 28 guided steps an image. Both write PNG files. Prints ratios of
denoiser evaluations and of wall time, with their spread over rounds.

`python benchmarks/study01.py --rounds 5`
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from diffusers import StableDiffusion3Pipeline

from hybridlib.denoising import models
from hybridlib.files import write_image
from hybridlib.hybrid import grids
from hybridlib.prompts import PromptSet
from hybridlib.study.runner import Settings, generate

SETTINGS = Settings(28, 64, 64, max_sequence_length=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="paired rounds (default 5)")
    parser.add_argument("--stock-images", type=int, default=12, help="images the stock side makes each round")
    arguments = parser.parse_args()
    pipeline = models.load("mini-sd3", device="cpu")
    stock = StableDiffusion3Pipeline(**pipeline.components)
    stock.set_progress_bar_config(disable=True)
    table = grids.sim_sweep(PromptSet.load("miniature"), range(20), range(8), [1], range(3, 22, 3))
    spend = grids.published_spend(table)
    print(f"SIM sweep, one seed: {len(table)} images, {torch.get_num_threads()} threads, mini-sd3")

    ratios = []
    for number in range(arguments.rounds):
        chosen = table.sample(arguments.stock_images, random_state=number)
        with tempfile.TemporaryDirectory() as folder:
            stock_s = time_stock(stock, chosen, Path(folder) / "stock") / len(chosen)
            outcome = generate(table, pipeline, Path(folder) / "tree", SETTINGS, progress=False)
        tree_s = outcome.seconds / outcome.images
        ratios.append(stock_s / tree_s)
        print(f"round {number + 1}: stock {1e3 * stock_s:.0f}, tree {1e3 * tree_s:.1f} ms/image, x{ratios[-1]:.1f}")
    stock_nfe = 2 * SETTINGS.num_inference_steps * len(table)
    print(f"NFE: tree {outcome.cost.tree}; stock {stock_nfe}, x{stock_nfe / outcome.cost.tree:.2f}; ", end="")
    print(f"published scripts {spend.nfe}, x{spend.nfe / outcome.cost.tree:.2f}")
    print(
        f"wall time, stock / tree: median x{statistics.median(ratios):.1f}, "
        f"min x{min(ratios):.1f}, max x{max(ratios):.1f} over {len(ratios)} rounds"
    )


def time_stock(stock: StableDiffusion3Pipeline, table: pd.DataFrame, folder: Path) -> float:
    """Seconds for whole personal images by stock calls, one after another, images written.

    Stock diffusers cannot start mid-schedule, so each image is one full call of 28 steps under its personal prompt:
    fewer evaluations than the published public run plus personal run.
    """
    began = time.perf_counter()
    for path, trajectory in zip(table["path"], table["trajectory"], strict=True):
        personal = trajectory.segments[-1]
        image = stock(
            personal.prompt,
            negative_prompt=personal.negative_prompt,
            guidance_scale=personal.guidance_scale,
            num_inference_steps=SETTINGS.num_inference_steps,
            generator=torch.Generator().manual_seed(trajectory.seed),
            max_sequence_length=SETTINGS.max_sequence_length,
        ).images[0]
        write_image(image, folder / path)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
