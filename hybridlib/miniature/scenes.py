"""The captioned world of the miniature models: one or two shaded shapes on a textured ground.

A `Scenes` batch holds attributes, never pixels; `render` turns it into images and `captions` into text.
Every image depends on its own attributes and noise key alone, so it is the same in any batch and on any run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

IMAGE_SIZE = 64  # pixels


class Ground(NamedTuple):
    """A background: two colours blended by 1/f^exponent noise, stretched along x by `stretch`."""

    dark: tuple[float, float, float]
    bright: tuple[float, float, float]
    exponent: float
    stretch: float


GROUNDS = {
    "sand": Ground((0.76, 0.62, 0.42), (0.91, 0.81, 0.62), 1.6, 1.0),
    "grass": Ground((0.16, 0.36, 0.12), (0.42, 0.62, 0.26), 1.5, 0.5),
    "water": Ground((0.08, 0.26, 0.46), (0.36, 0.60, 0.76), 1.9, 4.0),
    "snow": Ground((0.76, 0.82, 0.90), (0.95, 0.97, 0.99), 2.0, 1.0),
    "stone": Ground((0.36, 0.35, 0.35), (0.60, 0.59, 0.57), 1.5, 1.0),
    "wood": Ground((0.38, 0.23, 0.13), (0.62, 0.42, 0.25), 1.8, 7.0),
}
LIGHTS = {  # colour cast on the ground and, milder, on the objects
    "noon": ((1.00, 1.00, 1.00), (1.00, 1.00, 1.00)),
    "dusk": ((1.02, 0.80, 0.64), (1.00, 0.90, 0.82)),
    "night": ((0.38, 0.42, 0.58), (0.72, 0.74, 0.84)),
}
COLOURS = {
    "red": (0.86, 0.12, 0.12),
    "orange": (0.97, 0.52, 0.08),
    "yellow": (0.97, 0.88, 0.16),
    "green": (0.10, 0.66, 0.24),
    "cyan": (0.16, 0.82, 0.84),
    "blue": (0.14, 0.28, 0.88),
    "purple": (0.56, 0.18, 0.74),
    "white": (0.95, 0.95, 0.95),
}
SIZES = {"small": (7.5, 9.0), "large": (12.5, 14.5)}  # radius range, pixels
RELATIONS = ("left of", "right of", "above", "below")


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 1.0


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.74).abs() - 0.26


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.84


def _cross(x: Tensor, y: Tensor) -> Tensor:
    long, short = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
    return torch.maximum(long - 1.0, short - 0.34)


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(0.866 * x.abs() - 0.5 * y, y) - 0.55


def _star(x: Tensor, y: Tensor) -> Tensor:
    # Five-fold fold of the plane, then one edge from the outer tip (radius 1.1) to the notch (radius 0.46).
    sector = 2 * math.pi / 5
    angle = torch.atan2(x, -y)
    angle = (torch.remainder(angle + sector / 2, sector) - sector / 2).abs()
    radius = torch.hypot(x, y)
    along, across = radius * torch.cos(angle), radius * torch.sin(angle)
    tip, notch_along, notch_across = 1.1, 0.46 * math.cos(sector / 2), 0.46 * math.sin(sector / 2)
    edge_along, edge_across = tip - notch_along, notch_across
    length = math.hypot(edge_along, edge_across)
    return ((along - tip) * edge_across + across * edge_along) / length


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
}


@dataclass(frozen=True)
class Scenes:
    """A batch of B scenes. Objects sit in a second axis of length 2; the second is absent where `count` is 1.

    Index tensors are int64 into the module's tables; centres and radii are pixels, turns are radians.
    `relation` says how object 0 lies to object 1 (0 where there is one object).
    """

    count: Tensor  # (B,) 1 or 2
    shape: Tensor  # (B, 2) into SHAPES
    colour: Tensor  # (B, 2) into COLOURS
    size: Tensor  # (B, 2) into SIZES
    relation: Tensor  # (B,) into RELATIONS
    ground: Tensor  # (B,) into GROUNDS
    light: Tensor  # (B,) into LIGHTS
    centre: Tensor  # (B, 2, 2) x, y
    radius: Tensor  # (B, 2)
    turn: Tensor  # (B, 2)
    key: Tensor  # (B,) noise key of the ground

    def __len__(self) -> int:
        return len(self.count)

    def __getitem__(self, index: slice | Tensor) -> Scenes:
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def sample_scenes(count: int, seed: int) -> Scenes:
    """Draw `count` scenes, half of them with two objects; the same seed gives the same scenes."""
    rng = torch.Generator().manual_seed(seed)

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=rng)

    def uniform(low: Tensor | float, high: Tensor | float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=rng)

    objects = 1 + integers(2, count)
    size = integers(len(SIZES), count, 2)
    relation = torch.where(objects == 2, integers(len(RELATIONS), count), 0)
    bounds = torch.tensor(list(SIZES.values()))[size]
    radius = uniform(bounds[..., 0], bounds[..., 1], count, 2)
    return Scenes(
        count=objects,
        shape=integers(len(SHAPES), count, 2),
        colour=integers(len(COLOURS), count, 2),
        size=size,
        relation=relation,
        ground=integers(len(GROUNDS), count),
        light=integers(len(LIGHTS), count),
        centre=_place(objects, relation, uniform(-1.0, 1.0, count, 2, 2)),
        radius=radius,
        turn=uniform(-0.15, 0.15, count, 2),
        key=torch.randint(2**31, (count,), generator=rng),
    )


def sample_lone(count: int, seed: int, shapes: int = len(SHAPES), colours: int = len(COLOURS)) -> Scenes:
    """Draw `count` scenes with one object each, of the first `shapes` and `colours` only."""
    share = shapes * colours / (2 * len(SHAPES) * len(COLOURS))
    pool = sample_scenes(int(1.2 * count / share) + 100, seed)
    fits = (pool.count == 1) & (pool.shape[:, 0] < shapes) & (pool.colour[:, 0] < colours)
    return pool[fits.nonzero()[:count, 0]]


def plain(scenes: Scenes) -> Scenes:
    """The same lone objects, all large, near the middle, on sand at noon: shape and colour are most of what is left."""
    small, large = SIZES.values()
    share = (scenes.radius - small[0]) / (small[1] - small[0])
    grown = torch.where(scenes.size == 0, large[0] + share * (large[1] - large[0]), scenes.radius)
    return replace(
        scenes,
        size=torch.ones_like(scenes.size),
        radius=grown,
        centre=IMAGE_SIZE / 2 + (scenes.centre - IMAGE_SIZE / 2) / 2,
        ground=torch.zeros_like(scenes.ground),
        light=torch.zeros_like(scenes.light),
    )


def _place(objects: Tensor, relation: Tensor, jitter: Tensor) -> Tensor:
    """Centres (B, 2, 2): a lone object near the middle, a pair on either side of it along the relation's axis."""
    lone = 32 + 8 * jitter
    across = 32 + 7 * jitter
    sign = torch.where(relation % 2 == 0, -1.0, 1.0)[:, None] * torch.tensor([1.0, -1.0])
    along = 32 + 15.5 * sign[..., None] + 1.5 * jitter
    horizontal = (relation < 2)[:, None]
    pair = torch.stack(
        [
            torch.where(horizontal, along[..., 0], across[..., 0]),
            torch.where(horizontal, across[..., 1], along[..., 1]),
        ],
        dim=-1,
    )
    return torch.where((objects == 2)[:, None, None], pair, lone)


