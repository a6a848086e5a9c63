"""What a fitted scheduler belongs to, and its safetensors file, whose metadata are checked before a weight is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from ..system.model import Model


def system_of(model: Model) -> dict[str, Any]:
    """What a fit was told of the system and cannot do without; slots and links may differ in use."""
    numbers = {"servers": len(model.capacity), "max_tasks": len(model.work), "slot_s": float(model.config.slot_s)}
    return numbers | {"capacity_gcycles_s": model.capacity.tolist(), "work_gcycles": model.work.tolist()}


def difference(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The first thing in which `found` is not as wanted, in words; empty if there is none."""
    for name, value in wanted.items():
        there = found.get(name)
        if there == value:
            continue
        if isinstance(value, list) and isinstance(there, list) and len(there) == len(value):
            index = next(i for i, (a, b) in enumerate(zip(value, there, strict=True)) if a != b)
            return f"{name}[{index}] is {there[index]:.6g}, not {value[index]:.6g}"
        return f"{name} is {there}, not {value}"
    return ""


def read_scheduler(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and finite tensors of a scheduler's file.

    Raises:
        ValueError: one sentence, if the file is missing or no such file.
    """
    if not path.is_file():
        raise ValueError(f"no scheduler {path}; fit one and save it first")
    try:
        with safe_open(path, "pt") as file:
            metadata = {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a scheduler ({error})") from None
    if not all(isinstance(part, dict) for part in metadata.values()):
        raise ValueError(f"{path} cannot be read as a scheduler (its metadata are not those of one)")
    if wrong := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{path} cannot be read as a scheduler ({wrong[0]} is not finite)")
    return metadata, tensors
