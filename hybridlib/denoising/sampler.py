"""`sample`: a table of trajectories, run as one tree from the noise of their seeds or from states."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from ..noise import initial_noise, step_generator
from ..progress import bar
from ..prompts import warn_of_foreign_words
from .arguments import check_sampling, check_segments, latent_size
from .denoisers import GuidedDenoiser
from .families import collect, denoiser_of, nfe_of
from .samples import Kept, Samples, rows_of
from .solvers import draws_noise, evaluations, joined_history, prepared_scheduler, read_history, write_history
from .state import DenoiseState
from .texts import encode_ahead
from .trajectory import Trajectory
from .tree import Tree
from .walk import check_walk, walk


@torch.no_grad()
def sample(
    pipeline: Any,
    trajectories: Sequence[Trajectory],
    *,
    denoisers: Mapping[str, Any] | None = None,
    handoff: str = "keep",
    num_inference_steps: int | None = None,
    shift: float | None = None,
    height: int | None = None,
    width: int | None = None,
    batch_size: int = 64,
    max_sequence_length: int | None = None,
    keep: Collection[int] = (),
    resume: DenoiseState | Sequence[DenoiseState] | None = None,
    progress: bool | tqdm = True,
) -> Samples:
    """Run trajectories as one tree.

    Args:
        pipeline: of SD3, FLUX.1, Stable Diffusion 1.x, SDXL or a latent consistency model; its network runs the
            segments that name no denoiser, its VAE decodes, its scheduler steps.
        trajectories: all over the same steps. Without `resume` they start at 0 from the noise of their seed.
        denoisers: by the names that segments use: networks, which take prompts from the pipeline, pipelines, which
            encode prompts themselves, or denoisers of your own (`own`).
        handoff: whether a multistep solver keeps what it remembers where another denoiser takes over, as published,
            or resets; see `walk`.
        num_inference_steps: length of the noise schedule; where the trajectories stop, by default.
        shift: of the noise schedule; the model's own by default. It belongs to a resolution: large latents bear more.
        height, width: image size in pixels; the model's own by default.
        batch_size: most denoiser evaluations in one forward.
        max_sequence_length: tokens of T5, where there is one; by default as in diffusers, 256 of SD3 and 512 of FLUX.
        keep: numbers of updates after which to keep latents (0 = initial noise), beside the final ones.
        resume: a state to go on from, one for all trajectories or one for each; every trajectory then starts at the
            step of its state and has its seed. Trajectories that go on from the same state object share its row.
        progress: whether to show a bar, or a bar to advance by the evaluations made.

    Warns:
        UserWarning: once, naming the words of the prompts that a model with a small closed vocabulary does not know.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: before any denoising, if trajectories, sizes or `keep` do not fit the schedule or the state, or if
            the pipeline's scheduler is none that a tree can be walked with, or if states cannot go on together.
    """
    check_sampling(pipeline, keep, resume, progress, num_inference_steps, batch_size)
    options: dict[str, Any] = {"denoisers": denoisers, "handoff": handoff, "shift": shift, "height": height}
    options |= {"width": width, "batch_size": batch_size, "max_sequence_length": max_sequence_length}
    setup = Setup.of(pipeline, trajectories, num_inference_steps=num_inference_steps, **options)
    states = [resume] * len(trajectories) if isinstance(resume, DenoiseState) else list(resume or ())
    tree = setup.tree(trajectories, states, keep)
    warn_of_foreign_words(pipeline.tokenizer, tree.texts, stacklevel=4)
    encode_ahead(setup.denoisers, [tree])
    with progress_bar(tree.cost.tree, "denoise", progress is True) as own_bar:
        shown = progress if isinstance(progress, tqdm) else own_bar
        return setup.walk(tree, trajectories, states, keep, shown)


@dataclass(frozen=True, repr=False)
class Setup:
    """What all walks of one call share: who denoises, under which noise schedule, latents of which shape."""

    denoisers: Mapping[str, GuidedDenoiser]
    scheduler: Any  # with its timesteps set; every walk takes a copy
    shape: tuple[int, int, int]  # of the latents of a row
    handoff: str
    batch_size: int

    def __repr__(self) -> str:
        names = ", ".join(map(repr, self.denoisers))
        return f"Setup(denoisers {names}, {type(self.scheduler).__name__}, latents {self.shape})"

    @staticmethod
    def of(
        pipeline: Any,
        trajectories: Sequence[Trajectory],
        *,
        denoisers: Mapping[str, Any] | None = None,
        handoff: str = "keep",
        num_inference_steps: int | None = None,
        shift: float | None = None,
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 64,
        max_sequence_length: int | None = None,
    ) -> Setup:
        """What the arguments of `sample` ask for; raises as it does."""
        stop = Tree(trajectories).stop
        steps = stop if num_inference_steps is None else num_inference_steps
        if stop > steps:
            raise ValueError(f"trajectories run to step {stop}, beyond num_inference_steps={steps}")
        first = denoiser_of(pipeline, batch_size, max_sequence_length)
        given = collect(first, denoisers)
        check_segments(trajectories, given)
        size = latent_size(first, height, width)
        scheduler = prepared_scheduler(first, steps, size, shift=shift)
        return Setup(given, scheduler, (first.latent_channels, *size), handoff, batch_size)

    def tree(
        self, trajectories: Sequence[Trajectory], states: Sequence[DenoiseState] = (), keep: Collection[int] = ()
    ) -> Tree:
        """The tree to walk, checked.

        Args:
            states: what each trajectory goes on from; none from noise.
        """
        if states and len(states) != len(trajectories):
            raise ValueError(f"resume must be one state, or one for each of {len(trajectories)}, got {len(states)}")
        origins = [id(state) for state in states]
        tree = Tree(trajectories, evaluations(self.scheduler), nfe_of(self.denoisers), origins)
        if outside := [n for n in keep if not tree.start <= n <= tree.stop]:
            raise ValueError(f"keep must lie in {tree.start}..{tree.stop}, got {outside[0]}")
        check_walk(tree, self.denoisers, self.scheduler, self._generators(tree), self.handoff)
        if not states and tree.start > 0:
            raise ValueError(f"trajectories start at step {tree.start}; pass the state to resume from, or start at 0")
        roots = [states[members[0]] for members in tree.roots] if states else []
        for state, members in zip(roots, tree.roots, strict=False):
            state.check(self.denoisers, self.scheduler, [trajectories[i] for i in members], self.shape)
        if roots:
            joined_history([state.history for state in roots])
        return tree

    @torch.no_grad()
    def walk(
        self,
        tree: Tree,
        trajectories: Sequence[Trajectory],
        states: Sequence[DenoiseState],
        keep: Collection[int],
        shown: tqdm,
    ) -> Samples:
        """Walk what `tree` made of the same trajectories and states, moving a bar on."""
        first, scheduler = self.denoisers[""], copy.deepcopy(self.scheduler)
        roots = [states[members[0]] for members in tree.roots] if states else []
        if roots:
            history = joined_history([state.history for state in roots])
            write_history(scheduler, {name: rows.to(first.device) for name, rows in history.items()})
            latents = torch.cat([state.latents for state in roots])
        else:
            latents = torch.cat([initial_noise(seed, *self.shape) for seed in tree.seeds])
        latents = latents.to(first.device, first.dtype)
        samples = Samples(
            self.denoisers, trajectories, scheduler, tree.cost, decode_batch_size=max(1, self.batch_size // 4)
        )
        wanted = {*keep, tree.stop}
        if tree.start in wanted:
            memory = [(list(range(len(latents))), read_history(scheduler))]
            samples.kept[tree.start] = Kept(latents, rows_of(tree.roots), memory)
        made_by = [state.past.segments[-1].denoiser for state in roots] or None
        options: dict[str, Any] = {"generators": self._generators(tree), "handoff": self.handoff, "made_by": made_by}
        for front in walk(tree, self.denoisers, scheduler, latents, noise_from_seeds=True, **options):
            if front.updates in wanted:
                samples.kept[front.updates] = Kept(front.latents, rows_of(front.members), front.memory)
            shown.update(front.nfe)
        return samples

    def _generators(self, tree: Tree) -> dict[int, torch.Generator] | None:
        if not draws_noise(self.scheduler):
            return None
        dtype = self.denoisers[""].dtype
        return {seed: step_generator(seed, self.shape, tree.start, dtype) for seed in tree.seeds}


def progress_bar(total: int, description: str, show: bool, unit: str = "NFE") -> tqdm:
    """A bar over denoiser evaluations or another unit. TQDM_DISABLE in the environment hides it, too."""
    return bar(total=total, unit=unit, unit_scale=True, desc=description, show=show)
