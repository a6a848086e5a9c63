"""What a metric is, and the small things that metrics share."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor

PIXELS_PER_BATCH = 2**22  # BRISQUE and SSIM hold a few dozen copies of a batch: about 1 GiB at this size


class Metric(Protocol):
    """One number an image, higher or lower being better as the metric has it."""

    @property
    def name(self) -> str:
        """Column in a table of scores: "clip", "brisque", "image_reward", "musiq"."""
        ...

    @property
    def identity(self) -> str:
        """One line: metric, library and version, weights and the first 12 hex digits of their SHA-256."""
        ...

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> np.ndarray:
        """Scores (n,), float64, of n images, each with its prompt."""
        ...


def check_counts(images: Sequence[Image], others: Sequence[object], name: str) -> None:
    """One of `others` for every image, or a ValueError that calls them `name`."""
    if len(images) != len(others):
        raise ValueError(f"images and {name} must be equal in number, got {len(images)} and {len(others)}")


def equal_sizes(images: Sequence[Image], batch_size: int) -> Iterator[list[int]]:
    """Indices of the images in batches of one size each, no batch above `batch_size` images or 4 megapixels."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    groups = defaultdict(list)
    for index, image in enumerate(images):
        groups[image.size].append(index)
    for (width, height), indices in groups.items():
        rows = max(1, min(batch_size, PIXELS_PER_BATCH // (width * height)))
        yield from (indices[first : first + rows] for first in range(0, len(indices), rows))


def stack(images: Sequence[Image], mode: str) -> Tensor:
    """8-bit values (n, channels, height, width) of equally sized images, converted by PIL to mode "L" or "RGB"."""
    import numpy as np
    import torch

    pixels = torch.from_numpy(np.stack([np.asarray(image.convert(mode)) for image in images]))
    return pixels[:, None] if mode == "L" else pixels.permute(0, 3, 1, 2)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package_folder(name: str) -> Path | None:
    """Folder of an installed package, found without importing it; None where it is not installed."""
    spec = find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def default_device() -> str:
    """Returns "cuda" where there is a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
