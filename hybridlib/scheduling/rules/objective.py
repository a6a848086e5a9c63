"""What our scheduler is fitted to: delay, and lateness beyond a deadline, at several horizons at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LATE = 20.0  # a second beyond the deadline costs as much as so many seconds before it


class Slots(NamedTuple):
    """Delays summed over the tasks of each slot, (E, slots) each."""

    tasks: Tensor  # their number
    delay: Tensor  # seconds
    late: Tensor  # seconds beyond the deadline; a task that meets it adds 0

    def cost(self, horizon: int) -> Tensor:
        """Mean delay plus `LATE` times mean lateness over the tasks of the first `horizon` slots, (E,)."""
        total = self.delay[:, :horizon].sum(1) + LATE * self.late[:, :horizon].sum(1)
        return total / self.tasks[:, :horizon].sum(1)


def levelled(work: Tensor, tasks: Tensor, gcycles_per_slot: float, slot_s: float, deadline_s: float) -> Slots:
    """The delays if all servers were one, which is about what Opt-TS makes of the same arrivals.

    Args:
        work: arriving in each slot, Gcycles, (E, slots); half of it is before a task on average.
        gcycles_per_slot: what all servers do in a slot.
    """
    backlog, waits = torch.zeros_like(work[:, 0]), []
    for arriving in work.unbind(1):
        waits.append((backlog + arriving / 2) / gcycles_per_slot * slot_s)
        backlog = torch.relu(backlog + arriving - gcycles_per_slot)
    wait = torch.stack(waits, 1)
    return Slots(tasks, tasks * wait, tasks * torch.relu(wait - deadline_s))


def relative_cost(ours: Slots, reference: Slots, horizons: Sequence[int]) -> Tensor:
    """Our cost over that of the reference, (E,), the mean over horizons.

    In overload every delay grows with the horizon. Relative costs let each horizon count alike, and every horizon is
    a prefix of one course of slots, so the fit serves whoever stops there.
    """
    return torch.stack([ours.cost(h) / reference.cost(h) for h in horizons]).mean(0)
