"""The tree that trajectories form: which generations share a step, who denoises it, and what all of it costs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .blend import texts_of
from .trajectory import Conditioning, Move, Trajectory, check_type

if TYPE_CHECKING:
    from ..codecs import Codec


class Edge(NamedTuple):
    """One denoising step shared by every trajectory in `members`: it leads from row `parent` of the step before."""

    parent: int
    conditioning: Conditioning
    members: tuple[int, ...]
    codec: Codec | None = None  # that the parent's latents pass first
    denoiser: str = ""
    nfe: int = 1  # evaluations of the row at each timestep of the step; none where it is extrapolated
    slope: float | None = None  # of an extrapolated step, see `trajectory.Move`


class DenoiserCost(NamedTuple):
    """What one denoiser has to do with a set of trajectories."""

    denoiser: str
    tree: int
    one_at_a_time: int


class Cost(NamedTuple):
    """Denoiser evaluations (NFE) of a set of trajectories."""

    tree: int  # each shared step evaluated once
    one_at_a_time: int  # every trajectory from its own start
    by_denoiser: tuple[DenoiserCost, ...] = ()

    def __repr__(self) -> str:
        told = f"Cost(tree={self.tree}, one_at_a_time={self.one_at_a_time}"
        named = [c for c in self.by_denoiser if c.denoiser] and self.by_denoiser
        return told + "".join(f", {c.denoiser!r}: {c.tree} of {c.one_at_a_time}" for c in named) + ")"

    def of(self, denoiser: str) -> Cost:
        """The part of it that falls to one denoiser."""
        found = [c for c in self.by_denoiser if c.denoiser == denoiser]
        return Cost(sum(c.tree for c in found), sum(c.one_at_a_time for c in found), tuple(found))

    @staticmethod
    def total(costs: Iterable[Cost]) -> Cost:
        """What several trees cost together."""
        costs = list(costs)
        names = dict.fromkeys(c.denoiser for cost in costs for c in cost.by_denoiser)
        parts = [(name, [cost.of(name) for cost in costs]) for name in names]
        return Cost(
            sum(cost.tree for cost in costs),
            sum(cost.one_at_a_time for cost in costs),
            tuple(
                DenoiserCost(name, sum(c.tree for c in found), sum(c.one_at_a_time for c in found))
                for name, found in parts
            ),
        )


def plain_nfe(denoiser: str, conditioning: Conditioning) -> int:
    """Two evaluations under classifier-free guidance, else one, whoever denoises."""
    return conditioning.nfe


class Tree:
    """The denoising tree (a trie over steps) of trajectories that all run from step `start` to step `stop`.

    `roots[r]` lists the trajectories that begin in row r (one row a seed and origin), and `levels[i]` the edges of step
    `start + i`. A row of one level is an edge of the level before, so rows double as indices into latents.

    Args:
        evaluations: denoiser evaluations of a row, without guidance, in each update of the schedule; one each by
            default, which is right for every solver that evaluates once an update.
        nfe: evaluations of a row at one timestep, from the denoiser's name and the conditioning; those of
            classifier-free guidance by default, which is wrong for models that embed the guidance scale.
        origins: what each trajectory goes on from, where those of one seed begin with different latents.

    Raises:
        TypeError: if `trajectories` is no sequence of `Trajectory`.
        ValueError: if there are no trajectories or they differ in where they start or stop.
    """

    def __init__(
        self,
        trajectories: Sequence[Trajectory],
        evaluations: Sequence[int] | None = None,
        nfe: Callable[[str, Conditioning], int] = plain_nfe,
        origins: Sequence[Hashable] | None = None,
    ) -> None:
        check_type("trajectories", trajectories, Sequence, "a list of Trajectory")
        for trajectory in trajectories:
            check_type("a trajectory", trajectory, Trajectory, "a Trajectory")
        spans = {(t.start, t.stop) for t in trajectories}
        if len(spans) != 1:
            found = ", ".join(f"{start}..{stop}" for start, stop in sorted(spans)) or "none"
            raise ValueError(f"all trajectories of one tree must run over the same steps, got {found}")
        self.start, self.stop = spans.pop()
        begun: dict[tuple[int, Hashable], list[int]] = {}
        for index, trajectory in enumerate(trajectories):
            begun.setdefault((trajectory.seed, origins[index] if origins else None), []).append(index)
        self.seeds = tuple(seed for seed, _ in begun)  # of the roots
        self._seed_of = [trajectory.seed for trajectory in trajectories]
        self.roots = tuple(tuple(members) for members in begun.values())
        self.levels = self._grow(trajectories, nfe)
        self.evaluations = tuple(evaluations or [1] * self.stop)[self.start : self.stop]
        self.cost = self._cost()

    def seed_of(self, edge: Edge) -> int:
        """The seed that all trajectories of an edge share."""
        return self._seed_of[edge.members[0]]

    @property
    def texts(self) -> list[str]:
        """Every prompt, also inside a blend, and negative prompt that steers a step, each once."""
        conditionings = dict.fromkeys(edge.conditioning for level in self.levels for edge in level)
        told = (text for c in conditionings for text in (*texts_of(c.prompt), c.negative_prompt))
        return list(dict.fromkeys(text for text in told if text))

    @property
    def steps(self) -> int:
        """Denoising steps of the whole tree, guided or not."""
        return sum(len(level) for level in self.levels)

    @property
    def is_thinned(self) -> bool:
        """Whether a step is extrapolated."""
        return any(edge.slope is not None for level in self.levels for edge in level)

    @property
    def denoisers(self) -> list[str]:
        """The name of every denoiser that runs a step, each once, in the order of the steps."""
        return list(dict.fromkeys(edge.denoiser for level in self.levels for edge in level))

    def _grow(
        self, trajectories: Sequence[Trajectory], nfe: Callable[[str, Conditioning], int]
    ) -> tuple[tuple[Edge, ...], ...]:
        numbers: dict[Move, int] = {}  # of each different move: numbers are compared many times quicker
        paths = [_numbered(t.moves(), numbers) for t in trajectories]
        shapes = [_edge(move, nfe) for move in numbers]
        rows, levels = self.roots, []
        for step in range(self.stop - self.start):
            level = []
            for parent, members in enumerate(rows):
                forks: dict[int, list[int]] = {}
                for index in members:
                    forks.setdefault(paths[index][step], []).append(index)
                level += [Edge(parent, shapes[n][1], tuple(found), *shapes[n][3:]) for n, found in forks.items()]
            levels.append(tuple(level))
            rows = tuple(edge.members for edge in level)
        return tuple(levels)

    def _cost(self) -> Cost:
        spent: dict[str, list[int]] = {name: [0, 0] for name in self.denoisers}
        for level, number in zip(self.levels, self.evaluations, strict=True):
            for edge in level:
                spent[edge.denoiser][0] += edge.nfe * number
                spent[edge.denoiser][1] += edge.nfe * number * len(edge.members)
        by_denoiser = tuple(DenoiserCost(name, *pair) for name, pair in spent.items())
        return Cost(sum(c.tree for c in by_denoiser), sum(c.one_at_a_time for c in by_denoiser), by_denoiser)


def _numbered(moves: Iterable[Move], numbers: dict[Move, int]) -> list[int]:
    path, last, number = [], None, -1
    for move in moves:
        if move is not last:  # a segment repeats one object
            last, number = move, numbers.setdefault(move, len(numbers))
        path.append(number)
    return path


def _edge(move: Move, nfe: Callable[[str, Conditioning], int]) -> Edge:
    """The edge that a move makes, without its place in the tree."""
    number = nfe(move.denoiser, move.conditioning) if move.slope is None else 0
    return Edge(-1, move.conditioning, (), move.codec, move.denoiser, number, move.slope)
