"""Rules without learning, the yardsticks of every learned scheduler.

A policy maps the slot as it starts to a server for each task: `policy(view, generator) -> (E, B, N)` integers, or a
`Decision` where it also chooses the order of the slot's tasks. `YARDSTICKS` names them all and says what each one
sees; a comparison is fair only between rules that see the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..system.environment import Decision, Policy, View
from ..system.model import Floats, Ints, Model

PUBLISHED_LARGE_SERVERS = (0, 6, 8, 9, 12, 13, 15, 16, 18)


def uniform_random(view: View, generator: np.random.Generator) -> Ints:
    """Any server. Sees nothing."""
    return generator.integers(0, view.backlog.shape[1], view.size.shape)


def local_only(view: View, generator: np.random.Generator) -> Ints:
    """The server of the task's own base station. Sees nothing."""
    return np.broadcast_to(np.arange(view.backlog.shape[1])[:, None], view.size.shape)


def round_robin(view: View, generator: np.random.Generator) -> Ints:
    """Servers in turn, over all tasks in the order they are served. Sees the number of tasks served before."""
    flat = view.present.reshape(len(view.size), -1)
    turn = view.tasks_before[:, None] + np.cumsum(flat, axis=1) - flat
    return (turn % view.backlog.shape[1]).reshape(view.size.shape)


def capacity_weighted(view: View, generator: np.random.Generator) -> Ints:
    """A server with probability C_j / sum of C. One line, no state; sees the capacities alone."""
    return _draw(view.model.capacity, generator.random(view.size.shape))


def size_split(threshold_gcycles: float = 1.6, large_servers: Sequence[int] = PUBLISHED_LARGE_SERVERS) -> Policy:
    """Tasks above a threshold go to one set of servers, the rest to the others, each in proportion to capacity.

    Sees the task's work and the capacities, no state. The defaults belong to the published servers and tasks, where
    this beats the greedy oracle by a quarter: a small task no longer waits behind large ones.

    Raises:
        ValueError: when used on a system without these servers, or with none left for small tasks.
    """

    def policy(view: View, generator: np.random.Generator) -> Ints:
        servers = view.backlog.shape[1]
        large = np.isin(np.arange(servers), large_servers)
        if large.sum() != len(set(large_servers)) or large.all() or not large.any():
            raise ValueError(f"large_servers must be some but not all of 0..{servers - 1}, got {list(large_servers)}")
        uniforms = generator.random(view.size.shape)
        capacity = view.model.capacity
        is_large = np.broadcast_to(view.model.work > threshold_gcycles, view.size.shape)
        return np.where(is_large, _draw(capacity * large, uniforms), _draw(capacity * ~large, uniforms))

    return policy


def scaled_size_split(model: Model) -> Policy:
    """The size split for any system, cut at the shares of the published one, which it equals there.

    The fastest servers with 61.9 % of all capacity (nine of twenty) take the largest tasks with 68.0 % of the expected
    work (above 1.6 Gcycles); both sides keep at least one server.
    """
    expected = model.work * (1 - np.arange(len(model.work)) / len(model.work))
    by_work, by_speed = (np.argsort(-values, kind="stable") for values in (model.work, model.capacity))

    def leading(amounts: Floats, share: float) -> int:
        return int(np.abs(np.cumsum(amounts) / amounts.sum() - share).argmin()) + 1

    servers = min(leading(model.capacity[by_speed], 0.619), len(by_speed) - 1)
    if servers == 0:
        return local_only
    tasks = leading(expected[by_work], 0.680)
    threshold = float(np.append(model.work[by_work], 0.0)[tasks - 1 : tasks + 1].mean())
    return size_split(threshold, sorted(by_speed[:servers].tolist()))


