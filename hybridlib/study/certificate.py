"""How far results of one model on one machine depend on what they should not depend on: a drift certificate.

The same trajectories are run again in other company, another order, with other threads, in another precision and on
another device, and latents, pixels and scores are compared. In exact mode every row is denoised, decoded and scored by
itself: the shape of each forward is then decided by the row alone, and so are its bits, as long as the machine gives
equal bits for equal forwards; `check_exact` tries that out and refuses where it fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from ..denoising.trajectory import Segment, Trajectory
from .parameters import Settings

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from ..denoising.hybrid_call import HybridPipeline
    from ..metrics import Metric
    from ..prompts import PromptSet
    from .origin import Models

EXACT, EXACT_REVERSED, EXACT_ALONE = "one row at a time (exact)", "exact, rows in reverse", "exact, each row alone"
SCORES_ALONE = "scores, one image at a time"


class Drawn(NamedTuple):
    """What one run of the trajectories gave, in their order."""

    latents: Tensor  # (rows, channels, height, width) float64 on the CPU
    images: list[Image]
    seconds: float

    def of(self, rows: slice) -> Drawn:
        """Some of its rows."""
        return Drawn(self.latents[rows], self.images[rows], self.seconds)


class Certificate(NamedTuple):
    """The drift of a model: a row for each comparison, whether exact mode holds, and the seconds of both ways.

    `drift` has the columns comparison, rows, latents_max and latents_rms (differences of final latents), pixels_max
    (0..255), images_equal (share), psnr_db (lowest, infinite where all images are equal), and for each metric the
    largest difference of a score.
    """

    drift: pd.DataFrame
    exact_holds: bool
    seconds: dict[str, float]

    def __repr__(self) -> str:
        return f"Certificate({len(self.drift)} comparisons, exact mode {'holds' if self.exact_holds else 'fails'})"


def trajectories_of(prompts: PromptSet, num_inference_steps: int, users: int = 4, negatives: bool = True) -> list[Any]:
    """What is run: shared starts of three lengths and two seeds for each user, and each user without guidance."""
    steps, paths = num_inference_steps, []
    for index, prompt in enumerate(prompts.personal[:users]):
        negative = prompts.negative[index] if negatives else ""
        public = prompts.public_of(index)
        paths += [
            Trajectory.hybrid(public, prompt, common_step, seed, 2.0, 7.0, negative, steps)
            for common_step in (0, steps // 3, 2 * steps // 3)
            for seed in (1, 2)
        ]
        paths.append(Trajectory.plain(prompt, 3, 1.0, "", steps))
    return paths


def measure(
    pipeline: Any,
    trajectories: Sequence[Trajectory],
    settings: Settings,
    metrics: Sequence[Metric] = (),
    others: Iterable[tuple[str, Callable[[], HybridPipeline]]] = (),
) -> Certificate:
    """Run the trajectories in every way and compare.

    Args:
        settings: of the run that all others are compared with; `exact` is ignored.
        others: the same model in another precision or on another device: a name, and how to load it.
    """
    settings = settings._replace(exact=False)
    prompts = [str(t.segments[-1].prompt) for t in trajectories]
    paths, half = list(trajectories), slice(0, max(1, len(trajectories) // 2))

    def draw(rows: Sequence[Trajectory], model: Any = pipeline, **changes: Any) -> Drawn:
        return _draw(model, rows, settings._replace(**changes))

    reference = draw(paths)
    runs: list[tuple[str, Drawn, Drawn]] = [  # comparison, one side, the other
        ("the same again", reference, draw(paths)),
        ("rows in reverse", reference, _reversed(draw(paths[::-1]))),
        ("half of the rows", reference.of(half), draw(paths[half])),
    ]
    if pipeline.device.type == "cpu":
        threads, drawn = _with_other_threads(lambda: draw(paths))
        runs.append((f"{threads} threads", reference, drawn))
    for name, load in others:
        runs.append((name, reference, draw(paths, load())))
    exact = draw(paths, exact=True)
    alone = [draw([path], exact=True) for path in paths]
    exact_runs = [
        (EXACT_REVERSED, exact, _reversed(draw(paths[::-1], exact=True))),
        (EXACT_ALONE, exact, _joined(alone)),
    ]
    table = [_compared(*run, metrics, prompts) for run in [*runs, (EXACT, reference, exact), *exact_runs]]
    if metrics:
        table.append({"comparison": SCORES_ALONE, "rows": len(paths)} | _score_drift(reference, metrics, prompts))
    drift = pd.DataFrame(table)
    holds = drift[drift["comparison"].isin([EXACT_REVERSED, EXACT_ALONE])]
    exact_holds = bool((holds["latents_max"] == 0).all() and (holds["images_equal"] == 1).all())
    return Certificate(drift, exact_holds, {"batched": reference.seconds, "exact": exact.seconds})


def check_exact(pipeline: HybridPipeline, settings: Settings, models: Models) -> None:
    """Try exact mode on a few rows: together, in reverse and each alone they must give the same bits.

    Raises:
        ValueError: if they do not, or if a denoiser of your own takes part, which gets all rows at once.
    """
    from ..denoising.own import is_own

    names = ["", *(models.denoisers or {})]
    if own := [name for name, other in (models.denoisers or {}).items() if is_own(other)]:
        raise ValueError(
            f"exact = True: denoiser {own[0]!r} is one of your own and gets all rows at once; leave it out"
        )
    scales = (7.0, 1.0)  # with guidance and without
    paths = [
        Trajectory(seed, (Segment("", 0, 1, scale, denoiser=name),))
        for name in names
        for seed, scale in enumerate(scales, start=1)
    ]
    settings, options = settings._replace(exact=True), models._asdict()
    together, backwards = _draw(pipeline, paths, settings, options), _draw(pipeline, paths[::-1], settings, options)
    alone = _joined([_draw(pipeline, [path], settings, options) for path in paths])
    if not all(_same(together, other) for other in (_reversed(backwards), alone)):
        raise ValueError("exact = True: on this machine a row of this model gets other bits beside other rows")


def _draw(
    pipeline: HybridPipeline, rows: Sequence[Trajectory], settings: Settings, options: Mapping[str, Any] | None = None
) -> Drawn:
    from ..denoising.sampler import sample

    began = time.perf_counter()
    samples = sample(pipeline, rows, progress=False, **(options or {}), **settings.sampling())
    images = samples.images()
    return Drawn(samples.latents().double().cpu(), images, time.perf_counter() - began)


def _reversed(drawn: Drawn) -> Drawn:
    return Drawn(drawn.latents.flip(0), drawn.images[::-1], drawn.seconds)


def _joined(parts: Sequence[Drawn]) -> Drawn:
    import torch

    latents = torch.cat([part.latents for part in parts])
    return Drawn(latents, [image for part in parts for image in part.images], sum(part.seconds for part in parts))


def _same(a: Drawn, b: Drawn) -> bool:
    import torch

    pixels = zip(a.images, b.images, strict=True)
    return torch.equal(a.latents, b.latents) and all(x.tobytes() == y.tobytes() for x, y in pixels)


def _with_other_threads(draw: Callable[[], Drawn]) -> tuple[int, Drawn]:
    import torch

    usual = torch.get_num_threads()
    other = 2 if usual == 1 else 1
    try:
        torch.set_num_threads(other)
        return other, draw()
    finally:
        torch.set_num_threads(usual)


def _compared(comparison: str, a: Drawn, b: Drawn, metrics: Sequence[Metric], prompts: Sequence[str]) -> dict[str, Any]:
    latents = (a.latents - b.latents).abs()
    pairs = zip(a.images, b.images, strict=True)
    pixels = [np.abs(np.asarray(x, np.int16) - np.asarray(y, np.int16)) for x, y in pairs]
    errors = [float(np.square(difference / 255.0).mean()) for difference in pixels]
    with np.errstate(divide="ignore"):
        psnr = -10 * np.log10(max(errors))
    row: dict[str, Any] = {
        "comparison": comparison,
        "rows": len(pixels),
        "latents_max": float(latents.max()),
        "latents_rms": float(latents.square().mean().sqrt()),
        "pixels_max": int(max(difference.max() for difference in pixels)),
        "images_equal": float(np.mean([not difference.any() for difference in pixels])),
        "psnr_db": float(psnr),
    }
    texts = prompts[: len(pixels)]
    for metric in metrics:
        row[metric.name] = _largest(metric.score(a.images, texts) - metric.score(b.images, texts))
    return row


def _score_drift(drawn: Drawn, metrics: Sequence[Metric], prompts: Sequence[str]) -> dict[str, float]:
    """How far the scores of the same images depend on the batch that they are scored in."""
    pairs = list(zip(drawn.images, prompts, strict=True))
    return {
        m.name: _largest(m.score(drawn.images, prompts) - np.concatenate([m.score([i], [p]) for i, p in pairs]))
        for m in metrics
    }


def _largest(differences: np.ndarray) -> float:
    return float(np.abs(differences).max())
