"""SAC-TS: discrete soft actor-critic with twin critics, the learning rule that LAD-TS shares.

Source: the public DEdgeAI repository (2025 state); expectations over actions are taken in full, not sampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..system.model import check_real
from .networks import Stack, StackedAdam, choose, mlp, mlp_stack, track
from .training import Learner, Settings


@dataclass(frozen=True)
class SacSettings(Settings):
    """Published settings of SAC-TS, also the learning half of LAD-TS.

    The published target entropy of -1 can never be reached by an entropy, so the temperature only falls.
    """

    actor_rate: float = 1e-4
    critic_rate: float = 1e-3
    temperature: float = 0.05
    temperature_rate: float = 3e-4
    target_entropy: float = -1.0
    target_tracking: float = 0.005

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("actor_rate", "critic_rate", "temperature"):
            check_real(name, getattr(self, name), "(0, inf)")
        check_real("temperature_rate", self.temperature_rate, "[0, inf)")
        check_real("target_entropy", self.target_entropy, "(-inf, inf)")
        check_real("target_tracking", self.target_tracking, "[0, 1]")


class SacTs(Learner):
    """SAC-TS: policy MLP (2 + B) -> 20 -> 20 -> B with softmax, sampled."""

    name = "SAC-TS"
    settings_type: ClassVar[type[Settings]] = SacSettings

    @staticmethod
    def activation(x: Tensor) -> Tensor:
        """Between the layers of the critics."""
        return torch.relu(x)

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        hidden, rates = self.settings.hidden, self.settings
        self.actor = self.make_actor()
        # Copies 0 and 1 of every group are its twin critics.
        self.critics = mlp_stack((2 + self.servers, hidden, hidden, self.servers), self.draws, copies=2)
        self.targets = self.critics.copy()
        self.log_temperature = torch.full((self.groups, 1), rates.temperature, dtype=self.dtype).log()
        self.actor_adam = StackedAdam(self.actor.flat, rates.actor_rate)
        self.critic_adam = StackedAdam(self.critics.flat, rates.critic_rate)
        self.temperature_adam = StackedAdam(self.log_temperature, rates.temperature_rate)

    def make_actor(self) -> Stack:
        """Parameters of the policy."""
        hidden = self.settings.hidden
        return mlp_stack((2 + self.servers, hidden, hidden, self.servers), self.draws)

    def policy(self, states: Tensor, start: Tensor | None, purpose: str) -> Tensor:
        """Probabilities (G, B, rows) for states (G, 2 + B, rows); `start` is the latent of a diffusion policy."""
        return mlp(self.actor.parts, states).softmax(1)

    def starts(self, batch: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """Latents of the stored and of the next task; none here."""
        return None, None

    @torch.no_grad()
    def act_on(self, slot: int, states: Tensor, present: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Sample a server for each task from the policy."""
        return self.pick(self.policy(states.mT, None, "act")), {}

    def pick(self, probabilities: Tensor) -> Tensor:
        """A sampled server, or the likeliest in greedy evaluation."""
        if self.greedy:
            return probabilities.argmax(1)
        return choose(probabilities, self.draws.uniform("action", probabilities.shape[2]))

    def learn_from(self, place: Tensor, active: Tensor) -> None:
        """Critics, then actor on the stepped critics, then temperature, then targets: the published order."""
        batch = self.replay.read(place)
        start, next_start = self.starts(batch)
        self._learn_critics(batch, self._target(batch, next_start), active)
        entropy = self._learn_actor(batch["state"], start, active)
        rise = (entropy - self.settings.target_entropy).mean(1, keepdim=True) * self.log_temperature.exp()
        self.temperature_adam.step(self.log_temperature, rise, active)
        track(self.targets.flat, self.critics.flat, self.settings.target_tracking, active.repeat(2))

    @torch.no_grad()
    def _target(self, batch: Mapping[str, Tensor], next_start: Tensor | None) -> Tensor:
        """y = r + gamma (sum pi' min Q' + temperature H'), shape (G, batch)."""
        following = self.policy(batch["next_state"], next_start, "target policy")
        value = (following * self._least(self.targets, batch["next_state"])).sum(1)
        return batch["reward"] + self.settings.gamma * (value + self.log_temperature.exp() * entropy_of(following))

    def _least(self, critics: Stack, states: Tensor) -> Tensor:
        """The lesser of the twin critics, (G, B, rows)."""
        first, second = mlp(critics.parts, torch.cat([states, states]), self.activation).chunk(2)
        return torch.minimum(first, second)

    def _learn_critics(self, batch: Mapping[str, Tensor], target: Tensor, active: Tensor) -> None:
        values = mlp(self.critics.parts, torch.cat([batch["state"]] * 2), self.activation)
        taken = values.gather(1, batch["action"].long().repeat(2, 1)[:, None])[:, 0]
        loss = (taken - target.repeat(2, 1)).square().mean(1).sum()
        self.critic_adam.step(self.critics.flat, self.critics.gradient(loss), active.repeat(2))

    def _learn_actor(self, states: Tensor, start: Tensor | None, active: Tensor) -> Tensor:
        """One step up mean(sum pi min Q + temperature H); returns H (G, batch)."""
        with torch.no_grad():
            values = self._least(self.critics, states)
        probabilities = self.policy(states, start, "policy")
        entropy = entropy_of(probabilities)
        gain = self.log_temperature.exp() * entropy + (probabilities * values).sum(1)
        self.actor_adam.step(self.actor.flat, self.actor.gradient(-gain.mean(1).sum()), active)
        return entropy.detach()

    def tensors(self) -> dict[str, Tensor]:
        """Everything learned, by name."""
        kept = {"actor": self.actor.flat, "critics": self.critics.flat, "targets": self.targets.flat}
        kept["log_temperature"] = self.log_temperature
        for name in ("actor_adam", "critic_adam", "temperature_adam"):
            adam: StackedAdam = getattr(self, name)
            kept |= {f"{name}.mean": adam.mean, f"{name}.square": adam.square, f"{name}.steps": adam.steps}
        return kept


def entropy_of(probabilities: Tensor) -> Tensor:
    """-sum p log(p + 1e-8) over servers, the published form, nats: (G, B, rows) to (G, rows)."""
    return -(probabilities * (probabilities + 1e-8).log()).sum(1)