def backlog_levelling(view: View, generator: np.random.Generator) -> Ints:
    """A server in proportion to max(lambda C_j - L_j, 0), lambda such that these sum to the slot's expected work.

    That is the share of each server if the slot's work is to level all waiting times. Sees the backlog and number of
    tasks at slot start, the capacities and the mean work.
    """
    expected = view.present.sum(axis=(1, 2)) * view.model.work.mean()
    share = _level(view.model.capacity, view.backlog, expected)
    return _draw(share[:, None, None, :], generator.random(view.size.shape))


def greedy_slot_start(view: View, generator: np.random.Generator) -> Ints:
    """Least delay on the queues as they stood at slot start, blind to what the slot itself places.

    Sees the backlog, as an agent does, and the capacities, rates and results, which agents must learn.
    """
    return _delay_without_wait_in_slot(view).argmin(axis=3)


def greedy_oracle(view: View, generator: np.random.Generator) -> Ints:
    """Opt-TS as published: each task in turn takes the server of least exact delay, the first of equal ones.

    Sees everything up to this task, what others placed in the slot included. Despite its published name it is no
    optimum: it ignores what a placement costs later tasks. The published initial bound of 1000 s is left out.
    """
    return _greedy(view, np.argsort(~view.present.reshape(len(view.size), -1), axis=1, kind="stable"))


def shortest_first_greedy(view: View, generator: np.random.Generator) -> Decision:
    """The greedy oracle, but the tasks of the slot choose and queue by work, least first. Sees everything."""
    priority = np.broadcast_to(view.model.work, view.size.shape)
    key = np.where(view.present, priority, np.inf).reshape(len(view.size), -1)
    return Decision(_greedy(view, np.argsort(key, axis=1, kind="stable")), priority)


def power_of_two(view: View, generator: np.random.Generator) -> Ints:
    """JSQ(2): two servers drawn in proportion to capacity, the task joins the one with the shorter wait.

    Sees the present queues of those two, what the slot has placed included, and the capacities.
    """
    first, second = (_draw(view.model.capacity, generator.random(view.size.shape)) for _ in range(2))
    candidates = np.stack([first, second], axis=-1).reshape(len(view.size), -1, 2)
    episodes, capacity = np.arange(len(view.size)), view.model.capacity
    work, present = view.work.reshape(len(view.size), -1), view.present.reshape(len(view.size), -1)
    queue, actions = view.backlog.copy(), np.zeros(work.shape, np.int64)
    for k in np.flatnonzero(present.any(axis=0)):
        pair = candidates[:, k]
        wait = queue[episodes[:, None], pair] / capacity[pair]
        actions[:, k] = np.where(wait[:, 1] < wait[:, 0], pair[:, 1], pair[:, 0])
        queue[episodes, actions[:, k]] += work[:, k]
    return actions.reshape(view.size.shape)


def slot_assignment(view: View, generator: np.random.Generator) -> Decision:
    """The assignment and order of least total delay for the tasks of this slot (an exact assignment problem).

    The k-th last task on server j delays itself and k - 1 others by w / C_j, so (server, k) are the columns. Optimal
    for the slot, blind to later ones. Sees everything and chooses the order; a few seconds per published episode.
    """
    actions = np.zeros(view.size.shape, np.int64)
    priority = np.zeros(view.size.shape)
    base = _delay_without_wait_in_slot(view)
    for e, present in enumerate(view.present):
        works = view.work[e][present]
        if len(works):
            server, place = _assign(base[e][present], works, view.model.capacity)
            actions[e][present] = server
            priority[e][present] = -place
    return Decision(actions, priority)


class Yardstick(NamedTuple):
    """A rule and what it sees beyond the task's own size and work."""

    policy: Policy
    sees: str


