"""D2SAC-TS: diffusion policies that start from noise instead of a memory, in two readings of the published baseline.

The DEdgeAI repository compares with D2SAC but does not hold it; it points to AGOD and claims the same setup. Variant A
is LAD-TS started from N(0, I): a pure ablation of the memory. Variant B is AGOD's network and losses in the same
environment: the fair baseline. They differ a lot, and which one was published is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..system.model import check_real, check_whole
from .diffusion import DiffusionActor, mish
from .lad import LadSettings, LadTs
from .networks import Stack, track
from .sac import SacSettings, SacTs
from .training import Settings


@dataclass(frozen=True)
class D2sacASettings(LadSettings):
    """LAD-TS without its memory."""

    start: str = "noise"


class D2sacA(LadTs):
    """D2SAC-A: LAD-TS with x_I ~ N(0, I) at acting and at both training passes."""

    name = "D2SAC-A"
    settings_type: ClassVar[type[Settings]] = D2sacASettings


@dataclass(frozen=True)
class D2sacBSettings(SacSettings):
    """AGOD's losses at the size, replay and cadence of DEdgeAI.

    Returns run over `n_step` tasks of the same agent, fewer at the newest end of the buffer; the target has no entropy
    and comes from tracked copies of actor and critics; the temperature is fixed; Adam decays weights.
    """

    denoising_steps: int = 5
    n_step: int = 3
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("denoising_steps", "n_step"):
            check_whole(name, getattr(self, name), 1)
        check_real("weight_decay", self.weight_decay, "[0, inf)")


class D2sacB(SacTs):
    """D2SAC-B: denoiser with Mish, tanh output and learned time layers, started from N(0, I) each time."""

    name = "D2SAC-B"
    settings_type: ClassVar[type[Settings]] = D2sacBSettings

    @staticmethod
    def activation(x: Tensor) -> Tensor:
        """Between the layers of the critics."""
        return mish(x)

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)
        self.target_actor = self.actor.copy()
        for adam in (self.actor_adam, self.critic_adam):
            adam.weight_decay = self.settings.weight_decay

    def make_actor(self) -> Stack:
        """Parameters of the denoiser."""
        settings = self.settings
        self.denoiser = DiffusionActor(
            self.servers, settings.hidden, settings.denoising_steps, self.draws, "tanh", "mish", learned_time=True
        )
        return self.denoiser.stack

    def policy(self, states: Tensor, start: Tensor | None, purpose: str) -> Tensor:
        """Probabilities (G, B, rows) of the actor; of its tracked copy for the target."""
        rows, parts = states.shape[2], (self.target_actor if purpose == "target policy" else self.actor).parts
        latent = self.draws.normal(f"{purpose} start", self.servers, rows)
        noise = self.draws.normal(f"{purpose} noise", max(self.denoiser.steps - 1, 1), self.servers, rows)
        return self.denoiser.denoise(parts, latent, states, noise).softmax(1)

    def learn_from(self, place: Tensor, active: Tensor) -> None:
        """Critics, then actor, then both targets."""
        batch = self.replay.read(place)
        self._learn_critics(batch, self._n_step_target(place), active)
        self._learn_actor(batch["state"], None, active)
        rate = self.settings.target_tracking
        track(self.targets.flat, self.critics.flat, rate, active.repeat(2))
        track(self.target_actor.flat, self.actor.flat, rate, active)

    @torch.no_grad()
    def _n_step_target(self, place: Tensor) -> Tensor:
        """sum gamma^k r_k + gamma^n sum pi' min Q' of the state n tasks later, shape (G, batch)."""
        gamma, newest = self.settings.gamma, self.replay.newer(place)
        returns, discount = torch.zeros(place.shape, dtype=self.dtype), torch.ones(place.shape, dtype=self.dtype)
        for k in range(self.settings.n_step):
            row: Mapping[str, Tensor] = self.replay.read((place + newest.clamp(max=k)) % self.replay.capacity)
            there = newest >= k
            returns += torch.where(there, discount * row["reward"], 0.0)
            discount = torch.where(there, discount * gamma, discount)
        following = self.policy(row["next_state"], None, "target policy")
        return returns + discount * (following * self._least(self.targets, row["next_state"])).sum(1)

    def tensors(self) -> dict[str, Tensor]:
        """Everything learned, by name."""
        return super().tensors() | {"target_actor": self.target_actor.flat}
