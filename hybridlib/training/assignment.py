"""Noise assignment: which noise a latent is sent towards in training (immiscible diffusion, OT-CFM, C2OT).

Ordinary training pairs every latent with its own independent noise. Here each latent gets noise that lies near it.
Nothing else changes: schedule, target, loss, network and sampler stay, and sampling starts from fresh noise.

In a diffusers training loop one line is replaced, right after the latents are made and before the timesteps are drawn::

    noise = assign_noise(latents, "linear", condition=labels, generator=generator)  # was torch.randn_like(latents)
    noisy = scheduler.add_noise(latents, noise, timesteps)  # as before, and the target is built from the same noise

That serves every target: epsilon (`noise`), v (`alpha * noise - sigma * latents`) and flow (`noise - latents`).
Pass the latents that the network sees (scaled and shifted), assign by the true label or caption before caption dropout,
and add offset noise only afterwards.

Sources: Li et al., "Immiscible Diffusion", arXiv 2406.12303 (linear); "Improved Immiscible Diffusion", 2505.18521 (knn);
Cheng and Schwing, C2OT, 2503.10636 (caption penalty). The semidiscrete coupling is in `semidiscrete`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Mode = Literal["none", "linear", "knn"]
Cost = Literal["inner", "l2", "l2_fp16"]
Batch = TypeVar("Batch")

WARM_ROWS = 128  # from this size on, starting the solver from entropic potentials is faster
WARM_ITERATIONS, WARM_TEMPERATURE = 10, 0.1  # the fastest of those tried at 1,024 and 4,096 rows


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

    | mode | what | marginal of the noise | cost beside a plain draw |
    |---|---|---|---|
    | none | a plain draw | exact | nothing |
    | linear | one draw, its rows permuted to the smallest total squared distance | exact | one B x B x D matmul and a solver of O(B^3): 0.1 s at B = 1,024 on one core |
    | knn | the best of k private draws per latent | not exact, see below | k draws |

    A model with conditions must be given them here: linear assignment over mixed classes moves the noise of each class
    towards its mean, a prior that is never sampled from, which harms many-step sampling. With integer `condition`
    noise moves within groups only. With embeddings a price is put on moving between captions (C2OT).
    What it buys: straighter paths, better images at 1 to 4 steps; many-step quality at best stays. Relative distances
    shrink by only (c_B s / sqrt(D)) / (1 + s^2), about 5 % at B = 1,024 and D = 1,024, but along the leading principal
    components of the data the correlation with the noise is large whatever D is.
    knn inflates the noise along these components, and with `cost="l2"` shrinks it as a whole.

    With mode "none", k = 1, or one row, the result is that of `torch.randn` for the same generator, bit for bit.

    Args:
        latents: (B, ...) floating point, as the network sees them.
        condition: for mode "linear": integer groups (B,), or floating point embeddings (B, E) of captions.
        condition_weight: for embeddings: the price of moving noise between captions of cosine 0, in units of
            s * sqrt(D), the root mean square norm of the centred latents, which is the spread of the cost.
            `choose_condition_weight` finds one.
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


@torch.no_grad()
def match_noise(
    latents: Tensor,
    noise: Tensor,
    condition: Tensor | None = None,
    condition_weight: float | None = None,
    cost: Cost = "inner",
) -> Tensor:
    """The permutation of noise rows that mode "linear" applies: latent i gets `noise[permutation[i]]`.

    Arguments as in `assign_noise`; `noise` (B, ...) is drawn already. Returns int64 (B,) on the latents' device.
    """
    _check(latents, "linear", condition, condition_weight, 1, None, cost)
    if noise.shape != latents.shape:
        raise ValueError(f"noise must have the shape of latents {tuple(latents.shape)}, got {tuple(noise.shape)}")
    with torch.autocast(latents.device.type, enabled=False):
        x, e = latents.flatten(1).float(), noise.flatten(1).float()
        if condition is None:
            return _solve(_cost(x, e, cost))
        if condition.is_floating_point():
            unit = F.normalize(condition.float(), dim=1)
            penalty = (1 - unit @ unit.T).mul_((condition_weight or 0.0) * spread(x))
            return _solve(_cost(x, e, cost).add_(penalty))
        permutation = torch.arange(len(x), device=x.device)
        for group in condition.unique():
            rows = (condition == group).nonzero()[:, 0]
            permutation[rows] = rows[_solve(_cost(x[rows], e[rows], cost))]
        return permutation


def pooled_noise(
    batches: Iterable[Batch],
    size: int,
    latents: Callable[[Batch], Tensor],
    condition: Callable[[Batch], Tensor] | None = None,
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
        groups = None if condition is None else torch.cat([condition(batch) for batch in pool])
        noise = assign_noise(torch.cat(parts), condition=groups, **options)
        yield from zip(pool, noise.split([len(part) for part in parts]), strict=True)


def class_means(latents: Tensor, labels: Tensor) -> Tensor:
    """Mean latents of each class, (C, ...) for labels (B,) in 0..C-1; a class without rows has mean 0."""
    sums = latents.new_zeros((int(labels.max()) + 1, *latents.shape[1:])).index_add_(0, labels, latents)
    counts = labels.bincount(minlength=len(sums)).clamp_min(1).to(latents)
    return sums / counts.view(-1, *[1] * (latents.dim() - 1))


def exchanged_share(permutation: Tensor, condition: Tensor, similarity: float = 0.9) -> float:
    """Share of rows whose noise was drawn for a row with another condition.

    Groups (B,) differ if unequal, embeddings (B, E) if their cosine is below `similarity`.
    """
    other = condition[permutation]
    if not condition.is_floating_point():
        return float((other != condition).float().mean())
    return float((F.cosine_similarity(other.float(), condition.float(), dim=1) < similarity).float().mean())


def choose_condition_weight(
    latents: Tensor,
    condition: Tensor,
    share: float = 0.05,
    similarity: float = 0.9,
    generator: torch.Generator | None = None,
) -> float:
    """The smallest weight, within 5 %, at which at most `share` of the rows exchange noise across unlike captions.

    Smaller weights bend the prior of a prompt, larger ones leave less to gain. Call it once, on a pool of the size that
    training will use. The search doubles a weight, then halves the bracket, about 12 assignments. 0 if none is needed.

    Args:
        latents: (B, ...) one pool.
        condition: floating point embeddings (B, E).
        share: allowed share, in (0, 1).
        similarity: captions of smaller cosine are unlike.

    Raises:
        ValueError: if an argument is out of range, or captions are so alike that no weight reaches the share.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, got {share}")
    if not condition.is_floating_point():
        raise ValueError("condition must be floating point embeddings; integer groups never exchange noise")
    noise = randn_tensor(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)

    def exchanged(weight: float) -> float:
        return exchanged_share(match_noise(latents, noise, condition, weight), condition, similarity)

    if exchanged(0.0) <= share:
        return 0.0
    low, high = 0.0, 1.0
    while exchanged(high) > share:
        low, high = high, 2 * high
        if high > 2**16:
            raise ValueError(f"no condition_weight up to {high:.0f} brings the exchanged share down to {share}")
    while high - low > 0.05 * high and high > 2**-10:
        middle = (low + high) / 2
        low, high = (middle, high) if exchanged(middle) > share else (low, middle)
    return high


