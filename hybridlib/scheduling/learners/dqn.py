"""DQN-TS: one Q-network an agent, epsilon-greedy, a target copied every 200 updates.

Source: the public DEdgeAI repository (2025 state).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..system.model import check_real, check_whole
from .networks import StackedAdam, mlp, mlp_stack, track
from .training import Learner, Settings


@dataclass(frozen=True)
class DqnSettings(Settings):
    """Published settings of DQN-TS; epsilon is constant from the first task on."""

    rate: float = 1e-4
    epsilon: float = 0.01
    copy_every: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        check_real("rate", self.rate, "(0, inf)")
        check_real("epsilon", self.epsilon, "[0, 1]")
        check_whole("copy_every", self.copy_every, 1)


class DqnTs(Learner):
    """DQN-TS: Q-network (2 + B) -> 20 -> 20 -> B, mean squared error to r + gamma max Q'."""

    name = "DQN-TS"
    settings_type: ClassVar[type[Settings]] = DqnSettings

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        hidden = self.settings.hidden
        self.network = mlp_stack((2 + self.servers, hidden, hidden, self.servers), self.draws)
        self.target = self.network.copy()
        self.adam = StackedAdam(self.network.flat, self.settings.rate)

    @torch.no_grad()
    def act_on(self, slot: int, states: Tensor, present: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The server of highest value; with probability epsilon any server."""
        best = mlp(self.network.parts, states.mT).argmax(1)
        if self.greedy:
            return best, {}
        tasks = states.shape[1]
        explore = self.draws.uniform("explore", tasks) < self.settings.epsilon
        anywhere = (self.draws.uniform("action", tasks) * self.servers).long().clamp(max=self.servers - 1)
        return torch.where(explore, anywhere, best), {}

    def learn_from(self, place: Tensor, active: Tensor) -> None:
        """Copy the target where due (before update 0, 200, 400, ... of each agent), then one step."""
        batch = self.replay.read(place)
        track(self.target.flat, self.network.flat, 1.0, active & (self.updates % self.settings.copy_every == 0))
        with torch.no_grad():
            best = mlp(self.target.parts, batch["next_state"]).max(1).values
            wanted = batch["reward"] + self.settings.gamma * best
        values = mlp(self.network.parts, batch["state"])
        taken = values.gather(1, batch["action"].long()[:, None])[:, 0]
        loss = (taken - wanted).square().mean(1).sum()
        self.adam.step(self.network.flat, self.network.gradient(loss), active)

    def tensors(self) -> dict[str, Tensor]:
        """Everything learned, by name."""
        kept = {"network": self.network.flat, "target": self.target.flat}
        return kept | {"adam.mean": self.adam.mean, "adam.square": self.adam.square, "adam.steps": self.adam.steps}
