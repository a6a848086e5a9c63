"""What makes the shards of a study elsewhere: an object that loads the models itself and proves which they are.

No weights travel: a worker gets a recipe, which names the models as the caller's pipeline was loaded, and answers with
fingerprints. It gets trajectories and gives back the PNG bytes of a whole shard.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from ..denoising.trajectory import Trajectory
from .origin import Models, versions

if TYPE_CHECKING:
    from ..denoising.hybrid_call import HybridPipeline
    from .parameters import Settings


class Shard(NamedTuple):
    """Images that are made together: what a worker gets, and where the result goes."""

    paths: list[str]
    trajectories: list[Trajectory]
    ledger: Path
    nfe: int


class Made(NamedTuple):
    """What comes back of a shard: PNG bytes in the order of its paths, and how long it took the worker."""

    images: list[bytes]
    seconds: float


class Recipe(NamedTuple):
    """How a worker loads what the caller has loaded."""

    model: str  # a miniature's name, a folder or a hub id
    device: str
    dtype: str
    others: tuple[tuple[str, bool, str], ...]  # of the other denoisers: name, whether a whole pipeline, folder
    handoff: str
    threads: int


def recipe_of(pipeline: HybridPipeline, models: Models) -> Recipe:
    """How workers load these models.

    Raises:
        ValueError: one sentence, if a model names neither folder nor hub id, as one built by hand or a denoiser of
            your own.
    """
    import torch

    from ..denoising.families import denoiser_of, is_pipeline

    denoiser = denoiser_of(pipeline)
    others = []
    for name, other in (models.denoisers or {}).items():
        if not (folder := _source(other)):
            raise ValueError(
                f"cluster = 'ray': denoiser {name!r} was not loaded from a folder, so workers cannot load it; use "
                "cluster = 'local'"
            )
        others.append((name, is_pipeline(other), folder))
    if not (model := _source(pipeline)):
        raise ValueError("cluster = 'ray': workers load the pipeline by its name, so it must come from models.load")
    dtype = str(denoiser.dtype).removeprefix("torch.")
    return Recipe(model, denoiser.device.type, dtype, tuple(others), models.handoff, torch.get_num_threads())


def _source(model: Any) -> str:
    """What a network or pipeline was loaded from: a shipped model's name, a folder or a hub id; "" if not known."""
    from ..paths import MODELS

    config = getattr(model, "config", None)
    told = config.get("_name_or_path") if isinstance(config, Mapping) else None
    name = str(getattr(model, "loaded_from", None) or told or "")
    if not name or not Path(name).is_dir():
        return name
    folder = Path(name).resolve()
    return folder.name if folder.parent == MODELS else str(folder)  # another machine may have hybridlib elsewhere


def fingerprints(pipeline: Any, models: Models) -> dict[str, str]:
    """What must be equal at the caller and at a worker: versions, and every network by config and first weights."""
    from torch.nn import Module

    parts = {**pipeline.components, **{f"denoiser {name!r}": m for name, m in (models.denoisers or {}).items()}}
    networks: dict[str, Module] = {}
    for name, part in parts.items():
        inner = getattr(part, "components", {})  # of a denoiser that is a whole pipeline
        found = {name: part} if isinstance(part, Module) else {f"{name}, {key}": value for key, value in inner.items()}
        networks |= {key: value for key, value in found.items() if isinstance(value, Module)}
    told = {f"version of {name}": str(value) for name, value in versions().items()}
    return told | {name: _fingerprint(network) for name, network in networks.items()}


def _fingerprint(network: Any) -> str:
    config = network.config if isinstance(network.config, Mapping) else network.config.to_dict()
    plain = {k: v for k, v in config.items() if not k.startswith("_")}  # where it lies does not matter
    seen = hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode())
    for name, weights in network.state_dict().items():
        seen.update(f"{name} {tuple(weights.shape)} {weights.dtype}".encode())
        seen.update(weights.flatten()[:64].cpu().float().numpy().tobytes())
    return seen.hexdigest()[:16]


class Count(tqdm):
    """A bar that shows nothing and remembers how far it is."""

    done = 0

    def __init__(self) -> None:
        super().__init__(disable=True)

    def update(self, n: float | None = 1) -> None:
        """Count on."""
        self.done += int(n or 0)


class Worker:
    """Holds the models and makes shards; an actor of Ray, and without it the same in one's own process."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe, self._bar = recipe, Count()
        self._pipeline: HybridPipeline | None = None
        self._models = Models()
        self._told: dict[str, str] = {}
        self._loading = Lock()  # a call may ask while one before it still loads

    def load(self) -> dict[str, str]:
        """Load the models, once; returns their fingerprints."""
        with self._loading:
            return self._told or self._load()

    def _load(self) -> dict[str, str]:
        import torch

        from ..denoising import compact, models
        from ..denoising.families import denoiser_of

        torch.set_num_threads(self._recipe.threads)
        name, device, dtype, others, handoff, _ = self._recipe
        self._pipeline = models.load(name, device, dtype)
        denoisers: dict[str, Any] = {}
        for key, whole, folder in others:
            if whole:
                denoisers[key] = models.load(folder, device, dtype)
            elif (Path(folder) / compact.FILE).is_file():
                denoisers[key] = compact.load_unet(Path(folder), getattr(torch, dtype)).to(device)
            else:
                kind = type(denoiser_of(self._pipeline).model)
                denoisers[key] = kind.from_pretrained(folder, torch_dtype=getattr(torch, dtype)).eval().to(device)
        self._models = Models(denoisers or None, handoff)
        self._told = fingerprints(self._pipeline, self._models)
        return self._told

    def make(self, trajectories: list[Trajectory], scheduler: Any, settings: Settings) -> Made:
        """The images of one shard, as the caller itself would make them."""
        import torch

        from ..denoising.sampler import sample
        from ..files import png

        torch.set_num_threads(self._recipe.threads)  # belongs to the thread, and Ray runs this in one of its own
        began, self._bar = time.perf_counter(), Count()
        assert self._pipeline is not None, "load comes first"
        self._pipeline.scheduler = scheduler
        options = self._models._asdict() | settings.sampling()
        samples = sample(self._pipeline, trajectories, progress=self._bar, **options)
        images = {index: png(image) for index, image in samples.each_image()}
        return Made([images[index] for index in range(len(images))], time.perf_counter() - began)

    def done(self) -> int:
        """Denoiser evaluations of the shard at hand so far."""
        return self._bar.done
