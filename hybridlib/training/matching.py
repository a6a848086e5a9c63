"""The permutation of noise behind linear assignment: exact, fast, and kept apart by conditions."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Cost = Literal["inner", "l2", "l2_fp16"]

WARM_ROWS = 128  # from this size on, starting the solver from entropic potentials is faster
WARM_ITERATIONS, WARM_TEMPERATURE = 8, 0.07  # the fastest of those tried at 1,024 rows, white and pink latents


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

    Raises:
        ValueError: one sentence about what is wrong with an argument.
    """
    check_cost(cost)
    check_latents(latents)
    check_condition(condition, condition_weight, len(latents), cost)
    if noise.shape != latents.shape:
        raise ValueError(f"noise must have the shape of latents {tuple(latents.shape)}, got {tuple(noise.shape)}")
    with torch.autocast(latents.device.type, enabled=False):
        x, e = latents.flatten(1).float(), noise.flatten(1).float()
        if condition is None:
            return _solve(_score(x, e, cost))
        if condition.is_floating_point():
            unit = F.normalize(condition.float(), dim=1)
            alike = (unit @ unit.T).mul_((condition_weight or 0.0) * spread(x))
            return _solve(_score(x, e, cost).add_(alike))
        permutation = torch.arange(len(x), device=x.device)
        counts = condition.unique(return_counts=True)[1].tolist()
        for rows in condition.argsort(stable=True).split(counts):
            if len(rows) > 1:
                permutation[rows] = rows[_solve(_score(x[rows], e[rows], cost))]
        return permutation


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


def spread(x: Tensor) -> float:
    """s * sqrt(D) of rows (B, D): the root mean square norm once they are centred, the unit of `condition_weight`."""
    return math.sqrt(float((x - x.mean(dim=0)).square().sum(dim=1).mean()))


def _score(x: Tensor, e: Tensor, cost: Cost) -> Tensor:
    """Minus the cost, (B, B) float32; rows are latents, columns noise. Centring the latents keeps the numbers small."""
    if cost == "inner":
        return torch.mm(x - x.mean(dim=0), e.T)
    if cost == "l2":
        return torch.cdist(x, e).neg_()
    return torch.cdist((0.1 * x).half().float(), (0.1 * e).half().float()).half().float().neg_()


def _solve(score: Tensor) -> Tensor:
    """The column of each row in the permutation of largest total score; exact, scipy's shortest augmenting paths."""
    if not _finite(score):
        raise ValueError("the cost of the assignment is not finite; latents or condition_weight are too large")
    cost = _reduced_cost(score) if len(score) >= WARM_ROWS else -score
    columns = linear_sum_assignment(cost.cpu().numpy())[1]
    return torch.from_numpy(columns).to(score.device, torch.int64)


def _reduced_cost(score: Tensor) -> Tensor:
    """The cost less row and column constants, which never change the optimum, near zero where the optimum lies.

    The constants are potentials of the entropic problem after a few Sinkhorn iterations. With them the solver finds
    short paths and takes a half to a fifth of the time.
    """
    scale = WARM_TEMPERATURE * float(score[:16].std())
    score = score - score.amax(dim=1, keepdim=True)
    score -= score.amax(dim=0)  # every row and column now has a zero as its maximum, so no sum below vanishes
    kernel = torch.exp(score / scale)
    v = torch.ones_like(kernel[0])
    for _ in range(WARM_ITERATIONS):
        u = 1 / (kernel @ v)
        v = 1 / (u @ kernel)
    rows, columns = scale * u.log(), scale * v.log()
    cost = score.neg_()
    if not (_finite(rows) and _finite(columns)):  # too large a spread within the matrix, or none
        return cost
    return cost.sub_(rows[:, None]).sub_(columns)


def _finite(values: Tensor) -> bool:
    """Whether all are finite; many times faster than `isfinite().all()`."""
    low, high = values.aminmax()
    return math.isfinite(low) and math.isfinite(high)


def check_cost(cost: str) -> None:
    """Refuse an unknown cost with a ValueError."""
    if cost not in get_args(Cost):
        raise ValueError(f"cost must be one of {', '.join(get_args(Cost))}, got {cost!r}")


def check_latents(latents: Tensor) -> None:
    """Refuse latents that are not (B, ...) of finite floating point numbers, B at least 1, with a ValueError."""
    if latents.dim() < 2 or not len(latents) or not latents.is_floating_point():
        raise ValueError(f"latents must be floating point of shape (B, ...), got {latents.dtype} {list(latents.shape)}")
    if not _finite(latents):
        raise ValueError("latents must be finite; some are not")


def check_condition(condition: Tensor | None, weight: float | None, rows: int, cost: str = "inner") -> None:
    """A ValueError unless it is None, groups (rows,), or finite embeddings (rows, E) with a weight."""
    if condition is None:
        if weight is not None:
            raise ValueError("condition_weight needs embeddings as condition; there is no condition")
        return
    if condition.is_floating_point():
        if condition.dim() != 2 or len(condition) != rows or not condition.isfinite().all():
            raise ValueError(
                f"embeddings as condition must be finite of shape ({rows}, E), got {list(condition.shape)}"
            )
        if weight is None or not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"embeddings as condition need a finite condition_weight of at least 0, got {weight}")
        if cost != "inner":
            raise ValueError(f"embeddings as condition need cost 'inner', got {cost!r}: their weight has its units")
        return
    if condition.shape != (rows,):
        raise ValueError(f"integer condition must have shape ({rows},), got {list(condition.shape)}")
    if weight is not None:
        raise ValueError("condition_weight is for embeddings; integer groups never exchange noise")
