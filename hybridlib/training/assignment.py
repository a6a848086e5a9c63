"""Noise assignment: which noise a latent is sent towards in training (immiscible diffusion, OT-CFM, C2OT).

Ordinary training pairs every latent with its own independent noise. Here each latent gets noise that lies near it.
Nothing else changes: schedule, target, loss, network and sampler stay, and sampling starts from fresh noise.

In a diffusers training loop one line is replaced, right after the latents are made and before the timesteps are drawn::

    noise = assign_noise(latents, "linear", condition=labels, generator=generator)  # was torch.randn_like(latents)
    noisy = scheduler.add_noise(latents, noise, timesteps)  # as before, and the target is built from the same noise

That serves every target: epsilon (`noise`), v (`alpha * noise - sigma * latents`) and flow (`noise - latents`).
Pass the latents that the network sees (scaled and shifted), assign by the true label or caption before caption dropout,
and add offset noise only afterwards.

Sources: Li et al., "Immiscible Diffusion", arXiv 2406.12303 (linear) and 2505.18521 (knn); Cheng and Schwing, C2OT,
2503.10636 (price between captions). The semidiscrete coupling is in `semidiscrete`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Literal, TypeVar, get_args

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .matching import Cost, check_condition, check_cost, check_latents, match_noise

Mode = Literal["none", "linear", "knn"]
Batch = TypeVar("Batch")


@torch.no_grad()
def assign_noise(
    latents: Tensor,
    mode: Mode = "linear",
    *,
    condition: Tensor | None = None,
    condition_weight: float | None = None,
    k: int = 8,
    center: Tensor | None = None,
    cost: Cost = "inner",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Noise for each of B latents, of their shape, dtype and device, without gradient.

    - "none": a plain draw.
    - "linear": one draw, its rows permuted to the smallest total squared distance; the noise stays exactly normal.
      Costs one B x B x D matmul and a solver of O(B^3): 0.1 s at B = 1,024 and D = 1,024 on one CPU core.
    - "knn": the best of k private draws for each latent; costs k draws. The noise does not stay normal: it spreads
      along the leading principal components of the data, and with `cost="l2"` shrinks as a whole.

    A model with conditions must be given them here: linear assignment over mixed classes moves the noise of each class
    towards its mean, a prior that is never sampled from, which harms many-step sampling. With integer `condition`
    noise moves within groups only. With embeddings a price is put on moving between captions (C2OT).
    What it buys: straighter paths, better images at 1 to 4 steps; many-step quality at best stays. Relative distances
    shrink by only (c_B s / sqrt(D)) / (1 + s^2), about 5 % at B = 1,024 and D = 1,024, but along the leading principal
    components of the data the correlation with the noise is large whatever D is.

    With mode "none", k = 1, or one row, the result is that of `torch.randn` for the same generator, bit for bit.

    Args:
        latents: (B, ...) floating point, as the network sees them.
        condition: for mode "linear": integer groups (B,), or floating point embeddings (B, E) of captions.
        condition_weight: for embeddings: the price of moving noise between captions of cosine 0, in units of
            s * sqrt(D), the root mean square norm of the centred latents, which is the spread of the cost.
            `matching.choose_condition_weight` finds one.
        k: for mode "knn": candidates per latent, at least 1. Published: 64 for Stable Diffusion, 4 for CIFAR-10.
        center: for mode "knn": what is subtracted from the latents before scoring, of a shape that broadcasts to
            theirs: the mean of all training latents, or for a conditional model `class_means(...)[labels]`. Without it
            the noise is moved towards the mean of the data.
        cost: "inner" is minus the inner product; for permutations it has the same optimum as squared distances.
            "l2" (Euclidean distance) and "l2_fp16" (the same rounded to half precision, latents and noise scaled by
            0.1 before where mode is "linear") are the published choices, slower and no better.
        generator: as for `torch.randn`; a CPU generator serves latents on any device.

    Raises:
        ValueError: one sentence about what is wrong with an argument.
    """
    _check(latents, mode, condition, condition_weight, k, center, cost)
    noise = randn_tensor(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)
    if mode == "linear":
        return noise[match_noise(latents, noise, condition, condition_weight, cost)]
    if mode == "knn" and k > 1:
        return _nearest(latents, noise, k, center, cost, generator)
    return noise


