"""Models by name: a miniature shipped here, a local folder, or a hub id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..paths import MODELS
from ..progress import quiet_libraries

if TYPE_CHECKING:
    from .pipelines import HybridStableDiffusion3Pipeline

DTYPES = ("float32", "float16", "bfloat16")
FAMILY = ("StableDiffusion3Pipeline", "HybridStableDiffusion3Pipeline")


def locate(name: str) -> str:
    """The folder of a miniature or local model, or the hub id itself."""
    shipped = MODELS / name
    if shipped.is_dir():
        return str(shipped)
    if Path(name).is_dir():
        return name
    if name.startswith("mini-"):
        raise ValueError(
            f"no miniature model {name!r} in {MODELS}; shipped: {sorted(p.name for p in MODELS.glob('mini-*'))}"
        )
    return name


def _check_family(folder: Path) -> None:
    """Other families hold parts of the same names, and some would load."""
    index = folder / "model_index.json"
    if not folder.is_dir():
        return
    if not index.is_file():
        raise ValueError(f"{folder} holds no model_index.json; a folder as diffusers saves pipelines is needed")
    family = json.loads(index.read_text()).get("_class_name")
    if family not in FAMILY:
        raise ValueError(f"{folder} holds a {family}; only {' and '.join(FAMILY)} load here")


def load(name: str, device: str | None = None, dtype: str | None = None) -> HybridStableDiffusion3Pipeline:
    """A hybrid SD3 pipeline from a miniature name, a local folder or a hub id.

    Args:
        device: "cuda" where there is a GPU, else "cpu", by default.
        dtype: "float32" on the CPU and "float16" elsewhere, by default.

    Raises:
        TypeError: if the name is no text.
        ValueError: if a folder holds another family of models, `dtype` is none of `DTYPES`, or a hub id cannot be
            reached, naming the local-folder alternative.
    """
    import torch

    from .pipelines import HybridStableDiffusion3Pipeline

    if not isinstance(name, (str, Path)):
        raise TypeError(f"name must be a miniature's name, a folder or a hub id, got {name!r}")
    name = str(name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("float32" if device == "cpu" else "float16")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {DTYPES}, got {dtype!r}")
    try:
        torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be a name that torch knows, such as 'cpu' or 'cuda', got {device!r}") from None
    location = locate(name)
    _check_family(Path(location))
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "use_safetensors": True}
    if Path(location).is_dir() and not (Path(location) / "text_encoder_3").is_dir():
        options |= {"text_encoder_3": None, "tokenizer_3": None}
    try:
        with quiet_libraries():
            pipeline = HybridStableDiffusion3Pipeline.from_pretrained(location, **options)
    except OSError as error:
        if Path(location).is_dir():
            raise
        raise ValueError(
            f"{name!r} is neither a miniature model nor a folder here, and the hub did not deliver it; download the "
            f"model on a connected machine and pass its local folder instead"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)
