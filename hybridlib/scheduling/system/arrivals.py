"""What arrives: tasks of every base station in every slot, drawn anew or as the published scripts draw them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from .model import Floats, Ints, MecConfig, check_config


@dataclass(frozen=True, eq=False, repr=False)
class Arrivals:
    """What arrives in a batch of episodes.

    Attributes:
        count: tasks of each base station in each slot, 1..N (0 is allowed in hand-made cases), shape (E, T, B).
        size: Mbit of each input, shape (E, T, B, N); entries from `count` on are 0.

    Raises:
        ValueError: if shapes disagree, a count lies outside 0..N, or a size is not finite and above 0.
    """

    count: Ints
    size: Floats

    def __post_init__(self) -> None:
        count, size = np.asarray(self.count), np.array(self.size, dtype=np.float64)
        if count.ndim != 3 or size.ndim != 4 or size.shape[:3] != count.shape:
            raise ValueError(
                f"count and size must have shapes (E, T, B) and (E, T, B, N), got {count.shape}, {size.shape}"
            )
        if not np.issubdtype(count.dtype, np.integer) or count.min() < 0 or count.max() > size.shape[3]:
            raise ValueError(f"count must be whole numbers in 0..{size.shape[3]}, got {count.min()}..{count.max()}")
        present = np.arange(size.shape[3]) < count[..., None]
        good = np.isfinite(size) & (size > 0)
        if not good[present].all():
            raise ValueError(f"size must be finite and above 0 for every task, got {size[present & ~good][0]}")
        size[~present] = 0.0
        object.__setattr__(self, "count", count.astype(np.int64))
        object.__setattr__(self, "size", size)

    def __repr__(self) -> str:
        episodes, slots, stations = self.count.shape
        return f"Arrivals({episodes} episodes, {slots} slots, {stations} stations, {self.count.sum()} tasks)"

    @classmethod
    def draw(cls, config: MecConfig, episodes: Sequence[int], seed: int = 0) -> Arrivals:
        """Episodes by number: episode e of a seed is the same whatever else is drawn, and for every method.

        Raises:
            TypeError: if config is no MecConfig.
        """
        check_config(config)
        counts, sizes = [], []
        for episode in episodes:
            generator = np.random.default_rng((seed, episode))
            counts.append(generator.integers(1, config.max_tasks + 1, (config.slots, config.servers)))
            sizes.append(generator.uniform(*config.size_mbit, (config.slots, config.servers, config.max_tasks)))
        return cls(np.stack(counts), np.stack(sizes))

    @classmethod
    def published(cls, config: MecConfig, episodes: int, after_latents: bool = False) -> Arrivals:
        """The first episodes of the published scripts, whose arrivals continue the stream of the task draws (Q5).

        Args:
            after_latents: the stream of the LAD-TS script, which draws its latent memory first; otherwise that of the
                Opt-TS and SAC-TS scripts.
        """
        return cls.join(list(islice(published_stream(config, after_latents), episodes)))

    @classmethod
    def join(cls, batches: Sequence[Arrivals]) -> Arrivals:
        """One batch of all their episodes."""
        return cls(np.concatenate([a.count for a in batches]), np.concatenate([a.size for a in batches]))

    @property
    def tasks(self) -> Ints:
        """Tasks played in each episode, shape (E,): those of the last slot are not."""
        return self.count[:, :-1].sum(axis=(1, 2))


def published_stream(config: MecConfig, after_latents: bool = False) -> Iterator[Arrivals]:
    """The episodes of the published scripts, one at a time and without end; see `Arrivals.published`."""
    check_config(config)
    stream = np.random.RandomState(config.task_seed)
    stream.uniform(size=config.max_tasks)
    if after_latents:
        stream.normal(size=(config.slots, config.servers, config.max_tasks, config.servers))
    while True:
        count = np.zeros((1, config.slots, config.servers), np.int64)
        size = np.zeros((*count.shape, config.max_tasks))
        for t in range(config.slots):
            count[0, t] = stream.randint(1, config.max_tasks + 1, config.servers, dtype=np.int64)
            for b, m in enumerate(count[0, t]):
                size[0, t, b, :m] = stream.uniform(*config.size_mbit, m)
        yield Arrivals(count, size)
