"""Models by name: a miniature shipped here, a local folder, or a hub id."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..paths import MODELS
from ..progress import quiet_libraries

if TYPE_CHECKING:
    from .hybrid_call import HybridPipeline
    from .memory import MemoryPlan

DTYPES = ("float32", "float16", "bfloat16")
INDEX = "model_index.json"
BASE = "_base"  # of an index: the model whose parts a folder goes with that holds a UNet alone
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
    """The folder of a miniature or local model, or the hub id: of a published pipeline by its short name, or itself."""
    shipped = MODELS / name
    if shipped.is_dir():
        return str(shipped)
    if Path(name).is_dir():
        return name
    if name.startswith("mini-"):
        raise ValueError(
            f"no miniature model {name!r} in {MODELS}; shipped: {sorted(p.name for p in MODELS.glob('mini-*'))}"
        )
    from .blueprints import HUB

    return next((hub for hub, short in HUB.items() if short == name), name)


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


def _own_parts(folder: Path, dtype: Any) -> tuple[str, dict[str, Any]]:
    """Where the parts of a pipeline lie, and those that a folder with a UNet alone brings itself."""
    base = json.loads((folder / INDEX).read_text()).get(BASE)
    if base is None:
        return str(folder), {}
    import diffusers

    from .compact import load_unet

    parts: dict[str, Any] = {"unet": load_unet(folder / "unet", dtype)}
    if (folder / "scheduler").is_dir():
        name = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
        parts["scheduler"] = getattr(diffusers, name).from_pretrained(folder / "scheduler")
    return locate(base), parts


def plan(name: str, budget_gb: float | None = None, **options: Any) -> MemoryPlan:
    """What `load` would do to fit a budget, and what that needs, from configurations alone; `print` explains it.

    Args:
        name: a miniature's name, a folder, a hub id, or a name of `blueprints.BLUEPRINTS`; of SD3 or FLUX.1.
        budget_gb: memory of the device in 10^9 bytes; without one everything stays on the device.
        options: of `memory.make_plan`: placement, dtype ("bfloat16" by default), image_size, t5, batch_size,
            vae_tiling, free_text_encoders.

    Raises:
        ValueError: one sentence with what the least plan needs, if nothing fits.
    """
    from . import memory

    return memory.make_plan(locate(str(name)), budget_gb, **options)


def load(
    name: str,
    device: str | None = None,
    dtype: str | None = None,
    *,
    plan: MemoryPlan | None = None,
    budget_gb: float | None = None,
    speed: Collection[str] = (),
) -> HybridPipeline:
    """A pipeline of SD3, FLUX.1, Stable Diffusion 1.x, LCM or SDXL: a miniature's name, a local folder or a hub id.

    Args:
        device: "cuda" where there is a GPU, else "cpu", by default.
        dtype: that of the plan by default; without one see `default_dtype`.
        plan: where the parts are while the pipeline works, as `plan` made it.
        budget_gb: or the memory of the device in 10^9 bytes; the fastest plan that fits is followed.
        speed: names of `speed.SPEED`; each is worth it only where it was measured to be.

    Raises:
        TypeError: if the name is no text.
        ValueError: if a folder holds another family of models, `dtype` is none of `DTYPES`, no plan fits, or a hub id
            cannot be reached, naming the local-folder alternative.
    """
    import torch

    if not isinstance(name, (str, Path)):
        raise TypeError(f"name must be a miniature's name, a folder or a hub id, got {name!r}")
    name = str(name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype must be one of {DTYPES}, got {dtype!r}")
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be a name that torch knows, such as 'cpu' or 'cuda', got {device!r}") from None
    location = locate(name)
    dtype = dtype or (plan.dtype if plan else default_dtype(location, kind))
    if budget_gb is not None or plan is not None:
        return _load_planned(location, device, dtype, plan, budget_gb, speed)
    pipeline = _read(location, dtype).to(device)
    return _faster(pipeline, speed)


def default_dtype(location: str, kind: str) -> str:
    """What weights are loaded in on this kind of device where nobody says: the usual, and of miniatures always float32.

    Their shipped tables, surfaces and fingerprints are of float32, and they are small enough for it anywhere.
    """
    shipped = Path(location).resolve().parent == MODELS.resolve()
    return "float32" if kind == "cpu" or shipped else "float16"


def _load_planned(
    location: str, device: str, dtype: str, plan: MemoryPlan | None, budget_gb: float | None, speed: Collection[str]
) -> HybridPipeline:
    from . import memory

    if plan is None:
        plan = memory.make_plan(location, budget_gb, dtype=dtype)
    elif budget_gb is not None:
        raise ValueError("plan and budget_gb are two ways to say one thing: pass one of them")
    pipeline = _read(location, dtype, **memory.t5_options(location, plan.t5))
    return _faster(memory.follow(pipeline, plan, device), speed)


def _faster(pipeline: HybridPipeline, speed: Collection[str]) -> HybridPipeline:
    if speed:
        from .speed import apply_speed

        apply_speed(pipeline, speed)
    return pipeline


def _read(location: str, dtype: str, **parts: Any) -> Any:
    import torch

    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "use_safetensors": True}
    try:
        kind = class_of(location)
        if Path(location).is_dir():
            location, own = _own_parts(Path(location), options["dtype"])
            options |= dict.fromkeys(_absent(Path(location))) | own  # absent: such as T5
        with quiet_libraries():
            pipeline = kind.from_pretrained(location, **options | parts)
    except OSError as error:
        if Path(location).is_dir():
            raise
        raise ValueError(
            f"{location!r} is neither a miniature model nor a folder here, and the hub did not deliver it; download "
            f"the model on a connected machine and pass its local folder instead"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
