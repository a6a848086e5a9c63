"""The console command `hybridlib`, also `python -m hybridlib`."""

from __future__ import annotations

import argparse
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from .names import require_known


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        Exit status: 0 if all went well, 1 if a study failed, 2 if something was refused before anything started.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = ArgumentParser(prog="hybridlib", description="Hybrid diffusion inference: reproduce, measure, plan.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name, help=command.summary, description=command.summary, formatter_class=argparse.RawTextHelpFormatter
        )
        command.arguments(sub)
        sub.set_defaults(run=command.run)
    try:
        if words and not words[0].startswith("-"):
            require_known("command", words[0], COMMANDS)
        given = parser.parse_args(words)
        return int(given.run(given))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # such as a full disk
        print(f"error: {error}", file=sys.stderr)
        return 1


def _dry_run(parser: ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="say what it takes in images, NFE, time and disk; stop")


def _reproduce_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "profile",
        nargs="?",
        default="miniature",
        help="smoke, miniature (default), miniature-full or sd3-medium;\n"
        "or your own: a folder of parameter files, or one file beside --notebooks",
    )
    parser.add_argument(
        "--notebooks", nargs="*", default=[], metavar="N", help="numbers, names or paths, such as 01; all by default"
    )
    parser.add_argument("--workers", type=int, metavar="W", help="notebooks at once (default: one a core, at most 4)")
    parser.add_argument("--on-cpu", action="store_true", help="run studies of large images without a GPU all the same")
    parser.add_argument(
        "--cluster",
        choices=("local", "ray"),
        help="where images are made, instead of what the parameter files say;\n"
        "ray: on workers, one a GPU or core, of this machine or of the cluster that RAY_ADDRESS names",
    )
    _dry_run(parser)


def _reproduce(given: Namespace) -> int:
    from .study import preflight, reproduce

    tasks = reproduce.collect(given.profile, given.notebooks)
    if given.cluster:
        tasks = reproduce.on_cluster(tasks, given.cluster)
    if given.dry_run:
        from .commands import estimates

        estimates.print_studies(estimates.of_studies(tasks))
        return 0
    if missing := preflight.missing({task.name: task.checked for task in tasks}, given.on_cpu):
        for sentence in missing:
            print(f"error: {sentence}", file=sys.stderr)
        return 2
    return reproduce.reproduce(tasks, reproduce.default_workers(tasks) if given.workers is None else given.workers)


def _train_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help=", ".join(TRAINED))
    _dry_run(parser)


def _train(given: Namespace) -> int:
    require_known("model to train", given.name, TRAINED)
    if given.dry_run:
        from .commands import estimates

        estimates.print_training(given.name)
        return 0
    from .miniature import cards, zoo

    folder = zoo.TRAINERS[given.name]()
    cards.write(folder)
    print(f"wrote {folder}")
    return 0


def _evaluate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="images; scores.parquet is written into it")
    parser.add_argument(
        "--prompts", type=Path, required=True, metavar="CSV", help="columns path (in the folder), prompt"
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        required=True,
        metavar="M",
        help="clip (ViT-L-14-336) or clip:MODEL, such as clip:mini-clip for miniature images;\n"
        "brisque or brisque:piq; image_reward; musiq",
    )
    _dry_run(parser)


def _evaluate(given: Namespace) -> int:
    from .commands.evaluate import evaluate

    return evaluate(given.folder, given.prompts, given.metrics, given.dry_run)


def _explore_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=8888, help="of JupyterLab (default 8888)")
    parser.add_argument("--no-browser", action="store_true", help="print the address instead of opening it")


def _explore(given: Namespace) -> int:
    from .commands.explore import explore

    return explore(given.port, not given.no_browser)


def _plan_arguments(parser: ArgumentParser) -> None:
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--similarity", type=float, help="of public and personal prompt")
    asked.add_argument("--prompts", nargs=2, metavar=("PUBLIC", "PERSONAL"), help="two prompts, compared by MiniLM")
    parser.add_argument("--quality-floor", type=float, default=0.95, help="share of alignment to keep (default 0.95)")
    parser.add_argument("--steps", type=int, default=28, help="num_inference_steps (default 28)")
    parser.add_argument("--shift", type=float, help="of the noise schedule (default: that of mini-sd3)")
    parser.add_argument("--users", type=int, default=3, help="who share (default 3)")


def _plan(given: Namespace) -> int:
    from .commands import plan

    similarity = plan.similarity_of(*given.prompts) if given.prompts else given.similarity
    answer = plan.plan(similarity, given.quality_floor, given.steps, given.shift, given.users)
    plan.print_plan(answer, given.quality_floor, given.steps, given.users)
    return 0


