"""Sigmoid curves with standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import leastsq

from .intervals import Array

_TIGHT = {"ftol": 1e-12, "xtol": 1e-12}


class SigmoidFit(NamedTuple):
    """Least-squares fit of Q(s) = L / (1 + exp(k (s - x0))) + C, the HIQM of the hybrid inference paper.

    L + C and C are the asymptotes, x0 the inflection in steps, k the steepness per step. The `se_` fields are the
    standard errors under independent residuals; residuals of these curves are systematic, so read them as a lower
    bound. R2 flatters for the same reason: `max_abs_residual` stands beside it.
    """

    L: float
    k: float
    x0: float
    C: float
    R2: float
    RMSE: float
    max_abs_residual: float
    se_L: float
    se_k: float
    se_x0: float
    se_C: float
    identified: bool  # the data hold both ends of the curve; else L, C and x0 may run away together

    def __call__(self, common_step: ArrayLike) -> Array:
        """The curve at any common step, fractional ones too."""
        return sigmoid(np.asarray(common_step, dtype=float), self.L, self.k, self.x0, self.C)

    def retained_until(self, share: float) -> float:
        """The common step at which the curve has fallen to `share` of its own value at 0; nan if it never does."""
        level = share * float(self(0.0))
        if not self.C < level < self.L + self.C:
            return float("nan")
        return self.x0 + float(np.log(self.L / (level - self.C) - 1)) / self.k


def sigmoid(s: Array, L: float | Array, k: float | Array, x0: float | Array, C: float | Array) -> Array:
    """L / (1 + exp(k (s - x0))) + C without overflow."""
    return L * np.exp(-np.logaddexp(0.0, k * (s - x0))) + C


def fit_sigmoid(
    common_step: ArrayLike, score: ArrayLike, start: Sequence[float] | None = None, max_evaluations: int = 10_000
) -> SigmoidFit:
    """Fit one curve by Levenberg-Marquardt from a start read off the data: range, slope, half-way step, minimum.

    Args:
        common_step, score: equally long, five points or more.
        start: L, k, x0, C to start from instead; the published fits began at 0.1, 0.1, 0.1, 0.1.
        max_evaluations: of the curve. Most searches end after some twenty; one that has not ended gives its last curve,
            which is not identified: parameters run away along a valley on which the curve itself hardly changes.

    Raises:
        ValueError: if there are fewer than five points, or values that are not finite.
    """
    s, q = np.asarray(common_step, dtype=float), np.asarray(score, dtype=float)
    if s.shape != q.shape or s.ndim != 1 or len(s) < 5:
        raise ValueError(f"a sigmoid needs five points or more in two equal columns, got {s.shape} and {q.shape}")
    if not (np.isfinite(s).all() and np.isfinite(q).all()):
        raise ValueError("a sigmoid needs finite common steps and scores")
    p0 = _start(s, q) if start is None else start
    parameters, unscaled, _, _, status = leastsq(
        lambda p: sigmoid(s, *p) - q,
        p0,
        Dfun=lambda p: _jacobian(s, *p),
        full_output=True,
        maxfev=max_evaluations,
        **_TIGHT,
    )
    squares = float(((q - sigmoid(s, *parameters)) ** 2).sum())
    covariance = np.full((4, 4), np.inf) if unscaled is None else unscaled * (squares / (len(s) - 4))
    if parameters[0] < 0:  # the same curve written with L > 0; a rising one then has k < 0
        L, k, x0, C = parameters
        parameters = np.array([-L, -k, x0, C + L])
        if unscaled is not None:
            turn = np.array([[-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]], dtype=float)
            covariance = turn @ covariance @ turn.T
    residuals = q - sigmoid(s, *parameters)
    spread = float(((q - q.mean()) ** 2).sum())
    quality = (
        1 - float((residuals**2).sum()) / spread if spread else float("nan"),
        float(np.sqrt((residuals**2).mean())),
        float(np.abs(residuals).max()),
    )
    errors = np.sqrt(np.diag(covariance)).tolist()
    ended = status in (1, 2, 3, 4)
    identified = bool(ended and errors[0] < parameters[0] / 2 and s.min() <= parameters[2] <= s.max())
    return SigmoidFit._make([*parameters.tolist(), *quality, *errors, identified])


def _start(s: Array, q: Array) -> tuple[float, float, float, float]:
    order = np.argsort(s)
    s, q = s[order], q[order]
    falling = q[0] >= q[-1]
    size = float(np.ptp(q)) or 1e-6
    half_way = float(s[np.abs(q - (q.min() + size / 2)).argmin()])
    steepness = 8 / (float(np.ptp(s)) or 1.0)
    return size, steepness if falling else -steepness, half_way, float(q.min())


def _jacobian(s: Array, L: float, k: float, x0: float, C: float) -> Array:
    unit = sigmoid(s, 1.0, k, x0, 0.0)
    slope = -L * unit * (1 - unit)
    return np.stack([unit, slope * (s - x0), -slope * k, np.ones_like(s)], axis=1)
