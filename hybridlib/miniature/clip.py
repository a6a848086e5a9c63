"""mini-clip: an open_clip model of scenes and captions, the alignment metric at miniature scale.

It shares nothing with the text encoders of mini-sd3, so it can judge them.
"""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from ..training.loop import Draw, History, Recipe, fit
from .scenes import captions, render, sample_scenes
from .tokens import MAX_TOKENS, build_tokenizer

RECIPE = Recipe(steps=1500, batch_size=128, learning_rate=1e-3, seed=5, ema_decay=0.995)


def write_config(folder: Path) -> None:
    """Write tokenizer and model config, so that open_clip builds the model as `local-dir:<folder>`."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    config = {
        "model_cfg": {
            "embed_dim": 128,
            "vision_cfg": {"image_size": 64, "layers": [1, 2, 2, 1], "width": 16},
            "text_cfg": {
                "context_length": MAX_TOKENS,
                "vocab_size": len(tokenizer),
                "width": 96,
                "heads": 4,
                "layers": 3,
                "hf_tokenizer_name": "mini-clip",
            },
        },
        "preprocess_cfg": {"size": 64, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")


def train(folder: Path, recipe: Recipe = RECIPE) -> tuple[open_clip.CLIP, History]:
    """Symmetric contrastive training on fresh scenes with captions of varying detail."""
    config = folder / "mini-clip-config"
    config.mkdir(parents=True, exist_ok=True)
    write_config(config)
    torch.manual_seed(recipe.seed)
    model = open_clip.create_model(f"local-dir:{config}", load_weights=False)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{config}")

    def loss_of(draw: Draw) -> Tensor:
        scenes = sample_scenes(draw.size, draw.key)
        keep = 1.0 if draw.step % 2 else 0.75
        image = F.normalize(model.encode_image(2 * render(scenes) - 1), dim=-1)
        text = F.normalize(model.encode_text(tokenizer(captions(scenes, keep=keep, seed=draw.step))), dim=-1)
        logits = model.logit_scale.clamp(max=4.6).exp() * image @ text.T
        target = torch.arange(len(logits))
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    return model, fit("clip", model, loss_of, recipe, folder)


@torch.inference_mode()
def retrieval(model: open_clip.CLIP, tokenizer: open_clip.HFTokenizer, rounds: int = 10, seed: int = 900_003) -> float:
    """Top-1 text-to-image retrieval among 100 held-out scenes with distinct detailed captions, mean over rounds."""
    hits = []
    for round_ in range(rounds):
        scenes = sample_scenes(200, seed + round_)
        texts = captions(scenes)
        first = torch.tensor([i for i, text in enumerate(texts) if text not in texts[:i]][:100])
        image = F.normalize(model.encode_image(2 * render(scenes[first]) - 1), dim=-1)
        text = F.normalize(model.encode_text(tokenizer([texts[i] for i in first])), dim=-1)
        hits.append((text @ image.T).argmax(1) == torch.arange(100))
    return torch.stack(hits).float().mean().item()
