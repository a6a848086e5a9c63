"""What no policy can beat, proven, and the best that can be done in small cases, computed.

In the published system each server works off its queue first come, first served at rate C_j, everything of a slot
counts as present at its start, and a task's delay is the time from slot start to its completion plus transfer. So a
policy is a schedule of related machines, and relaxing what machines cannot do gives lower bounds on the mean delay.
They hold for every policy, also one that knows all arrivals and reorders the tasks of a slot.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from .arrivals import Arrivals
from .environment import Environment, View
from .model import Floats, Ints, Model


def lower_bound(model: Model, arrivals: Arrivals) -> Floats:
    """Mean delay in seconds below which no policy can stay, per episode, shape (E,): the better of both bounds.

    `slot_alone_bound` is the sharper one when queues empty between slots, `pooled_bound` when they do not.
    """
    return np.maximum(pooled_bound(model, arrivals), slot_alone_bound(model, arrivals))


def pooled_bound(model: Model, arrivals: Arrivals) -> Floats:
    """Mean delay of one server with the capacity of all, smallest tasks first, interruptible; seconds, shape (E,).

    Proof. Task k runs on one server at a constant rate C_j <= C_max, so it completes half its running time after the
    mean time M_k at which its work is done: completion = M_k + w_k / (2 C_j) >= M_k + w_k / (2 C_max). Over all ways
    to spread work that do no task before its slot and no more than sum C per second, the sum of M_k is least if the
    smallest task present is always done next: moving work of a larger task before that of a smaller one changes the
    sum by dt (1 / w_large - 1 / w_small) < 0 times the amount in the wrong direction. Each schedule of the servers is
    such a spread. Transfer costs each task at least its cheapest link.
    """
    slots, slot_s = model.config.slots - 1, model.config.slot_s
    order = np.argsort(model.work)
    work = model.work[order]
    present = np.arange(model.config.max_tasks) < arrivals.count[:, :slots, :, None]
    arriving = present.sum(axis=2)[..., order]  # tasks of each type, smallest first, (E, T-1, N)
    speed, left = model.capacity.sum(), np.zeros((len(arriving), len(work)))
    busy_time = np.zeros(len(arriving))  # sum over tasks of M_k minus its slot's start
    for t in range(slots):
        left += arriving[:, t] * work
        start, stop = _served(left, speed * slot_s)
        busy_time += ((stop**2 - start**2) / (2 * speed) / work).sum(axis=1)
        left -= stop - start
        # What is not done yet waits through the slot; its share of a task counts as that share of the wait.
        busy_time += slot_s * (left / work).sum(axis=1)
    start, stop = _served(left, np.inf)
    busy_time += ((stop**2 - start**2) / (2 * speed) / work).sum(axis=1)
    running = (arriving.sum(axis=1) * work).sum(axis=1) / (2 * model.capacity.max())
    return (busy_time + running + _transfer(model, arrivals)) / arrivals.tasks


def slot_alone_bound(model: Model, arrivals: Arrivals) -> Floats:
    """Mean delay if each slot met empty queues and was scheduled at its best; seconds, shape (E,).

    Proof. A backlog only adds waiting. On empty queues the k-th last task on server j adds w k / C_j to the sum of
    completion times, so the sum is that of works times distinct multipliers k / C_j, least when the largest work meets
    the smallest multiplier. Transfer costs each task at least its cheapest link.
    """
    slots, tasks = model.config.slots - 1, model.config.servers * model.config.max_tasks
    multipliers = np.sort((np.arange(1, tasks + 1)[:, None] / model.capacity).ravel())[:tasks]
    present = np.arange(model.config.max_tasks) < arrivals.count[:, :slots, :, None]
    work = np.where(present, model.work, 0.0).reshape(len(present), slots, -1)
    completion = -np.sort(-work, axis=2) @ multipliers
    return (completion.sum(axis=1) + _transfer(model, arrivals)) / arrivals.tasks


def _served(left: Floats, amount: float) -> tuple[Floats, Floats]:
    """Work done before and after each type when the first `amount` of the queue is done, both (E, N)."""
    stop = np.cumsum(left, axis=1)
    return np.minimum(stop - left, amount), np.minimum(stop, amount)


def _transfer(model: Model, arrivals: Arrivals) -> Floats:
    """Sum over tasks of the cheapest upload plus result transfer, seconds, shape (E,)."""
    size = arrivals.size[:, :-1]
    local = model.result / model.rate[:, None]
    away = (size + model.result) / model.rate.max()
    return np.where(size > 0, np.minimum(local, away), 0.0).sum(axis=(1, 2, 3))


class Plan(NamedTuple):
    """Outcome of `rolling_horizon` for one episode."""

    actions: list[Ints]  # per slot, (B, N)
    mean_s: float
    optimal: bool  # every program was solved without a gap; with horizon >= slots the plan then is the optimum


def rolling_horizon(model: Model, arrivals: Arrivals, horizon: int, time_limit_s: float = 60.0) -> Plan:
    """Plan one episode by mixed-integer programs over the next `horizon` slots, acting on the first of each.

    Knows the arrivals within its horizon. With a horizon over the whole episode the first program is the offline
    optimum in the published order of tasks, to the solver's feasibility tolerance (1e-6 s), where `optimal` is true;
    a program stopped by its time limit is not. For small systems: the programs grow with (tasks x servers).

    Raises:
        ValueError: unless horizon >= 1 and there is exactly one episode.
        RuntimeError: if a program found no plan in the time limit.
    """
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1 slot, got {horizon}")
    if len(arrivals.count) != 1:
        raise ValueError(f"rolling_horizon plans one episode, got {len(arrivals.count)}")
    environment = Environment(model, arrivals)
    actions: list[Ints] = []
    total, optimal = 0.0, True
    planned: list[Ints] = []
    for t in range(environment.slots):
        if not planned:
            window = [environment.view(s) for s in range(t, min(t + horizon, environment.slots))]
            planned, solved = _program(model, window, time_limit_s)
            optimal = optimal and solved
            if t + len(window) < environment.slots:
                planned = planned[:1]  # more is known next slot
        actions.append(planned.pop(0))
        total += float(environment.step(actions[-1][None]).sum())
    return Plan(actions, total / int(arrivals.tasks[0]), optimal)


def _program(model: Model, window: list[View], time_limit_s: float) -> tuple[list[Ints], bool]:
    """Actions (B, N) of each slot of the window, from the backlog its views share, and whether they are optimal.

    Variables: x[k, j] = 1 if task k goes to j, its wait W[k], the backlog L[s, j] at the start of slot s. Only the
    lower bounds of W and L matter, since the objective presses both down.
    """
    capacity, servers = model.capacity, len(model.capacity)
    tasks = [(s, b, n) for s, view in enumerate(window) for b, n in np.argwhere(view.present[0])]
    count, slots = len(tasks), len(window)
    w_at, l_at = count * servers, count * (servers + 1)
    size = l_at + (slots + 1) * servers
    cost, integral, upper = np.zeros(size), np.zeros(size, np.int64), np.full(size, np.inf)
    upper[:w_at], integral[:w_at], cost[w_at:l_at] = 1, 1, 1
    lower = np.zeros(size)
    lower[l_at : l_at + servers] = upper[l_at : l_at + servers] = window[0].backlog[0]
    rows: list[tuple[dict[int, float], float]] = []  # each: sum of coefficient * variable >= bound
    most = np.broadcast_to(window[0].backlog[0], servers).copy()  # no queue can be longer than this
    for s in range(slots):
        members = [k for k, task in enumerate(tasks) if task[0] == s]
        for j in range(servers):
            ahead: dict[int, float] = {l_at + s * servers + j: -1.0}
            longest = float(most[j])
            for k in members:
                # C W[k] >= L + A - longest (1 - x[k, j]); A are the tasks before k on j.
                rows.append((ahead | {w_at + k: capacity[j], k * servers + j: -longest}, -longest))
                ahead[k * servers + j] = -model.work[tasks[k][2]]
                longest += float(model.work[tasks[k][2]])
            rows.append((ahead | {l_at + (s + 1) * servers + j: 1.0}, -capacity[j] * model.config.slot_s))
            most[j] = longest
    for k, (s, b, n) in enumerate(tasks):
        upload = np.where(np.arange(servers) == b, 0.0, window[s].size[0, b, n] / model.rate)
        cost[k * servers : (k + 1) * servers] = upload + model.work[n] / capacity + model.result[n] / model.rate
    one_each = coo_array((np.ones(w_at), (np.repeat(np.arange(count), servers), np.arange(w_at))), shape=(count, size))
    at = [(r, column, value) for r, (terms, _) in enumerate(rows) for column, value in terms.items()]
    r, column, value = (np.array(part) for part in zip(*at, strict=True))
    inequalities = coo_array((value, (r, column)), shape=(len(rows), size))
    solution = milp(
        cost,
        integrality=integral,
        bounds=Bounds(lower, upper),
        constraints=[
            LinearConstraint(one_each.tocsr(), 1, 1),
            LinearConstraint(inequalities.tocsr(), np.array([bound for _, bound in rows]), np.inf),
        ],
        options={"time_limit": time_limit_s, "mip_rel_gap": 0.0},  # the default stops 0.01 % from the optimum
    )
    if solution.x is None:
        raise RuntimeError(f"no plan for {count} tasks on {servers} servers within time_limit_s = {time_limit_s}")
    plan = [np.zeros(view.present.shape[1:], np.int64) for view in window]
    chosen = solution.x[:w_at].reshape(count, servers).argmax(axis=1)
    for (s, b, n), j in zip(tasks, chosen, strict=True):
        plan[s][b, n] = j
    return plan, solution.status == 0
