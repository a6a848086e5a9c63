"""Quality of compressed latents as a function of step and strength: the published fits, and what they support.

Published v1 (step index i = 2..24, "ratio" r = quantisation step 0.25..1): one score a row, q = ln(score + 1e-6) with
score the mean of PSNR and SSIM, each min-max normalised over the whole table; s and r below are the step and the ratio
min-max normalised likewise. Every fit is by least squares on rows, unweighted.

Published v2: per bit depth, a parabola of the mean SSIM in the step index.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares

Floats = NDArray[np.float64]

_EPSILON = 1e-6
# The surfaces are so flat along some directions that default tolerances leave the fourth digit open.
_TIGHT: dict[str, Any] = {"xtol": 1e-14, "ftol": 1e-14, "gtol": 1e-14, "max_nfev": 20_000}
# The published start and bounds, in the published order of parameters.
SIGMOID_START = {"L": 1.0, "K1": -10.0, "B1": 0.5, "K2": 10.0, "B2": 0.5, "D": 0.0}
SIGMOID_BOUNDS = ((0.1, -50.0, 0.0, -50.0, 0.0, -5.0), (2.0, 50.0, 1.0, 50.0, 1.0, 5.0))


@dataclass(frozen=True)
class Fit:
    """A fitted model: what the data determine, with standard errors, and how well it follows the rows."""

    model: str
    parameters: dict[str, float]
    errors: dict[str, float]  # standard errors; absent where a parameter is at its bound or not identifiable
    r2: float
    rmse: float  # root mean squared residual, in units of the fitted quantity
    rows: int


def normalise_scores(psnr: ArrayLike, ssim: ArrayLike) -> Floats:
    """q = ln(score + 1e-6) of every row, PSNR in dB and SSIM each min-max normalised over the table, equally weighted.

    Raises:
        ValueError: if a score is not finite (the PSNR of identical images is not) or all are equal.
    """
    return np.log(0.5 * min_max("psnr", psnr) + 0.5 * min_max("ssim", ssim) + _EPSILON)


def min_max(column: str, values: ArrayLike) -> Floats:
    """Values mapped to 0..1 by their extremes.

    Raises:
        ValueError: naming the column, if a value is not finite or all are equal.
    """
    array = np.asarray(values, np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"{column} must hold finite numbers only, got {array[~np.isfinite(array)][:1]}")
    low, high = array.min(), array.max()
    if low == high:
        raise ValueError(f"{column} must hold different values to be normalised, got only {low}")
    return (array - low) / (high - low)


def sigmoid_surface(s: Floats, r: Floats, L: float, K1: float, B1: float, K2: float, B2: float, D: float) -> Floats:
    """The published form: q = L / (1 + exp(K1 (s - B1) + K2 (r - B2))) + D."""
    return L / (1 + np.exp(K1 * (s - B1) + K2 * (r - B2))) + D


def exponential_surface(s: Floats, r: Floats, A: float, K1: float, K2: float, c: float) -> Floats:
    """The identifiable form, the sigmoid's limit for large L: q = A - exp(K1 s + K2 r + c)."""
    return A - np.exp(K1 * s + K2 * r + c)


def surface(fit: Fit) -> Callable[[Floats, Floats], Floats]:
    """A fitted sigmoid, exponential or quadratic as a function of normalised step s and ratio r, broadcast."""
    p = fit.parameters
    if fit.model == "sigmoid":
        return lambda s, r: sigmoid_surface(s, r, *(p[name] for name in SIGMOID_START))
    if fit.model == "exponential":
        return lambda s, r: exponential_surface(s, r, *(p[name] for name in ("A", "K1", "K2", "c")))
    return lambda s, r: sum(p[n] * f for n, f in _quadratic_terms(s, r).items())  # type: ignore[return-value]


def fit_sigmoid(s: ArrayLike, r: ArrayLike, q: ArrayLike) -> Fit:
    """The published six-parameter sigmoid by bounded least squares from the published start.

    B1 and B2 enter only as K1 B1 + K2 B2: the other direction is not identifiable and depends on the start. The
    combination is reported under that name, with its error; B1 and B2 stand among the parameters for plotting, without.
    A parameter at its bound has no error; the others' are conditional on it.
    """
    s, r, q = _columns(s, r, q)
    names = tuple(SIGMOID_START)

    def residuals(p: Floats) -> Floats:
        return sigmoid_surface(s, r, *p) - q

    found = least_squares(
        residuals,
        list(SIGMOID_START.values()),
        bounds=SIGMOID_BOUNDS,
        **_TIGHT,
    )
    values = dict(zip(names, found.x.tolist(), strict=True))
    combination = values["K1"] * values["B1"] + values["K2"] * values["B2"]
    # In the coordinates (L, K1, K2, combination, D) the model is identifiable.
    e = np.exp(values["K1"] * s + values["K2"] * r - combination)
    slope = -values["L"] * e / (1 + e) ** 2
    columns = {"L": 1 / (1 + e), "K1": slope * s, "K2": slope * r, "K1*B1+K2*B2": -slope, "D": np.ones_like(s)}
    at_bound = np.isclose(values["L"], SIGMOID_BOUNDS[1][0], rtol=1e-6) or np.isclose(values["L"], SIGMOID_BOUNDS[0][0])
    if at_bound:
        columns.pop("L")
    errors = _errors(np.column_stack(list(columns.values())), found.fun)
    return _fit(
        "sigmoid",
        values | {"K1*B1+K2*B2": combination},
        dict(zip(columns, errors, strict=True)),
        q,
        sigmoid_surface(s, r, **values),
    )


