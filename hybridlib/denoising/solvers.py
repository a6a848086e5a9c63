"""Solvers: which diffusers schedulers a tree can walk, and what they remember of each row.

A tree needs a solver that is a function of the latents alone, row by row. Multistep solvers remember earlier model
outputs, which fork with their row. Heun evaluates twice an update: a timestep of its list is half an update. Of the
solvers that draw noise of their own, that of latent consistency models is walked, each row with the noise of its own
seed; the others are refused, since their noise would depend on which rows happen to share a batch.

Models of a flow (SD3) and of diffusion (UNets that predict noise or v) have schedulers of their own. Noise levels are
sigma in x = (1 - sigma) data + sigma noise for a flow, and noise over signal, sqrt((1 - alpha) / alpha), for diffusion.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from .trajectory import check_type

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

    from .denoisers import GuidedDenoiser

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
    "DDIMScheduler": (),
    "LCMScheduler": (),
}
_DIFFUSION_ONLY = ("DDIMScheduler", "LCMScheduler")
SCHEDULERS = tuple(name for name in _MEMORY if name not in _DIFFUSION_ONLY)  # of flows
DIFFUSION_SCHEDULERS = tuple(name for name in _MEMORY if not name.startswith("Flow"))
PREDICTIONS = ("epsilon", "v_prediction")
_NOISY = ("FlowMatchLCMScheduler", "LTXEulerAncestralRFScheduler", "SASolverScheduler")
_Pipeline = TypeVar("_Pipeline", bound="StableDiffusion3Pipeline")


def with_solver(pipeline: _Pipeline, solver: str) -> _Pipeline:
    """A pipeline of the same models and noise schedule whose scheduler is flow-matching Euler or DPM-Solver++ (2M).

    Raises:
        ValueError: if `solver` is none of `SOLVERS`.
    """
    other = type(pipeline)(**pipeline.components | {"scheduler": solver_of(pipeline.scheduler.config, solver)})
    other.set_progress_bar_config(**pipeline._progress_bar_config)
    if (source := pipeline.config.get("_name_or_path")) is not None:
        other.register_to_config(_name_or_path=source)
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


def check_scheduler(scheduler: Any, flow: bool = True) -> None:
    """Raise ValueError unless a tree can be walked with this diffusers scheduler as it is configured.

    `flow` says whether for a model of a flow or one of diffusion.
    """
    if reason := _reason_against(scheduler, flow):
        allowed = SCHEDULERS if flow else DIFFUSION_SCHEDULERS
        raise ValueError(
            f"{type(scheduler).__name__} {reason}; the pipeline's scheduler must be one of {', '.join(allowed)}"
        )


def _reason_against(scheduler: Any, flow: bool) -> str | None:
    name, config = type(scheduler).__name__, scheduler.config
    noisy = (
        name in _NOISY or config.get("stochastic_sampling") or str(config.get("algorithm_type", "")).startswith("sde")
    )
    if noisy:
        return "draws noise at every step, which would depend on what shares a batch"
    if name not in (SCHEDULERS if flow else DIFFUSION_SCHEDULERS):
        return "cannot be walked as a tree"
    if flow and "use_flow_sigmas" in config and not _is_flow(config):
        return "needs use_flow_sigmas=True and prediction_type='flow_prediction'"
    if not flow and (config.get("use_flow_sigmas") or config.prediction_type not in PREDICTIONS):
        return f"needs use_flow_sigmas=False and a prediction_type of {PREDICTIONS}"
    return "with a solver_p of its own cannot be walked as a tree" if config.get("solver_p") is not None else None


def _is_flow(config: Mapping[str, Any]) -> bool:
    return bool(config.get("use_flow_sigmas")) and config.get("prediction_type") == "flow_prediction"


def solver_identity(scheduler: Any) -> str:
    """Class and parameters of a scheduler, as text; those that only make the noise schedule are left out."""
    parameters: tuple[str, ...] = (
        *("solver_order", "solver_type", "algorithm_type", "lower_order_final", "euler_at_final", "predict_x0"),
        *("thresholding", "dynamic_thresholding_ratio", "sample_max_value", "disable_corrector"),
    )
    if scheduler.config.get("prediction_type") in PREDICTIONS:
        parameters += ("prediction_type", "clip_sample", "clip_sample_range", "set_alpha_to_one", "timestep_scaling")
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
    if hasattr(scheduler, "set_begin_index"):  # DDIM counts nothing: a timestep tells it all
        scheduler.set_begin_index(scheduler.order * updates)


def noise_levels(scheduler: Any) -> Tensor:
    """Noise level sigma before the first update and after each, on the CPU: (updates + 1,)."""
    if not hasattr(scheduler, "sigmas"):
        last = scheduler.final_alpha_cumprod if type(scheduler).__name__ == "DDIMScheduler" else torch.tensor(1.0)
        signal = torch.cat([scheduler.alphas_cumprod.cpu()[scheduler.timesteps.cpu()], last.cpu().reshape(1)])
        signal = signal.clamp(min=2.0**-24)  # as diffusers bounds a schedule that ends in pure noise
        return ((1 - signal) / signal).sqrt()
    sigmas = scheduler.sigmas.cpu()
    return torch.cat([sigmas[: -1 : scheduler.order], sigmas[-1:]])


def draws_noise(scheduler: Any) -> bool:
    """Whether every update but the last adds fresh noise, from a generator for each row."""
    return type(scheduler).__name__ == "LCMScheduler"


# --- schedules


def prepared_scheduler(
    denoiser: GuidedDenoiser,
    num_inference_steps: int,
    latent_size: tuple[int, int],
    sigmas: list[float] | None = None,
    mu: float | None = None,
    shift: float | None = None,
) -> Any:
    """A fresh copy of the scheduler of the denoiser's pipeline with its timesteps set, as the stock pipeline sets them.

    `shift` of the noise schedule replaces the scheduler's own: noise levels become shift u / (1 + (shift - 1) u) of
    evenly spaced u in 0..1, so that more of the steps are spent on strong noise where it is large.

    Raises:
        ValueError: if a tree cannot be walked with the scheduler, or it has no fixed shift to replace, or it takes no
            `sigmas` or `mu`, or another number of them.
    """
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import retrieve_timesteps

    pipeline = denoiser.pipeline
    check_scheduler(pipeline.scheduler, denoiser.is_flow)
    scheduler = copy.deepcopy(pipeline.scheduler) if shift is None else _shifted(pipeline.scheduler, shift)
    given = {name: value for name, value in (("sigmas", sigmas), ("mu", mu)) if value is not None}
    options = denoiser.schedule_options(scheduler.config, latent_size, num_inference_steps) | given
    if unknown := options.keys() - inspect.signature(scheduler.set_timesteps).parameters:
        raise ValueError(f"{type(scheduler).__name__} takes no {unknown.pop()}; leave it out")
    retrieve_timesteps(scheduler, num_inference_steps, pipeline._execution_device, **options)
    if (updates := len(evaluations(scheduler))) != num_inference_steps:
        raise ValueError(
            f"{type(scheduler).__name__} makes {updates} updates of num_inference_steps={num_inference_steps}; "
            f"as many are needed"
        )
    return scheduler


def _shifted(scheduler: Any, shift: float) -> Any:
    check_type("shift", shift, Real, "a number")
    if not (math.isfinite(shift) and shift > 0):
        raise ValueError(f"shift must be finite and above 0, got {shift}")
    name = next((name for name in ("shift", "flow_shift") if name in scheduler.config), None)
    if name is None or scheduler.config.get("use_dynamic_shifting"):
        raise ValueError(f"shift = {shift}: {type(scheduler).__name__} has no fixed shift to replace; leave it out")
    return type(scheduler).from_config(scheduler.config, **{name: shift})


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


def forget(scheduler: Any) -> None:
    """Let a scheduler remember nothing, so that it begins anew at first order."""
    for name in _MEMORY[type(scheduler).__name__]:
        value = getattr(scheduler, name, None)
        setattr(scheduler, name, [None] * len(value) if isinstance(value, list) else 0 if name in _COUNTERS else None)


def history_of_rows(history: Mapping[str, Tensor], rows: Sequence[int] | Tensor) -> dict[str, Tensor]:
    """The history that belongs to these rows."""
    return {name: tensor[rows] if tensor.ndim else tensor for name, tensor in history.items()}


def history_layout(history: Mapping[str, Tensor]) -> tuple[tuple[str, int], ...]:
    """What the histories of rows must have in common, so that one scheduler steps these rows together."""
    return tuple(sorted((name, -1 if tensor.ndim else int(tensor)) for name, tensor in history.items()))


def joined_history(histories: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The history of rows that were remembered one by one; inverse of `history_of_rows`.

    Raises:
        ValueError: if their layouts differ.
    """
    first = histories[0]
    if other := [history for history in histories if history_layout(history) != history_layout(first)]:
        mine, its = (dict(history_layout(history)) for history in (first, other[0]))
        raise ValueError(f"states to resume together must hold a solver memory of one kind, got {mine} and {its}")
    return {
        name: torch.cat([history[name] for history in histories]) if tensor.ndim else tensor
        for name, tensor in first.items()
    }


