"""Prefixes of trajectories as files: what names one, and a folder of them under a size limit.

A prefix is a `DenoiseState` after some first steps from noise. Its name is a digest of all that decides its latents.
The digest stands inside the file, too, under the checksum: a file is believed for what is in it, never for its name.
"""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..files import digest, write_atomically
from .blend import Blend
from .identity import text_identity
from .sampler import Setup
from .solvers import noise_levels, solver_identity
from .state import DenoiseState, version
from .trajectory import Move, Trajectory

FORMAT = "prefix 1"  # part of every digest
NOTE = "prefix"  # under which a state tells its digest
PACKAGES = ("hybridlib", "torch", "diffusers", "transformers")
PARTIAL, WRITING_NS = ".partial", 60 * 10**9  # a younger one is somebody's who is writing
_OURS = re.compile(r"prefix-([0-9a-f]{24})\.safetensors(\.[0-9]+-[0-9a-f]+\.partial)?")  # other files are left alone


class Prefix(NamedTuple):
    """A stored prefix, as a rule is shown it."""

    past: Trajectory  # the seed, and the segments from noise up to it
    sigma: float  # noise level of its latents

    @property
    def step(self) -> int:
        """Updates made."""
        return self.past.stop


class Keys:
    """The digests that name prefixes in calls of one setup.

    Told are the seed and every step's conditioning, codec, denoiser and slope; networks, text encoders and token
    limits; solver, noise schedule, handoff, size, dtype, device, package versions, and whether each row has a forward
    of its own. Not told is what somebody changed by hand in a pipeline without changing weights, such as hooks.
    Digests are chained step by step, so that equal beginnings have equal names however their segments are cut.
    """

    def __init__(self, setup: Setup) -> None:
        first, scheduler = setup.denoisers[""], setup.scheduler
        self.setup, self.sigmas = setup, noise_levels(scheduler).tolist()
        device = torch.cuda.get_device_name(first.device) if first.device.type == "cuda" else first.device.type
        schedule = [solver_identity(scheduler), self.sigmas, scheduler.timesteps.tolist(), setup.handoff]
        latents = [list(setup.shape), str(first.dtype), device, setup.batch_size == 1]
        self._root = digest(FORMAT, [version(package) for package in PACKAGES], schedule, latents)
        self._identities: dict[str, list[Any] | None] = {}
        self._moves: dict[Move, str] = {}
        self._chains: dict[Trajectory, list[str]] = {}

    def of(self, trajectory: Trajectory) -> list[str]:
        """The digest after each number of updates, 0 to its end, of a trajectory from noise."""
        if trajectory not in self._chains:
            chain = [digest(self._root, int(trajectory.seed))]
            for move in trajectory.moves():
                chain.append(digest(chain[-1], self._told(move)))
            self._chains[trajectory] = chain
        return self._chains[trajectory]

    def _told(self, move: Move) -> str:
        if move not in self._moves:
            prompt, negative, scale = move.conditioning
            self._moves[move] = digest(
                *(prompt.as_json() if isinstance(prompt, Blend) else prompt, negative, scale),
                *(move.codec and move.codec.specification, move.slope),
                *(move.denoiser, self._identity(move.denoiser)),
            )
        return self._moves[move]

    def _identity(self, name: str) -> list[Any] | None:
        """What a denoiser computes with and is told; a guest's identity says all of it."""
        denoiser = self.setup.denoisers.get(name)
        if name not in self._identities and denoiser is not None:
            pipeline = getattr(denoiser, "pipeline", None)
            told = [] if pipeline is None else [text_identity(pipeline), getattr(denoiser, "max_sequence_length", None)]
            self._identities[name] = [denoiser.identity, *told]
        return self._identities.get(name)


class File(NamedTuple):
    """A file of the folder: a prefix, or what a kill has left of one."""

    path: Path
    size: int
    used: int  # when it was last written or read, in nanoseconds


class PrefixFiles:
    """A folder of prefixes whose files take at most `max_bytes` together; what was used longest ago leaves first.

    Any number of processes may share it: files come by rename, and one that vanishes, is damaged or holds something
    else than its name says counts as absent. The last two are removed. Files of other names are not touched.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._pasts: dict[str, Trajectory] = {}  # by digest

    def path(self, key: str) -> Path:
        """Where the prefix of this digest is, or would be."""
        return self.folder / f"prefix-{key}.safetensors"

    def all(self) -> list[File]:
        """Everything that was written here, the least recently used first."""
        files = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if _OURS.fullmatch(path.name):
                with suppress(FileNotFoundError):  # another process removed it
                    status = path.stat()
                    files.append(File(path, status.st_size, status.st_mtime_ns))
        return sorted(files, key=lambda file: (file.used, file.path.name))

    def load(self, key: str, keys: Keys) -> DenoiseState | None:
        """The state of this digest, checked, and marked as used; None where there is none that is right."""
        path, setup = self.path(key), keys.setup
        try:
            state = DenoiseState.from_bytes(path.read_bytes(), source=str(path))
            state.check(setup.denoisers, setup.scheduler, [], setup.shape)
            right = state.notes.get(NOTE) == key and state.past.start == 0 and keys.of(state.past)[-1] == key
        except FileNotFoundError:
            return None
        except ValueError:
            right = False
        if not right:
            path.unlink(missing_ok=True)
            return None
        with suppress(OSError):  # removed meanwhile, or not ours to touch: it was read whole
            os.utime(path)
        return state

    def store(self, key: str, state: DenoiseState) -> None:
        """Keep a state under this digest; one larger than the limit is not kept.

        Raises:
            OSError: if it cannot be written.
        """
        data = replace(state, notes={NOTE: key}).to_bytes()
        if len(data) > self.max_bytes:
            return
        files = self.all()
        held = sum(file.size for file in files)
        for file in files:
            if held + len(data) <= self.max_bytes:
                break
            if not (file.path.suffix == PARTIAL and time.time_ns() - file.used < WRITING_NS):
                file.path.unlink(missing_ok=True)
                held -= file.size
        write_atomically(self.path(key), data)

    def pasts(self) -> dict[str, Trajectory]:
        """What led to each prefix, by digest, read from the heads of the files alone and not to be relied on."""
        found = {}
        for file in self.all():
            match = _OURS.fullmatch(file.path.name)
            if match is None or match[2]:
                continue
            past = self._pasts.get(match[1]) or _past_in(file)
            if past is not None:
                found[match[1]] = past
        self._pasts = found
        return found


def _past_in(file: File) -> Trajectory | None:
    try:
        with file.path.open("rb") as stream:
            head = json.loads(stream.read(min(int.from_bytes(stream.read(8), "little"), file.size)))
        return Trajectory.from_json(json.loads(head["__metadata__"]["state"])["past"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def differ_in_conditioning_alone(past: Trajectory, trajectory: Trajectory) -> bool:
    """Whether the steps of a past have the seed, codecs, denoisers and slopes that a trajectory has there."""
    pairs = zip(past.moves(), trajectory.moves(), strict=False)
    return past.seed == trajectory.seed and all(mine[1:] == its[1:] for mine, its in pairs)