YARDSTICKS: dict[str, Yardstick] = {
    "random": Yardstick(uniform_random, "nothing"),
    "local only": Yardstick(local_only, "nothing"),
    "round robin": Yardstick(round_robin, "tasks served before"),
    "capacity-weighted random": Yardstick(capacity_weighted, "capacities"),
    "size split": Yardstick(size_split(), "capacities"),
    "JSQ(2), speed-weighted": Yardstick(power_of_two, "capacities, two present queues"),
    "greedy at slot start": Yardstick(greedy_slot_start, "capacities, links, backlog at slot start"),
    "backlog levelling": Yardstick(backlog_levelling, "capacities, backlog and tasks at slot start"),
    "Opt-TS (greedy oracle)": Yardstick(greedy_oracle, "everything up to the task"),
    "shortest first, greedy": Yardstick(shortest_first_greedy, "everything in the slot; chooses the order"),
    "slot assignment": Yardstick(slot_assignment, "everything in the slot; chooses the order"),
}


def _draw(weights: Floats, uniforms: Floats) -> Ints:
    """Servers in proportion to weights (..., B), by inverting the distribution at the uniforms."""
    edges = np.cumsum(weights, axis=-1)
    edges = edges / edges[..., -1:]
    if edges.ndim == 1:
        return np.searchsorted(edges, uniforms, side="right")
    return np.asarray((uniforms[..., None] >= edges).sum(axis=-1))


def _level(capacity: Floats, backlog: Floats, total: Floats) -> Floats:
    """max(lambda C - L, 0) summing to total, shape (E, B); the server of least wait where total is 0.

    Filling the k servers of least wait alone gives lambda_k = (total + sum L) / sum C over them; the least of these
    is lambda, since filling too few or too many servers both raise it.
    """
    order = np.argsort(backlog / capacity, axis=1)
    level = (total[:, None] + np.cumsum(np.take_along_axis(backlog, order, 1), axis=1)) / np.cumsum(capacity[order], 1)
    share = np.maximum(level.min(axis=1, keepdims=True) * capacity - backlog, 0.0)
    empty = share.sum(axis=1) <= 0
    share[empty, order[empty, 0]] = 1.0
    return share


def _delay_without_wait_in_slot(view: View) -> Floats:
    """Delay of each task on each server if the slot placed nothing before it, seconds, shape (E, B, N, B)."""
    model = view.model
    away = 1.0 - np.eye(len(model.capacity))
    upload = view.size[..., None] / model.rate * away[:, None, :]
    return (
        upload
        + (model.work[:, None] / model.capacity + model.result[:, None] / model.rate)
        + (view.backlog / model.capacity)[:, None, None, :]
    )


def _greedy(view: View, order: Ints) -> Ints:
    """Tasks in the given order (E, B * N), absent ones last, each to the server of least delay, in lock-step."""
    model, episodes = view.model, np.arange(len(view.size))
    away = 1.0 - np.eye(len(model.capacity))
    upload = view.size[..., None] / model.rate * away[:, None, :]
    fixed = upload + model.work[:, None] / model.capacity + model.result[:, None] / model.rate
    fixed = fixed.reshape(len(episodes), -1, fixed.shape[-1])
    work = np.take_along_axis(view.work.reshape(len(episodes), -1), order, 1)
    placed, actions = np.zeros_like(view.backlog), np.zeros(work.shape, np.int64)
    for k in range(int(view.present.sum(axis=(1, 2)).max(initial=0))):
        server = (fixed[episodes, order[:, k]] + (view.backlog + placed) / model.capacity).argmin(axis=1)
        actions[episodes, order[:, k]] = server
        placed[episodes, server] += work[:, k]
    return actions.reshape(view.size.shape)


def _assign(base: Floats, work: Floats, capacity: Floats) -> tuple[Ints, Ints]:
    """Server and place from the end (0 is last) of each task, for the least total delay.

    Places are offered up to a depth; where no server uses its last one, offering more cannot help.
    """
    tasks, servers = base.shape
    depth = min(tasks, 2 * tasks // servers + 2)
    while True:
        cost = base[:, :, None] + (work[:, None] / capacity)[:, :, None] * np.arange(depth)
        _, column = linear_sum_assignment(cost.reshape(tasks, -1))
        server, place = np.divmod(column, depth)
        if depth >= tasks or place.max() < depth - 1:
            return server, place
        depth = min(tasks, 2 * depth)