def _captions_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="captions: a plain text file, a CSV table, or a token file of Flickr8k")
    parser.add_argument("folder", type=Path, help="where images and delays.parquet go; a killed run resumes")
    parser.add_argument("--model", default="mini-sd3", help="a miniature's name, a folder or a hub id (mini-sd3)")
    parser.add_argument("--steps", default="10-19", help="a number, or a range that each task draws from (10-19)")
    parser.add_argument("--guidance-scale", type=float, default=5.0, help="1 is none (default 5)")
    parser.add_argument("--image-size", type=int, default=0, help="pixels; the model's own by default")
    parser.add_argument("--batch-size", type=int, default=16, help="images denoised together (default 16)")
    parser.add_argument("--max-sequence-length", type=int, default=256, help="tokens of T5 (default 256)")
    parser.add_argument("--count", type=int, help="how many captions are drawn; all in their order by default")
    parser.add_argument("--seed", type=int, default=0, help="of the first image, and of what is drawn (default 0)")
    parser.add_argument(
        "--budget-gb", type=float, help="memory of the device, for a plan of SD3 or FLUX.1 that fits it"
    )


def _captions(given: Namespace) -> int:
    from dataclasses import fields

    from .commands import captions

    return captions.run(captions.Asked(**{f.name: getattr(given, f.name) for f in fields(captions.Asked)}))


def _share_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("prompts", type=Path, metavar="FILE", help="text, one prompt a line")
    parser.add_argument("--floor", type=float, default=0.95, help="share of alignment to keep (default 0.95)")
    parser.add_argument("--level", type=float, default=0.9, help="confidence of the floor, .5 to 1 (default 0.9)")
    parser.add_argument("--each", action="store_true", help="the floor is for each prompt, not for their mean")
    parser.add_argument("--budget", type=int, metavar="NFE", help="for one seed: keep the highest floor it buys")
    parser.add_argument("--conditioning", default="blend", help="what groups share: blend (default), prompt, public")
    parser.add_argument("--public", nargs="+", default=[], metavar="PROMPT", help="public prompts to choose from")
    parser.add_argument(
        "--steps", type=_steps, default=28, metavar="N", help="num_inference_steps (default 28), or 'any': 28 or fewer"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="of the initial noise (default 1)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the images, tree.png and plan.json")
    parser.add_argument("--dry-run", action="store_true", help="tell the plan; stop")


def _steps(text: str) -> int | str:
    return int(text) if text.isdecimal() else text  # whether the word is a known one, the planner says


def _share(given: Namespace) -> int:
    from .commands.share import share

    return share(
        given.prompts,
        given.seeds,
        given.out,
        given.dry_run,
        quality_floor=given.floor,
        level=given.level,
        each=given.each,
        budget=given.budget,
        conditioning=given.conditioning,
        public_prompts=given.public,
        num_inference_steps=given.steps,
    )


def _certify_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a miniature's name, a folder or a hub id")
    parser.add_argument("--prompts", help="a prompt set (default: that of the miniatures, or of SD3)")
    parser.add_argument("--metrics", nargs="*", metavar="M", help="as of evaluate (default: those that ship)")
    parser.add_argument("--steps", type=int, default=28, help="num_inference_steps (default 28)")
    parser.add_argument("--image-size", type=int, help="pixels (default: the model's own)")
    parser.add_argument("--batch-size", type=int, default=64, help="that others are compared with (default 64)")
    parser.add_argument("--max-sequence-length", type=int, default=1, help="T5 tokens of SD3 (default 1)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is a GPU)")
    parser.add_argument("--dtype", help="float32, float16 or bfloat16 (default: as models are loaded)")


def _certify(given: Namespace) -> int:
    from .commands.certify import certify

    certify(
        given.model,
        given.prompts,
        given.metrics,
        given.steps,
        given.image_size,
        given.batch_size,
        given.max_sequence_length,
        given.device,
        given.dtype,
    )
    return 0


class Command(NamedTuple):
    """A subcommand."""

    summary: str
    arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]


# The names in `miniature.zoo.TRAINERS`, which takes seconds to import.
TRAINED = (
    *("mini-sd3", "mini-sd", "mini-sd-small", "mini-lcm", "mini-lcm-small"),
    *("mini-tiny-vae", "mini-small-vae", "mini-clip", "mini-judge"),
)
COMMANDS = {
    "reproduce": Command("run studies with their parameters and write pages of them", _reproduce_arguments, _reproduce),
    "train": Command("train a miniature model from nothing, or resume, and ship it", _train_arguments, _train),
    "evaluate": Command("score a folder of images, each with its prompt", _evaluate_arguments, _evaluate),
    "explore": Command("open the explorer in JupyterLab", _explore_arguments, _explore),
    "captions": Command("draw a file of captions, and tell what each image took", _captions_arguments, _captions),
    "plan": Command("how many steps may be shared, and what it saves", _plan_arguments, _plan),
    "share": Command("draw a list of prompts as the cheapest tree that keeps a floor", _share_arguments, _share),
    "certify": Command(
        "measure how far results depend on batch, order, precision and device", _certify_arguments, _certify
    ),
}


if __name__ == "__main__":
    sys.exit(main())
