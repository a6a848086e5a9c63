"""`python -m hybridlib.miniature` measures the shipped models on held-out scenes and writes their cards."""

from __future__ import annotations

import argparse


def main() -> None:
    """Evaluate."""
    parser = argparse.ArgumentParser(prog="python -m hybridlib.miniature", description=__doc__)
    parser.add_argument("--images", type=int, default=256, help="generated images per prompt kind (default 256)")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="those to measure (default: all that ship)")
    arguments = parser.parse_args()

    from ..paths import MODELS
    from . import cards, zoo  # heavy imports only once the arguments are understood

    names = arguments.models or list(zoo.TRAINERS)
    if unknown := sorted(set(names) - zoo.TRAINERS.keys()):
        parser.error(f"--models must be of {', '.join(zoo.TRAINERS)}, got {unknown[0]!r}")
    for name, figures in zoo.evaluate(arguments.images, names=names).items():
        cards.write(MODELS / name)
        for quality, value in figures.items():
            print(f"{name:12} {quality:40} {value:.4f}")


if __name__ == "__main__":
    main()