def render(scenes: Scenes) -> Tensor:
    """Images, float32 (B, 3, 64, 64) in [0, 1]."""
    axis = torch.arange(IMAGE_SIZE) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    image = _ground(scenes)
    tints = torch.tensor([object_tint for _, object_tint in LIGHTS.values()])[scenes.light]
    for slot in range(2):
        present = (scenes.count > slot)[:, None, None].float()
        dx, dy = x - scenes.centre[:, slot, 0, None, None], y - scenes.centre[:, slot, 1, None, None]
        radius, turn = scenes.radius[:, slot, None, None], scenes.turn[:, slot, None, None]
        u = (dx * torch.cos(turn) + dy * torch.sin(turn)) / radius
        v = (dy * torch.cos(turn) - dx * torch.sin(turn)) / radius
        distance = _distance(scenes.shape[:, slot], u, v) * radius  # pixels, negative inside
        shadow = _distance(scenes.shape[:, slot], u - 0.16, v - 0.2) * radius
        image = image * (1 - 0.45 * present * torch.sigmoid(-shadow / 1.2))[:, None]
        colour = torch.tensor(list(COLOURS.values()))[scenes.colour[:, slot]] * tints
        lit = (1 - 0.16 * (u + v) + 0.04 * torch.tanh(-distance / 2)).clamp(0.5, 1.3)
        coverage = (0.5 - distance).clamp(0, 1) * present  # one-pixel anti-aliasing
        surface = (colour[:, :, None, None] * lit[:, None]).clamp(0, 1)
        image = torch.lerp(image, surface, coverage[:, None])
    return image.clamp(0, 1)


