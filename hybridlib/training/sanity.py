"""The small latent-space experiment of the reference: a conditional velocity network under each coupling.

A residual MLP learns a rectified flow on linear latents of drawn scenes in minutes of one core. It is a check of signs
before the same couplings train an image model, no more: a linear 4 x 8 x 8 latent is not that of an autoencoder.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..metrics.distribution import frechet_distance
from .assignment import assign_noise, class_means
from .evaluation import class_mean_error, straightness
from .matching import choose_condition_weight
from .semidiscrete import SemidiscreteCoupling

Coupling = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]  # rows (B,) -> rows (B,), noise (B, ...)


class Recipe(NamedTuple):
    """How the small network is trained and sampled."""

    steps: int = 600
    batch_size: int = 256
    learning_rate: float = 1e-3
    ema_decay: float = 0.995
    width: int = 256
    blocks: int = 3
    samples: int = 1200
    step_counts: tuple[int, ...] = (1, 2, 4, 8, 32)  # of the Euler sampler; the last also gives straightness


def linear_latents(images: Tensor, channels: int = 4, size: int = 8) -> Tensor:
    """Linear latents (N, channels, size, size) of images (N, 3, H, W): the leading components of patches, unit std."""
    patch = images.shape[-1] // size
    patches = F.unfold(images, patch, stride=patch).transpose(1, 2).flatten(0, 1)  # (N * size^2, 3 * patch^2)
    patches = patches - patches.mean(dim=0)
    _, vectors = torch.linalg.eigh(patches.T @ patches)
    latents = patches @ vectors[:, -channels:]
    latents = latents / latents.std(dim=0)
    return latents.view(len(images), size, size, channels).permute(0, 3, 1, 2).contiguous()


def couplings(latents: Tensor, labels: Tensor, captions: Tensor, passes: int = 32) -> dict[str, Coupling]:
    """The arms of the experiment, each a function of the rows of a batch.

    Args:
        latents, labels: (N, ...) and (N,): the training set and its classes.
        captions: (C, E) an embedding for each class, for C2OT's price.
        passes: of the semidiscrete fit.
    """
    centers, centre = class_means(latents, labels), latents.mean(dim=0)
    pool = torch.randperm(len(latents), generator=torch.Generator().manual_seed(0))[:256]
    weight = choose_condition_weight(latents[pool], captions[labels[pool]], generator=torch.Generator().manual_seed(0))
    whole = SemidiscreteCoupling.fit(latents, passes=passes)
    grouped = SemidiscreteCoupling.fit(latents, labels, passes=passes)

    def assigned(options: Callable[[Tensor], dict[str, object]]) -> Coupling:
        return lambda rows, generator: (
            rows,
            assign_noise(latents[rows], generator=generator, **options(rows)),  # type: ignore[arg-type]
        )

    return {
        "independent": assigned(lambda rows: {"mode": "none"}),
        "linear": assigned(lambda rows: {}),
        "farthest (control)": lambda rows, generator: (rows, assign_noise(-latents[rows], generator=generator)),
        "linear within class": assigned(lambda rows: {"condition": labels[rows]}),
        "linear, captions": assigned(lambda rows: {"condition": captions[labels[rows]], "condition_weight": weight}),
        "KNN 8, L2": assigned(lambda rows: {"mode": "knn", "cost": "l2"}),
        "KNN 8, centred": assigned(lambda rows: {"mode": "knn", "center": centre}),
        "KNN 8, class-centred": assigned(lambda rows: {"mode": "knn", "center": centers[labels[rows]]}),
        "semidiscrete": lambda rows, generator: whole.draw(len(rows), generator),
        "semidiscrete within class": lambda rows, generator: grouped.draw(len(rows), generator),
    }


class VelocityMLP(nn.Module):
    """Velocity of noisy latents (B, ...) at noise levels (B,) for classes (B,)."""

    frequencies: Tensor

    def __init__(self, size: int, classes: int, width: int, blocks: int) -> None:
        super().__init__()
        self.embed = nn.Linear(size, width)
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size))
        self.register_buffer("frequencies", torch.pi * torch.logspace(0, 2, 16))

    def forward(self, noisy: Tensor, sigmas: Tensor, labels: Tensor) -> Tensor:
        """Velocity, of the shape of `noisy`."""
        waves = sigmas[:, None] * self.frequencies
        condition = self.time(torch.cat([waves.sin(), waves.cos()], dim=1)) + self.label(labels)
        hidden = self.embed(noisy.flatten(1))
        for block in self.blocks:
            hidden = hidden + block(hidden + condition)
        return self.out(hidden).view_as(noisy)


def train(latents: Tensor, labels: Tensor, coupling: Coupling, seed: int, recipe: Recipe) -> VelocityMLP:
    """The EMA network; initialisation, rows and noise levels depend on the seed alone, not on the coupling."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VelocityMLP(latents[0].numel(), int(labels.max()) + 1, recipe.width, recipe.blocks)
    ema = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate)
    for step in range(recipe.steps):
        order = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.randint(len(latents), (recipe.batch_size,), generator=order)
        sigmas = torch.rand(recipe.batch_size, generator=order)
        rows, noise = coupling(rows, order)
        clean = latents[rows]
        noisy = torch.lerp(clean, noise, sigmas.view(-1, *[1] * (clean.dim() - 1)))
        loss = F.mse_loss(model(noisy, sigmas, labels[rows]), noise - clean)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        decay = min(recipe.ema_decay, (1 + step) / (10 + step))
        for average, value in zip(ema.parameters(), model.parameters(), strict=True):
            average.lerp_(value.detach(), 1 - decay)
    return ema.eval()


@torch.no_grad()
def evaluate(model: VelocityMLP, latents: Tensor, labels: Tensor, seed: int, recipe: Recipe) -> dict[str, float]:
    """Straightness, Frechet distance per dimension in latent space by step count, and class error, from plain noise."""
    generator = torch.Generator().manual_seed(1_000_000 + seed)
    classes = torch.arange(recipe.samples) % (int(labels.max()) + 1)
    start = torch.randn(recipe.samples, *latents.shape[1:], generator=generator)
    reference = latents.flatten(1).numpy()
    found = {}
    for count in recipe.step_counts:
        sigmas, states = torch.linspace(1, 0, count + 1), [start]
        for sigma, following in pairwise(sigmas):
            velocity = model(states[-1], sigma.expand(len(start)), classes)
            states.append(states[-1] + (following - sigma) * velocity)
        distance = frechet_distance(states[-1].flatten(1).numpy(), reference)
        found[f"FD {count}"] = distance / reference.shape[1]
    found["S"] = straightness(torch.stack(states), sigmas)
    found["class error"] = class_mean_error(states[-1], classes, class_means(latents, labels))
    return found


def experiment(
    latents: Tensor,
    labels: Tensor,
    arms: Mapping[str, Coupling],
    seeds: Sequence[int] = (0, 1, 2),
    recipe: Recipe = Recipe(),  # noqa: B008 - immutable
) -> pd.DataFrame:
    """One row per coupling and seed with the measures of `evaluate`; `evaluation.compare_couplings` reads it."""
    rows = []
    for seed in seeds:
        for name, coupling in arms.items():
            model = train(latents, labels, coupling, seed, recipe)
            rows.append({"coupling": name, "seed": seed} | evaluate(model, latents, labels, seed, recipe))
    return pd.DataFrame(rows)
