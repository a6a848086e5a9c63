"""DenoiseState: everything needed to go on denoising elsewhere, in one checksummed safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..files import write_atomically
from .trajectory import Trajectory

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

FORMAT = "hybridlib.DenoiseState/1"
_PACKAGES = ("hybridlib", "torch", "diffusers")
_COUNTERS = ("lower_order_nums",)  # scalar part of a multistep solver's history


def read_history(scheduler: Any) -> dict[str, Tensor]:
    """Solver history of a diffusers scheduler: every latents-shaped tensor it holds, one row per live row.

    Euler keeps none; multistep solvers keep earlier model outputs.
    """
    history = {}
    for name, value in vars(scheduler).items():
        if isinstance(value, Tensor) and value.ndim == 4:
            history[name] = value
        elif isinstance(value, list):
            history |= {f"{name}.{i}": v for i, v in enumerate(value) if isinstance(v, Tensor) and v.ndim == 4}
    return history


def write_history(scheduler: Any, history: dict[str, Tensor]) -> None:
    """Put (forked or loaded) solver history back into the scheduler."""
    for key, tensor in history.items():
        name, _, index = key.partition(".")
        if name in _COUNTERS:
            setattr(scheduler, name, int(tensor))
        elif index:
            getattr(scheduler, name)[int(index)] = tensor
        else:
            setattr(scheduler, name, tensor)


@dataclass(frozen=True)
class DenoiseState:
    """A generation stopped after `step` updates.

    `save` and `load` keep it exactly; `check` refuses to go on with another model, schedule or package version, since
    the result would silently differ.
    """

    latents: Tensor  # (1, channels, height, width) at noise level sigmas[step]
    step: int  # updates made so far
    sigmas: Tensor  # (num_inference_steps + 1,) the whole schedule
    history: dict[str, Tensor]  # solver history, empty for Euler
    past: Trajectory  # the seed and segments that led here
    model: str  # identity of the denoiser
    versions: dict[str, str]

    @staticmethod
    def capture(
        pipeline: StableDiffusion3Pipeline,
        scheduler: Any,
        latents: Tensor,
        step: int,
        trajectory: Trajectory,
        history: dict[str, Tensor],
    ) -> DenoiseState:
        """The state of one row of a walk over `trajectory` after `step` updates (`step` > its start)."""
        segments = tuple(replace(s, stop=min(s.stop, step)) for s in trajectory.segments if s.start < step)
        if not segments:
            raise ValueError(f"a state needs at least one update after step {trajectory.start}, got step {step}")
        counters = {
            n: torch.tensor(min(step, scheduler.config.solver_order)) for n in _COUNTERS if hasattr(scheduler, n)
        }
        return DenoiseState(
            latents=latents.cpu().clone(),
            step=step,
            sigmas=scheduler.sigmas.cpu().clone(),
            history={name: rows.cpu().clone() for name, rows in history.items()} | counters,
            past=Trajectory(trajectory.seed, segments),
            model=model_identity(pipeline),
            versions=_versions(),
        )

    def check(self, pipeline: StableDiffusion3Pipeline, scheduler: Any, trajectories: Sequence[Trajectory]) -> None:
        """Refuse what this state cannot go on with.

        Raises:
            ValueError: one sentence on the first mismatch of step, seed, version, model, schedule.
        """
        for trajectory in trajectories:
            if trajectory.start != self.step:
                raise ValueError(
                    f"the state was taken after {self.step} updates, a trajectory starts at {trajectory.start}"
                )
            if trajectory.seed != self.past.seed:
                raise ValueError(f"the state has seed {self.past.seed}, a trajectory has {trajectory.seed}")
        for package, here in _versions().items():
            if self.versions.get(package) != here:
                raise ValueError(f"the state was made with {package} {self.versions.get(package)}, here it is {here}")
        if self.model != (here := model_identity(pipeline)):
            raise ValueError(f"the state was made by model {self.model}, this pipeline holds {here}")
        if not torch.equal(self.sigmas, scheduler.sigmas.cpu()):
            raise ValueError(
                f"the state's noise schedule ({len(self.sigmas) - 1} steps) is not this pipeline's "
                f"({len(scheduler.sigmas) - 1} steps)"
            )

    def to_bytes(self) -> bytes:
        """Serialise; the length is what a network would carry."""
        from safetensors.torch import save

        tensors = {"latents": self.latents, "sigmas": self.sigmas} | {
            f"history.{k}": v for k, v in self.history.items()
        }
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        metadata = {
            "step": self.step,
            "past": self.past.as_json(),
            "model": self.model,
            "versions": self.versions,
        }
        text = json.dumps(metadata, sort_keys=True)
        return save(tensors, metadata={"format": FORMAT, "state": text, "sha256": _checksum(text, tensors)})

    @staticmethod
    def from_bytes(data: bytes, source: str = "state") -> DenoiseState:
        """Inverse of `to_bytes`.

        Raises:
            ValueError: if the bytes are truncated, altered or of another format.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors = load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{source} is truncated or is no safetensors file ({error})") from None
        if header.get("format") != FORMAT:
            raise ValueError(f"{source} has format {header.get('format')!r}, expected {FORMAT!r}")
        if _checksum(header["state"], tensors) != header["sha256"]:
            raise ValueError(f"{source} was altered after it was written: its checksum does not match")
        state = json.loads(header["state"])
        return DenoiseState(
            latents=tensors.pop("latents"),
            sigmas=tensors.pop("sigmas"),
            history={name.removeprefix("history."): tensor for name, tensor in tensors.items()},
            step=state["step"],
            past=Trajectory.from_json(state["past"]),
            model=state["model"],
            versions=state["versions"],
        )

    def save(self, path: Path | str) -> None:
        """Write to `path` by way of a temporary file, so that it is never half-written."""
        write_atomically(Path(path), self.to_bytes())

    @staticmethod
    def load(path: Path | str) -> DenoiseState:
        """Read what `save` wrote; raises as `from_bytes` does, naming the path."""
        return DenoiseState.from_bytes(Path(path).read_bytes(), source=str(path))


def model_identity(pipeline: StableDiffusion3Pipeline) -> str:
    """A short fingerprint of the transformer: its config, dtype, and the first values of every weight tensor."""
    digest = hashlib.sha256(json.dumps(dict(pipeline.transformer.config), sort_keys=True, default=str).encode())
    for name, parameter in pipeline.transformer.state_dict().items():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(parameter.flatten()[:64].cpu().float().numpy().tobytes())
    return f"{type(pipeline.transformer).__name__}:{digest.hexdigest()[:16]}"


def _versions() -> dict[str, str]:
    return {package: version(package) for package in _PACKAGES}


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
