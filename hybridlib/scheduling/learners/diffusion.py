"""Action diffusion: a few denoising steps turn a latent over servers into logits; the policies of LAD-TS and D2SAC.

Source: the public DEdgeAI and AGOD repositories; the schedule is their "vp" one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .networks import Draws, Stack

EMBEDDING = 16


class Schedule(NamedTuple):
    """x_{i-1} = keep_i x_i - push_i e_i + noise_i xi for i = 1..I (index i - 1), noise_1 = 0."""

    keep: list[float]
    push: list[float]
    noise: list[float]
    beta: list[float]

    @classmethod
    def vp(cls, steps: int) -> Schedule:
        """beta_i = 1 - exp(-0.1 / I - 0.5 (10 - 0.1) (2 i - 1) / I^2), posterior mean with unclipped x-hat.

        Raises:
            ValueError: unless steps >= 1.
        """
        if steps < 1:
            raise ValueError(f"denoising_steps must be at least 1, got {steps}")
        i = np.arange(1, steps + 1)
        beta = 1 - np.exp(-0.1 / steps - 0.5 * (10 - 0.1) * (2 * i - 1) / steps**2)
        kept = np.cumprod(1 - beta)
        before = np.append(1.0, kept[:-1])
        of_clean = beta * np.sqrt(before) / (1 - kept)
        of_latent = (1 - before) * np.sqrt(1 - beta) / (1 - kept)
        noise = np.sqrt(beta * (1 - before) / (1 - kept))
        keep = of_clean / np.sqrt(kept) + of_latent
        push = of_clean * np.sqrt(1 / kept - 1)
        return cls(keep.tolist(), push.tolist(), noise.tolist(), beta.tolist())

    @property
    def gain(self) -> float:
        """Factor by which x_I reaches x_0."""
        return math.prod(self.keep)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the injected noise in x_0."""
        gains = np.cumprod([1.0, *self.keep])[:-1]
        return float(np.sqrt(((gains * self.noise) ** 2).sum()))


def embedding(step: int, dtype: torch.dtype) -> Tensor:
    """Sinusoidal embedding of a step, width 16, sines then cosines."""
    half = EMBEDDING // 2
    angles = step * torch.exp(-math.log(1e4) / (half - 1) * torch.arange(half, dtype=torch.float64))
    return torch.cat([angles.sin(), angles.cos()]).to(dtype)


def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x)) by one exponential; torch's own takes ten times as long on a CPU."""
    e = x.clamp(max=20.0).exp()  # beyond, the factor is 1 to the last bit
    e = e * (e + 2)
    return x * (e / (e + 2))


class DiffusionActor:
    """One denoiser MLP (B + 16 + 2 + B) -> hidden -> hidden -> B an agent, applied `steps` times.

    Args:
        output: "softmax" (DEdgeAI) or "tanh" (AGOD) on the network's output.
        activation: "relu" (DEdgeAI) or "mish" (AGOD) between layers.
        learned_time: AGOD's layers 16 -> 32 -> 16 on the embedding; DEdgeAI has none.
    """

    def __init__(
        self,
        servers: int,
        hidden: int,
        steps: int,
        draws: Draws,
        output: str = "softmax",
        activation: str = "relu",
        learned_time: bool = False,
    ) -> None:
        if output not in ("softmax", "tanh") or activation not in ("relu", "mish"):
            raise ValueError(f"output must be softmax or tanh and activation relu or mish, got {output}, {activation}")
        self.schedule, self.steps, self.output, self.learned_time = Schedule.vp(steps), steps, output, learned_time
        self.activation: Callable[[Tensor], Tensor] = torch.relu if activation == "relu" else mish
        self.times = torch.stack([embedding(i, torch.float64) for i in range(steps)], dim=1)
        width = servers + EMBEDDING + 2 + servers
        # The first layer by its inputs: the part of the state is the same in all steps and computed once.
        shapes = [(hidden, servers), (hidden, EMBEDDING), (hidden, 2 + servers), (hidden, 1)]
        shapes += [(hidden, hidden), (hidden, 1), (servers, hidden), (servers, 1)]
        fan_in = [width] * 4 + [hidden] * 4
        if learned_time:
            shapes += [(2 * EMBEDDING, EMBEDDING), (2 * EMBEDDING, 1), (EMBEDDING, 2 * EMBEDDING), (EMBEDDING, 1)]
            fan_in += [EMBEDDING] * 2 + [2 * EMBEDDING] * 2
        self.stack = Stack(shapes, fan_in, draws)

    def denoise(self, parts: list[Tensor], latent: Tensor, states: Tensor, noise: Tensor | None) -> Tensor:
        """x_0 (G, B, rows) from x_I = latent; noise (G, I - 1, B, rows), entry i - 2 for step i, or None for zeros."""
        by_latent, by_time, by_state, bias, w2, b2, w3, b3 = parts[:8]
        from_state = torch.baddbmm(bias, by_state, states)
        times = self.times.to(states.dtype).expand(len(states), -1, -1)
        if self.learned_time:
            times = torch.baddbmm(parts[11], parts[10], self.activation(torch.baddbmm(parts[9], parts[8], times)))
        from_time = torch.bmm(by_time, times)
        x = latent
        for i in range(self.steps, 0, -1):
            h = self.activation(torch.baddbmm(from_state + from_time[:, :, i - 1 : i], by_latent, x))
            h = torch.baddbmm(b3, w3, self.activation(torch.baddbmm(b2, w2, h)))
            e = h.softmax(1) if self.output == "softmax" else h.tanh()
            x = torch.add(x * self.schedule.keep[i - 1], e, alpha=-self.schedule.push[i - 1])
            if i > 1 and noise is not None:
                x = torch.add(x, noise[:, i - 2], alpha=self.schedule.noise[i - 1])
        return x