def check_history(scheduler: Any, history: Mapping[str, Tensor], shape: tuple[int, ...], ages: Collection[int]) -> None:
    """Raise ValueError unless this is what the scheduler remembers of rows of this shape.

    `ages` are the numbers of updates, at least one, since which it may have begun.
    """
    order, name = scheduler.config.get("solver_order", 1), type(scheduler).__name__
    found = {key: tuple(tensor.shape) for key, tensor in history.items()}
    possible = {age: _shapes(name, shape, order, age) for age in ages}
    if found not in possible.values():
        updates = max(possible)
        raise ValueError(f"after {updates} updates {name} remembers {possible[updates]}, the state {found}")
    if strange := [key for key in found if key in _COUNTERS and not 0 < int(history[key]) <= order]:
        raise ValueError(f"{strange[0]} must lie in 1..{order}, the state has {int(history[strange[0]])}")


def _shapes(scheduler: str, shape: tuple[int, ...], order: int, updates: int) -> dict[str, tuple[int, ...]]:
    wanted: dict[str, tuple[int, ...]] = {}
    for name in _MEMORY[scheduler]:
        if name == "model_outputs":
            wanted |= {f"{name}.{i}": shape for i in range(order - min(updates, order), order)}
        else:
            wanted[name] = () if name in _COUNTERS else shape
    return wanted
