"""What the miniature pipelines train on: captioned scenes as normalised latents, encoded once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTokenizer

from ..files import replacing
from ..training.loop import Draw
from ..training.vae import normalised
from .scenes import IMAGE_SIZE, Scenes, captions, render, sample_scenes
from .tokens import MAX_TOKENS

SCENES = 49_152
MAX_OFFSET = 4.0  # pixels a lone object of the corpus lies off the middle
CAPTION_DROPOUT = 0.1


def corpus_scenes(count: int = SCENES, seed: int = 3, lone: bool = False) -> Scenes:
    """The training scenes. Half of them (all, if `lone`) show a lone object, and only near the middle: over the world's
    full spread every place is seen too seldom for a model of this size, and its small stars, crosses and rings come out
    ragged."""
    pool = sample_scenes((10 if lone else 5) * count, seed)
    off_centre = (pool.centre[:, 0] - IMAGE_SIZE / 2).abs().amax(dim=-1)
    alone = ((pool.count == 1) & (off_centre <= MAX_OFFSET)).nonzero()[: count if lone else count // 2, 0]
    pairs = (pool.count == 2).nonzero()[: count - len(alone), 0]
    return pool[torch.cat([alone, pairs])]


@torch.no_grad()
def corpus(folder: Path, vae: AutoencoderKL, count: int = SCENES, lone: bool = False) -> tuple[Scenes, Tensor]:
    """Training scenes and their normalised latents (count, C, H, W) in fp16, encoded once and cached in `folder`."""
    scenes = corpus_scenes(count, lone=lone)
    path = folder / ("lone.safetensors" if lone else "latents.safetensors")
    if not path.exists():
        latents = []
        for i in tqdm(range(0, count, 16), desc="encode scenes", mininterval=2):
            mean = vae.encode(2 * render(scenes[i : i + 16]) - 1).latent_dist.mean
            latents.append(normalised(vae, mean).half())
        with replacing(path) as partial:
            save_file({"latents": torch.cat(latents).contiguous()}, partial)
    return scenes, load_file(path)["latents"]


def draw_captions(scenes: Scenes, draw: Draw) -> list[str]:
    """Captions of one training step: their detail changes from step to step, and some are dropped for guidance."""
    texts = captions(scenes, keep=(0.4, 0.7, 1.0, 1.0)[draw.step % 4], seed=draw.step)
    dropped = torch.rand(len(texts), generator=draw.generator) < CAPTION_DROPOUT
    return ["" if drop else text for text, drop in zip(texts, dropped.tolist(), strict=True)]


def token_ids(tokenizer: CLIPTokenizer) -> Callable[[list[str]], Tensor]:
    """Texts to token ids (B, 16)."""

    def tokenize(texts: list[str]) -> Tensor:
        padded = tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        return padded.input_ids

    return tokenize
