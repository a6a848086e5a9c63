"""The one training loop of the miniature models: seeded per step, checkpointed, resumable to the same weights."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

CHECKPOINT_EVERY_S = 120.0


class Recipe(NamedTuple):
    """How long and how fast one model trains."""

    steps: int
    batch_size: int
    learning_rate: float
    seed: int = 0
    ema_decay: float = 0.999
    warmup_steps: int = 200


class History(NamedTuple):
    """What a finished training leaves for the model card."""

    losses: list[float]  # mean loss of each hundredth of the run
    seconds: float  # wall time over all resumed sessions


def autocast() -> torch.autocast:
    """bf16 autocast where the processor multiplies bf16 natively; elsewhere bf16 is an order of magnitude slower."""
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast("cpu", torch.bfloat16, enabled=native)


def fit(
    name: str,
    model: nn.Module,
    loss_of: Callable[[int, torch.Generator], Tensor],
    recipe: Recipe,
    folder: Path,
) -> History:
    """Minimise `loss_of(step, generator)` over `model` with AdamW and leave the EMA weights in it.

    The generator is seeded by (recipe.seed, step), so a run killed at any moment and started again follows the same
    batches. The checkpoint in `folder` is replaced by rename, never half-written, and deleted by nobody: a second
    call after the last step returns at once.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    ema = {key: value.detach().clone() for key, value in model.state_dict().items()}
    path = folder / f"{name}.safetensors"
    start, losses, before = _resume(path, model, ema, optimizer, recipe) if path.exists() else (0, [], 0.0)
    began = saved = time.monotonic()
    model.train()
    progress = tqdm(range(start, recipe.steps), desc=f"train {name}", initial=start, total=recipe.steps, mininterval=2)
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, recipe)
        generator = torch.Generator().manual_seed(recipe.seed * 10_000_019 + step)
        with autocast():
            loss = loss_of(step, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        _average(ema, model, min(recipe.ema_decay, (1 + step) / (10 + step)))
        losses.append(loss.item())
        if step % 20 == 0:
            progress.set_postfix(loss=f"{sum(losses[-100:]) / len(losses[-100:]):.4f}", refresh=False)
        now = time.monotonic()
        if now - saved > CHECKPOINT_EVERY_S or step + 1 == recipe.steps:
            _save(path, model, ema, optimizer, recipe, step + 1, losses, before + now - began)
            saved = now
    model.load_state_dict(ema)
    model.eval()
    chunk = max(1, len(losses) // 100)
    means = [sum(losses[i : i + chunk]) / len(losses[i : i + chunk]) for i in range(0, len(losses), chunk)]
    return History(means, before + time.monotonic() - began)


def _schedule(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine to zero."""
    return min(1.0, (step + 1) / recipe.warmup_steps) * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


def _average(ema: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            ema[key].lerp_(value, 1 - decay)
        else:
            ema[key].copy_(value)


def _save(
    path: Path,
    model: nn.Module,
    ema: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    step: int,
    losses: list[float],
    seconds: float,
) -> None:
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    tensors |= {f"ema.{key}": value for key, value in ema.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{key}": value for key, value in state.items()}
    tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
    tensors = {key: value.contiguous().clone() for key, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"recipe": json.dumps(recipe), "step": str(step), "seconds": str(seconds)})
    partial.replace(path)


def _resume(
    path: Path, model: nn.Module, ema: dict[str, Tensor], optimizer: torch.optim.Optimizer, recipe: Recipe
) -> tuple[int, list[float], float]:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        if json.loads(metadata["recipe"]) != list(recipe):
            raise ValueError(f"{path} was written by another recipe ({metadata['recipe']}); delete it to start afresh")
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    model.load_state_dict({key[6:]: value for key, value in tensors.items() if key.startswith("model.")})
    ema.update({key[4:]: value for key, value in tensors.items() if key.startswith("ema.")})
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("adam."):
            _, index, field = key.split(".")
            state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(metadata["step"]), tensors["losses"].tolist(), float(metadata["seconds"])
