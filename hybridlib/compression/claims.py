"""What was published about compressed latents, beside the same quantities measured here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..intervals import NEGATIVE, POSITIVE, interval, verdict
from ..paths import PUBLISHED
from . import surfaces

Floats = NDArray[np.float64]
PARABOLA_BITS = (8, 6, 4)


def published_rows() -> pd.DataFrame:
    """The released rows of the first study, columns named as ours: step, ratio, run (the seed), psnr, ssim."""
    rows = pd.read_csv(PUBLISHED / "latent_compression_v1_rows.csv")
    return rows.rename(columns={"step_index": "step"}).assign(run=rows["seed"].astype(str))


def fit_surfaces(rows: pd.DataFrame) -> dict[str, surfaces.Fit]:
    """The published sigmoid, the identifiable exponential, the full quadratic and the cell means, fitted to rows.

    Args:
        rows: step, ratio, psnr, ssim; one row per image.
    """
    q = surfaces.normalise_scores(rows["psnr"], rows["ssim"])
    s, r = surfaces.min_max("step", rows["step"]), surfaces.min_max("ratio", rows["ratio"])
    models = (surfaces.fit_sigmoid, surfaces.fit_exponential, surfaces.fit_quadratic, surfaces.fit_cells)
    fits = [fit(s, r, q) for fit in models]
    return {fit.model: fit for fit in fits}


def surface_cells(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean normalised quality q of every (step, ratio) cell with its normalised place s, r."""
    q = surfaces.normalise_scores(rows["psnr"], rows["ssim"])
    s, r = surfaces.min_max("step", rows["step"]), surfaces.min_max("ratio", rows["ratio"])
    return pd.DataFrame({"s": s, "r": r, "q": q}).groupby(["s", "r"], as_index=False).mean()


def surface_table(**fitted: dict[str, surfaces.Fit]) -> pd.DataFrame:
    """What the rows determine in each model: parameters with standard errors, R2 and RMSE, a column per set of fits.

    B1 and B2 of the sigmoid are left out: only their combination is identifiable. So is every parameter of the cell
    means, which show the ceiling.
    """
    columns = {}
    for name, fits in fitted.items():
        lines: dict[tuple[str, str], str] = {}
        for model, fit in fits.items():
            for parameter, value in fit.parameters.items():
                if model == "cell means" or parameter in ("B1", "B2"):
                    continue
                error = fit.errors.get(parameter)
                lines[model, parameter] = (
                    f"{value:.4f} (at its bound)" if error is None else f"{value:.4f} ± {error:.4f}"
                )
            lines[model, "R²"], lines[model, "RMSE"] = f"{fit.r2:.4f}", f"{fit.rmse:.4f}"
        columns[name] = lines
    table = pd.DataFrame(columns)
    table.index.names = ["model", "parameter"]
    return table


def reference_differences(fits: dict[str, surfaces.Fit]) -> pd.DataFrame:
    """Fits of the published rows beside the reference fits: largest difference of each quantity, relative above 1."""
    reference = pd.read_csv(PUBLISHED / "latent_compression_v1_surface_fit.csv", index_col="form")
    sigmoid, exponential = reference.loc["sigmoid6_bounded"], reference.loc["exponential4"]
    expected = {
        "sigmoid": {n: sigmoid[n] for n in ("L", "K1", "K2")} | {"D": sigmoid["a_or_D"], "K1*B1+K2*B2": -sigmoid["c"]},
        "exponential": {n: exponential[n] for n in ("K1", "K2", "c")} | {"A": exponential["a_or_D"]},
    }
    rows = []
    for model, row in (("sigmoid", sigmoid), ("exponential", exponential)):
        ours = fits[model].parameters | {"R2": fits[model].r2, "RMSE": fits[model].rmse}
        theirs = expected[model] | {"R2": row["R2_rows"], "RMSE": row["RMSE_rows"]}
        worst = max(theirs, key=lambda n: abs(ours[n] - theirs[n]) / max(1, abs(theirs[n])))
        rows.append((model, worst, abs(ours[worst] - theirs[worst]) / max(1, abs(theirs[worst]))))
    return pd.DataFrame(rows, columns=["model", "largest in", "difference"])


