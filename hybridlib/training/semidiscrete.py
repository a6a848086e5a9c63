"""Semidiscrete coupling: one potential per training latent, fitted once; fresh noise then finds its latent (SD-FM).

Linear assignment sees a batch; its gain grows with the logarithm of the batch, its cost with the cube. The semidiscrete
problem pairs *all* noise with a finite set of N latents: noise e goes to the latent of largest <x, e> + potential, and
the potentials are such that every latent is drawn equally often. The noise stays exactly normal; what may be off is how
often a latent is drawn, and `chi_squared` measures that: look at it before training, a poor fit shows in the samples.
There is no batch size in it.

The direction is noise to latents, so it takes the place of the data loader's shuffling::

    coupling = SemidiscreteCoupling.fit(latents, labels)  # once
    rows, noise = coupling.draw(batch_size, generator)  # each step: latents[rows], captions[rows], and their noise

Source: Mousavi-Hosseini et al., "Flow Matching with Semidiscrete Couplings", arXiv 2509.25519.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..files import write_atomically
from .matching import check_condition, check_latents, spread

FORMAT = "hybridlib semidiscrete coupling 1"
CHUNK = 1024  # noises scored at once where the caller does not say
STEP_SIZE = 0.3  # of the temperature at which a latent's share of the noise answers to its potential


class SemidiscreteCoupling:
    """Training latents (N, ...), the `potential` (N,) of each, and how conditions keep noise and latents apart.

    With integer groups (N,) as `condition`, noise is drawn for a group and goes to a latent of that group. With
    embeddings (N, E), noise is drawn together with the caption of a random row, and a latent whose caption has cosine c
    to it pays `condition_weight * (1 - c)`, in units of s * sqrt(D) as in `assign_noise`.
    """

    def __init__(
        self,
        latents: Tensor,
        potential: Tensor,
        condition: Tensor | None = None,
        condition_weight: float | None = None,
    ) -> None:
        check_latents(latents)
        check_condition(condition, condition_weight, len(latents))
        if potential.shape != (len(latents),) or not potential.isfinite().all():
            raise ValueError(f"potential must be finite of shape ({len(latents)},), got {list(potential.shape)}")
        self.latents, self.potential = latents, potential
        self.condition, self.condition_weight = condition, condition_weight
        flat = latents.flatten(1).float()
        self._captions = None
        self._groups = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
        if condition is not None and condition.is_floating_point():
            self._captions = F.normalize(condition.float(), dim=1)
            self._price = (condition_weight or 0.0) * spread(flat)
        elif condition is not None:
            self._groups = condition.unique(return_inverse=True)[1]
        # Of each group: its rows, and their latents less their mean, which changes no choice and keeps numbers small.
        self._blocks = []
        for group in range(int(self._groups.max()) + 1):
            rows = (self._groups == group).nonzero()[:, 0]
            self._blocks.append((rows, flat[rows] - flat[rows].mean(dim=0)))

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        latents: Tensor,
        condition: Tensor | None = None,
        condition_weight: float | None = None,
        *,
        passes: int = 32,
        batch_size: int = CHUNK,
        seed: int = 0,
    ) -> SemidiscreteCoupling:
        """Fit the potentials by averaged stochastic gradient descent on the semidual, with hard assignment.

        A pass is as many noises as there are latents. All passes cost `passes` * N^2 * D multiplications, with G equal
        groups one G-th of it. `chi_squared` of the result is about 2 / passes (measured on
        latents of drawn scenes, 300 to 4,096 of them, 32 to 1,024 noises a step).

        Args:
            latents: (N, ...) floating point, all that training will see. A float32 copy is held.
            condition, condition_weight: see the class.
            passes, batch_size, seed: length of the fit, noises a step, and its random numbers.

        Raises:
            ValueError: one sentence about what is wrong with an argument.
        """
        for name, value in (("passes", passes), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        zero = torch.zeros(len(latents), device=latents.device)
        coupling = cls(latents, zero, condition, condition_weight)
        generator = torch.Generator(latents.device).manual_seed(seed)
        for rows, block in coupling._blocks:
            if len(rows) > 1:
                coupling._fit_block(rows, block, passes, batch_size, generator)
        return coupling

    def _fit_block(self, rows: Tensor, block: Tensor, passes: int, batch_size: int, generator: torch.Generator) -> None:
        count, norms = len(rows), block.norm(dim=1)
        # The start would be the answer if the scores of the latents were independent of each other.
        quantile = float(torch.special.ndtri(torch.tensor(1 - 1 / count, dtype=torch.float64)))
        potential = -quantile * norms
        temperature = float(norms.square().mean().sqrt()) / max(quantile, 0.5)
        steps, pace = math.ceil(passes * count / batch_size), min(1.0, batch_size / count)
        average = torch.zeros_like(potential)
        for step in range(steps):
            self.potential[rows] = potential
            own = rows[torch.randint(count, (batch_size,), generator=generator, device=rows.device)]
            noise = torch.randn(batch_size, block.shape[1], generator=generator, device=rows.device)
            drawn = self._assign(noise, own).bincount(minlength=len(self.potential))[rows] * (count / batch_size)
            size = STEP_SIZE * temperature * math.sqrt(pace / (1 + step * pace))
            potential = potential - size * (drawn - 1)
            if step >= steps // 2:
                average += (potential - average) / (step - steps // 2 + 1)
        self.potential[rows] = average - average.mean()

    def _assign(self, noise: Tensor, own: Tensor) -> Tensor:
        """The row that each noise (B, D) goes to, under the conditions of the rows `own` (B,)."""
        chosen = torch.empty_like(own)
        groups = self._groups[own]
        for group in groups.unique().tolist():
            asked = (groups == group).nonzero()[:, 0]
            rows, block = self._blocks[group]
            score = torch.addmm(self.potential[rows], noise[asked], block.T)
            if self._captions is not None:
                score.addmm_(self._captions[own], self._captions.T, alpha=self._price)
            chosen[asked] = rows[score.argmax(dim=1)]
        return chosen

    @torch.no_grad()
    def draw(self, batch: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """`batch` rows of the training latents (int64), and the noise (batch, ...) that each is paired with.

        The noise is drawn first and is exactly normal, within each group, too. Rows come with replacement, so there are
        no epochs. Costs batch * N * D multiplications, N the latents of the group.

        Raises:
            ValueError: if `batch` is below 1.
        """
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        device, count = self.latents.device, len(self.latents)
        source = generator.device if generator is not None else device
        own = torch.randint(count, (batch,), generator=generator, device=source).to(device)
        shape = (batch, *self.latents.shape[1:])
        noise = randn_tensor(shape, generator=generator, device=device, dtype=self.latents.dtype)
        with torch.autocast(device.type, enabled=False):
            return self._assign(noise.flatten(1).float(), own), noise

    @torch.no_grad()
    def chi_squared(self, draws: int | None = None, seed: int = 1) -> float:
        """How far the drawn latents are from equally likely: N * sum_j p_j^2 - 1, unbiased, from fresh noise.

        0 is uniform; 1 / (1 + value) is the share of the latents that is effectively used. The estimate counts pairs of
        noises that found the same latent, so it may fall a little below 0: for a uniform coupling its standard
        deviation is sqrt(2 N) / draws.

        Args:
            draws: noises, by default 8 for each latent.
        """
        count = len(self.latents)
        total = 8 * count if draws is None else draws
        if total < 2:
            raise ValueError(f"draws must be at least 2, got {draws}")
        generator = torch.Generator(self.latents.device).manual_seed(seed)
        hits = torch.zeros(count, dtype=torch.float64, device=self.latents.device)
        for begin in range(0, total, CHUNK):
            rows, _ = self.draw(min(CHUNK, total - begin), generator)
            hits += rows.bincount(minlength=count)
        return float(count * (hits * (hits - 1)).sum() / (total * (total - 1)) - 1)

    def save(self, path: Path) -> None:
        """Write the potentials with a checksum of the latents and conditions they belong to, whole or not at all."""
        about = {"format": FORMAT, "data": self._checksum(), "condition_weight": json.dumps(self.condition_weight)}
        write_atomically(path, save({"potential": self.potential.cpu().contiguous()}, metadata=about))

    @classmethod
    def load(cls, path: Path, latents: Tensor, condition: Tensor | None = None) -> SemidiscreteCoupling:
        """The saved coupling, for the very latents and conditions that it was fitted to.

        Raises:
            ValueError: if the file is none of ours, or was fitted to other data.
        """
        try:
            with safe_open(path, "pt") as file:
                about, potential = file.metadata() or {}, file.get_tensor("potential")
            weight = json.loads(about["condition_weight"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is no semidiscrete coupling: {error}") from None
        if about.get("format") != FORMAT or not potential.isfinite().all():
            raise ValueError(f"{path} is no semidiscrete coupling of format {FORMAT!r} with finite potentials")
        if about.get("data") != _checksum(latents, condition):
            raise ValueError(f"{path} was fitted to other latents or conditions than these; fit it again")
        return cls(latents, potential.to(latents.device), condition, weight)

    def _checksum(self) -> str:
        return _checksum(self.latents, self.condition)


def _checksum(latents: Tensor, condition: Tensor | None) -> str:
    """SHA-256 over types, shapes and bytes of both."""
    digest = hashlib.sha256()
    for tensor in (latents, condition):
        if tensor is None:
            digest.update(b"none")
            continue
        digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