def fit_exponential(s: ArrayLike, r: ArrayLike, q: ArrayLike) -> Fit:
    """The four-parameter exponential, which the data support where the sigmoid's plateau L runs to its bound."""
    s, r, q = _columns(s, r, q)

    def residuals(p: Floats) -> Floats:
        return exponential_surface(s, r, *p) - q

    def jacobian(p: Floats) -> Floats:
        e = -np.exp(p[1] * s + p[2] * r + p[3])
        return np.column_stack([np.ones_like(s), e * s, e * r, e])

    found = least_squares(residuals, (0.0, -1.0, 1.0, -1.0), jacobian, method="lm", **_TIGHT)
    named = _named(("A", "K1", "K2", "c"), found.x, _errors(jacobian(found.x), found.fun))
    return _fit("exponential", *named, q, exponential_surface(s, r, *found.x))


def fit_quadratic(s: ArrayLike, r: ArrayLike, q: ArrayLike) -> Fit:
    """The full quadratic, which can follow the decline of quality at late steps."""
    s, r, q = _columns(s, r, q)
    return _linear("quadratic", _quadratic_terms(s, r), q)


def _quadratic_terms(s: Floats, r: Floats) -> dict[str, Floats]:
    return {"1": np.ones_like(s), "s": s, "r": r, "s^2": s**2, "s*r": s * r, "r^2": r**2}


def fit_psnr(step_index: ArrayLike, quantisation_step: ArrayLike, psnr: ArrayLike) -> Fit:
    """PSNR in dB = const + a i + b i^2 + c log2 D, readable as dB a bit (the quantiser alone: -6.02).

    Args:
        step_index: i, 0-based index of the update after which the latent is quantised.
        quantisation_step: D = 1 / scale, in units of the latents.
    """
    i, d, y = _columns(step_index, quantisation_step, psnr)
    return _linear("psnr", {"const": np.ones_like(i), "i": i, "i^2": i**2, "log2 D": np.log2(d)}, y)


def fit_cells(step_index: ArrayLike, ratio: ArrayLike, q: ArrayLike) -> Fit:
    """The mean of every (step, ratio) cell: no function of step and ratio can do better."""
    i, r, q = _columns(step_index, ratio, q)
    cells, inverse = np.unique(np.column_stack([i, r]), axis=0, return_inverse=True)
    inverse = inverse.ravel()
    counts = np.bincount(inverse)
    means = np.bincount(inverse, q) / counts
    spread = np.sqrt(np.bincount(inverse, (q - means[inverse]) ** 2) / np.maximum(counts - 1, 1) / counts)
    return _fit("cell means", *_named([f"{a:g},{b:g}" for a, b in cells], means, spread), q, means[inverse])


def parabola(i: Floats, a: float, b: float, c: float) -> Floats:
    """The published v2 model of the mean SSIM at step index i: a i^2 + b i + c."""
    return a * i**2 + b * i + c


def vertex(a: float, b: float, c: float) -> tuple[float, float]:
    """Step index and value of a parabola's vertex."""
    return -b / (2 * a), c - b**2 / (4 * a)


def fit_parabola(step_index: ArrayLike, ssim: ArrayLike) -> Fit:
    """Published v2, one bit depth: a parabola in the raw step index through the mean SSIM of each step.

    Raises:
        ValueError: if there are fewer than three different steps.
    """
    i, y = _columns(step_index, ssim)
    if len(np.unique(i)) < 3:
        raise ValueError(f"step_index must hold at least 3 different steps, got {np.unique(i).tolist()}")
    return _linear("parabola", {"a": i**2, "b": i, "c": np.ones_like(i)}, y)


def _columns(*columns: ArrayLike) -> tuple[Floats, ...]:
    arrays = tuple(np.asarray(column, np.float64).ravel() for column in columns)
    if len({array.size for array in arrays}) != 1 or not arrays[0].size:
        raise ValueError(f"columns must be of one length and not empty, got {[array.size for array in arrays]}")
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("columns must hold finite numbers only")
    return arrays


def _linear(model: str, columns: dict[str, Floats], y: Floats) -> Fit:
    design = np.column_stack(list(columns.values()))
    values: Floats = np.linalg.lstsq(design, y, rcond=None)[0].astype(np.float64)
    return _fit(model, *_named(tuple(columns), values, _errors(design, y - design @ values)), y, design @ values)


def _errors(jacobian: Floats, residuals: Floats) -> Floats:
    """Standard errors of least squares; not a number where there are no more rows than parameters."""
    freedom = len(residuals) - jacobian.shape[1]
    variance = residuals @ residuals / freedom if freedom > 0 else np.nan
    return np.sqrt(variance * np.diag(np.linalg.inv(jacobian.T @ jacobian)))


def _named(names: Any, values: Floats, errors: Floats) -> tuple[dict[str, float], dict[str, float]]:
    return dict(zip(names, values.tolist(), strict=True)), dict(zip(names, errors.tolist(), strict=True))


def _fit(model: str, parameters: dict[str, float], errors: dict[str, float], y: Floats, predicted: Floats) -> Fit:
    residuals = y - predicted
    total = np.square(y - y.mean()).sum()
    r2 = float(1 - residuals @ residuals / total) if total > 0 else float("nan")
    errors = {name: float(error) for name, error in errors.items()}
    return Fit(model, parameters, errors, r2, float(np.sqrt(np.square(residuals).mean())), len(y))
