"""The cheapest tree by dynamic programming, over the nodes of a dendrogram or over every group of a short list.

A tree is made of groups of prompts. A group may run together from the step where its parent left it to a later one,
and then falls apart into two of the groups it is made of (which may fall apart at once: so three and more branches are
covered). Sharing is paid for in *loss*: each group has a charge for every window of steps, charges add up along a path,
and no path may be charged more than there is to spend. So the best that a group can do depends on two numbers only,
the step where it begins and what is left to spend, and the optimum follows from the smaller groups.

What is guaranteed: the optimum over the groups offered, for these charges. `every_group` offers all of them, so that
no tree of any shape is cheaper; `dendrogram` offers those of one clustering. Loss is counted in whole units, charges
rounded up, so a plan on the very edge may be missed by one unit in `resolution`, and none overspends.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ...intervals import Array, Integers

BLOCK = 2000  # prompts that are clustered at once; distances of every pair take memory with the square
LARGEST_COMPLETE = 7  # prompts of which every group is tried: 3^n / 2 ways to fall apart


class OverBudget(ValueError):
    """The cheapest tree takes more than there is."""


class Groups(NamedTuple):
    """Groups of prompts that a tree can be made of, small ones first; the last holds every prompt.

    Numbers below `leaves` are the prompts themselves, number `leaves + i` is group i.
    """

    leaves: int
    members: list[Integers]  # of each group
    splits: list[list[tuple[int, int]]]  # ways in which each group falls apart


class Chosen(NamedTuple):
    """What the best tree costs, and the groups that each prompt passes through: (group, stop), in order."""

    nfe: int
    slack: float  # that no path is charged more than
    paths: list[tuple[tuple[int, int], ...]]


def every_group(leaves: int) -> Groups:
    """All groups of two prompts or more, and all ways in which each falls apart."""
    masks = sorted((m for m in range(1, 2**leaves) if m & (m - 1)), key=lambda m: (m.bit_count(), m))
    number = {1 << i: i for i in range(leaves)} | {m: leaves + i for i, m in enumerate(masks)}
    splits = []
    for mask in masks:
        first, ways = mask & -mask, []
        part = (mask - 1) & mask
        while part:
            if part & first:
                ways.append((number[part], number[mask ^ part]))
            part = (part - 1) & mask
        splits.append(ways)
    return Groups(leaves, [np.flatnonzero([m >> i & 1 for i in range(leaves)]) for m in masks], splits)


def dendrogram(vectors: Array) -> Groups:
    """Average linkage on cosine distance. More than `BLOCK` prompts are first divided by k-means, then joined."""
    from scipy.cluster.hierarchy import linkage

    leaves = len(vectors)
    members: list[Integers] = []
    splits: list[list[tuple[int, int]]] = []
    of = lambda node: np.array([node]) if node < leaves else members[node - leaves]  # noqa: E731

    def join(nodes: Sequence[int], points: Array) -> int:
        """Link nodes by their points; returns the one node that is left."""
        if len(nodes) == 1:
            return nodes[0]
        found = list(nodes)
        for a, b in linkage(distances(points), "average")[:, :2].astype(int):
            members.append(np.concatenate([of(found[a]), of(found[b])]))
            splits.append([(found[a], found[b])])
            found.append(leaves + len(splits) - 1)
        return found[-1]

    blocks = _blocks(vectors, np.arange(leaves))
    tops = [join(block.tolist(), vectors[block]) for block in blocks]
    join(tops, np.stack([_unit(vectors[block].mean(axis=0)) for block in blocks]))
    return Groups(leaves, members, splits)


def cheapest(
    groups: Groups,
    charges: Sequence[Array | None],
    steps: int,
    nfe: tuple[int, int],
    slack: float,
    resolution: int,
    budget: int | None = None,
) -> Chosen:
    """The tree of least NFE on which no path is charged more than `slack`.

    Args:
        charges: of each group, (K + 1, K + 1) from step to step, K the latest step considered; None: it never shares.
        steps: length of the schedule.
        nfe: evaluations a step, in a group and alone.
        resolution: units into which `slack` is divided.
        budget: NFE that are enough. The tree is then the one whose paths are charged least, up to `slack`.

    Raises:
        OverBudget: if no tree within `slack` is as cheap as the budget.
    """
    latest = next((len(charge) - 1 for charge in charges if charge is not None), 0)
    shared, own = nfe
    cost = shared * _lengths(latest)
    prices = [None if c is None else _Price(cost, _units(c, slack, resolution)) for c in charges]
    alone = np.repeat((own * (steps - np.arange(latest + 1.0)))[:, None], resolution + 1, axis=1)
    tables = _tables(groups, prices, alone)
    least, column = tables[-1][0], resolution
    if budget is not None:
        if least[-1] > budget:
            raise OverBudget(
                f"budget must be at least {least[-1]:.0f} NFE, which the cheapest tree takes, got {budget}"
            )
        column = int(np.argmax(least <= budget))
    return Chosen(round(float(least[column])), slack * column / resolution, _walk(groups, prices, tables, column))


class _Price(NamedTuple):
    """Of sharing in one group, from step (first axis) to step (second axis), both (K + 1, K + 1)."""

    cost: Array  # NFE; inf where there is no such window
    units: Integers  # of loss


def _lengths(latest: int) -> Array:
    steps = np.arange(latest + 1)
    lengths = (steps[None, :] - steps[:, None]).astype(float)
    return np.where(lengths > 0, lengths, np.inf)


def _units(charge: Array, slack: float, resolution: int) -> Integers:
    units = np.ceil(charge / max(slack, 1e-12) * resolution - 1e-9)
    return np.maximum(np.fmin(units, resolution + 1), 0).astype(int)  # fmin: what nobody knows is too dear


def _tables(groups: Groups, prices: Sequence[_Price | None], leaf: Array) -> list[Array]:
    """Least cost of every node, (first step, units left to spend)."""
    tables = [leaf] * groups.leaves
    for ways, price in zip(groups.splits, prices, strict=True):
        apart = tables[ways[0][0]] + tables[ways[0][1]]
        for a, b in ways[1:]:
            apart = np.minimum(apart, tables[a] + tables[b])
        tables.append(apart if price is None else np.minimum(apart, _shared(apart, price).min(axis=1)))
    return tables


def _shared(apart: Array, price: _Price) -> Array:
    """Cost of sharing from step (first axis) to step (second) and falling apart there."""
    width = apart.shape[1]
    beyond = np.concatenate([np.full((len(apart), 1), np.inf), apart], axis=1)
    left = np.maximum(np.arange(width) - price.units[..., None], -1) + 1
    left += (beyond.shape[1] * np.arange(len(apart)))[:, None]  # places in the flat array: faster than two indices
    return price.cost[..., None] + beyond.take(left)


def _walk(
    groups: Groups, prices: Sequence[_Price | None], tables: list[Array], column: int
) -> list[tuple[tuple[int, int], ...]]:
    """From the root down: which groups share, and until when. Of equally cheap trees the one that shares less."""
    paths: list[tuple[tuple[int, int], ...]] = [()] * groups.leaves
    waiting: list[tuple[int, int, int, tuple[tuple[int, int], ...]]] = []
    waiting += [(groups.leaves + len(groups.splits) - 1, 0, column, ())] if groups.splits else []
    while waiting:
        node, start, left, path = waiting.pop()
        if node < groups.leaves:
            paths[node] = path
            continue
        group = node - groups.leaves
        ways, price = groups.splits[group], prices[group]

        best, way = _apart(tables, ways, start, left)
        stop, spare = start, left
        for step in range(start + 1, len(tables[node])):
            if price is None:
                break
            after = left - int(price.units[start, step])
            if after < 0:
                continue
            value, parts = _apart(tables, ways, step, after)
            if price.cost[start, step] + value < best - 1e-9:
                best, way, stop, spare = price.cost[start, step] + value, parts, step, after
        path = (*path, (group, stop)) if stop > start else path
        waiting += [(child, stop, spare, path) for child in way]
    return paths


def _apart(tables: list[Array], ways: list[tuple[int, int]], step: int, column: int) -> tuple[float, tuple[int, int]]:
    return min((tables[a][step, column] + tables[b][step, column], (a, b)) for a, b in ways)


# --- clustering


def _unit(rows: Array) -> Array:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def distances(points: Array) -> Array:
    """Condensed cosine distances, as `scipy.spatial.distance.pdist` orders them, by one product of matrices."""
    units = _unit(points).astype(np.float32)
    upper = np.triu_indices(len(units), 1)
    return np.maximum(1.0 - (units @ units.T)[upper].astype(float), 0.0)


def _blocks(vectors: Array, chosen: Integers) -> list[Integers]:
    """Prompts in blocks of at most `BLOCK`, those alike together."""
    if len(chosen) <= BLOCK:
        return [chosen]
    from scipy.cluster.vq import kmeans2

    number = -(-2 * len(chosen) // BLOCK)
    rng = np.random.default_rng(0)
    start = vectors[rng.choice(chosen, number, replace=False)]
    with warnings.catch_warnings():  # an empty block is no loss
        warnings.simplefilter("ignore", UserWarning)
        _, label = kmeans2(vectors[chosen], start, iter=5, minit="matrix")
    parts = [chosen[label == k] for k in range(number) if np.any(label == k)]
    if len(parts) == 1:  # all but equal: no way of dividing is better than another
        parts = np.array_split(chosen, number)
    return [block for part in parts for block in _blocks(vectors, part)]
