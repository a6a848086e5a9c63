"""LAD-TS: latent action diffusion. A denoiser turns what it last decided for the same task into this decision.

Source: the public DEdgeAI repository (2025 state) and arXiv 2412.18212.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..system.model import check_whole
from .diffusion import DiffusionActor
from .networks import Stack
from .sac import SacSettings, SacTs
from .training import Settings


@dataclass(frozen=True)
class LadSettings(SacSettings):
    """Published settings of LAD-TS and its switches; defaults are what the published code does.

    | setting       | default         | otherwise                                                              |
    |---------------|-----------------|------------------------------------------------------------------------|
    | aliased_memory| True (Q2)       | False: transitions keep copies of the latents the decision started from|
    | memory_key    | "slot" (Q6)     | "task": one entry a task index, visited every slot, as in the diagram  |
    | memory_holds  | "probabilities" | "logits": x_0 before the softmax, as in the diagram (Q6)               |
    | argmax        | False (Q6)      | True: act by the likeliest server, as in the diagram                   |
    | start         | "memory"        | "noise": x_I ~ N(0, I) at acting and in both training passes           |
    | output        | "softmax"       | "tanh": on the denoiser's output, as in AGOD                           |
    """

    denoising_steps: int = 5
    aliased_memory: bool = True
    memory_key: str = "slot"
    memory_holds: str = "probabilities"
    argmax: bool = False
    start: str = "memory"
    output: str = "softmax"

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = {
            "memory_key": ("slot", "task"),
            "memory_holds": ("probabilities", "logits"),
            "start": ("memory", "noise"),
            "output": ("softmax", "tanh"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be {' or '.join(allowed)}, got {getattr(self, name)!r}")
        check_whole("denoising_steps", self.denoising_steps, 1)


class LadTs(SacTs):
    """LAD-TS: SAC-TS whose policy is a denoiser started from a memory X of its own earlier output.

    The memory is as large as the published one, (T, B, N, B) a seed, and lives for the whole run. A slot's entries
    are read and written by that slot alone, so with key "slot" the next visit is one episode later.
    """

    name = "LAD-TS"
    settings_type: ClassVar[type[Settings]] = LadSettings

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)
        config, slots = self.model.config, self.model.config.slots if self.settings.memory_key == "slot" else 1
        self.memory: Tensor | None = None
        if self.settings.start == "memory":
            self.memory = self.draws.normal("initial memory", slots * config.max_tasks, self.servers)

    def extra_fields(self) -> dict[str, int]:
        """Faithful: where the latents live. Corrected: the latents themselves."""
        if self.settings.start == "noise":
            return {}
        if self.settings.aliased_memory:
            return {"key": 1, "next_key": 1}
        return {"latent": self.servers, "next_latent": self.servers}

    def make_actor(self) -> Stack:
        """Parameters of the denoiser."""
        settings = self.settings
        self.denoiser = DiffusionActor(
            self.servers, settings.hidden, settings.denoising_steps, self.draws, settings.output
        )
        return self.denoiser.stack

    def policy(self, states: Tensor, start: Tensor | None, purpose: str) -> Tensor:
        """Probabilities (G, B, rows): denoise from `start`, or from fresh noise, then softmax."""
        return self._logits(states, start, purpose).softmax(1)

    def _logits(self, states: Tensor, start: Tensor | None, purpose: str) -> Tensor:
        rows = states.shape[2]
        if start is None:
            start = self.draws.normal(f"{purpose} start", self.servers, rows)
        noise = None
        if self.denoiser.steps > 1:
            noise = self.draws.normal(f"{purpose} noise", self.denoiser.steps - 1, self.servers, rows)
        return self.denoiser.denoise(self.actor.parts, start, states, noise)

    def starts(self, batch: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """Latents of the stored and of the next task: as the memory holds them now (Q2), or as stored."""
        if self.memory is None:
            return None, None
        if not self.settings.aliased_memory:
            return batch["latent"], batch["next_latent"]
        start, following = (self._read(self.memory, batch[name].long()).mT for name in ("key", "next_key"))
        return start.contiguous(), following.contiguous()

    @torch.no_grad()
    def act_on(self, slot: int, states: Tensor, present: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Denoise from the memory of these tasks, sample, and leave the probabilities in the memory."""
        if self.memory is None:
            return self.pick(self.policy(states.mT, None, "act")), {}
        tasks = states.shape[1]
        by_slot = self.settings.memory_key == "slot"
        first = slot * tasks if by_slot else 0
        now = self.memory[:, first : first + tasks]
        before = now.clone()
        logits = self._logits(states.mT, before.mT.contiguous(), "act")
        probabilities = logits.softmax(1)
        actions = probabilities.argmax(1) if self.settings.argmax else self.pick(probabilities)
        keys = torch.arange(first, first + tasks).expand(self.groups, -1)
        last = (present.sum(1) - 1).clamp(min=0)
        following = keys + 1
        following[torch.arange(self.groups), last] = (first + tasks) if by_slot else 0
        following.clamp_(max=self.memory.shape[1] - 1)  # only beyond the last task
        if self.settings.aliased_memory:
            extra = {"key": keys, "next_key": following}
        else:
            extra = {"latent": before, "next_latent": self._read(self.memory, following)}
        remembered = probabilities if self.settings.memory_holds == "probabilities" else logits
        now.copy_(torch.where(present[..., None], remembered.mT, before))
        return actions, extra

    @staticmethod
    def _read(memory: Tensor, keys: Tensor) -> Tensor:
        offset = torch.arange(len(memory))[:, None] * memory.shape[1]
        return memory.flatten(0, 1)[(keys + offset).flatten()].view(*keys.shape, -1)

    def tensors(self) -> dict[str, Tensor]:
        """Everything learned, and the memory."""
        return super().tensors() | ({} if self.memory is None else {"memory": self.memory})
