"""The pair of models of a study: a large pipeline, and a small network that goes on with its latents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..denoising import compact, families, models
from ..denoising.solvers import check_scheduler
from ..study.runner import Models
from .grids import SMALL

if TYPE_CHECKING:
    from ..denoising.denoisers import GuidedDenoiser
    from ..denoising.hybrid_call import HybridPipeline
    from ..study.parameters import SplitParameters

SCHEDULERS = {"dpm-solver++": "DPMSolverMultistepScheduler", "ddim": "DDIMScheduler", "lcm": "LCMScheduler"}


def load(parameters: SplitParameters) -> tuple[HybridPipeline, Models]:
    """The large pipeline under the study's solver, and the small network by its name of `grids`.

    Raises:
        ValueError: before any denoising, if a model is not there, the two share no latents, or a tree cannot be walked
            with the scheduler.
    """
    pipeline = models.load(parameters.model)
    set_solver(pipeline, parameters.solver)
    pair = Models({SMALL: network(parameters.small_model, pipeline)}, parameters.handoff)
    denoisers(pipeline, pair)
    return pipeline, pair


def denoisers(pipeline: HybridPipeline, pair: Models) -> dict[str, GuidedDenoiser]:
    """Both denoisers by name.

    Raises:
        ValueError: if the small one cannot go on with the latents of the large one.
    """
    return families.collect(families.denoiser_of(pipeline), pair.denoisers)


def network(name: str, beside: HybridPipeline) -> Any:
    """The network of a model by name, where and as what that of another pipeline is.

    Args:
        name: a miniature's name, a local folder or a hub id; a folder may hold nothing but `unet/` with a table of
            widths, as pruned UNets are saved. Prompts are encoded by the large model for both, as published.

    Raises:
        ValueError: if the model is not there, or says that its latents are others.
    """
    kind = families.denoiser_of(beside).network
    own = getattr(beside, kind)
    folder = Path(models.locate(name)) / "unet"
    if (folder / compact.FILE).is_file():
        return compact.load_unet(folder, own.dtype).to(own.device)
    pipeline = models.load(name, device=str(own.device), dtype=str(own.dtype).removeprefix("torch."))
    families.collect(families.denoiser_of(beside), {SMALL: pipeline})  # a network alone does not tell its latents
    return getattr(pipeline, kind)


def set_solver(pipeline: HybridPipeline, solver: str) -> None:
    """Give a pipeline another solver on its own noise schedule; "model" leaves it as it is.

    As published: built from the model's scheduler configuration, whose spacing of timesteps is kept only if it says one
    itself. The configuration of Stable Diffusion 1.4 says none and names PNDM, which makes an update too many.

    Raises:
        ValueError: if the solver is unknown, or a tree cannot be walked with it.
    """
    import diffusers

    if solver != "model" and solver not in SCHEDULERS:
        raise ValueError(f"solver must be 'model' or one of {tuple(SCHEDULERS)}, got {solver!r}")
    if solver != "model":
        pipeline.scheduler = getattr(diffusers, SCHEDULERS[solver]).from_config(pipeline.scheduler.config)
    check_scheduler(pipeline.scheduler, families.denoiser_of(pipeline).is_flow)
