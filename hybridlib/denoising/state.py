"""DenoiseState: everything needed to go on denoising elsewhere, in one checksummed safetensors file."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import metadata
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import write_atomically
from ..trust import InvalidInput, reason, refusing, seal, shown, unseal
from .denoisers import GuidedDenoiser, Space
from .solvers import check_history, noise_levels, solver_identity
from .trajectory import Trajectory, check_type

FORMAT = "hybridlib.DenoiseState/2"
_PACKAGES = ("hybridlib", "torch", "diffusers")
version = functools.cache(metadata.version)  # which reads a file, and every state asks
_OPTIONAL = {"space", "notes"}  # told in the file only where there are any
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)


@dataclass(frozen=True)
class DenoiseState:
    """A generation stopped after `step` updates.

    `save` and `load` keep it exactly; `check` refuses to go on with another model, schedule or package version, since
    the result would silently differ.
    """

    latents: Tensor  # (1, channels, height, width) at noise level sigmas[step]
    step: int  # updates made so far
    sigmas: Tensor  # (num_inference_steps + 1,) the whole schedule
    history: dict[str, Tensor]  # what the solver remembers, empty for Euler
    past: Trajectory  # the seed and segments that led here
    model: str  # identity of the denoiser that made it, the last of its past
    solver: str  # identity of the solver
    versions: dict[str, str]
    space: Space | None = None  # what another model must share to go on; None in files that do not tell
    notes: dict[str, str] = field(default_factory=dict)  # of whoever stores it; nothing here reads them

    def __post_init__(self) -> None:
        check_type("latents", self.latents, Tensor, "a tensor")
        check_type("sigmas", self.sigmas, Tensor, "a tensor")
        check_type("step", self.step, Integral, "a whole number of updates")
        check_type("past", self.past, Trajectory, "a Trajectory")
        for name in ("model", "solver"):
            check_type(name, getattr(self, name), str, "text")
        check_type("space", self.space, (Space, type(None)), "a Space")
        check_type("versions", self.versions, dict, "a dict of package versions")
        check_type("notes", self.notes, dict, "a dict of texts")
        if self.latents.ndim != 4 or len(self.latents) != 1 or not self.latents.is_floating_point():
            raise ValueError(f"a state must hold latents of one row, got {tuple(self.latents.shape)}")
        for name, tensor in {"latents": self.latents, "sigmas": self.sigmas, **self.history}.items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"a state must hold finite tensors, but {name} has NaN or infinity")
        if self.sigmas.ndim != 1 or not 1 <= self.step < len(self.sigmas) or self.step != self.past.stop:
            raise ValueError(
                f"a state must lie within its schedule, at the end of its past: it is after {self.step} updates, the "
                f"past ends at {self.past.stop}, the schedule has sigmas of shape {tuple(self.sigmas.shape)}"
            )

    def __repr__(self) -> str:
        return (
            f"DenoiseState(seed {self.past.seed}, after {self.step} of {len(self.sigmas) - 1} updates, "
            f"latents {tuple(self.latents.shape[1:])} {self.latents.dtype}, {self.solver.partition('(')[0]})"
        )

    @staticmethod
    def capture(
        denoisers: Mapping[str, GuidedDenoiser],
        scheduler: Any,
        latents: Tensor,
        step: int,
        trajectory: Trajectory,
        history: dict[str, Tensor],
    ) -> DenoiseState:
        """The state of one row of a walk over `trajectory` after `step` updates (`step` > its start)."""
        if inside := [s for s in trajectory.segments if s.thinning and s.start < step < s.stop]:
            raise ValueError(
                f"a state cannot be taken after {step} updates, inside a thinned segment ({inside[0].start} to "
                f"{inside[0].stop}): it does not carry the outputs that are extrapolated from"
            )
        segments = tuple(replace(s, stop=min(s.stop, step)) for s in trajectory.segments if s.start < step)
        if not segments:
            raise ValueError(f"a state needs at least one update after step {trajectory.start}, got step {step}")
        made_by = denoisers[segments[-1].denoiser]
        return DenoiseState(
            latents=latents.cpu().clone(),
            step=step,
            sigmas=noise_levels(scheduler),
            history={name: rows.cpu().clone() for name, rows in history.items()},
            past=Trajectory(trajectory.seed, segments),
            model=made_by.identity,
            solver=solver_identity(scheduler),
            versions=_versions(),
            space=made_by.space,
        )

    @refusing()
    def check(
        self,
        denoisers: Mapping[str, GuidedDenoiser],
        scheduler: Any,
        trajectories: Sequence[Trajectory],
        shape: tuple[int, ...],
    ) -> None:
        """Refuse what this state cannot go on with.

        A denoiser of the name that made the state must be the same model. One of another name takes over: a handoff,
        for which both models must share latent channels, VAE scaling, prediction type and noise schedule.

        Args:
            denoisers: by name, all that the trajectories use.
            shape: (channels, height, width) of the latents to go on with.

        Raises:
            InvalidInput: one sentence on the first mismatch of step, seed, version, model, size, schedule, solver.
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
        for name in dict.fromkeys(trajectory.segments[0].denoiser for trajectory in trajectories):
            self._check_model(name, denoisers[name])
        if tuple(self.latents.shape[1:]) != shape:
            raise ValueError(f"the state's latents are {tuple(self.latents.shape[1:])}, this call needs {shape}")
        levels = noise_levels(scheduler)
        if not torch.equal(self.sigmas, levels):
            raise ValueError(
                f"the state's noise schedule ({len(self.sigmas) - 1} steps) is not this pipeline's "
                f"({len(levels) - 1} steps)"
            )
        if self.solver != (here := solver_identity(scheduler)):
            raise ValueError(f"the state was made by solver {self.solver}, this pipeline has {here}")
        ages = {self.step} | {self.step - a.stop for a, b in pairwise(self.past.segments) if a.denoiser != b.denoiser}
        check_history(scheduler, self.history, (1, *shape), ages)

    def _check_model(self, name: str, denoiser: GuidedDenoiser) -> None:
        made_by = self.past.segments[-1].denoiser
        if self.model == (here := denoiser.identity):
            return
        if name == made_by:
            raise ValueError(
                f"the state was made by model {self.model}, this pipeline holds {here}; a model that takes over needs "
                f"a denoiser name of its own"
            )
        if self.space is None:
            raise ValueError(f"the state does not tell whether a model other than {self.model} can take over")
        if (difference := self.space.difference(denoiser.space)) is not None:
            raise ValueError(f"denoiser {name!r} cannot take over from {self.model}: they have {difference}")

    def to_bytes(self, key: bytes | None = None) -> bytes:
        """Serialise, sealed where there is a key (`trust.seal`); the length is what a network would carry."""
        from safetensors.torch import save

        tensors = {"latents": self.latents, "sigmas": self.sigmas} | {
            f"history.{k}": v for k, v in self.history.items()
        }
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        metadata: dict[str, Any] = {
            "step": self.step,
            "past": self.past.as_json(),
            "model": self.model,
            "solver": self.solver,
            "versions": self.versions,
        }
        if self.space is not None:
            metadata["space"] = self.space._asdict()
        if self.notes:
            metadata["notes"] = self.notes
        text = json.dumps(metadata, sort_keys=True)
        about = {"format": FORMAT, "state": text, "sha256": _checksum(text, tensors)}
        return seal(save(tensors, metadata=about), key)

    @staticmethod
    def from_bytes(data: bytes, source: str = "state", key: bytes | None = None) -> DenoiseState:
        """Inverse of `to_bytes`.

        Args:
            source: what the bytes are called where they are refused.
            key: of the seal that they must have; without a key, they may have none.

        Raises:
            TypeError: if `data` are no bytes.
            InvalidInput: if the bytes are truncated, altered, of another format, not sealed by the key, or say what no
                state says.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        check_type("data", data, bytes, "bytes")
        data = unseal(data, key, source)
        try:
            tensors = load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
            raise InvalidInput(f"{source} is truncated or is no safetensors file ({reason(error)})") from None
        if header.get("format") != FORMAT:
            raise InvalidInput(f"{source} has format {shown(header.get('format'))}, expected {FORMAT!r}")
        if {"state", "sha256"} - set(header) or any(tensor.dtype not in _DTYPES for tensor in tensors.values()):
            raise InvalidInput(f"{source} holds no state: its metadata or its tensors are those of another file")
        if _checksum(header["state"], tensors) != header["sha256"]:
            raise InvalidInput(f"{source} was altered after it was written: its checksum does not match")
        try:
            return _from_parts(json.loads(header["state"]), tensors)
        except (ValueError, TypeError, RecursionError) as error:  # a right checksum is no proof of an honest writer
            raise InvalidInput(f"{source} holds no state that can be gone on with: {reason(error)}") from None

    def save(self, path: Path | str, key: bytes | None = None) -> None:
        """Write to `path` by way of a temporary file, so that it is never half-written; sealed where there is a key."""
        write_atomically(Path(path), self.to_bytes(key))

    @staticmethod
    def load(path: Path | str, key: bytes | None = None) -> DenoiseState:
        """Read what `save` wrote; raises as `from_bytes` does, naming the path."""
        check_type("path", path, (str, Path), "a path")
        return DenoiseState.from_bytes(Path(path).read_bytes(), str(path), key)


def _from_parts(state: Any, tensors: dict[str, Tensor]) -> DenoiseState:
    wanted = {field.name for field in fields(DenoiseState)} - {"latents", "sigmas", "history"}
    if not isinstance(state, dict) or set(state) | _OPTIONAL != wanted:
        raise ValueError(f"it must tell {', '.join(sorted(wanted))}, and does not")
    named = {name for name in tensors if name in ("latents", "sigmas")}
    if len(named) < 2 or not all(name in named or name.startswith("history.") for name in tensors):
        raise ValueError(f"it must hold latents, sigmas and history, got {sorted(tensors)}")
    space = state.get("space")
    if space is not None:
        check_type("space", space, dict, "a dict")
        space = Space(**space)
    return DenoiseState(
        **state | {"past": Trajectory.from_json(state["past"]), "space": space},
        latents=tensors["latents"],
        sigmas=tensors["sigmas"],
        history={name.removeprefix("history."): tensor for name, tensor in tensors.items() if name not in named},
    )


def _versions() -> dict[str, str]:
    return {package: version(package) for package in _PACKAGES}


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