def _cost(x: Tensor, e: Tensor, cost: Cost) -> Tensor:
    """(B, B) float32; rows are latents, columns are noise. Centring the latents only keeps the numbers small."""
    if cost == "inner":
        return torch.mm(x - x.mean(dim=0), -e.T)
    if cost == "l2":
        return torch.cdist(x, e)
    return torch.cdist((0.1 * x).half().float(), (0.1 * e).half().float()).half().float()


def spread(x: Tensor) -> float:
    """s * sqrt(D) of rows (B, D): the root mean square norm once they are centred, the unit of `condition_weight`."""
    return math.sqrt(float((x - x.mean(dim=0)).square().sum(dim=1).mean()))


def _solve(cost: Tensor) -> Tensor:
    """The column of each row in the cheapest permutation; exact, scipy's shortest augmenting paths."""
    if len(cost) >= WARM_ROWS:
        cost = _reduce(cost)
    columns = linear_sum_assignment(cost.cpu().numpy())[1]
    return torch.from_numpy(columns).to(cost.device, torch.int64)


def _reduce(cost: Tensor) -> Tensor:
    """Costs less row and column constants, which never change the optimum, near zero where the optimum lies.

    The constants are potentials of the entropic problem after a few Sinkhorn iterations. With them the solver finds
    short paths: three times faster at 1,024 rows, five times at 4,096.
    """
    spread = float(cost.std())
    if not spread > 0:
        return cost
    cost = cost - cost.amin(dim=1, keepdim=True)
    cost -= cost.amin(dim=0, keepdim=True)  # every row and column now has a zero, so no sum below vanishes
    scale = WARM_TEMPERATURE * spread
    kernel = torch.exp(cost / -scale)
    v = torch.ones_like(kernel[0])
    for _ in range(WARM_ITERATIONS):
        u = 1 / (kernel @ v)
        v = 1 / (u @ kernel)
    rows, columns = u.log_().mul_(scale), v.log_().mul_(scale)
    if not (rows.isfinite().all() and columns.isfinite().all()):
        return cost
    return cost.sub_(rows[:, None]).sub_(columns)


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
    for name, value, allowed in (("mode", mode, get_args(Mode)), ("cost", cost, get_args(Cost))):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    check_latents(latents)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be a whole number of at least 1, got {k!r}")
    if center is not None:
        if mode != "knn" or cost != "inner":
            raise ValueError(f"center serves mode 'knn' with cost 'inner' only, got mode {mode!r} with cost {cost!r}")
        if not center.isfinite().all():
            raise ValueError("center must be finite; some of it is not")
    if condition is None:
        if condition_weight is not None:
            raise ValueError("condition_weight needs embeddings as condition; there is no condition")
    elif mode == "knn":
        raise ValueError("condition serves mode 'linear' only; for 'knn' pass center=class_means(...)[labels]")
    else:
        check_condition(condition, condition_weight, len(latents))
        if condition.is_floating_point() and cost != "inner":
            raise ValueError(f"embeddings as condition need cost 'inner', got {cost!r}: their weight has its units")


def check_latents(latents: Tensor) -> None:
    """Refuse latents that are not (B, ...) of finite floating point numbers, B at least 1, with a ValueError."""
    if latents.dim() < 2 or not len(latents) or not latents.is_floating_point():
        raise ValueError(f"latents must be floating point of shape (B, ...), got {latents.dtype} {list(latents.shape)}")
    if not latents.isfinite().all():
        raise ValueError("latents must be finite; some are not")


def check_condition(condition: Tensor, weight: float | None, rows: int) -> None:
    """Refuse what is neither groups (rows,) nor finite embeddings (rows, E) with a weight, with a ValueError."""
    if condition.is_floating_point():
        if condition.dim() != 2 or len(condition) != rows or not condition.isfinite().all():
            raise ValueError(
                f"embeddings as condition must be finite of shape ({rows}, E), got {list(condition.shape)}"
            )
        if weight is None or not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"embeddings as condition need a finite condition_weight of at least 0, got {weight}")
        return
    if condition.shape != (rows,):
        raise ValueError(f"integer condition must have shape ({rows},), got {list(condition.shape)}")
    if weight is not None:
        raise ValueError("condition_weight is for embeddings; integer groups never exchange noise")