def pooled_noise(
    batches: Iterable[Batch],
    size: int,
    latents: Callable[[Batch], Tensor],
    condition: Callable[[Batch], Tensor | None] | None = None,
    **options: Any,
) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch with its noise, assigned over `size` batches at once; images and their order stay::

        for batch, noise in pooled_noise(loader, 8, itemgetter("latents"), itemgetter("labels"), generator=generator):

    Rows of one class are few in a batch and many in a pool, and only they may exchange noise. A pool is one
    permutation, so the noise stays exactly normal. Memory and solver see `size` times the rows; 1,024 to 4,096 rows
    are a good pool. The last pool may be smaller. To resume a run, start again at the first batch of its pool.

    Args:
        latents, condition: what to read from a batch.
        options: of `assign_noise`.

    Raises:
        ValueError: if `size` is no positive number, or as `assign_noise` does.
    """
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a positive number of batches, got {size!r}")
    source = iter(batches)
    while pool := list(islice(source, size)):
        parts = [latents(batch) for batch in pool]
        read = [] if condition is None else [condition(batch) for batch in pool]
        conditions = [part for part in read if part is not None]
        noise = assign_noise(torch.cat(parts), condition=torch.cat(conditions) if conditions else None, **options)
        yield from zip(pool, noise.split([len(part) for part in parts]), strict=True)


def class_means(latents: Tensor, labels: Tensor) -> Tensor:
    """Mean latents of each class, (C, ...) for labels (B,) in 0..C-1; a class without rows has mean 0."""
    sums = latents.new_zeros((int(labels.max()) + 1, *latents.shape[1:])).index_add_(0, labels, latents)
    counts = labels.bincount(minlength=len(sums)).clamp_min(1).to(latents)
    return sums / counts.view(-1, *[1] * (latents.dim() - 1))


def _nearest(
    latents: Tensor, noise: Tensor, k: int, center: Tensor | None, cost: Cost, generator: torch.Generator | None
) -> Tensor:
    """The best of `noise` and k - 1 further draws for each row; two candidates are in memory at a time."""
    x = latents.float() if center is None else latents.float() - center.float()

    def score(candidate: Tensor) -> Tensor:
        e = candidate.float()
        if cost == "inner":
            return (x * e).flatten(1).sum(dim=1)
        if cost == "l2":
            return -torch.linalg.vector_norm((x - e).flatten(1), dim=1)
        return -torch.linalg.vector_norm((x.half().float() - e.half().float()).flatten(1), dim=1).half()

    best = score(noise)
    for _ in range(k - 1):
        candidate = randn_tensor(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)
        scores = score(candidate)
        better = scores > best
        best = torch.where(better, scores, best)
        noise = torch.where(better.view(-1, *[1] * (noise.dim() - 1)), candidate, noise)
    return noise


def _check(
    latents: Tensor,
    mode: str,
    condition: Tensor | None,
    condition_weight: float | None,
    k: int,
    center: Tensor | None,
    cost: str,
) -> None:
    if mode == "semidiscrete":
        raise ValueError("mode 'semidiscrete' chooses latents for noise: use SemidiscreteCoupling.fit(...).draw(rows)")
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    check_cost(cost)
    check_latents(latents)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be a whole number of at least 1, got {k!r}")
    if center is not None:
        if mode != "knn" or cost != "inner":
            raise ValueError(f"center serves mode 'knn' with cost 'inner' only, got mode {mode!r} with cost {cost!r}")
        sizes = zip(reversed(center.shape), reversed(latents.shape), strict=False)
        if center.dim() > latents.dim() or any(size not in (1, full) for size, full in sizes):
            raise ValueError(f"center must broadcast to latents {list(latents.shape)}, got {list(center.shape)}")
        if not center.isfinite().all():
            raise ValueError("center must be finite; some of it is not")
    if mode == "knn" and condition is not None:
        raise ValueError("condition serves mode 'linear' only; for 'knn' pass center=class_means(...)[labels]")
    check_condition(condition, condition_weight, len(latents), cost)
