"""CLIP: how well an image shows its prompt, and how alike two images are."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL.Image import Image
from torch import Tensor

from ..denoising.models import locate
from .base import check_counts, default_device, file_sha256

TEXTS_KEPT = 4096  # embeddings in memory, at the most, unless one call needs more


@dataclass(eq=False)
class ClipAlignment:
    """Cosine between CLIP embeddings, in -1..1: never multiplied by 100, never clamped; higher is better.

    `truncated` lists the texts that were longer than the model reads, each once.
    """

    model: Any  # an open_clip model in evaluation mode, float32
    tokenizer: Any
    identity: str
    device: str = "cpu"
    batch_size: int = 64
    name: str = "clip"
    truncated: list[str] = field(default_factory=list)
    _texts: dict[tuple[str, ...], dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def load(cls, name: str, device: str | None = None, batch_size: int = 64) -> ClipAlignment:
        """A model by name.

        Args:
            name: a shipped model ("mini-clip"), a local folder in open_clip's layout (`open_clip_config.json` and
                `open_clip_model.safetensors`), or an open_clip architecture, taken with OpenAI's weights; the studies
                use "ViT-L-14-336".
            device: "cuda" where there is a GPU, else "cpu", by default.
            batch_size: most images or texts in one forward.

        Raises:
            ValueError: if there is no such model, or its weights cannot be had.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        device = device or default_device()
        location = locate(name)
        if Path(location).is_dir():
            source, weights, options = f"local-dir:{location}", _weights_in(Path(location)), {}
        else:
            source, weights, options = name, *_openai_weights(name)
        model = open_clip.create_model(source, require_pretrained=True, device=device, **options).eval()
        # Convolutions over whole batches are faster with the channels innermost, the order that PIL delivers.
        model.visual.to(memory_format=torch.channels_last)
        identity = (
            f"CLIP cosine, open_clip {version('open_clip_torch')}, {Path(name).name}, "
            f"weights sha256 {file_sha256(weights)[:12]}"
        )
        return cls(model, open_clip.get_tokenizer(source), identity, device, batch_size)

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> np.ndarray:
        """Cosine (n,) of each image with its prompt, float64.

        Raises:
            ValueError: if images and prompts differ in number.
        """
        check_counts(images, prompts, "prompts")
        return self._cosine(self.image_features(images), self.text_features(prompts))

    def between_images(self, a: Sequence[Image], b: Sequence[Image]) -> np.ndarray:
        """Cosine (n,) of each image of `a` with its partner in `b`, float64."""
        check_counts(a, b, "their partners")
        return self._cosine(self.image_features(a), self.image_features(b))

    @torch.no_grad()
    def image_features(self, images: Sequence[Image]) -> Tensor:
        """Embeddings (n, dimensions) of norm 1 on the CPU, float32, after the model's own preprocessing."""
        rows = []
        for first in range(0, len(images), self.batch_size):
            pixels = preprocess(images[first : first + self.batch_size], self.model, self.device)
            rows.append(F.normalize(self.model.encode_image(pixels).float(), dim=-1).cpu())
        return torch.cat(rows) if rows else torch.empty(0, 0)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (n, dimensions) of norm 1 on the CPU, float32.

        The different texts of a call are encoded together, whatever was encoded before: the rounding of a batch depends
        on what is in it, and a score must not depend on what the process did earlier. The last such sets are kept.

        Warns:
            UserWarning: for each new text of more tokens than the model reads; the rest is cut off.
        """
        different = tuple(sorted(set(texts)))
        known = self._texts.pop(different, None) or self._encoded(different)
        self._texts[different] = known  # the latest is last
        while len(self._texts) > 1 and sum(map(len, self._texts)) > TEXTS_KEPT:
            del self._texts[next(iter(self._texts))]
        return torch.stack([known[text] for text in texts]) if texts else torch.empty(0, 0)

    def _encoded(self, texts: Sequence[str]) -> dict[str, Tensor]:
        self._report_truncation(texts)
        known: dict[str, Tensor] = {}
        for first in range(0, len(texts), self.batch_size):
            batch = texts[first : first + self.batch_size]
            rows = self.model.encode_text(self.tokenizer(batch).to(self.device)).float()
            known.update(zip(batch, F.normalize(rows, dim=-1).cpu(), strict=True))
        return known

    def _report_truncation(self, texts: Sequence[str]) -> None:
        limit = self.tokenizer.context_length
        for text, count in zip(texts, token_counts(self.tokenizer, texts), strict=True):
            if count > limit and text not in self.truncated:
                self.truncated.append(text)
                beginning = " ".join(text.split()[:6])
                warnings.warn(
                    f"the prompt beginning {beginning!r} has {count} tokens with its start and end marks, "
                    f"the model reads {limit}: the rest is cut off",
                    stacklevel=4,
                )

    @staticmethod
    def _cosine(a: Tensor, b: Tensor) -> np.ndarray:
        return (a.double() * b.double()).sum(-1).numpy()


def preprocess(images: Sequence[Image], model: Any, device: str = "cpu") -> Tensor:
    """Network input (n, 3, size, size), as open_clip's own transform gives it for each image.

    Resizing and cropping stay with PIL, image by image; the arithmetic of the transform's last two parts, scaling to
    [0, 1] and normalisation, is done for the batch.
    """
    config = PreprocessCfg(**model.visual.preprocess_cfg)
    spatial = image_transform_v2(config, is_train=False).transforms[:-2]
    size = config.size if isinstance(config.size, tuple) else (config.size, config.size)
    arrays = []
    for image in images:
        if image.mode != "RGB" or image.size != (size[1], size[0]):  # else there is nothing to resize, crop or convert
            for part in spatial:
                image = part(image)
        arrays.append(np.asarray(image))
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).to(device).float() / 255
    mean, std = (pixels.new_tensor(model.visual.preprocess_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (pixels - mean) / std


def token_counts(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens of each text with start and end marks, before anything is cut off."""
    if not texts:
        return []
    if hasattr(tokenizer, "encode"):  # open_clip's own byte-pair tokenizer
        return [len(tokenizer.encode(text)) + 2 for text in texts]
    clean = [tokenizer.clean_fn(text) for text in texts]
    return [len(ids) for ids in tokenizer.tokenizer(clean, truncation=False, verbose=False)["input_ids"]]


def _weights_in(folder: Path) -> Path:
    weights = folder / "open_clip_model.safetensors"
    if not (weights.is_file() and (folder / "open_clip_config.json").is_file()):
        raise ValueError(f"{folder} holds no CLIP model: expected open_clip_config.json and {weights.name} in it")
    return weights


def _openai_weights(name: str) -> tuple[Path, dict[str, Any]]:
    """Where the weights of an architecture lie, and how to create the model that they fit."""
    config = open_clip.get_pretrained_cfg(name, "openai")
    if not config:
        raise ValueError(
            f"{name!r} is no shipped model, no folder here and no open_clip architecture with OpenAI weights "
            f"(such as 'ViT-L-14-336')"
        )
    try:
        weights = Path(open_clip.download_pretrained(config))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"the OpenAI weights of {name!r} could not be had; download the model on a connected machine and pass "
            f"its local folder instead"
        ) from error
    # OpenAI trained with the quick approximation of GELU. Most architecture files name the exact one, and on such a
    # mismatch open_clip only warns, then computes slightly wrong embeddings: the weights' tag decides instead.
    return weights, {"pretrained": "openai", "force_quick_gelu": bool(config.get("quick_gelu"))}
