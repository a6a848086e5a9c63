"""`sample`: a table of trajectories, run as one tree from the noise of their seeds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from ..noise import initial_noise, step_generator
from ..progress import bar
from ..prompts import warn_of_foreign_words
from .arguments import check_sampling, check_segments, latent_size
from .families import collect, denoiser_of, nfe_of
from .samples import Kept, Samples, rows_of
from .solvers import draws_noise, evaluations, prepared_scheduler, read_history, write_history
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
    resume: DenoiseState | None = None,
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
        resume: a state to go on from; every trajectory then starts at its step and has its seed.
        progress: whether to show a bar, or a bar to advance by the evaluations made.

    Warns:
        UserWarning: once, naming the words of the prompts that a model with a small closed vocabulary does not know.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: before any denoising, if trajectories, sizes or `keep` do not fit the schedule or the state, or if
            the pipeline's scheduler is none that a tree can be walked with.
    """
    check_sampling(pipeline, keep, resume, progress, num_inference_steps, batch_size)
    tree = Tree(trajectories)
    steps = tree.stop if num_inference_steps is None else num_inference_steps
    if tree.stop > steps:
        raise ValueError(f"trajectories run to step {tree.stop}, beyond num_inference_steps={steps}")
    outside = [n for n in keep if not tree.start <= n <= tree.stop]
    if outside:
        raise ValueError(f"keep must lie in {tree.start}..{tree.stop}, got {outside[0]}")
    first = denoiser_of(pipeline, batch_size, max_sequence_length)
    given = collect(first, denoisers)
    check_segments(trajectories, given)
    size = latent_size(first, height, width)
    shape = (first.latent_channels, *size)
    scheduler = prepared_scheduler(first, steps, size, shift=shift)
    tree = Tree(trajectories, evaluations(scheduler), nfe_of(given))
    generators = None
    if draws_noise(scheduler):
        generators = {seed: step_generator(seed, shape, tree.start, first.dtype) for seed in tree.seeds}
    check_walk(tree, given, scheduler, generators, handoff)
    if resume is not None:
        resume.check(given, scheduler, trajectories, shape)
        write_history(scheduler, {name: rows.to(first.device) for name, rows in resume.history.items()})
        latents = resume.latents
    elif tree.start > 0:
        raise ValueError(f"trajectories start at step {tree.start}; pass the state to resume from, or start at 0")
    else:
        latents = torch.cat([initial_noise(seed, *shape) for seed in tree.seeds])
    latents = latents.to(first.device, first.dtype)
    warn_of_foreign_words(pipeline.tokenizer, tree.texts, stacklevel=4)
    encode_ahead(given, [tree])

    samples = Samples(given, trajectories, scheduler, tree.cost, decode_batch_size=max(1, batch_size // 4))
    wanted = {*keep, tree.stop}
    if tree.start in wanted:
        memory = [(list(range(len(latents))), read_history(scheduler))]
        samples.kept[tree.start] = Kept(latents, rows_of(tree.roots), memory)
    made_by = resume.past.segments[-1].denoiser if resume else None
    options: dict[str, Any] = {"generators": generators, "handoff": handoff, "made_by": made_by}
    with progress_bar(tree.cost.tree, "denoise", progress is True) as own_bar:
        shown = progress if isinstance(progress, tqdm) else own_bar
        for front in walk(tree, given, scheduler, latents, noise_from_seeds=True, **options):
            if front.updates in wanted:
                samples.kept[front.updates] = Kept(front.latents, rows_of(front.members), front.memory)
            shown.update(front.nfe)
    return samples


def progress_bar(total: int, description: str, show: bool, unit: str = "NFE") -> tqdm:
    """A bar over denoiser evaluations or another unit. TQDM_DISABLE in the environment hides it, too."""
    return bar(total=total, unit=unit, unit_scale=True, desc=description, show=show)
