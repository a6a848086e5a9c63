"""BRISQUE: how far an image's local statistics are from those of undistorted photographs; lower is better."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from piq.brisque import _scale_features
from safetensors.torch import load_file
from torch import Tensor

from ..paths import MODELS
from .base import equal_sizes, file_sha256, stack
from .scene_statistics import SMALLEST_SIDE, features

PIQ_URL = "https://github.com/photosynthesis-team/piq/releases/download/v0.4.0/brisque_svm_weights.pt"
SHIPPED = MODELS / "brisque-svm" / "model.safetensors"


class SupportVectors(NamedTuple):
    """A support vector regression with a Gaussian kernel on scaled features, in float64.

    The sum runs over 770 terms of up to 1024 that nearly cancel; float32, as piq sums, spoils the second decimal.
    """

    vectors: Tensor  # (m, 36), scaled
    coefficients: Tensor  # (m,)
    slope: Tensor  # (36,), of the scaling that takes the training features to -1..1
    offset: Tensor  # (36,)
    gamma: float
    rho: float

    def predict(self, rows: Tensor) -> Tensor:
        """Scores (n,), float64, of unscaled features (n, 36); NaN for a row that holds NaN."""
        scaled = rows.double() * self.slope + self.offset
        distance = torch.cdist(scaled, self.vectors, compute_mode="donot_use_mm_for_euclid_dist")
        return torch.exp(-self.gamma * distance**2) @ self.coefficients - self.rho

    @classmethod
    def as_piq(cls, coefficients: Tensor, vectors: Tensor) -> SupportVectors:
        """With the scaling, kernel width and bias written into piq's code, which are those of the original release."""
        # piq keeps the feature ranges inside a function; it is affine, so two points tell all of it.
        offset = _scale_features(torch.zeros(36, dtype=torch.float64))
        slope = _scale_features(torch.ones(36, dtype=torch.float64)) - offset
        return cls(vectors.double(), coefficients.double().flatten(), slope, offset, 0.05, -153.591)

    @classmethod
    def shipped(cls) -> SupportVectors:
        """From `data/models/brisque-svm`, see its card."""
        content = load_file(SHIPPED)
        low, high = content["feature_minimum"], content["feature_maximum"]
        slope = 2 / (high - low)
        numbers = content["gamma"].item(), content["rho"].item()
        return cls(content["support_vectors"], content["coefficients"], slope, -1 - slope * low, *numbers)


@dataclass(frozen=True, eq=False)
class Brisque:
    """BRISQUE of 8-bit grey images (BT.601), neither clamped nor dropped.

    Photographs score 0 to 100, lower being better; values below 0 and above 100 occur and are kept.
    """

    regression: SupportVectors
    identity: str
    batch_size: int = 64
    name: str = "brisque"

    @classmethod
    def load(cls, weights: str = "auto", batch_size: int = 64) -> Brisque:
        """The metric with one of two trainings of the same regression; `identity` says which.

        Args:
            weights: "piq" for the published ones, downloaded once by torch; "shipped" for those in this repository;
                "auto" for piq's where they can be had, else the shipped ones. Scores of the two differ by an offset,
                so do not mix them in one table.
            batch_size: most images in one batch.

        Raises:
            ValueError: if `weights` is none of these, or is "piq" and they cannot be had.
        """
        if weights not in ("auto", "piq", "shipped"):
            raise ValueError(f"weights must be 'auto', 'piq' or 'shipped', got {weights!r}")
        statistics = f"BRISQUE, features of piq {version('piq')}, support vectors of"
        if weights != "shipped":
            try:
                regression, checksum = _download()
                return cls(regression, f"{statistics} piq, sha256 {checksum[:12]}", batch_size)
            except OSError as error:
                if weights == "piq":
                    raise ValueError(
                        f"piq's support vectors could not be downloaded; put {Path(PIQ_URL).name} into torch's hub "
                        f"folder {_hub_file().parent} or choose weights='shipped'"
                    ) from error
        identity = f"{statistics} brisque 0.2.0 (shipped), sha256 {file_sha256(SHIPPED)[:12]}"
        return cls(SupportVectors.shipped(), identity, batch_size)

    def score(self, images: Sequence[Image], prompts: Sequence[str] = ()) -> np.ndarray:
        """Scores (n,), float64; the prompts play no part.

        Raises:
            ValueError: before any computing, if an image has a side below 8 pixels.

        Warns:
            UserWarning: once, if BRISQUE is undefined for some images, such as flat ones; their score is NaN.
        """
        if small := [image.size for image in images if min(image.size) < SMALLEST_SIDE]:
            raise ValueError(f"BRISQUE needs {SMALLEST_SIDE} pixels a side, got an image of {small[0]}")
        scores = np.full(len(images), np.nan)
        for batch in equal_sizes(images, self.batch_size):
            # Down to [0, 1] and up again in float32, which is how a grey image reaches piq's statistics.
            luma = stack([images[index] for index in batch], "L").float() / 255 * 255
            scores[batch] = self.regression.predict(features(luma)).numpy()
        if undefined := int(np.isnan(scores).sum()):
            warnings.warn(f"BRISQUE is undefined for {undefined} of {len(images)} images (flat?)", stacklevel=2)
        return scores


class Summary(NamedTuple):
    """Mean BRISQUE of a set of images in two conventions, each with the number of scores in it."""

    mean: float  # over all images for which it is defined
    number: int
    mean_above_zero: float  # the published convention, biased upward: the best scores, at or below 0, are left out
    number_above_zero: int
    undefined: int


def summarise(scores: np.ndarray) -> Summary:
    """Both means of scores (n,); a mean over no scores is NaN."""
    scores = np.asarray(scores, dtype=np.float64)
    defined = scores[~np.isnan(scores)]
    kept = defined[defined > 0]
    means = [float(part.mean()) if part.size else float("nan") for part in (defined, kept)]
    return Summary(means[0], defined.size, means[1], kept.size, scores.size - defined.size)


def _hub_file() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(PIQ_URL).name


def _download() -> tuple[SupportVectors, str]:
    """Piq's support vectors and the SHA-256 of their file, read by the unpickler that admits tensors only.

    Raises:
        OSError: if the file is not in torch's hub folder and cannot be downloaded.
        ValueError: if it holds something else.
    """
    with redirect_stdout(StringIO()):  # torch announces the download with the path of its folder
        content: Any = torch.hub.load_state_dict_from_url(
            PIQ_URL, map_location="cpu", progress=False, weights_only=True
        )
    shapes = [tuple(part.shape) for part in content if isinstance(part, Tensor)]
    if len(shapes) != 2 or shapes[1] != (math.prod(shapes[0]), 36):
        raise ValueError(f"{_hub_file()} should hold m coefficients and m support vectors of 36, got shapes {shapes}")
    return SupportVectors.as_piq(*content), file_sha256(_hub_file())
