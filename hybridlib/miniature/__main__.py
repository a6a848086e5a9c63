"""`python -m hybridlib.miniature train NAME` and `python -m hybridlib.miniature evaluate`."""

from __future__ import annotations

import argparse

NAMES = ["mini-sd3", "mini-sd", "mini-sd-small", "mini-lcm", "mini-lcm-small"]
NAMES += ["mini-tiny-vae", "mini-small-vae", "mini-clip", "mini-judge"]


def main() -> None:
    """Train or evaluate."""
    parser = argparse.ArgumentParser(prog="python -m hybridlib.miniature", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train a model from nothing, or resume, and write it to data/models")
    train.add_argument("name", choices=NAMES)
    evaluate = commands.add_parser("evaluate", help="measure the shipped models on held-out scenes")
    evaluate.add_argument("--images", type=int, default=256, help="generated images per prompt kind (default 256)")
    arguments = parser.parse_args()

    from ..paths import MODELS
    from . import cards, zoo  # heavy imports only once the arguments are understood

    if arguments.command == "train":
        folder = zoo.TRAINERS[arguments.name]()
        cards.write(folder)
        print(f"wrote {folder}")
    else:
        for name, figures in zoo.evaluate(arguments.images).items():
            cards.write(MODELS / name)
            for quality, value in figures.items():
                print(f"{name:12} {quality:40} {value:.4f}")


if __name__ == "__main__":
    main()
