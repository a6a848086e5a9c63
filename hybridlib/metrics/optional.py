"""ImageReward and MUSIQ, for machines that have their packages and weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image

from .base import Metric, check_counts, default_device, equal_sizes, stack

LONGEST_SIDE = 512  # pixels, of an image given to MUSIQ


@dataclass(frozen=True, eq=False)
class ImageReward:
    """Learned human preference for an image given its prompt, about -3 to 3; higher is better."""

    model: Any
    identity: str
    name: str = "image_reward"

    @classmethod
    def load(cls, device: str | None = None) -> ImageReward:
        """ImageReward v1.0 of the package `ImageReward`."""
        package = import_module("ImageReward")
        model = package.load("ImageReward-v1.0", device=device or default_device())
        return cls(model, f"ImageReward-v1.0, image-reward {_version('image-reward')}, {_weights(model)}")

    @torch.no_grad()
    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> np.ndarray:
        """Rewards (n,), float64, one image at a time: the package's own interface takes no batches of pairs."""
        check_counts(images, prompts, "prompts")
        pairs = zip(prompts, images, strict=True)
        return np.array([float(self.model.score(prompt, image)) for prompt, image in pairs], dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Musiq:
    """MUSIQ trained on SPAQ: technical quality without a reference, divided by 100 to 0..1; higher is better."""

    model: Any
    identity: str
    device: str = "cpu"
    batch_size: int = 16
    name: str = "musiq"

    @classmethod
    def load(cls, device: str | None = None) -> Musiq:
        """MUSIQ-SPAQ of the package `pyiqa`."""
        device = device or default_device()
        model = import_module("pyiqa").create_metric("musiq-spaq", device=torch.device(device))
        return cls(model, f"MUSIQ-SPAQ, pyiqa {_version('pyiqa')}, {_weights(model)}", device)

    @torch.no_grad()
    def score(self, images: Sequence[Image], prompts: Sequence[str] = ()) -> np.ndarray:
        """Scores (n,), float64; the prompts play no part. Longer sides than 512 are reduced to it, bilinearly and
        without antialiasing."""
        scores = np.empty(len(images))
        for batch in equal_sizes(images, self.batch_size):
            pixels = stack([images[index] for index in batch], "RGB").to(self.device).float() / 255
            height, width = pixels.shape[-2:]
            scale = LONGEST_SIDE / max(height, width)
            if scale < 1:
                size = max(1, round(height * scale)), max(1, round(width * scale))
                pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=False)
            scores[batch] = self.model(pixels).flatten().double().cpu().numpy() / 100
        return scores


def load_optional(device: str | None = None) -> tuple[list[Metric], list[str]]:
    """The optional metrics that work here, and one sentence for each that does not."""
    loaders: dict[str, Callable[[str | None], Metric]] = {"ImageReward": ImageReward.load, "MUSIQ": Musiq.load}
    metrics, missing = [], []
    for title, load in loaders.items():
        try:
            metrics.append(load(device))
        except ImportError as error:
            missing.append(f"{title} is left out: its package cannot be imported ({_one_line(error)}).")
        except Exception as error:  # a foreign package and its download may fail in any way; neither may stop a study
            missing.append(f"{title} is left out: it cannot be loaded ({_one_line(error)}).")
    return metrics, missing


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "of unknown version"


def _weights(model: torch.nn.Module) -> str:
    """These packages hide their files, so the parameters are hashed as they lie in memory, in the order of names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"parameters sha256 {digest.hexdigest()[:12]}"
