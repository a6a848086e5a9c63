"""A classifier that reads a scene's attributes back from its pixels: the yardstick for generated images."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ..training.loop import Draw, History, Recipe, fit
from .scenes import COLOURS, GROUNDS, LIGHTS, SHAPES, SIZES, Scenes, render, sample_scenes

RECIPE = Recipe(steps=1800, batch_size=96, learning_rate=2e-3, seed=4, ema_decay=0.995)


class Reading(NamedTuple):
    """Attribute indices of B scenes. Objects are in reading order: left before right, upper before lower."""

    number: Tensor  # (B,) 0 for one object, 1 for two
    axis: Tensor  # (B,) 0 side by side, 1 one above the other (meaningful for two objects)
    shape: Tensor  # (B, 2)
    colour: Tensor  # (B, 2)
    size: Tensor  # (B, 2)
    ground: Tensor  # (B,)
    light: Tensor  # (B,)


HEADS = {  # classes per attribute, in the order of Reading
    "number": 2,
    "axis": 2,
    "shape": len(SHAPES),
    "colour": len(COLOURS),
    "size": len(SIZES),
    "ground": len(GROUNDS),
    "light": len(LIGHTS),
}
PER_OBJECT = ("shape", "colour", "size")


class Judge(nn.Module):
    """A small convolutional network: float images (B, 3, 64, 64) in [0, 1] to one tensor of logits per attribute."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(3, 24, 2), (24, 48, 2), (48, 64, 1), (64, 96, 2), (96, 96, 1), (96, 64, 2)]
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
                for i, o, stride in widths
            ),
            nn.Flatten(),
            nn.Linear(64 * 16, 192),
            nn.ReLU(),
        )
        self.heads = nn.ModuleDict(
            {name: nn.Linear(192, (2 if name in PER_OBJECT else 1) * classes) for name, classes in HEADS.items()}
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits of every attribute in HEADS: (B, classes), or (B, 2, classes) for those of an object."""
        features = self.body(2 * images - 1)
        logits = {name: head(features) for name, head in self.heads.items()}
        return {n: x.unflatten(1, (2, -1)) if n in PER_OBJECT else x for n, x in logits.items()}

    @torch.inference_mode()
    def read(self, images: Tensor, batch_size: int = 256) -> Reading:
        """The most likely attributes of each image."""
        batches = [self(batch) for batch in images.split(batch_size)]
        return Reading(**{name: torch.cat([b[name].argmax(-1) for b in batches]) for name in HEADS})

    @staticmethod
    def load(folder: Path) -> Judge:
        """The shipped judge, in float32."""
        judge = Judge()
        weights = load_file(folder / "model.safetensors")
        judge.load_state_dict(
            {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
        )
        return judge.eval()


def truth(scenes: Scenes) -> Reading:
    """What a perfect judge would read."""
    order = torch.where((scenes.relation % 2 == 1) & (scenes.count == 2), 1, 0)
    index = torch.stack([order, 1 - order], dim=1)
    return Reading(
        number=scenes.count - 1,
        axis=(scenes.relation >= 2).long(),
        shape=scenes.shape.gather(1, index),
        colour=scenes.colour.gather(1, index),
        size=scenes.size.gather(1, index),
        ground=scenes.ground,
        light=scenes.light,
    )


def objects_correct(scenes: Scenes, reading: Reading) -> Tensor:
    """(B,) true where every object of the scene was read with its colour and shape, wherever it stands."""
    want = truth(scenes)
    wanted, seen = want.shape * len(COLOURS) + want.colour, reading.shape * len(COLOURS) + reading.colour
    single = (seen[:, 0] == wanted[:, 0]) | ((reading.number == 1) & (seen[:, 1] == wanted[:, 0]))
    straight, swapped = (seen == wanted).all(1), (seen.flip(1) == wanted).all(1)
    pair = (reading.number == 1) & (straight | swapped)
    return torch.where(scenes.count == 1, single, pair)


def arrangement_correct(scenes: Scenes, reading: Reading) -> Tensor:
    """(B,) true where the named objects stand where the caption says (and no second one where it names one)."""
    want = truth(scenes)
    placed = (reading.shape == want.shape).all(1) & (reading.colour == want.colour).all(1) & (reading.axis == want.axis)
    return (reading.number == want.number) & torch.where(scenes.count == 2, placed, True)


def train(folder: Path, recipe: Recipe = RECIPE) -> tuple[Judge, History]:
    """Cross-entropy on fresh scenes, lightly blurred or noised so that decoder artefacts do not matter."""
    torch.manual_seed(recipe.seed)
    judge = Judge()

    def loss_of(draw: Draw) -> Tensor:
        scenes = sample_scenes(draw.size, draw.key)
        images = render(scenes)
        blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
        images = torch.lerp(images, blurred, torch.rand(len(scenes), 1, 1, 1, generator=draw.generator))
        images = (images + 0.03 * torch.randn(images.shape, generator=draw.generator)).clamp(0, 1)
        logits, want = judge(images), truth(scenes)._asdict()
        pair = scenes.count == 2
        loss = torch.zeros(())
        for name, scores in logits.items():
            target = want[name]
            if name in PER_OBJECT:
                loss = loss + F.cross_entropy(scores[:, 0], target[:, 0])
                loss = loss + F.cross_entropy(scores[pair, 1], target[pair, 1])
            elif name == "axis":
                loss = loss + F.cross_entropy(scores[pair], target[pair])
            else:
                loss = loss + F.cross_entropy(scores, target)
        return loss

    return judge, fit("judge", judge, loss_of, recipe, folder)


def accuracy(judge: Judge, count: int = 4096, seed: int = 900_002) -> float:
    """Share of held-out rendered scenes in which every object's colour and shape are read rightly."""
    scenes = sample_scenes(count, seed)
    hits = [objects_correct(part := scenes[i : i + 256], judge.read(render(part))) for i in range(0, count, 256)]
    return torch.cat(hits).float().mean().item()
