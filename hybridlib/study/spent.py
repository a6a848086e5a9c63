"""What finished runs took in time and disk, which is what is known about runs that have not started.

Beside the provenance, not in it: times differ from run to run, provenance does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..files import read_json, write_json
from ..paths import OUTPUTS, RESULTS

if TYPE_CHECKING:
    from .parameters import SamplingParameters

SPENT = ".spent.json"
SHORTEST_S = 10.0  # a shorter run of your own says more about starting than about running


class Spent(NamedTuple):
    """What the images of one table took."""

    study: str
    model: str
    image_size: int  # pixels
    images: int
    nfe: int
    seconds: float
    bytes: int
    machine: str

    @property
    def seconds_per_nfe(self) -> float:
        """Decoding and writing of the images included."""
        return self.seconds / self.nfe

    @property
    def bytes_per_image(self) -> float:
        """Of the PNG files."""
        return self.bytes / self.images

    def __str__(self) -> str:
        return f"{self.study}: {self.images:,} images, {self.nfe:,} NFE in {duration(self.seconds)} ({self.machine})"


def write(parameters: SamplingParameters, images: Iterable[Path], nfe: int, seconds: float, target: Path) -> None:
    """Write `target`, whose name ends with `SPENT`, for the finished images of a table."""
    sizes = [image.stat().st_size for image in images]
    spent = Spent(
        study=f"{parameters.notebook}, profile {parameters.profile}",
        model=parameters.model,
        image_size=parameters.image_size,
        images=len(sizes),
        nfe=nfe,
        seconds=round(seconds, 1),
        bytes=sum(sizes),
        machine=_machine(),
    )
    write_json(spent._asdict(), target)


def known(model: str, image_size: int) -> list[Spent]:
    """Finished runs with this model at this size: your own in `outputs/`, else those that ship, largest first."""
    for files in (OUTPUTS.glob(f"*/*/*{SPENT}"), RESULTS.glob(f"*{SPENT}")):
        records = [record for file in sorted(files) if (record := read(file)) is not None]
        fitting = [r for r in records if (r.model, r.image_size) == (model, image_size) and r.seconds > SHORTEST_S]
        if fitting:
            return sorted(fitting, key=lambda record: -record.nfe)
    return []


def duration(seconds: float) -> str:
    """Seconds as one reads them: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _machine() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU threads"


def read(file: Path) -> Spent | None:
    """What a file tells; None of one that is damaged, without which an estimate can do."""
    try:
        return Spent(**read_json(file))
    except (ValueError, TypeError):
        return None
