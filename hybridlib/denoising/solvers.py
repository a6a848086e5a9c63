"""The same model under another solver of its flow."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .pipelines import HybridStableDiffusion3Pipeline

SOLVERS = ("euler", "dpm-solver++")


def with_solver(pipeline: HybridStableDiffusion3Pipeline, solver: str) -> HybridStableDiffusion3Pipeline:
    """A pipeline of the same models and noise schedule whose scheduler is flow-matching Euler or DPM-Solver++ (2M).

    Raises:
        ValueError: if `solver` is none of `SOLVERS`.
    """
    from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {SOLVERS}, got {solver!r}")
    config = pipeline.scheduler.config
    shift = config.get("shift", config.get("flow_shift", 1.0))
    steps = config.num_train_timesteps
    scheduler = (
        FlowMatchEulerDiscreteScheduler(num_train_timesteps=steps, shift=shift)
        if solver == "euler"
        else DPMSolverMultistepScheduler(
            num_train_timesteps=steps, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
        )
    )
    other = type(pipeline)(**pipeline.components | {"scheduler": scheduler})
    other.set_progress_bar_config(**pipeline._progress_bar_config)
    return other
