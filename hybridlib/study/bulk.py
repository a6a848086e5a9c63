"""Images from a trained folder: one, or many for a distribution metric; and the distance of two folders of images.

    python -m hybridlib.study.bulk one MODEL IMAGE.png --prompt "a red star" --seed 3
    python -m hybridlib.study.bulk many MODEL FOLDER --prompts captions.txt --count 50000 --part 0/4
    python -m hybridlib.study.bulk distance FOLDER REFERENCE --clip mini-clip

Every image has a seed of its own, `first-seed` plus its number, and a name that is this number, so no caption can
overwrite another's image. Prompts are cycled in the order of the file. Images are made in shards of `--batch-size`; a
killed run makes the shard again that it was in. Parts share nothing and may run on different machines; together they
hold the same files as one run. Guidance is only worth its cost if captions were dropped in training.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ..denoising.trajectory import Trajectory
from ..files import write_image
from .parameters import Settings

if TYPE_CHECKING:
    from ..denoising.hybrid_call import HybridPipeline
    from .runner import Outcome


def plan(
    prompts: Sequence[str], count: int, settings: Settings, guidance_scale: float, first_seed: int = 0
) -> pd.DataFrame:
    """The table of a bulk run, for `runner.generate`: path, trajectory, prompt, shard; one row per image.

    Raises:
        ValueError: if there is no prompt or no image to make.
    """
    if not prompts or count < 1:
        raise ValueError(f"at least one prompt and one image are needed, got {len(prompts)} prompts and count {count}")
    numbers, steps = range(count), settings.num_inference_steps
    texts = [prompts[number % len(prompts)] for number in numbers]
    return pd.DataFrame(
        {
            "path": [f"{number // 1000:03d}/{number:07d}.png" for number in numbers],
            "trajectory": [
                Trajectory.plain(text, first_seed + number, guidance_scale, "", steps)
                for number, text in zip(numbers, texts, strict=True)
            ],
            "prompt": texts,
            "shard": [number // settings.batch_size for number in numbers],
        }
    )


def part_of(table: pd.DataFrame, part: int, parts: int) -> pd.DataFrame:
    """The shards of one of several runs that share the work.

    Raises:
        ValueError: unless 0 <= part < parts.
    """
    if not 0 <= part < parts:
        raise ValueError(f"part must lie in 0..{parts - 1}, got {part}")
    return table[table["shard"] % parts == part]


def make(table: pd.DataFrame, pipeline: HybridPipeline, folder: Path, settings: Settings) -> Outcome | None:
    """Write the images that are missing; None if the part is empty."""
    from .runner import generate

    return generate(table, pipeline, folder, settings, shared=True) if len(table) else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 with one sentence if something was refused."""
    given = _parser().parse_args(arguments)
    try:
        if given.command == "distance":
            from .evaluation import compare

            print(compare(given.folder, given.reference, given.clip, given.inception).T.to_string(header=False))
        else:
            _images(given)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _images(given: argparse.Namespace) -> None:
    from ..denoising import models

    if given.command == "one":
        prompts = [given.prompt]
    else:
        prompts = [line.strip() for line in given.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    pipeline = models.load(given.model)
    side = given.image_size or _default_size(pipeline)
    settings = Settings(given.steps, side, given.batch_size, given.max_sequence_length)
    if given.command == "one":
        from ..denoising.sampler import sample

        row = plan(prompts, 1, settings, given.guidance_scale, given.seed)
        image = sample(pipeline, list(row["trajectory"]), **settings.sampling()).images()[0]
        print(f"wrote {given.image}, sha256 {write_image(image, given.image)[:12]}")
        return
    part, _, parts = given.part.partition("/")
    if not (part.isdecimal() and parts.isdecimal()):
        raise ValueError(f"part must be a number of a number, such as 0/4, got {given.part!r}")
    table = plan(prompts, given.count, settings, given.guidance_scale, given.first_seed)
    own = part_of(table, int(part), int(parts))
    make(own, pipeline, given.folder, settings)
    print(f"{len(own)} of {given.count} images are in {given.folder}")


def _default_size(pipeline: HybridPipeline) -> int:
    from ..denoising.families import denoiser_of

    return denoiser_of(pipeline).default_size


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hybridlib.study.bulk", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one, many = commands.add_parser("one", help="one image"), commands.add_parser("many", help="images in shards")
    for command in (one, many):
        command.add_argument("model", help="a miniature's name, a folder or a hub id")
        command.add_argument("--steps", type=int, default=20, help="of the pipeline's own scheduler (default 20)")
        command.add_argument("--guidance-scale", type=float, default=1.0, help="1 is none (default 1)")
        command.add_argument("--image-size", type=int, default=0, help="pixels; the model's own by default")
        command.add_argument("--batch-size", type=int, default=64, help="images denoised together (default 64)")
        command.add_argument("--max-sequence-length", type=int, default=256, help="of T5 in SD3 (default 256)")
    one.add_argument("image", type=Path, help="the PNG to write")
    one.add_argument("--prompt", default="")
    one.add_argument("--seed", type=int, default=0)
    many.add_argument("folder", type=Path, help="where images go")
    many.add_argument("--prompts", type=Path, required=True, help="a text file, a prompt a line")
    many.add_argument("--count", type=int, required=True)
    many.add_argument("--first-seed", type=int, default=0)
    many.add_argument("--part", default="0/1", help="which of how many runs that share the work, such as 0/4")
    apart = commands.add_parser("distance", help="Frechet distance and CMMD of two folders of images")
    apart.add_argument("folder", type=Path)
    apart.add_argument("reference", type=Path)
    apart.add_argument("--clip", default="mini-clip", help="whose features are compared (default mini-clip)")
    apart.add_argument("--inception", type=Path, help="Inception weights, for FID and Inception Score")
    return parser


if __name__ == "__main__":
    sys.exit(main())
