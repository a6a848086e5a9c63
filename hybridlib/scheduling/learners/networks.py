"""The networks of all agents as one stack: G independent networks of the same shape, one batched product a layer.

Agent b of seed s is group s * B + b. Groups share nothing: no parameter, no moment, no step count. Activations are
(G, features, rows): with rows last, element-wise work and softmax over few features run several times faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor


class Draws(Protocol):
    """Random numbers for every group; `purpose` says what for, so that a test can hand out its own."""

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """Uniform in [0, 1), shape `(G, *shape)`."""
        ...

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """Standard normal, shape `(G, *shape)`."""
        ...


class SeededDraws:
    """One generator a seed, restarted at each episode: a seed's numbers depend on nothing but (seed, episode).

    Results therefore do not depend on which other seeds are trained beside it, and a resumed run needs no saved
    generator state.
    """

    def __init__(self, seeds: Sequence[int], agents: int, dtype: torch.dtype) -> None:
        self.seeds, self.agents, self.dtype = tuple(seeds), agents, dtype
        self.generators = [torch.Generator() for _ in seeds]
        self.restart(0)

    def restart(self, episode: int) -> None:
        """Begin the numbers of one episode; 0 is construction, the first episode is 1."""
        for seed, generator in zip(self.seeds, self.generators, strict=True):
            generator.manual_seed(seed * 1_000_003 + episode)

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """Uniform in [0, 1), shape `(G, *shape)`."""
        return self._each(torch.rand, shape)

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """Standard normal, shape `(G, *shape)`."""
        return self._each(torch.randn, shape)

    def _each(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        drawn = [draw((self.agents, *shape), generator=g, dtype=self.dtype) for g in self.generators]
        return drawn[0] if len(drawn) == 1 else torch.cat(drawn)


class Stack:
    """Parameters of G networks: `flat` (G, P) is what optimisers see, `parts` are views of it, one a tensor.

    Args:
        shapes: of the tensors of one network; every tensor starts uniform in +-1 / sqrt(fan_in).
        fan_in: one for each shape.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], fan_in: Sequence[int], draws: Draws, copies: int = 1) -> None:
        self.shapes = tuple(shapes)
        sizes = [a * b for a, b in shapes]
        scale = torch.cat([torch.full((n,), 1 / math.sqrt(f)) for n, f in zip(sizes, fan_in, strict=True)])
        drawn = [2 * draws.uniform("initial weights", sum(sizes)) - 1 for _ in range(copies)]
        self.flat = torch.cat(drawn) * scale.to(drawn[0].dtype)
        self._bind()

    def _bind(self) -> None:
        parts = self.flat.split([a * b for a, b in self.shapes], dim=1)
        self.parts = [part.view(-1, *shape).requires_grad_() for part, shape in zip(parts, self.shapes, strict=True)]

    def copy(self) -> Stack:
        """The same values in memory of its own: a target network."""
        twin = object.__new__(Stack)
        twin.shapes, twin.flat = self.shapes, self.flat.clone()
        twin._bind()
        return twin

    def gradient(self, loss: Tensor) -> Tensor:
        """Of a loss summed over groups, shape (G, P)."""
        return torch.cat([g.flatten(1) for g in torch.autograd.grad(loss, self.parts)], dim=1)


def mlp_stack(widths: Sequence[int], draws: Draws, copies: int = 1) -> Stack:
    """Fully connected layers with biases: tensors W1, b1, W2, b2, ... of shapes (out, in) and (out, 1)."""
    shapes, fan_in = [], []
    for a, b in pairwise(widths):
        shapes += [(b, a), (b, 1)]
        fan_in += [a, a]
    return Stack(shapes, fan_in, draws, copies)


def mlp(parts: Sequence[Tensor], x: Tensor, activation: Callable[[Tensor], Tensor] = torch.relu) -> Tensor:
    """All networks on their own rows: x (G, in, rows) to (G, out, rows), nothing after the last layer."""
    for layer in range(0, len(parts) - 2, 2):
        x = activation(torch.baddbmm(parts[layer + 1], parts[layer], x))
    return torch.baddbmm(parts[-1], parts[-2], x)


class StackedAdam:
    """Adam (beta 0.9, 0.999, epsilon 1e-8) with a step count for each group.

    Groups that are still warming up keep parameters, moments and count untouched. `weight_decay` is added to the
    gradient, as torch.optim.Adam does.
    """

    def __init__(self, flat: Tensor, learning_rate: float, weight_decay: float = 0.0) -> None:
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.mean, self.square = torch.zeros_like(flat), torch.zeros_like(flat)
        self.steps = torch.zeros(len(flat), 1, dtype=torch.float64)

    @torch.no_grad()
    def step(self, flat: Tensor, gradient: Tensor, active: Tensor) -> None:
        """Update `flat` (G, P) in place where `active` (G,) is true."""
        rows = active[:, None]
        if self.weight_decay:
            gradient = gradient.add(flat, alpha=self.weight_decay)
        weight = rows.to(flat.dtype)
        self.steps += weight
        # lerp by 0 leaves a value as it is to the last bit, so inactive groups need no copy.
        self.mean.lerp_(gradient, 0.1 * weight)
        self.square.lerp_(gradient.square(), 0.001 * weight)
        count = self.steps.clamp(min=1)
        rate = (self.learning_rate / (1 - 0.9**count)).to(flat.dtype) * weight
        root = (1 - 0.999**count).sqrt().to(flat.dtype)
        flat.sub_(self.mean / (self.square.sqrt() / root + 1e-8) * rate)


@torch.no_grad()
def track(target: Tensor, source: Tensor, rate: float, active: Tensor) -> None:
    """Move target parameters (G, P) the fraction `rate` towards the source where `active` (G,) is true."""
    target.lerp_(source, (rate * active[:, None]).to(target.dtype))


def choose(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """One index for each row of probabilities (G, B, rows), by inverting the distribution at uniforms (G, rows)."""
    edges = probabilities.cumsum(1)
    return (uniforms[:, None] * edges[:, -1:] >= edges).sum(1).clamp(max=probabilities.shape[1] - 1)
