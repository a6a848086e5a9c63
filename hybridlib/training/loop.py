"""The one training loop: seeded per step, checkpointed, resumable to the same weights, on accelerate.

accelerate brings mixed precision, several processes and devices. Two of diffusers' helpers were considered and do not
fit: `EMAModel` averages parameters but no buffers, so a batch norm would keep statistics of other weights, and
`get_scheduler` begins its warm-up with a step of size zero.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from ..files import replacing

CHECKPOINT_EVERY_S = 120.0
SCHEDULES = ("cosine", "constant")
PRECISIONS = ("native", "no", "bf16", "fp16")


class Recipe(NamedTuple):
    """How long, how fast and on what batches one model trains, with AdamW."""

    steps: int
    batch_size: int  # rows of one optimizer step, over all parts and processes
    learning_rate: float
    seed: int = 0
    ema_decay: float = 0.999  # 0 keeps no average: the last weights are the result
    warmup_steps: int = 200  # of linear warm-up
    schedule: str = "cosine"  # to zero, or "constant"
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    parts: int = 1  # forward passes that a batch is cut into: the processes share them, the rest is accumulated
    precision: str = "native"  # bf16 autocast where the processor multiplies bf16 natively; or what accelerate takes


class History(NamedTuple):
    """What a finished training leaves for the model card."""

    losses: list[float]  # mean loss of each hundredth of the run
    seconds: float  # wall time over all resumed sessions
    terms: dict[str, list[float]] = {}  # noqa: RUF012 - the same for each named term of the loss, if it has several


class Draw(NamedTuple):
    """All that one forward pass of training may depend on: the same for any number of processes."""

    step: int
    size: int  # rows
    key: int  # a seed of its own for each step and part
    generator: torch.Generator  # on the CPU, seeded by `key`, so that all devices draw alike
    device: torch.device

    def at(self, step: int) -> Draw:
        """What the same part of another step is given."""
        key = self.key + step - self.step
        return self._replace(step=step, key=key, generator=torch.Generator().manual_seed(key))


LossOf = Callable[[Draw], Tensor | Mapping[str, Tensor]]


class _Objective(nn.Module):
    """The model with its loss as forward pass: what accelerate wraps, so that a loss may call any of its methods."""

    def __init__(self, model: nn.Module, loss_of: LossOf) -> None:
        super().__init__()
        self.model, self.loss_of = model, loss_of

    def forward(self, draw: Draw) -> dict[str, Tensor]:
        loss = self.loss_of(draw)
        return {"loss": loss} if isinstance(loss, Tensor) else dict(loss)


class _Run:
    """Weights, their average, optimizer and records of one training, and their checkpoint."""

    def __init__(
        self, path: Path, model: nn.Module, recipe: Recipe, accelerator: Accelerator, rates: Mapping[str, float]
    ) -> None:
        self.path, self.model, self.recipe, self.accelerator = path, model, recipe, accelerator
        self.optimizer = torch.optim.AdamW(
            _groups(model, rates),
            lr=recipe.learning_rate,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.ema = (
            {key: value.detach().clone() for key, value in model.state_dict().items()} if recipe.ema_decay else {}
        )
        self.step, self.seconds = 0, 0.0
        self.curves: dict[str, list[float]] = {}

    def average(self) -> None:
        """Move the average one step; early on it follows faster, as if it had begun with the first weights."""
        if not self.ema:
            return
        decay = min(self.recipe.ema_decay, (1 + self.step) / (10 + self.step))
        for key, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.ema[key].lerp_(value, 1 - decay)
            else:
                self.ema[key].copy_(value)

    def record(self, terms: dict[str, float]) -> None:
        for name, value in terms.items():
            self.curves.setdefault(name, []).append(value)

    def save(self, seconds: float) -> None:
        """Replace the checkpoint by rename, never half-written. One process writes."""
        if not self.accelerator.is_main_process:
            return
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        tensors |= {f"ema.{key}": value for key, value in self.ema.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{key}": value for key, value in state.items()}
        tensors |= {f"curve.{name}": torch.tensor(values, dtype=torch.float64) for name, values in self.curves.items()}
        tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        scaler = self.accelerator.scaler
        facts = {"recipe": self.recipe, "step": self.step, "seconds": seconds, "scaler": scaler and scaler.state_dict()}
        with replacing(self.path) as partial:
            save_file(tensors, partial, metadata={name: json.dumps(value) for name, value in facts.items()})

    def resume(self) -> None:
        """Go on where the checkpoint, if there is one, was written."""
        if not self.path.exists():
            return
        with safe_open(self.path, "pt") as file:
            facts = {name: json.loads(text) for name, text in file.metadata().items()}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping
        if facts["recipe"] != json.loads(json.dumps(self.recipe)):
            raise ValueError(
                f"{self.path} was written by another recipe ({facts['recipe']}); delete it to start afresh"
            )
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "adam": {}, "curve": {}}
        for key, value in tensors.items():
            part, _, rest = key.partition(".")
            parts[part][rest] = value
        self.model.load_state_dict(parts["model"])
        for key, average in self.ema.items():
            average.copy_(parts["ema"][key])
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in parts["adam"].items():
            index, _, field = key.partition(".")
            state.setdefault(int(index), {})[field] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        self.curves = {name: values.tolist() for name, values in parts["curve"].items()}
        self.step, self.seconds = facts["step"], facts["seconds"]


def fit(
    name: str,
    model: nn.Module,
    loss_of: LossOf,
    recipe: Recipe,
    folder: Path,
    rates: Mapping[str, float] = MappingProxyType({}),
) -> History:
    """Minimise `loss_of(draw)` over the parameters of `model` that need gradients, and leave the average in it.

    The generator of a draw is seeded by (recipe.seed, step, part), so a run killed at any moment and started again
    follows the same batches. The checkpoint `folder/name.safetensors` is replaced by rename and deleted by nobody: a
    second call after the last step returns at once. Under `accelerate launch` the processes share the parts of a
    batch; with the same parts, their number changes results by float rounding alone.

    Parts of a model may take turns, as an autoencoder and its discriminator do: AdamW leaves alone, moments and all,
    whatever the loss of a step gives no gradient. So several alternating optimizers are one, with `rates`.

    Args:
        loss_of: the loss, or its weighted terms by name, of which the sum is minimised.
        rates: factors on the learning rate, by name of a submodule. Parts take turns only if this is given.

    Raises:
        ValueError: if the recipe is impossible, the model has no such submodule, the checkpoint was written by another
            recipe, or a loss is not finite.
    """
    accelerator = _accelerator(recipe, taking_turns=bool(rates))
    model.to(accelerator.device)
    run = _Run(folder / f"{name}.safetensors", model, recipe, accelerator, rates)
    objective, optimizer = accelerator.prepare(_Objective(model, loss_of), run.optimizer)
    run.resume()
    accelerator.wait_for_everyone()  # nobody writes a checkpoint while another process still looks for one
    began = saved = time.monotonic()
    model.train()
    for step in _progress(name, run):
        for group in run.optimizer.param_groups:
            group["lr"] = group["rate"] * recipe.learning_rate * _schedule(step, recipe)
        optimizer.zero_grad(set_to_none=True)
        terms = _gradients(objective, accelerator, recipe, step)
        accelerator.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        run.average()
        run.record(terms)
        run.step = step + 1
        now = time.monotonic()
        if now - saved > CHECKPOINT_EVERY_S or run.step == recipe.steps:
            run.save(run.seconds + now - began)
            saved = now
    model.load_state_dict(run.ema or model.state_dict())
    model.eval()
    means = {term: _hundredths(values) for term, values in run.curves.items()}
    return History(means.pop("loss"), run.seconds + time.monotonic() - began, means)


def _groups(model: nn.Module, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """The parameters that learn, those of one rate together."""
    submodules = {name for name, _ in model.named_modules()}
    if unknown := sorted(rates.keys() - submodules):
        raise ValueError(f"rates must name submodules of the model, got {unknown}")
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = next((rate for part, rate in rates.items() if name.startswith(f"{part}.")), 1.0)
            groups.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "rate": rate} for rate, parameters in groups.items()]


def _accelerator(recipe: Recipe, taking_turns: bool) -> Accelerator:
    for field, allowed in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
        if (value := getattr(recipe, field)) not in allowed:
            raise ValueError(f"{field} must be one of {allowed}, got {value!r}")
    precision = recipe.precision
    if precision == "native":
        precision = "bf16" if _multiplies_bf16() else "no"
    # Several processes wait for each other's gradients, also of a part whose turn it is not, unless told to look.
    look = [DistributedDataParallelKwargs(find_unused_parameters=True)] if taking_turns else []
    AcceleratorState._reset_state()  # accelerate keeps the precision of one training for all later ones of a process
    accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=look)
    if recipe.parts % accelerator.num_processes or recipe.batch_size % recipe.parts:
        raise ValueError(
            f"parts must divide batch_size {recipe.batch_size} and be a multiple of the number of processes "
            f"{accelerator.num_processes}, got {recipe.parts}"
        )
    return accelerator


def _multiplies_bf16() -> bool:
    """Elsewhere bf16 is an order of magnitude slower than float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _gradients(objective: nn.Module, accelerator: Accelerator, recipe: Recipe, step: int) -> dict[str, float]:
    """Leave the mean gradient of all parts in the parameters and tell the mean of each term of the loss."""
    own = recipe.parts // accelerator.num_processes
    sums: dict[str, Any] = {}
    for i in range(own):
        draw = _draw(recipe, step, accelerator.process_index * own + i, accelerator.device)
        with contextlib.nullcontext() if i == own - 1 else accelerator.no_sync(objective):
            terms = objective(draw)
            loss = sum(terms.values())
            accelerator.backward(loss / own)
        for name, value in ({"loss": loss} | terms).items():
            sums[name] = sums.get(name, 0.0) + value.detach().float() / own
    means = {name: accelerator.reduce(value, "mean").item() for name, value in sums.items()}
    if not math.isfinite(means["loss"]):
        raise ValueError(f"the loss of step {step} is {means['loss']}; try a lower learning_rate or another precision")
    return means


def _draw(recipe: Recipe, step: int, part: int, device: torch.device) -> Draw:
    key = recipe.seed * 10_000_019 + step + (part << 40)
    return Draw(step, recipe.batch_size // recipe.parts, key, torch.Generator().manual_seed(key), device)


def _schedule(step: int, recipe: Recipe) -> float:
    """Share of the learning rate: linear warm-up, and with "cosine" a cosine to zero over the whole run."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    return warm * 0.5 * (1 + math.cos(math.pi * step / recipe.steps)) if recipe.schedule == "cosine" else warm


def _hundredths(values: list[float]) -> list[float]:
    chunk = max(1, len(values) // 100)
    return [sum(values[i : i + chunk]) / len(values[i : i + chunk]) for i in range(0, len(values), chunk)]


def _progress(name: str, run: _Run) -> tqdm[int]:
    quiet = {} if run.accelerator.is_main_process else {"disable": True}
    todo = range(run.step, run.recipe.steps)
    return tqdm(todo, desc=f"train {name}", initial=run.step, total=run.recipe.steps, mininterval=2, **quiet)
