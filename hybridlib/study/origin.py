"""Where a table comes from: versions, revision, models, metrics, and the drift certificate that it was made under."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from ..files import checksum, digest
from ..paths import IS_CLONE, OUTPUTS, ROOT

if TYPE_CHECKING:
    from ..denoising.hybrid_call import HybridPipeline
    from ..metrics import Metric
    from .parameters import Parameters

PACKAGES = ("hybridlib", "torch", "diffusers", "transformers")
CERTIFICATES = "certificates"  # folder of outputs/


class Models(NamedTuple):
    """The denoisers of a study beside the pipeline's own, and what a solver remembers at a handoff; see `sample`."""

    denoisers: Mapping[str, Any] | None = None
    handoff: str = "keep"

    def __repr__(self) -> str:
        return f"Models({', '.join(self.denoisers or ())}, handoff={self.handoff!r})"


def versions() -> pd.Series:
    """Versions of the packages that decide the bytes of an image."""
    return pd.Series({package: version(package) for package in PACKAGES}, name="version")


def git_revision() -> str:
    """The commit of this clone, with `+changes` where files differ from it; "unknown" outside a clone."""
    if not IS_CLONE:
        return "unknown"
    try:
        run_git = [
            subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run_git[0] + ("+changes" if run_git[1] else "")


def provenance(
    pipeline: HybridPipeline, parameters: Parameters, metrics: Sequence[Metric], models: Models | None = None
) -> dict[str, Any]:
    """What a table was made from: parameters, versions, git revision, model and metric identities.

    Where this model was certified on this machine (`hybridlib certify`), the certificate's checksum, too.
    """
    from ..denoising.families import collect, denoiser_of

    denoisers = collect(denoiser_of(pipeline), models.denoisers if models else None)
    others = {name: denoiser.identity for name, denoiser in denoisers.items() if name}
    certificate = certificate_file(pipeline)
    return {
        "notebook": parameters.notebook,
        "parameters": parameters.model_dump(),
        "versions": versions().to_dict(),
        "git_revision": git_revision(),
        "model": denoisers[""].identity,
        **({"denoisers": others, "handoff": models.handoff} if models and others else {}),
        "scheduler": {"class": type(pipeline.scheduler).__name__, "shift": pipeline.scheduler.config.get("shift")},
        "metrics": {metric.name: metric.identity for metric in metrics},
        **({"certificate": checksum(certificate)} if certificate.is_file() else {}),
    }


# --- the certificate of a model on a machine


def place(pipeline: HybridPipeline) -> dict[str, Any]:
    """What decides the rounding of a model's results beside model and versions: device, precision, CPU threads."""
    import platform

    import torch

    from ..denoising.families import denoiser_of

    denoiser = denoiser_of(pipeline)
    on_gpu = denoiser.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(denoiser.device) if on_gpu else f"{platform.machine()} CPU",
        "dtype": str(denoiser.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def certificate_file(pipeline: HybridPipeline) -> Path:
    """Where the drift certificate of this model, here and with these versions, lies if there is one."""
    from ..denoising.families import denoiser_of

    key = digest(denoiser_of(pipeline).identity, place(pipeline), versions().to_dict())
    return OUTPUTS / CERTIFICATES / f"{key}.json"
