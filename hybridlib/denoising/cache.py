"""A cache of prefixes across calls: trajectories go on from what earlier ones have left, instead of from noise.

What is the same to the bit and what is not: a row's result depends by float rounding on the rows that share its
forward. With `batch_size=1` every row has a forward of its own, and a cached call returns exactly the latents of
`sample`; it uses only prefixes that such calls have stored. In larger batches this holds where the steps that are
left evaluate the same rows in the same order, as in a call that repeats an earlier one. Elsewhere rows differ by
rounding, as those of any two batches do: below 1e-4 in the latents of mini-sd3. Another number of CPU threads may
round differently, too.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from itertools import groupby
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from ..prompts import warn_of_foreign_words
from .arguments import check_sampling
from .prefixes import Keys, Prefix, PrefixFiles, differ_in_conditioning_alone
from .sampler import Setup, progress_bar
from .samples import Kept, Samples
from .solvers import history_layout
from .state import DenoiseState
from .trajectory import Trajectory, check_type
from .tree import Cost, Tree

Rule = Callable[[Prefix, Trajectory], float]  # above 0 where the trajectory may go on from this prefix of another
Load = Callable[[str], DenoiseState | None]


class Report(NamedTuple):
    """What a cache has done since it was opened, and what its folder holds."""

    hits: int  # trajectories that went on from a prefix of their own
    near: int  # those that went on from another one, which the rule took
    misses: int  # those that began with noise
    computed: int  # denoiser evaluations made
    saved: int  # how many more `sample` would have made
    files: int
    bytes: int


class PrefixCache:
    """Prefixes in a folder, found by what made them; see `prefixes` for what that is and how files are kept.

        cache = PrefixCache("outputs/prefixes", max_bytes=1 << 30)
        images = cache.sample(pipe, paths, max_sequence_length=1).images()

    Args:
        folder: made when the first prefix is stored. Any number of processes may use it at once.
        max_bytes: of all its prefixes together; those used longest ago leave first.

    Raises:
        TypeError: if the folder is no path or the limit no whole number.
        ValueError: if the folder is a file, or the limit not above 0.
    """

    def __init__(self, folder: Path | str, max_bytes: int) -> None:
        check_type("folder", folder, (str, Path), "a path")
        check_type("max_bytes", max_bytes, Integral, "a whole number of bytes")
        if Path(folder).exists() and not Path(folder).is_dir():
            raise ValueError(f"folder must be a folder, got the file {folder}")
        if max_bytes <= 0:
            raise ValueError(f"max_bytes must be above 0, got {max_bytes}")
        self.files = PrefixFiles(Path(folder), max_bytes)
        self._counts = [0] * 5

    def report(self) -> Report:
        """See `Report`."""
        sizes = [file.size for file in self.files.all()]
        return Report._make([*self._counts, len(sizes), sum(sizes)])

    def sample(
        self,
        pipeline: Any,
        trajectories: Sequence[Trajectory],
        *,
        accept: Rule | None = None,
        store: Collection[int] | None = None,
        keep: Collection[int] = (),
        progress: bool | tqdm = True,
        **options: Any,
    ) -> Samples:
        """What `sampler.sample` does, but each trajectory goes on from the longest prefix that is stored.

        Those that begin at the same step are walked as one tree, the others apart. The result tells by `trajectories`
        what was walked and by `cost` what was evaluated.

        Args:
            trajectories: all from noise.
            accept: whether a trajectory may go on from a longer prefix than its own, which differs from it in
                conditionings alone: a number above 0 where it may; of several that end at the same step the highest
                is taken. Where trajectories of one call share steps that such prefixes do not reach, this can cost
                more than it saves; the report tells.
            store: numbers of updates after which prefixes are stored; by default wherever a segment ends, which is
                where trajectories part. Never final latents, nor inside a thinned segment.
            keep: as in `sample`. No prefix beyond the first of them is used.
            options: the others of `sample`, but for `resume`.

        Warns:
            UserWarning: as `sample` does, and if a prefix cannot be written.

        Raises:
            TypeError, ValueError: as `sample` does.
        """
        check_sampling(pipeline, keep, None, progress, options.get("num_inference_steps"), options.get("batch_size", 1))
        check_type("accept", accept, (Callable, type(None)), "a function of prefix and trajectory")  # type: ignore[arg-type]
        check_type("store", store, (Collection, type(None)), "a collection of numbers of updates")
        for updates in store or ():
            check_type("store", updates, Integral, "a collection of numbers of updates")
        setup = Setup.of(pipeline, trajectories, **options)
        whole = setup.tree(trajectories, keep=keep)
        warn_of_foreign_words(pipeline.tokenizer, whole.texts, stacklevel=3)
        keys = Keys(setup)
        load = functools.cache(functools.partial(self.files.load, keys=keys))  # one object a state: its rows are shared
        latest = min([*keep, whole.stop - 1])
        found = [self._find(path, keys, load, latest, accept) for path in trajectories]
        walked = [_walked(*pair, keys) for pair in zip(trajectories, found, strict=True)]
        parts = self._walk(setup, keys, whole, walked, found, store, keep, progress)
        computed = sum(part.cost.tree for _, part in parts)
        near = sum(mine is not asked for mine, asked in zip(walked, trajectories, strict=True))
        misses = found.count(None)
        counts = (len(found) - misses - near, near, misses, computed, whole.cost.tree - computed)
        self._counts = [old + new for old, new in zip(self._counts, counts, strict=True)]
        return _joined(walked, parts, {*keep, whole.stop})

    def find(
        self, setup: Setup, trajectory: Trajectory, latest: int | None = None, accept: Rule | None = None
    ) -> DenoiseState | None:
        """The longest stored prefix that a trajectory may go on from, or None.

        Args:
            setup: of the call to come, `Setup.of(pipeline, [trajectory], ...)`.
            latest: most updates of the prefix; all but the last of the trajectory by default.
            accept: see `sample`.
        """
        keys = Keys(setup)
        load = functools.partial(self.files.load, keys=keys)
        return self._find(trajectory, keys, load, trajectory.stop - 1 if latest is None else latest, accept)

    def _find(
        self, trajectory: Trajectory, keys: Keys, load: Load, latest: int, accept: Rule | None
    ) -> DenoiseState | None:
        names, best = keys.of(trajectory), None
        stops = [u for u in range(min(latest, trajectory.stop - 1), 0, -1) if _can_stop(trajectory, u)]
        for updates in stops:
            if (best := load(names[updates])) is not None:
                break
        if accept is None:
            return best
        longer = {u for u in stops if best is None or u > best.step}
        others = [
            (key, Prefix(past, keys.sigmas[past.stop]))
            for key, past in self.files.pasts().items()
            if past.stop in longer and differ_in_conditioning_alone(past, trajectory) and keys.of(past)[-1] == key
        ]
        others.sort(key=lambda entry: (-entry[1].step, entry[0]))
        for _, level in groupby(others, key=lambda entry: entry[1].step):
            liked = sorted(((accept(prefix, trajectory), key) for key, prefix in level), key=lambda pair: -pair[0])
            for value, key in liked:
                if value > 0 and (state := load(key)) is not None:
                    return state
        return best

    def _walk(
        self,
        setup: Setup,
        keys: Keys,
        whole: Tree,
        walked: Sequence[Trajectory],
        found: Sequence[DenoiseState | None],
        store: Collection[int] | None,
        keep: Collection[int],
        progress: bool | tqdm,
    ) -> list[tuple[list[int], Samples]]:
        """The trajectories of each walk, one for each step that they begin at, and its outcome."""
        groups: dict[Hashable, list[int]] = {}
        for index in (i for edge in whole.levels[-1] for i in edge.members):  # rows in the order of one whole walk
            state = found[index]
            groups.setdefault(state and (state.step, history_layout(state.history)), []).append(index)
        plans = []
        for members in groups.values():
            states = [state for i in members if (state := found[i]) is not None]
            paths = [walked[i].since(states[0].step) if states else walked[i] for i in members]
            plans.append((members, paths, states, setup.tree(paths, states, keep)))
        parts = []
        with progress_bar(sum(tree.cost.tree for *_, tree in plans), "denoise", progress is True) as own_bar:
            shown = progress if isinstance(progress, tqdm) else own_bar
            for members, paths, states, tree in plans:
                own = [walked[i] for i in members]
                stops = {u for path in own for u in _stops(path, store) if u > tree.start}
                part = setup.walk(tree, paths, states, {*keep, *stops}, shown)
                part.trajectories = own  # so that states tell their whole past
                self._store(part, keys, store, tree.start)
                parts.append((members, part))
        return parts

    def _store(self, part: Samples, keys: Keys, store: Collection[int] | None, start: int) -> None:
        """Store what a walk passed after `start` updates and what is not there yet."""
        chosen: dict[str, tuple[int, int]] = {}
        for index, path in enumerate(part.trajectories):
            names = keys.of(path)
            chosen |= {names[updates]: (index, updates) for updates in _stops(path, store) if updates > start}
        for key, place in chosen.items():
            if not self.files.path(key).is_file():
                try:
                    self.files.store(key, part.state(*place))
                except OSError as error:  # a full disk, say: the images are worth more
                    warnings.warn(f"a prefix could not be stored: {error}", stacklevel=4)
                    return


def _can_stop(trajectory: Trajectory, updates: int) -> bool:
    """Whether a state may be taken there, which is not inside a thinned segment."""
    return not any(s.thinning and s.start < updates < s.stop for s in trajectory.segments)


def _stops(trajectory: Trajectory, store: Collection[int] | None) -> list[int]:
    """Numbers of updates after which prefixes of a trajectory are stored."""
    chosen: Iterable[int] = (s.stop for s in trajectory.segments) if store is None else store
    return sorted(u for u in {*chosen} if 0 < u < trajectory.stop and _can_stop(trajectory, u))


def _walked(trajectory: Trajectory, state: DenoiseState | None, keys: Keys) -> Trajectory:
    """What leads to the image: the trajectory itself, or the past of another one and the rest of this."""
    if state is None or keys.of(trajectory)[state.step] == keys.of(state.past)[-1]:
        return trajectory
    return Trajectory(trajectory.seed, state.past.segments + trajectory.since(state.step).segments)


def _joined(
    trajectories: Sequence[Trajectory], parts: Sequence[tuple[list[int], Samples]], keep: Collection[int]
) -> Samples:
    """One outcome of several walks, in the order of the trajectories."""
    first = parts[0][1]
    cost = Cost.total(part.cost for _, part in parts)
    samples = Samples(first.denoisers, trajectories, first.scheduler, cost, {}, first.decode_batch_size)
    for updates in keep:
        rows, memory, latents, before = [0] * len(trajectories), [], [], 0
        for members, part in parts:
            kept = part.kept[updates]
            for index, row in zip(members, kept.rows, strict=True):
                rows[index] = before + row
            memory += [([before + row for row in group], history) for group, history in kept.memory]
            latents.append(kept.latents)
            before += len(kept.latents)
        samples.kept[updates] = Kept(torch.cat(latents), rows, memory)
    return samples
