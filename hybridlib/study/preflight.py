"""What the chosen studies need that may be missing, asked once before the first of them starts.

A model, metric weights, a GPU, an optional package, another study's scores: each that is missing is one sentence.
What can be downloaded is downloaded here, where it was going to be needed.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ..paths import OUTPUTS, ROOT
from .cluster import require_ray
from .parameters import HiqmParameters, Parameters, QualityParameters

LARGE_IMAGE = 512  # pixels; from here on a study on the CPU takes days


def missing(studies: Mapping[str, Parameters], on_cpu: bool = False) -> list[str]:
    """One sentence for each thing that the studies need and that is not here, with the studies that need it.

    Where a GPU or a table is missing already, nothing is downloaded to find out more.

    Args:
        studies: name -> parameters, in the order in which they will run.
        on_cpu: do not ask for a GPU, whatever it takes.
    """
    local = [
        *_unwritable(studies),
        *_missing_gpu(studies, on_cpu),
        *_missing_scores(studies),
        *_missing_ray(studies),
    ]
    return local or list(_missing_weights(studies))


def diffusion_model(name: str) -> None:
    """Raise ValueError unless `models.load` will find this model whole; a hub id is downloaded."""
    from ..denoising import models

    location = models.locate(name)
    folder = Path(location)
    if not folder.is_dir():
        try:
            models.class_of(location).download(location, use_safetensors=True)
        except (OSError, ValueError):
            raise ValueError(
                "neither a miniature model nor a folder here, and the hub did not deliver it; download the model on a "
                "connected machine and pass its local folder instead"
            ) from None
        return
    models.class_of(str(folder))
    index = json.loads((folder / "model_index.json").read_text())
    for part in (name for name, value in index.items() if isinstance(value, list) and None not in value):
        holds = folder / part
        if not holds.is_dir() or ((holds / "config.json").is_file() and not _has_weights(holds)):
            raise ValueError(f"{folder} lacks the {'weights of ' if holds.is_dir() else ''}{part}")


def small_model(name: str) -> None:
    """Raise ValueError unless a network of this name is here: a whole model, or a pruned UNet alone."""
    from ..denoising import compact, models

    folder = Path(models.locate(name)) / "unet"
    if not (folder / compact.FILE).is_file():
        diffusion_model(name)
    elif not _has_weights(folder):
        raise ValueError(f"{folder} holds no weights")


def judge(name: str) -> None:
    """Raise ValueError unless this judge is shipped or a folder; "" is none."""
    from ..denoising.models import locate

    if name and not _has_weights(Path(locate(name))):
        raise ValueError(f"{locate(name)} holds no model.safetensors")


def clip_model(name: str) -> None:
    """Raise ValueError unless this CLIP is shipped, a folder, or an architecture whose weights can be had."""
    from ..denoising.models import locate
    from ..metrics import alignment

    location = Path(locate(name))
    if location.is_dir():
        alignment._weights_in(location)
    else:
        alignment._openai_weights(name)


def sentence_model(name: str) -> None:
    """Raise ValueError unless the sentence model is here or was downloaded."""
    from ..metrics import similarity

    folder = similarity._folder(name)
    if not _has_weights(folder):
        raise ValueError(f"{folder} holds no model.safetensors")


def brisque_weights(name: str) -> None:
    """Raise ValueError unless BRISQUE has these weights."""
    from ..metrics.fidelity import Brisque

    Brisque.load(name)


def _unwritable(studies: Mapping[str, Parameters]) -> Iterator[str]:
    for folder in dict.fromkeys(OUTPUTS / parameters.profile for parameters in studies.values()):
        place = next(place for place in (folder, *folder.parents) if place.is_dir())
        if not os.access(place, os.W_OK):
            yield f"{folder}: outputs cannot be written there: {place} is read-only for you"


def _missing_gpu(studies: Mapping[str, Parameters], on_cpu: bool) -> Iterator[str]:
    large = [study for study, parameters in studies.items() if getattr(parameters, "image_size", 0) >= LARGE_IMAGE]
    if large and not on_cpu and not _has_gpu():
        yield (
            f"{', '.join(large)}: images of {LARGE_IMAGE} pixels and more need a GPU and torch sees none; "
            "a miniature profile runs here, and --on-cpu runs this one all the same"
        )


def _missing_scores(studies: Mapping[str, Parameters]) -> Iterator[str]:
    """Study 06 reads a table, which study 05 of the same profile may be about to write."""
    writers = [p for p in studies.values() if isinstance(p, QualityParameters)]
    coming = {f"outputs/{p.profile}/{p.notebook}/scores.parquet" for p in writers}
    for study, parameters in studies.items():
        if not isinstance(parameters, HiqmParameters) or parameters.scores in coming:
            continue
        if not (ROOT / parameters.scores).is_file():
            yield f"{study}: scores = {parameters.scores!r}: there is no such table yet; run study 05 first"


def _missing_ray(studies: Mapping[str, Parameters]) -> Iterator[str]:
    if wanting := [study for study, parameters in studies.items() if getattr(parameters, "cluster", "") == "ray"]:
        try:
            require_ray()
        except ValueError as failure:
            yield f"{', '.join(wanting)}: {failure}"


def _missing_weights(studies: Mapping[str, Parameters]) -> Iterator[str]:
    checks: dict[str, Callable[[str], None]] = {
        "model": diffusion_model,
        "small_model": small_model,
        "judge": judge,
        "clip_model": clip_model,
        "sentence_model": sentence_model,
        "brisque_weights": brisque_weights,
    }
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every attempt; the sentence is enough
    for name, check in checks.items():
        users: dict[str, list[str]] = {}
        for study, parameters in studies.items():
            if hasattr(parameters, name):
                users.setdefault(getattr(parameters, name), []).append(study)
        for value, names in users.items():
            try:
                check(value)
            except (ValueError, OSError, ImportError) as failure:
                yield f"{', '.join(names)}: {name} = {value!r}: {_first_line(failure)}"


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _first_line(failure: Exception) -> str:
    return (str(failure) or type(failure).__name__).strip().splitlines()[0]
