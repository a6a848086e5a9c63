"""Where a picture lies on what full runs measured: the quality surface of studies 05 and 06, the rates of study 07."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..hybrid import hiqm, planning
from ..study import results

if TYPE_CHECKING:
    import pandas as pd

    from ..metrics.similarity import SentenceSimilarity
    from .session import Picture, Session

QUALITY_FLOOR = 0.95  # that the planner is asked to keep
FAMILIES = ("adaptive (ours)", "rounding, range coder", "min-max, range coder")
PAIRS = 512  # similarities that are remembered


class Quality(NamedTuple):
    """Expected retained quality of one user by common step, on the schedule of the picture."""

    similarity: float  # of public and personal prompt
    fitted: bool  # whether the surface knows such similarities; else the nearest one that it knows stands in
    mean: np.ndarray  # (num_inference_steps,)
    safe_step: int  # latest common step that keeps `QUALITY_FLOOR`, as `planning.Plan` promises it


class Rates(NamedTuple):
    """Quality against bytes as study 07 measured it, and where the picture lies."""

    step: int  # of the study, nearest in noise level to the picture's handover
    lines: dict[str, tuple[np.ndarray, np.ndarray]]  # family -> bytes, PSNR (dB) of the final image
    raw_bytes: float
    message: int | None  # of the picture; None where nothing is coded
    psnr: float | None  # mean over its users, against the same picture without a codec


class Curves:
    """The two tables of full runs on mini-sd3, read and fitted once."""

    def __init__(self, similarity: SentenceSimilarity) -> None:
        scores = results.load("05_anchored")
        shared, alone = (hiqm.cube(scores, variant) for variant in ("wSIM", "woSIM"))
        self.surface = planning.fit_surface(shared.retained(alone))
        self._links: pd.DataFrame = results.load("07_links")
        self._levels = self._links.groupby("step")["sigma"].first()
        self._rates: dict[int, tuple[float, dict[str, tuple[np.ndarray, np.ndarray]]]] = {}  # one a step of the study
        self._similarity = similarity
        self._known: OrderedDict[tuple[str, str], float] = OrderedDict()

    def quality(self, picture: Picture) -> list[Quality]:
        """One curve a user."""
        low, high = self.surface.similarity_range
        sigmas, curves = picture.sigmas[:-1], []
        for prompt in picture.controls.personal_prompts:
            similarity = self._between(picture.controls.public_prompt, prompt)
            used = float(np.clip(similarity, low, high))
            mean = self.surface(sigmas, used)
            plan = self.surface.max_common_step(used, QUALITY_FLOOR, sigmas)
            curves.append(Quality(similarity, low <= similarity <= high, mean, plan.common_step))
        return curves

    def rates(self, picture: Picture, session: Session) -> Rates:
        """The curves at the step of study 07 whose noise level is nearest, and the picture's own point."""
        controls = picture.controls
        step = int((self._levels - picture.sigmas[controls.common_step]).abs().idxmin())
        raw, lines = self._measured(step)
        message = picture.link.message if controls.link_codec is not None else None
        coded = None if message is None else _psnr(picture, session.picture(controls.without_codec()))
        return Rates(step, lines, raw, message, coded)

    def _measured(self, step: int) -> tuple[float, dict[str, tuple[np.ndarray, np.ndarray]]]:
        """Bytes of 16-bit floats, and the curves of the families, at a step of study 07."""
        if step not in self._rates:
            means = self._links[self._links["step"] == step].groupby(["family", "codec"], as_index=False)
            table = means[["message_bytes", "psnr", "bits_per_value"]].mean().sort_values("message_bytes")
            raw = float((16 * table["message_bytes"] / table["bits_per_value"]).mean())
            parts = {family: table[table["family"] == family] for family in FAMILIES}
            lines = {f: (part["message_bytes"].to_numpy(), part["psnr"].to_numpy()) for f, part in parts.items()}
            self._rates[step] = raw, lines
        return self._rates[step]

    def _between(self, a: str, b: str) -> float:
        if (a, b) not in self._known:
            self._known[a, b] = float(self._similarity.matrix([a, b])[0, 1])
            if len(self._known) > PAIRS:
                self._known.popitem(last=False)
        return self._known[a, b]


def _psnr(picture: Picture, reference: Picture) -> float:
    """Mean over users, dB, of grey images as in study 07; infinite where they are the same."""
    from ..metrics.distortion import psnr

    return float(np.mean(psnr(picture.images, reference.images, grey=True)))
