"""Our own scheduler: size-based splitting that answers to the backlog, fitted through a differentiable fluid model.

The yardsticks teach three things. Splitting by size beats every rule that does not, since small tasks stop waiting
behind large ones. In overload the split must be uneven: a few queues are let grow for the sake of the others. And
independent random choices of many agents add noise that the queues pay for. So each agent draws its server from
softmax(logits[w, j]), where the logits of task size w and server j start as a balanced size split (SITA-E) and change
with the waiting times L / C through one small network a server, and with the place of its station in the order of the
slot: who comes late finds queues that others have just filled. The expected queues under such a policy are
differentiable, so it is fitted by plain gradient descent on the mean delay itself, on a fluid in which tasks are
divisible. It sees the state of a LAD-TS agent, its task and the backlog at slot start, and knows its station and slot,
which the networks and the memory of LAD-TS tell apart as well. The capacities enter only the fit; LAD-TS has to learn
them from its rewards, so the comparison is one of what is seen, not of what is known of the system.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ...files import write_atomically
from ..system.environment import Policy, View
from ..system.model import Floats, Ints, Model

FEATURES = 4
PLACES = 5  # groups of stations in the order of the slot
CHECK_EVERY = 15  # iterations
LARGEST_GRADIENT = 0.3  # norm; usual ones stay below 0.1


class FluidScheduler:
    """Logits of every task index and server as a function of the backlog, shared by all base stations.

    Args:
        width: hidden units of a server's network and rank of its influence on the logits.
        sharpness: of the initial size split; 0 starts from capacity-proportional choice.
        large_to_fast: which end of the sizes the fast servers start with.

    Raises:
        ValueError: if width is below 1 or sharpness negative.
    """

    def __init__(
        self, model: Model, width: int = 8, sharpness: float = 30.0, large_to_fast: bool = True, seed: int = 0
    ) -> None:
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        if not sharpness >= 0:
            raise ValueError(f"sharpness must not be negative, got {sharpness}")
        self.model, self.width = model, width
        self.work, self.capacity = torch.tensor(model.work), torch.tensor(model.capacity)
        generator = torch.Generator().manual_seed(seed)

        def small(*shape: int) -> Tensor:
            return (0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()

        tasks, servers = len(model.work), len(model.capacity)
        self.parameters = {
            "split": torch.tensor(balanced_split(model, sharpness, large_to_fast)).requires_grad_(),
            "task": small(tasks, width),
            "inner": small(servers, FEATURES, width),
            "bias": small(servers, 1, width),
            "outer": torch.zeros(servers, width, width, dtype=torch.float64).requires_grad_(),
            "place": torch.zeros(min(PLACES, servers), tasks, servers, dtype=torch.float64).requires_grad_(),
        }
        self.place = np.arange(servers) * min(PLACES, servers) // servers  # of each station

    def logits(self, backlog: Tensor) -> Tensor:
        """(E, places, N, B) from the backlog (E, B) in Gcycles."""
        wait = backlog / self.capacity
        level = (backlog.sum(1, keepdim=True) / self.capacity.sum()).expand_as(wait)
        features = torch.stack([wait / 10, level / 10, torch.log1p(wait), torch.log1p(level)], dim=2)
        p = self.parameters
        hidden = torch.tanh(torch.einsum("ebf,bfh->ebh", features, p["inner"]) + p["bias"][:, 0])
        common = p["split"] + torch.einsum("ebh,bhk,nk->enb", hidden, p["outer"], p["task"])
        return common[:, None] + p["place"]

    def fluid_delay(self, counts: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Mean delay (E,) if tasks were divisible; counts (E, T-1, places, N) of each task index in each slot.

        On one server each pair of tasks of one place meets in one order or the other, so a task finds on average half
        of its place's work before it, and all of earlier places. Links are left out: they hardly differ. With
        `generator` the work placed is normal with the variance of whole tasks that each choose alone.
        """
        backlog = torch.zeros(len(counts), len(self.capacity), dtype=torch.float64)
        total = torch.zeros(len(counts), dtype=torch.float64)
        for t in range(counts.shape[1]):
            chance = self.logits(backlog).softmax(3)
            share = chance * counts[:, t, :, :, None]
            placed = torch.einsum("epnb,n->epb", share, self.work)
            wait = (backlog[:, None] + placed.cumsum(1) - placed / 2) / self.capacity
            own = torch.einsum("epnb,n,b->e", share, self.work, 0.5 / self.capacity)
            total = total + (share.sum(2) * wait).sum((1, 2)) + own
            added = placed.sum(1)
            if generator is not None:
                variance = torch.einsum("epnb,n->eb", share * (1 - chance), self.work**2)
                drawn = torch.randn(added.shape, generator=generator, dtype=torch.float64)
                added = torch.relu(added + (variance + 1e-12).sqrt() * drawn)
            backlog = torch.relu(backlog + added - self.capacity * self.model.config.slot_s)
        return total / counts.sum((1, 2, 3))

    def fit(self, iterations: int = 300, batch: int = 2, learning_rate: float = 0.1, seed: int = 0) -> list[float]:
        """Gradient descent (Adam, cosine to zero) on the noisy fluid delay of fresh arrivals; returns its course.

        Without the noise the fit trusts splits that only a fluid can keep: near load 1 such queues run away. Gradients
        through tens of slots explode where a queue does, so their norm is cut, and every `CHECK_EVERY` iterations the
        parameters that were best on held-out arrivals are kept, or taken back if the present ones are much worse.
        """
        generator = torch.Generator().manual_seed(seed)
        values = list(self.parameters.values())
        optimiser = torch.optim.Adam(values, lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(iterations, 1))
        course, least, best = [], self._held_out(seed), [v.detach().clone() for v in values]
        for iteration in range(iterations):
            counts = self._counts(range(iteration * batch, (iteration + 1) * batch), seed)
            loss = self.fluid_delay(counts, generator).mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(values, LARGEST_GRADIENT)
            optimiser.step()
            schedule.step()
            course.append(loss.item())
            last = iteration + 1 == iterations
            if (iteration + 1) % CHECK_EVERY and not last:
                continue
            held_out = self._held_out(seed)
            if held_out < least:
                least, best = held_out, [v.detach().clone() for v in values]
            elif last or held_out > 1.1 * least:
                for value, kept in zip(values, best, strict=True):
                    value.data.copy_(kept)
                optimiser.state.clear()
        return course

    @torch.no_grad()
    def _held_out(self, seed: int) -> float:
        """Noisy fluid delay on arrivals and noise that are the same each time and never learned from, seconds."""
        generator = torch.Generator().manual_seed(seed)
        return float(self.fluid_delay(self._counts(range(10**6, 10**6 + 8), seed), generator).mean())

    def _counts(self, episodes: range, seed: int) -> Tensor:
        config = self.model.config
        counts = []
        for episode in episodes:
            # Streams of their own: no episode on which a policy is measured is ever used for fitting.
            generator = np.random.default_rng((seed, episode, 1))
            counts.append(generator.integers(1, config.max_tasks + 1, (config.slots - 1, config.servers)))
        return self.count_tasks(np.stack(counts))

    def count_tasks(self, counts: Ints) -> Tensor:
        """Tasks of each index by slot and place, (E, T-1, places, N), from the tasks of each station (E, T-1, B)."""
        present = np.arange(len(self.work)) < counts[..., None]
        first = np.flatnonzero(np.diff(self.place, prepend=-1))
        return torch.tensor(np.add.reduceat(present.astype(np.float64), first, axis=2))

    def policy(self, spread: bool = True) -> Policy:
        """The fitted scheduler as a policy.

        Args:
            spread: agents draw from a common low-discrepancy pattern over (slot, station, size) instead of each on
                its own. The pattern knows nothing of the arrivals; it only keeps their choices from clumping.
        """
        rank = np.empty(len(self.model.work))
        rank[np.argsort(self.model.work, kind="stable")] = np.arange(len(rank))

        def act(view: View, generator: np.random.Generator) -> Ints:
            with torch.no_grad():
                edges = self.logits(torch.from_numpy(view.backlog)).softmax(3).cumsum(3).numpy()[:, self.place]
            if spread:
                station = np.arange(view.size.shape[1])[:, None]
                u = (station * 0.7548776662 + rank * 0.5698402910 + view.slot * 0.6180339887) % 1.0
                uniforms = np.broadcast_to(u, view.size.shape)
            else:
                uniforms = generator.random(view.size.shape)
            chosen = (uniforms[..., None] >= edges).sum(axis=3)
            return np.minimum(chosen, view.size.shape[1] - 1)

        return act

    def save(self, path: Path) -> None:
        """Write the parameters (safetensors), replaced by rename."""
        tensors = {name: value.detach().contiguous() for name, value in self.parameters.items()}
        write_atomically(path, save(tensors, metadata={"architecture": self._architecture}))

    def load(self, path: Path) -> None:
        """Read parameters.

        Raises:
            ValueError: if they are of a scheduler for another system.
        """
        with safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get("architecture")
            if found != self._architecture:
                raise ValueError(f"{path} holds another scheduler: {found}, this one is {self._architecture}")
            for name, value in self.parameters.items():
                value.data.copy_(file.get_tensor(name))

    @property
    def _architecture(self) -> str:
        shape = {"servers": len(self.capacity), "max_tasks": len(self.work), "width": self.width}
        return json.dumps({"algorithm": "fluid", **shape})


def balanced_split(model: Model, sharpness: float, large_to_fast: bool = True) -> Floats:
    """Logits (N, B) of a soft SITA-E: tasks by size and servers by speed meet where equal shares of work lie."""
    present = 1 - np.arange(len(model.work)) / len(model.work)

    def middle(order: Ints, amount: Floats) -> Floats:
        share = amount[order] / amount.sum()
        place = np.empty(len(order))
        place[order] = np.cumsum(share) - share / 2
        return place

    tasks = middle(np.argsort(model.work, kind="stable"), model.work * present)
    speed = model.capacity if large_to_fast else -model.capacity
    servers = middle(np.argsort(speed, kind="stable"), model.capacity)
    return np.asarray(np.log(model.capacity) - sharpness * (tasks[:, None] - servers) ** 2)
