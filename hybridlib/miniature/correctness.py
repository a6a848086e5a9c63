"""Attribute correctness as a metric of images: what mini-judge reads against what the prompt says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..denoising.models import locate
from ..metrics.base import check_counts, file_sha256, stack
from .judge import Judge, Reading, objects_correct, truth
from .scenes import COLOURS, GROUNDS, IMAGE_SIZE, LIGHTS, RELATIONS, SHAPES, SIZES, Scenes

if TYPE_CHECKING:
    from PIL.Image import Image

KINDS = ("correct", "attributes")
_OBJECT = rf"an? ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_CAPTION = re.compile(
    rf"{_OBJECT}(?: ({'|'.join(RELATIONS)}) {_OBJECT})? on ({'|'.join(GROUNDS)}) at ({'|'.join(LIGHTS)})"
)


@dataclass(eq=False)
class Correctness:
    """What mini-judge reads in an image against its prompt, in 0..1; higher is better.

    "correct" is 1 where every object of the prompt is read with its colour and shape, wherever it stands, else 0: what
    the models' cards tell. "attributes" is the share of what the prompt says that is read: number of objects, shape,
    colour and size of each in its place, their arrangement, ground and light.
    """

    judge: Judge
    identity: str
    name: str = "correct"

    @classmethod
    def load(cls, kind: str = "correct", model: str = "mini-judge") -> Correctness:
        """One of `KINDS`, by the shipped judge or one in a folder.

        Raises:
            ValueError: if `kind` or the judge is unknown.
        """
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
        folder = Path(locate(model))
        weights = file_sha256(folder / "model.safetensors")[:12]
        return cls(Judge.load(folder), f"{kind} by {Path(model).name}, weights sha256 {weights}", kind)

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> np.ndarray:
        """Scores (n,), float64, of images of 64 x 64 pixels.

        Raises:
            ValueError: before any computing, if the counts do not fit, an image has another size, or a prompt does not
                name every attribute in the words of the scenes.
        """
        check_counts(images, prompts, "prompts")
        scenes = scenes_of(prompts)
        if wrong := [image.size for image in images if image.size != (IMAGE_SIZE, IMAGE_SIZE)]:
            raise ValueError(f"mini-judge reads images of {IMAGE_SIZE} x {IMAGE_SIZE} pixels, got {wrong[0]}")
        reading = self.judge.read(stack(images, "RGB").float() / 255)
        rule = objects_correct if self.name == "correct" else attributes_correct
        return rule(scenes, reading).double().numpy()


def judges(model: str) -> list[Correctness]:
    """Both kinds by a judge; none where `model` is "", as for prompts of other words than those of the scenes."""
    return [Correctness.load(kind, model) for kind in KINDS] if model else []


def attributes_correct(scenes: Scenes, reading: Reading) -> torch.Tensor:
    """(B,) share of the attributes of a scene that were read."""
    want = truth(scenes)
    hits = torch.stack([reading.number == want.number, reading.ground == want.ground, reading.light == want.light], 1)
    objects = torch.cat([getattr(reading, name) == getattr(want, name) for name in ("shape", "colour", "size")], 1)
    second = torch.tensor([False, True] * 3) & (scenes.count == 1)[:, None]  # of one object there is no second
    pair = (scenes.count == 2)[:, None]
    axis = (reading.axis == want.axis)[:, None]
    right = hits.sum(1) + (objects & ~second).sum(1) + (axis & pair).sum(1)
    return right / (hits.shape[1] + (~second).sum(1) + pair.sum(1))


def scenes_of(texts: Sequence[str]) -> Scenes:
    """The scenes that detailed captions describe, places left open.

    Raises:
        ValueError: naming the first text that is no detailed caption.
    """
    rows = []
    for text in texts:
        if (found := _CAPTION.fullmatch(text)) is None:
            raise ValueError(
                f"a prompt must name size, colour and shape of one or two objects, ground and light, as "
                f"'a large red circle on grass at noon' does, got {text!r}"
            )
        size, colour, shape, relation, size_2, colour_2, shape_2, ground, light = found.groups()
        rows.append(
            (
                1 if relation is None else 2,
                RELATIONS.index(relation or RELATIONS[0]),
                list(GROUNDS).index(ground),
                list(LIGHTS).index(light),
                *(list(SHAPES).index(word or shape) for word in (shape, shape_2)),
                *(list(COLOURS).index(word or colour) for word in (colour, colour_2)),
                *(list(SIZES).index(word or size) for word in (size, size_2)),
            )
        )
    told = torch.tensor(rows, dtype=torch.long).reshape(len(rows), 10)
    nowhere = torch.zeros(len(rows), 2)
    return Scenes(
        count=told[:, 0],
        relation=told[:, 1],
        ground=told[:, 2],
        light=told[:, 3],
        shape=told[:, 4:6],
        colour=told[:, 6:8],
        size=told[:, 8:10],
        centre=nowhere[..., None].expand(-1, -1, 2),
        radius=nowhere,
        turn=nowhere,
        key=torch.zeros(len(rows), dtype=torch.long),
    )
