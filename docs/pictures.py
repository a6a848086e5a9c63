"""Draw the two pictures of README and site that need a model: `python docs/pictures.py`, half a minute on one core.

strip.jpg         users who share the first steps on mini-sd3, a row for each common step
first_minute.jpg  the strip above the HIQM collapse of study 06, drawn from the table that ships
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from hybridlib import figures
from hybridlib.denoising import models
from hybridlib.denoising.sampler import sample
from hybridlib.denoising.trajectory import Trajectory
from hybridlib.files import write_atomically
from hybridlib.hybrid import schedules
from hybridlib.paths import ROOT
from hybridlib.study import results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PUBLIC = "a star"
PERSONAL = (
    "a large yellow star on water at night",
    "a small red star on snow at noon",
    "a large green star on sand at noon",
    "a small orange star on stone at dusk",
    "a large blue star on wood at noon",
    "a small white star on grass at noon",
)
COMMON_STEPS, UPDATES, SEED = (0, 4, 12, 20), 28, 1
WIDTH = 1200  # pixels


def main() -> None:
    """Write both pictures into docs/."""
    figures.use_house_style()
    strip = draw(users())
    curves = schedules.curves_beside(results.load("05_schedules"))
    title = "Quality of the shared start under eleven noise schedules (mini-sd3), and of SD3 as published"
    collapse = draw(figures.collapse(curves, "SD3, published", resolution_gap=2 * np.log(128 / 8), title=title))
    for name, picture in (("strip", strip), ("first_minute", below(strip, collapse))):
        write_atomically(ROOT / "docs" / f"{name}.jpg", jpeg(picture))


def users() -> Figure:
    """Each user's image for several common steps: what they asked for, and how the shared start takes over."""
    paths = [Trajectory.hybrid(PUBLIC, text, step, SEED, 2.0, 7.0) for step in COMMON_STEPS for text in PERSONAL]
    images = sample(models.load("mini-sd3", device="cpu"), paths, max_sequence_length=1).images()
    rows = [images[first : first + len(PERSONAL)] for first in range(0, len(images), len(PERSONAL))]
    labels = ["nothing shared" if step == 0 else f"{step} of {UPDATES} steps shared" for step in COMMON_STEPS]
    title = f'Six users share the first steps under "{PUBLIC}" (mini-sd3, one seed)'
    return figures.image_grid(rows, labels, PERSONAL, title, cell=1.4)


def draw(figure: Figure) -> Image.Image:
    """A figure as an image of `WIDTH`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=160)
    image = Image.open(buffer).convert("RGB")
    return image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)


def jpeg(image: Image.Image) -> bytes:
    """The bytes of a JPEG file, fine enough for thin lines and letters."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, subsampling=0, optimize=True)
    return buffer.getvalue()


def below(upper: Image.Image, lower: Image.Image, gap: int = 30) -> Image.Image:
    """Two images of one width, one below the other, on white."""
    both = Image.new("RGB", (upper.width, upper.height + gap + lower.height), "white")
    both.paste(upper, (0, 0))
    both.paste(lower, (0, upper.height + gap))
    return both


if __name__ == "__main__":
    main()
