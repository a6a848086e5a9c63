"""Our own scheduler: size-based splitting that answers to the backlog, fitted through a differentiable fluid model.

The yardsticks teach three things. Splitting by size beats every rule that does not, since small tasks stop waiting
behind large ones. In overload the split must be uneven: a few queues are let grow for the sake of the others. And
independent random choices of many agents add noise that the queues pay for. So each agent draws its server from
softmax(logits[w, j]), where the logits of task size w and server j start as a size split (`SizeSplit`) and change with
the waiting times L / C through one small network a server, and with the place of its station in the order of the
slot: who comes late finds queues that others have just filled. The expected queues under such a policy are
differentiable, so it is fitted by plain gradient descent on the delay itself, on a fluid in which tasks are divisible.

**The knob is a deadline.** The least mean delay is bought from the largest tasks, which wait several times as long as
under Opt-TS. With `deadline_s` a task's seconds beyond the deadline cost `objective.LATE` times as much, and the start
lets queues grow to the deadline only, one server after the other. The deadline is a time, not a share of the tasks: in
overload no policy keeps one for ever, and beyond the time at which all servers stand at it, it falls back to levelling.

**What it knows.** In use: its task, the backlog at slot start, its station, as a LAD-TS agent; beyond that the
capacities, the work of every task type and the expected work of a slot. It does not know the slot or the horizon, and
no input grows linearly without end, so it runs at any number of slots (the slot only shifts the pattern of `policy`).
In the fit: the law of the arrivals (tasks of a station and slot uniform in 1..N) and the horizons that count; links
are left out. LAD-TS has to learn all of that from its rewards, so a comparison with it is one of what can be reached,
not of equal knowledge. `save` writes these facts into the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from ...files import write_atomically
from ..system.environment import Policy, View
from ..system.model import Ints, Model
from .identity import difference, read_scheduler, system_of
from .objective import Slots, levelled, relative_cost
from .split import SizeSplit

VERSION = "fluid 2"  # of the architecture; a file of another is refused
FEATURES = 5
PLACES = 5  # groups of stations in the order of the slot
USUAL_WAIT_S = 10.0  # scale of waits where there is no deadline
CHECK_EVERY = 15  # iterations
LARGEST_GRADIENT = 0.1  # norm; usual ones stay below
SHARPNESS, DEADLINE_SHARPNESS = 30.0, 200.0


class FluidScheduler:
    """Logits of every task index and server as a function of the backlog, shared by all base stations.

    Args:
        width: hidden units of a server's network and rank of its influence on the logits.
        sharpness: of the initial size split; 0 starts from choice in proportion to capacity. By default 30, or 200
            with a deadline.
        deadline_s: seconds beyond which delay is costly; infinite fits the mean delay alone.

    Raises:
        ValueError: if width is below 1, sharpness negative, or deadline_s not above 0.
    """

    def __init__(
        self, model: Model, width: int = 8, sharpness: float | None = None, deadline_s: float = math.inf, seed: int = 0
    ) -> None:
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        if not deadline_s > 0:
            raise ValueError(f"deadline_s must be above 0, got {deadline_s}")
        self.model, self.width, self.deadline_s = model, width, float(deadline_s)
        usual = DEADLINE_SHARPNESS if self.has_deadline else SHARPNESS
        self.start = SizeSplit(model, usual if sharpness is None else sharpness)
        self.work, self.capacity = torch.tensor(model.work), torch.tensor(model.capacity)
        self.fit_settings: dict[str, Any] = {}
        generator = torch.Generator().manual_seed(seed)

        def small(*shape: int) -> Tensor:
            return (0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64).requires_grad_()

        tasks, servers = len(model.work), len(model.capacity)
        self.parameters = {
            "split": zeros(tasks, servers),
            "task": small(tasks, width),
            "inner": small(servers, FEATURES, width),
            "bias": small(servers, 1, width),
            "outer": zeros(servers, width, width),
            "place": zeros(min(PLACES, servers), tasks, servers),
        }
        if self.has_deadline:  # logarithms of the ceiling over the deadline, and over the level of all queues
            self.parameters["ceiling"] = torch.log(torch.tensor([0.93, 2.0], dtype=torch.float64)).requires_grad_()
        self.place = np.arange(servers) * min(PLACES, servers) // servers  # of each station

    @property
    def has_deadline(self) -> bool:
        """Whether the deadline is finite."""
        return math.isfinite(self.deadline_s)

    def logits(self, backlog: Tensor) -> Tensor:
        """(E, places, N, B) from the backlog (E, B) in Gcycles."""
        p, wait = self.parameters, backlog / self.capacity
        level = (backlog.sum(1, keepdim=True) / self.capacity.sum()).expand_as(wait)
        scale = self.deadline_s if self.has_deadline else USUAL_WAIT_S
        # Logarithms, shares and clipped waits: queues of any length are answered as the fit has answered long ones.
        features = [torch.log1p(wait), torch.log1p(level), wait / (wait + level + 1)]
        features += [(wait / scale).clamp(max=2.0), (level / scale).clamp(max=2.0)]
        hidden = torch.tanh(torch.einsum("ebf,bfh->ebh", torch.stack(features, 2), p["inner"]) + p["bias"][:, 0])
        common = self._start(backlog, level[:, :1]) + p["split"]
        common = common + torch.einsum("ebh,bhk,nk->enb", hidden, p["outer"], p["task"])
        return common[:, None] + p["place"]

    def _start(self, backlog: Tensor, level: Tensor) -> Tensor:
        if not self.has_deadline:
            return self.start.logits(self.capacity[None])
        of_deadline, of_level = self.parameters["ceiling"].exp()
        ceiling = torch.minimum(self.deadline_s * of_deadline, (level + 0.5) * of_level)
        return self.start.logits(self.start.filling(backlog, ceiling))

    def fluid_delay(self, counts: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Mean delay (E,) in seconds over all slots of `fluid`."""
        slots = self.fluid(counts, generator)
        return slots.delay.sum(1) / slots.tasks.sum(1)

    def fluid(self, counts: Tensor, generator: torch.Generator | None = None) -> Slots:
        """Delays if tasks were divisible; counts (E, slots, places, N) of each task index in each slot.

        On one server each pair of tasks of one place meets in one order or the other, so a task finds on average half
        of its place's work before it, and all of earlier places. Links are left out: they hardly differ. With
        `generator` the work placed is normal with the variance of whole tasks that each choose alone.
        """
        backlog = torch.zeros(len(counts), len(self.capacity), dtype=torch.float64)
        own = 0.5 * self.work[:, None] / self.capacity  # the other half is in `wait`
        delays, lates = [], []
        for t in range(counts.shape[1]):
            chance = self.logits(backlog).softmax(3)
            share = chance * counts[:, t, :, :, None]
            placed = torch.einsum("epnb,n->epb", share, self.work)
            wait = (backlog[:, None] + placed.cumsum(1) - placed / 2) / self.capacity
            delays.append((share.sum(2) * wait).sum((1, 2)) + torch.einsum("epnb,nb->e", share, own))
            if self.has_deadline:
                late = torch.relu(wait[:, :, None] + (own - self.deadline_s))
                lates.append((share * late).sum((1, 2, 3)))
            added = placed.sum(1)
            if generator is not None:
                variance = torch.einsum("epnb,n->eb", share * (1 - chance), self.work**2)
                drawn = torch.randn(added.shape, generator=generator, dtype=torch.float64)
                added = torch.relu(added + (variance + 1e-12).sqrt() * drawn)
            backlog = torch.relu(backlog + added - self.capacity * self.model.config.slot_s)
        delay = torch.stack(delays, 1)
        return Slots(counts.sum((2, 3)), delay, torch.stack(lates, 1) if lates else torch.zeros_like(delay))

    def fit(
        self,
        iterations: int = 300,
        batch: int = 3,
        learning_rate: float | None = None,
        horizons: Sequence[int] = (),
        seed: int = 0,
    ) -> list[float]:
        """Gradient descent (Adam, cosine to zero) on the cost of a noisy fluid with fresh arrivals.

        Without the noise the fit trusts splits that only a fluid can keep: near load 1 such queues run away. Gradients
        through tens of slots explode where a queue does, so their norm is cut, and every `CHECK_EVERY` iterations the
        parameters that were best on held-out arrivals are kept, or taken back if the present ones are much worse.

        Args:
            learning_rate: 0.1 by default, 0.03 with a deadline, whose cost is steeper.
            horizons: slots after which the cost is taken, each counting alike. By default half, all and twice the
                slots of the system; with a deadline not twice, where overload leaves none to keep.

        Returns:
            The course of the cost, relative to one server of all capacity (`objective.relative_cost`).

        Raises:
            ValueError: if a horizon is below 1.
        """
        played = self.model.config.slots - 1
        usual = (max(played // 2, 1), played) if self.has_deadline else (max(played // 2, 1), played, 2 * played)
        horizons = tuple(horizons) or usual
        if min(horizons) < 1:
            raise ValueError(f"horizons must be at least 1 slot, got {min(horizons)}")
        learning_rate = (0.03 if self.has_deadline else 0.1) if learning_rate is None else learning_rate
        self.fit_settings = {"iterations": iterations, "batch": batch, "learning_rate": learning_rate, "seed": seed}
        self.fit_settings["horizons"] = horizons
        generator = torch.Generator().manual_seed(seed)
        values = list(self.parameters.values())
        optimiser = torch.optim.Adam(values, lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(iterations, 1))
        course, least, best = [], self._held_out(horizons, seed), [v.detach().clone() for v in values]
        for iteration in range(iterations):
            counts = self._counts(range(iteration * batch, (iteration + 1) * batch), max(horizons), seed)
            loss = self._cost(counts, generator, horizons)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(values, LARGEST_GRADIENT)
            optimiser.step()
            schedule.step()
            course.append(loss.item())
            last = iteration + 1 == iterations
            if (iteration + 1) % CHECK_EVERY and not last:
                continue
            held_out = self._held_out(horizons, seed)
            if held_out < least:
                least, best = held_out, [v.detach().clone() for v in values]
            elif last or held_out > 1.1 * least:
                for value, kept in zip(values, best, strict=True):
                    value.data.copy_(kept)
                optimiser.state.clear()
        return course

    def _cost(self, counts: Tensor, generator: torch.Generator, horizons: Sequence[int]) -> Tensor:
        ours, slot_s = self.fluid(counts, generator), self.model.config.slot_s
        arriving = torch.einsum("etpn,n->et", counts, self.work)
        speed = float(self.capacity.sum()) * slot_s
        return relative_cost(ours, levelled(arriving, ours.tasks, speed, slot_s, self.deadline_s), horizons).mean()

    @torch.no_grad()
    def _held_out(self, horizons: Sequence[int], seed: int) -> float:
        """Cost on arrivals and noise that are the same each time and never learned from."""
        generator = torch.Generator().manual_seed(seed)
        counts = self._counts(range(10**6, 10**6 + 8), max(horizons), seed)
        return float(self._cost(counts, generator, horizons))

    def _counts(self, episodes: range, slots: int, seed: int) -> Tensor:
        counts = []
        for episode in episodes:
            # Streams of their own: no episode on which a policy is measured is ever used for fitting.
            generator = np.random.default_rng((seed, episode, 1))
            counts.append(generator.integers(1, len(self.work) + 1, (slots, len(self.capacity))))
        return self.count_tasks(np.stack(counts))

    def count_tasks(self, counts: Ints) -> Tensor:
        """Tasks of each index by slot and place, (E, slots, places, N), from those of each station (E, slots, B)."""
        present = np.arange(len(self.work)) < counts[..., None]
        first = np.flatnonzero(np.diff(self.place, prepend=-1))
        return torch.tensor(np.add.reduceat(present.astype(np.float64), first, axis=2))

    def policy(self, spread: bool = True) -> Policy:
        """The fitted scheduler as a policy, for any number of slots.

        Args:
            spread: agents draw from a common low-discrepancy pattern over (slot, station, size) instead of each on
                its own. The pattern knows nothing of the arrivals; it only keeps their choices from clumping.

        Raises:
            ValueError: when used on a system of other servers or tasks.
        """
        rank = np.empty(len(self.model.work))
        rank[np.argsort(self.model.work, kind="stable")] = np.arange(len(rank))

        def act(view: View, generator: np.random.Generator) -> Ints:
            if different := difference(system_of(self.model), system_of(view.model)):
                raise ValueError(f"this scheduler is of another system than the one it is used on: {different}")
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
        """Write the parameters (safetensors), replaced by rename; the metadata say what it is and was fitted to."""
        tensors = {name: value.detach().contiguous() for name, value in self.parameters.items()}
        told = {"told": "horizons; tasks of a station and slot are uniform in 1..max_tasks; links left out"}
        parts = {"architecture": self._architecture, "system": system_of(self.model), "fit": self.fit_settings | told}
        write_atomically(path, save(tensors, metadata={name: json.dumps(part) for name, part in parts.items()}))

    def load(self, path: Path) -> None:
        """Read parameters.

        Raises:
            ValueError: one sentence, if the file is missing, no scheduler, or one of another system or deadline.
        """
        metadata, tensors = read_scheduler(path)
        wanted = self._architecture | system_of(self.model)
        if different := difference(wanted, metadata.get("architecture", {}) | metadata.get("system", {})):
            raise ValueError(f"{path} holds another scheduler: {different}")
        shapes = [{name: tuple(t.shape) for name, t in given.items()} for given in (self.parameters, tensors)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{path} cannot be read as a scheduler (it needs {shapes[0]}, has {shapes[1]})")
        for name, value in self.parameters.items():
            value.data.copy_(tensors[name])
        self.fit_settings = metadata.get("fit", {})

    @property
    def _architecture(self) -> dict[str, Any]:
        deadline = self.deadline_s if self.has_deadline else None
        return {"algorithm": VERSION, "width": self.width, "deadline_s": deadline, "sharpness": self.start.sharpness}
