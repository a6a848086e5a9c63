"""The same model under another solver of its flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipelines import HybridStableDiffusion3Pipeline

SOLVERS = ("euler", "dpm-solver++")


def with_solver(pipeline: HybridStableDiffusion3Pipeline, solver: str) -> HybridStableDiffusion3Pipeline:
    """A pipeline of the same models and noise schedule whose scheduler is flow-matching Euler or DPM-Solver++ (2M).

    Raises:
        ValueError: if `solver` is none of `SOLVERS`.
    """
    other = type(pipeline)(**pipeline.components | {"scheduler": solver_of(pipeline.scheduler.config, solver)})
    other.set_progress_bar_config(**pipeline._progress_bar_config)
    return other


def solver_of(config: Mapping[str, Any], solver: str) -> Any:
    """The diffusers scheduler of that solver on the noise schedule (length, shift) of a flow-matching configuration.

    Raises:
        ValueError: if `solver` is none of `SOLVERS`.
    """
    from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {SOLVERS}, got {solver!r}")
    shift, steps = config.get("shift", config.get("flow_shift", 1.0)), config["num_train_timesteps"]
    if solver == "euler":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=steps, shift=shift)
    return DPMSolverMultistepScheduler(
        num_train_timesteps=steps, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
