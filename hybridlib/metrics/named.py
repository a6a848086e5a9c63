"""Metrics of single images by their names, as one types them: "clip:mini-clip", "brisque"."""

from __future__ import annotations

from collections.abc import Callable

from ..names import require_known
from .base import Metric

CLIP = "ViT-L-14-336"  # of the published studies
NAMES = ("clip", "brisque", "image_reward", "musiq")


def check(name: str) -> tuple[str, str]:
    """Kind and variant of a metric's name, without loading anything.

    Raises:
        ValueError: one sentence, if there is no such metric, or it has no variants.
    """
    kind, _, variant = name.partition(":")
    require_known("metric", kind, NAMES)
    if variant and kind not in ("clip", "brisque"):
        raise ValueError(f"{kind} has no variants, got {name!r}")
    return kind, variant


def load(name: str, device: str | None = None) -> Metric:
    """A metric by its name.

    Args:
        name: "clip" (as published, ViT-L-14-336 with OpenAI's weights) or "clip:MODEL", MODEL as in
            `ClipAlignment.load`; "brisque" (weights that ship) or "brisque:piq"; "image_reward"; "musiq".
        device: "cpu", "cuda" or None for a GPU where there is one.

    Raises:
        ValueError: one sentence, if there is no such metric or it cannot be loaded.
    """
    from .alignment import ClipAlignment
    from .fidelity import Brisque
    from .optional import ImageReward, Musiq

    kind, variant = check(name)
    loaders: dict[str, Callable[[], Metric]] = {
        "clip": lambda: ClipAlignment.load(variant or CLIP, device),
        "brisque": lambda: Brisque.load(variant or "shipped"),
        "image_reward": lambda: ImageReward.load(device),
        "musiq": lambda: Musiq.load(device),
    }
    try:
        return loaders[kind]()
    except ImportError as failure:
        raise ValueError(f"metric {name!r}: the package {failure.name} is not installed") from None
