"""The published MEC scripts written out: one task at a time, Python floats, no hybridlib."""

from __future__ import annotations

import numpy as np


def published_system(servers=20, max_tasks=50, top_capacity=50):
    """Capacities, rates, works and results as the published constructor draws them, and the stream left behind."""
    np_random = np.random.RandomState(2)
    capacity = [float(np_random.randint(10, top_capacity + 1)) for _ in range(servers)]
    np_random = np.random.RandomState(5)
    rate = [float(np_random.randint(400, 501)) for _ in range(servers)]
    np_random = np.random.RandomState(1)
    density = [np_random.uniform(0.1024, 0.3072) for _ in range(max_tasks)]
    np_random = np.random.RandomState(1)
    steps = [int(np_random.randint(1, 15)) for _ in range(max_tasks)]
    np_random = np.random.RandomState(1)
    result = [np_random.uniform(0.6, 1.0) for _ in range(max_tasks)]
    work = [density[n] * steps[n] for n in range(max_tasks)]
    return capacity, rate, work, result, np_random


def draw_episode(stream, slots=60, servers=20, max_tasks=50):
    """Input sizes of one episode, sizes[t][b] a list with one entry a task."""
    sizes = []
    for _ in range(slots):
        counts = [stream.randint(1, max_tasks + 1) for _ in range(servers)]
        sizes.append([[stream.uniform(2, 5) for _ in range(m)] for m in counts])
    return sizes


def play(capacity, rate, work, result, sizes, choose, rank=None):
    """Delays[t][b][n] of one episode: `choose(t, b, n, backlog, placed)` names the server of each task in turn.

    `rank(t, b, n)`, if given, is the key by which the tasks of a slot queue; otherwise b ascending, then n.
    """
    servers = range(len(capacity))
    backlog = [0.0] * len(capacity)
    delays = []
    for t in range(len(sizes) - 1):
        placed = [0.0] * len(capacity)
        delays.append([[None] * len(tasks) for tasks in sizes[t]])
        queue = [(b, n) for b in servers for n in range(len(sizes[t][b]))]
        if rank is not None:
            queue.sort(key=lambda task, t=t: rank(t, *task))
        for b, n in queue:
            j = choose(t, b, n, backlog, placed)
            wait = (backlog[j] + placed[j]) / capacity[j]
            upload = sizes[t][b][n] / rate[j] if j != b else 0.0
            delays[t][b][n] = upload + work[n] / capacity[j] + result[n] / rate[j] + wait
            placed[j] += work[n]
        backlog = [max(backlog[j] + placed[j] - capacity[j], 0.0) for j in servers]
    return delays, backlog


def greedy_oracle(capacity, rate, work, result, sizes):
    """Opt-TS as published: the exact delay on each server, the first least one, never one of 1000 s or more."""

    def choose(t, b, n, backlog, placed):
        best, server = 1000.0, None
        for j in range(len(capacity)):
            delay = 0.0 if j == b else sizes[t][b][n] / rate[j]
            delay += work[n] / capacity[j] + result[n] / rate[j] + (backlog[j] + placed[j]) / capacity[j]
            if delay < best:
                best, server = delay, j
        return server

    return choose


def mean_delay(delays):
    """Mean over all tasks of an episode."""
    flat = [d for slot in delays for station in slot for d in station]
    return sum(flat) / len(flat)
