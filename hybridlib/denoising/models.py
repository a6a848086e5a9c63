"""Models by name: a miniature shipped here, a local folder, or a hub id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..paths import MODELS
from ..progress import quiet_libraries

if TYPE_CHECKING:
    from .hybrid_call import HybridPipeline

DTYPES = ("float32", "float16", "bfloat16")
INDEX = "model_index.json"
OPTIONAL = ("text_encoder_3", "tokenizer_3", "safety_checker", "feature_extractor", "image_encoder")
FAMILIES = {  # the class that a folder names -> the class that it loads as
    "StableDiffusion3Pipeline": "HybridStableDiffusion3Pipeline",
    "FluxPipeline": "HybridFluxPipeline",
    "StableDiffusionPipeline": "HybridStableDiffusionPipeline",
    "LatentConsistencyModelPipeline": "HybridStableDiffusionPipeline",
    "StableDiffusionXLPipeline": "HybridStableDiffusionXLPipeline",
}
FAMILIES |= {name: name for name in FAMILIES.values()}


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


def class_of(location: str) -> Any:
    """The pipeline class that the index of a folder or hub repository asks for."""
    from huggingface_hub import hf_hub_download

    from . import pipelines

    index = Path(location) / INDEX
    if not Path(location).is_dir():
        index = Path(hf_hub_download(location, INDEX))
    if not index.is_file():
        raise ValueError(f"{location} holds no {INDEX}; a folder as diffusers saves pipelines is needed")
    family = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    if family not in FAMILIES:
        raise ValueError(f"{location} holds a {family}; only {' and '.join(FAMILIES)} load here")
    return getattr(pipelines, FAMILIES[family])


def _absent(folder: Path) -> list[str]:
    """The optional parts that a folder was saved without, so that they are not asked for."""
    parts = json.loads((folder / INDEX).read_text())
    lists = {part: entry for part, entry in parts.items() if isinstance(entry, list)}
    return [part for part, entry in lists.items() if part in OPTIONAL and not (folder / part).is_dir()]


def load(name: str, device: str | None = None, dtype: str | None = None) -> HybridPipeline:
    """A pipeline of SD3, FLUX.1, Stable Diffusion 1.x, LCM or SDXL: a miniature's name, a local folder or a hub id.

    Args:
        device: "cuda" where there is a GPU, else "cpu", by default.
        dtype: "float32" on the CPU and "float16" elsewhere, by default.

    Raises:
        TypeError: if the name is no text.
        ValueError: if a folder holds another family of models, `dtype` is none of `DTYPES`, or a hub id cannot be
            reached, naming the local-folder alternative.
    """
    import torch

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
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "use_safetensors": True}
    try:
        kind = class_of(location)
        if Path(location).is_dir():  # parts that a folder was saved without, such as T5
            options |= dict.fromkeys(_absent(Path(location)))
        with quiet_libraries():
            pipeline = kind.from_pretrained(location, **options)
    except OSError as error:
        if Path(location).is_dir():
            raise
        raise ValueError(
            f"{name!r} is neither a miniature model nor a folder here, and the hub did not deliver it; download the "
            f"model on a connected machine and pass its local folder instead"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)