def parabolas(scores: pd.DataFrame) -> pd.DataFrame:
    """The second study's parabolas of mean SSIM in the step, published and measured, for its three bit depths.

    Args:
        scores: bits, step, ssim; one row per image.
    """
    published = pd.read_csv(PUBLISHED / "latent_compression_v2_quadratic.csv").set_index("bits")
    rows: list[tuple[int | str | float, ...]] = []
    for bits in PARABOLA_BITS:
        part = scores[scores["bits"] == bits].groupby("step")["ssim"].mean()
        if len(part) < 3:
            continue
        fit = surfaces.fit_parabola(part.index.to_numpy(), part.to_numpy())
        theirs = [float(x) for x in published.loc[bits, ["a", "b", "c", "r2"]].to_numpy(float)]
        ours = [*fit.parameters.values(), fit.r2]
        for source, (a, b, c, r2) in (("published", theirs), ("measured", ours)):
            rows.append((bits, source, a, b, c, r2, *surfaces.vertex(a, b, c)))
    columns = ["bits", "source", "a", "b", "c", "R²", "best step", "SSIM there"]
    return pd.DataFrame(rows, columns=columns).set_index(["bits", "source"])


class Cube(NamedTuple):
    """Scores of a full grid, arrays of (runs, steps, ratios)."""

    steps: Floats
    ratios: Floats
    psnr: Floats
    ssim: Floats

    def peak(self, scores: Floats) -> int:
        """Index of the step of best mean over runs and ratios."""
        return int(scores.mean(axis=(0, 2)).argmax())


def cube(rows: pd.DataFrame) -> Cube:
    """Rows (run, step, ratio, psnr, ssim) as arrays.

    Raises:
        ValueError: if a run lacks a cell.
    """
    wide = rows.pivot(index="run", columns=["step", "ratio"], values=["psnr", "ssim"]).sort_index(axis=1)
    if wide.isna().any().any():
        raise ValueError("every run needs every step and ratio")
    steps, ratios = (np.sort(rows[name].unique()).astype(float) for name in ("step", "ratio"))
    shape = (len(wide), len(steps), len(ratios))
    return Cube(steps, ratios, *(wide[name].to_numpy(float).reshape(shape) for name in ("psnr", "ssim")))


def check(rows: pd.DataFrame, rounds: int = 300, level: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Test what the published study shows on rows of the same grid, with intervals over redrawn runs.

    Returns:
        One row per claim: claim, published (the same statistic of the published rows), measured, low, high, verdict.
    """
    measured, published = cube(rows), cube(published_rows())
    runs = len(measured.psnr)
    draws = np.random.default_rng(seed).integers(0, runs, (rounds, runs))
    table = []
    for statement, statistic, allowed in CLAIMS:
        replicates = [statistic(measured._replace(psnr=measured.psnr[d], ssim=measured.ssim[d])) for d in draws]
        low, high = interval(replicates, level)
        table.append((statement, statistic(published), statistic(measured), low, high, verdict(low, high, allowed)))
    return pd.DataFrame(table, columns=["claim", "published", "measured", "low", "high", "verdict"])


def _db_per_bit(c: Cube) -> float:
    """dB that halving the quantisation step gains, by the PSNR model on cell means."""
    i, d = np.meshgrid(c.steps, c.ratios, indexing="ij")
    return -surfaces.fit_psnr(i, d, c.psnr.mean(axis=0)).parameters["log2 D"]


def _agreement(c: Cube) -> float:
    """Spread of SSIM over runs after the first update, over that after the best one."""
    first, best = _spread(c)[[0, c.peak(c.ssim)]]
    return float(first / best) if best else float("nan")  # a draw of one run alone has no spread


def _spread(c: Cube) -> Floats:
    """Standard deviation of SSIM over runs at each step, mean over ratios."""
    deviation: Floats = c.ssim.std(axis=0, ddof=1).mean(axis=1)
    return deviation


CLAIMS: tuple[tuple[str, Callable[[Cube], float], tuple[float, float]], ...] = (
    (
        "a coarser step costs quality after every update (least loss of SSIM, finest to coarsest)",
        lambda c: float((c.ssim[:, :, 0] - c.ssim[:, :, -1]).mean(axis=0).min()),
        POSITIVE,
    ),
    ("halving the quantisation step gains about 5.4 dB of PSNR", _db_per_bit, (5.0, 6.02)),
    ("SSIM is best after update 18 to 20", lambda c: float(c.steps[c.peak(c.ssim)]), (18.0, 20.0)),
    ("PSNR is best after update 20 to 22", lambda c: float(c.steps[c.peak(c.psnr)]), (20.0, 22.0)),
    (
        "SSIM declines after its best update (last minus best)",
        lambda c: float(c.ssim[:, -1].mean() - c.ssim[:, c.peak(c.ssim)].mean()),
        NEGATIVE,
    ),
    (
        "seeds agree more the later the cut (spread of SSIM after the first update over the best one's)",
        _agreement,
        (1.0, np.inf),
    ),
)