def _distance(shape: Tensor, u: Tensor, v: Tensor) -> Tensor:
    distance = torch.empty_like(u)
    for index, function in enumerate(SHAPES.values()):
        rows = (shape == index).nonzero()[:, 0]
        distance[rows] = function(u[rows], v[rows])
    return distance


def _ground(scenes: Scenes) -> Tensor:
    """Textured ground (B, 3, 64, 64): random-phase noise with a power-law amplitude spectrum."""
    half = IMAGE_SIZE // 2 + 1
    counter = torch.arange(IMAGE_SIZE * half).view(IMAGE_SIZE, half)
    phase = _hash(scenes.key[:, None, None], counter) * (2 * math.pi)
    grounds = list(GROUNDS.values())
    fy, fx = torch.fft.fftfreq(IMAGE_SIZE)[:, None], torch.fft.rfftfreq(IMAGE_SIZE)[None]
    spectra = []
    for ground in grounds:
        frequency = torch.hypot(fx * ground.stretch, fy).clamp_min(1 / IMAGE_SIZE)
        amplitude = frequency**-ground.exponent
        amplitude[0, 0] = 0.0
        spectra.append(amplitude / amplitude.square().sum().sqrt())
    noise = torch.fft.irfft2(torch.polar(torch.stack(spectra)[scenes.ground], phase), s=(IMAGE_SIZE, IMAGE_SIZE))
    blend = torch.sigmoid(1.6 * noise / noise.std(dim=(1, 2), keepdim=True))
    blend = blend + torch.linspace(0.12, -0.12, IMAGE_SIZE)[None, :, None]  # a little lighter at the top
    dark = torch.tensor([g.dark for g in grounds])[scenes.ground][:, :, None, None]
    bright = torch.tensor([g.bright for g in grounds])[scenes.ground][:, :, None, None]
    cast = torch.tensor([ground_cast for ground_cast, _ in LIGHTS.values()])[scenes.light][:, :, None, None]
    return torch.lerp(dark, bright, blend.clamp(0, 1)[:, None]) * cast


def _hash(key: Tensor, counter: Tensor) -> Tensor:
    """Uniform [0, 1) float32 from integer key and counter: a multiply-xorshift hash, independent of batching."""
    mask = 0xFFFFFFFF
    h = (key * 0x9E3779B1 + counter * 0x85EBCA6B) & mask
    for multiplier in (0x7FEB352D, 0x2C1B3C6D):
        h = ((h ^ (h >> 16)) * multiplier) & mask
    return ((h ^ (h >> 16)) >> 8).float() / 2**24


# ---- text -----------------------------------------------------------------------------------------------------------


def captions(scenes: Scenes, keep: float = 1.0, seed: int = 0) -> list[str]:
    """One caption a scene. Shapes and their relation are always named; colours, sizes, ground and light each
    with probability `keep`, so 1 gives the detailed (personal) and 0 the generic (public) description."""
    if not 0.0 <= keep <= 1.0:
        raise ValueError(f"keep must be a probability in [0, 1], got {keep}")
    rng = Random(seed)
    shapes, colours, sizes = list(SHAPES), list(COLOURS), list(SIZES)
    grounds, lights = list(GROUNDS), list(LIGHTS)
    texts = []
    for count, shape, colour, size, relation, ground, light in zip(
        *(
            getattr(scenes, name).tolist()
            for name in ("count", "shape", "colour", "size", "relation", "ground", "light")
        ),
        strict=True,
    ):
        named = []
        for slot in range(count):
            words = [sizes[size[slot]]] if rng.random() < keep else []
            words += [colours[colour[slot]]] if rng.random() < keep else []
            words += [shapes[shape[slot]]]
            named.append(" ".join(["an" if words[0][0] == "o" else "a", *words]))
        text = f" {RELATIONS[relation]} ".join(named)
        text += f" on {grounds[ground]}" if rng.random() < keep else ""
        text += f" at {lights[light]}" if rng.random() < keep else ""
        texts.append(text)
    return texts


def contradict(scenes: Scenes, seed: int) -> Scenes:
    """The same shapes with every other named attribute changed: what a hand-written negative prompt describes."""
    rng = torch.Generator().manual_seed(seed)

    def other(values: Tensor, high: int) -> Tensor:
        return (values + 1 + torch.randint(high - 1, values.shape, generator=rng)) % high

    changed = replace(
        scenes,
        colour=other(scenes.colour, len(COLOURS)),
        size=other(scenes.size, len(SIZES)),
        ground=other(scenes.ground, len(GROUNDS)),
        light=other(scenes.light, len(LIGHTS)),
    )
    return replace(changed, radius=torch.tensor(list(SIZES.values()))[changed.size].mean(dim=-1))
