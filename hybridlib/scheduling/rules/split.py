"""The start of our scheduler: tasks split by size among servers, in amounts that may depend on the queues."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..system.model import Floats, Model

SPARE = 0.05  # of a slot's capacity: what is sent even where nothing should go, so that gradients find the way back


class SizeSplit:
    """A soft SITA-E: the largest tasks meet the fastest servers, at equal shares of the work to be placed.

    Args:
        sharpness: how little neighbours mix; 0 is choice in proportion to the amounts, whatever the size.

    Raises:
        ValueError: if sharpness is negative.
    """

    def __init__(self, model: Model, sharpness: float) -> None:
        if not sharpness >= 0:
            raise ValueError(f"sharpness must not be negative, got {sharpness}")
        self.sharpness = sharpness
        self.offered, self.slot_s = model.offered_gcycles, model.config.slot_s
        self.capacity = torch.tensor(model.capacity)
        self.fastest_first = torch.tensor(np.argsort(-model.capacity, kind="stable"))
        present = 1 - np.arange(len(model.work)) / len(model.work)
        largest_first = np.argsort(-model.work, kind="stable")
        place = np.empty(len(model.work))
        place[largest_first] = _middles((model.work * present)[largest_first])
        self.task = torch.tensor(place)

    def logits(self, amount: Tensor) -> Tensor:
        """(E, N, B) from the work each server is to get, (E, B) above 0 in any unit."""
        share = (amount / amount.sum(1, keepdim=True))[:, self.fastest_first]
        server = (share.cumsum(1) - share / 2)[:, torch.argsort(self.fastest_first)]
        return amount.log()[:, None] - self.sharpness * (self.task[:, None] - server[:, None]) ** 2

    def filling(self, backlog: Tensor, ceiling_s: Tensor) -> Tensor:
        """Work for each server (E, B) that lets waits grow to `ceiling_s` (E, 1) on one server after the other.

        The backlog that the coming slot is expected to leave is held by as few servers as the ceiling allows, the
        fastest first; since they take the largest tasks, as few tasks as possible wait. Once all servers are full
        they rise together.
        """
        speed = self.capacity * self.slot_s
        left = torch.relu(backlog.sum(1, keepdim=True) + self.offered - speed.sum())
        ceiling = torch.maximum(ceiling_s, left / self.capacity.sum())
        inverse = torch.argsort(self.fastest_first)
        capacity = self.capacity[self.fastest_first]
        before = (capacity.cumsum(0) - capacity)[inverse]
        target = torch.minimum(torch.relu(left - ceiling * before), ceiling * self.capacity)
        return torch.relu(speed + target - backlog) + SPARE * speed


def _middles(amounts: Floats) -> Floats:
    """Where each amount's middle lies in the cumulative sum of all, 0..1."""
    share = amounts / amounts.sum()
    return np.asarray(np.cumsum(share) - share / 2)
