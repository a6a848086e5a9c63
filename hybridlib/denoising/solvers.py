"""The solvers of a flow: which diffusers schedulers a tree can walk, and what they remember of each row.

A tree needs a solver that is a function of the latents alone, row by row. Multistep solvers remember earlier model
outputs, which fork with their row. Heun evaluates twice an update: a timestep of its list is half an update. Solvers
that draw noise of their own are refused: that noise would depend on which rows happen to share a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

SOLVERS = ("euler", "dpm-solver++")
_COUNTERS = ("lower_order_nums", "this_order")  # the part of the memory that all rows share
_MEMORY: dict[str, tuple[str, ...]] = {  # scheduler -> attributes that outlive an update
    "FlowMatchEulerDiscreteScheduler": (),
    "FlowMatchHeunDiscreteScheduler": (),
    "FlowMapEulerDiscreteScheduler": (),
    "DPMSolverMultistepScheduler": ("model_outputs", "lower_order_nums"),
    "DPMSolverSinglestepScheduler": ("model_outputs", "sample"),
    "DEISMultistepScheduler": ("model_outputs", "lower_order_nums"),
    "UniPCMultistepScheduler": ("model_outputs", "last_sample", "lower_order_nums", "this_order"),
}
SCHEDULERS = tuple(_MEMORY)
_NOISY = ("FlowMatchLCMScheduler", "LTXEulerAncestralRFScheduler", "SASolverScheduler")
_Pipeline = TypeVar("_Pipeline", bound="StableDiffusion3Pipeline")


def with_solver(pipeline: _Pipeline, solver: str) -> _Pipeline:
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


def check_scheduler(scheduler: Any) -> None:
    """Raise ValueError unless a tree can be walked with this diffusers scheduler as it is configured."""
    if reason := _reason_against(scheduler):
        raise ValueError(
            f"{type(scheduler).__name__} {reason}; the pipeline's scheduler must be one of {', '.join(SCHEDULERS)}"
        )


def _reason_against(scheduler: Any) -> str | None:
    name, config = type(scheduler).__name__, scheduler.config
    noisy = (
        name in _NOISY or config.get("stochastic_sampling") or str(config.get("algorithm_type", "")).startswith("sde")
    )
    if noisy:
        return "draws noise at every step, which would depend on what shares a batch"
    if name not in _MEMORY:
        return "cannot be walked as a tree"
    is_flow = config.get("use_flow_sigmas") and config.get("prediction_type") == "flow_prediction"
    if "use_flow_sigmas" in config and not is_flow:
        return "needs use_flow_sigmas=True and prediction_type='flow_prediction'"
    return "with a solver_p of its own cannot be walked as a tree" if config.get("solver_p") is not None else None


def solver_identity(scheduler: Any) -> str:
    """Class and parameters of a scheduler, as text; those that only make the noise schedule are left out."""
    parameters = (
        *("solver_order", "solver_type", "algorithm_type", "lower_order_final", "euler_at_final", "predict_x0"),
        *("thresholding", "dynamic_thresholding_ratio", "sample_max_value", "disable_corrector"),
    )
    told = [f"{name}={scheduler.config[name]}" for name in parameters if name in scheduler.config]
    return f"{type(scheduler).__name__}({', '.join(told)})"


# --- updates and timesteps


def evaluations(scheduler: Any) -> list[int]:
    """Denoiser evaluations of a row, without guidance, in each update of a scheduler whose timesteps are set."""
    order, number = scheduler.order, len(scheduler.timesteps)
    return [min(order, number - first) for first in range(0, number, order)]


def timesteps_of(scheduler: Any, update: int) -> Tensor:
    """The timesteps at which update `update` evaluates the denoiser, the one that it starts from first."""
    return scheduler.timesteps[scheduler.order * update : scheduler.order * (update + 1)]


def begin_at(scheduler: Any, updates: int) -> None:
    """Let a scheduler go on after this many updates."""
    scheduler.set_begin_index(scheduler.order * updates)


def noise_levels(scheduler: Any) -> Tensor:
    """Noise level sigma before the first update and after each, on the CPU: (updates + 1,)."""
    sigmas = scheduler.sigmas.cpu()
    return torch.cat([sigmas[: -1 : scheduler.order], sigmas[-1:]])


# --- memory


def read_history(scheduler: Any) -> dict[str, Tensor]:
    """What the scheduler remembers between two updates: tensors with one row per live row, and numbers as scalars."""
    history: dict[str, Tensor] = {}
    for name in _MEMORY[type(scheduler).__name__]:
        value = getattr(scheduler, name, None)
        if isinstance(value, list):
            history |= {f"{name}.{i}": rows for i, rows in enumerate(value) if rows is not None}
        elif value is not None:
            history[name] = torch.as_tensor(value)
    return history


def write_history(scheduler: Any, history: Mapping[str, Tensor]) -> None:
    """Put forked or loaded history back into the scheduler."""
    for key, tensor in history.items():
        name, _, index = key.partition(".")
        if name in _COUNTERS:
            setattr(scheduler, name, int(tensor))
        elif index:
            getattr(scheduler, name)[int(index)] = tensor
        else:
            setattr(scheduler, name, tensor)


def history_of_rows(history: Mapping[str, Tensor], rows: Sequence[int] | Tensor) -> dict[str, Tensor]:
    """The history that belongs to these rows."""
    return {name: tensor[rows] if tensor.ndim else tensor for name, tensor in history.items()}


def check_history(scheduler: Any, history: Mapping[str, Tensor], shape: tuple[int, ...], updates: int) -> None:
    """Raise ValueError unless this is what the scheduler remembers of rows of this shape after `updates` >= 1."""
    wanted: dict[str, tuple[int, ...]] = {}
    order = scheduler.config.get("solver_order", 1)
    for name in _MEMORY[type(scheduler).__name__]:
        if name == "model_outputs":
            wanted |= {f"{name}.{i}": shape for i in range(order - min(updates, order), order)}
        else:
            wanted[name] = () if name in _COUNTERS else shape
    found = {name: tuple(tensor.shape) for name, tensor in history.items()}
    if found != wanted:
        raise ValueError(f"after {updates} updates {type(scheduler).__name__} remembers {wanted}, the state {found}")
    if strange := [name for name in found if name in _COUNTERS and not 0 < int(history[name]) <= order]:
        raise ValueError(f"{strange[0]} must lie in 1..{order}, the state has {int(history[strange[0]])}")
