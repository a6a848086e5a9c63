"""Protocols of published evaluations: parameter files in `data/protocols`, their captions, their images.

They state what papers often do not: at which size images are compared, how real images get to that size, and whether
anything was stored as JPEG on the way. `evaluation` runs them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from ..paths import ROOT
from .parameters import Parameters
from .parameters.base import Scale, Seed

if TYPE_CHECKING:
    from PIL.Image import Image

PROTOCOLS = ROOT / "data" / "protocols"


class Protocol(Parameters):
    """How images are made and compared."""

    notebook = "protocol"

    task: Literal["text-to-image", "reconstruction"] = "text-to-image"
    count: int = Field(ge=2)  # captions, or images of a reconstruction, from the first on
    image_size: int = Field(512, ge=8, le=4096)  # pixels a side that the model makes or reads
    compared_size: int = Field(256, ge=8, le=4096)  # pixels a side at which metrics see both sets
    reference_fit: Literal["squash", "crop"] = "squash"  # real images: aspect ratio given up, or centre kept
    jpeg_quality: int | None = Field(None, ge=1, le=95)  # JPEG before and after resizing, as published; None: lossless
    num_inference_steps: int = Field(25, ge=1, le=1000)
    guidance_scale: Scale = 7.5
    seed: Seed = 0  # image i has seed + i, so it depends on no batch size and survives a restart
    batch_size: int = Field(16, ge=1, le=4096)
    clip_model: str = "ViT-L-14-336"


class Caption(NamedTuple):
    """What one image is drawn from."""

    name: str  # of the image, without suffix
    text: str
    negative: str = ""


def named(name: str) -> Protocol:
    """A protocol of `data/protocols`, or a parameter file.

    Raises:
        ValueError: one sentence, if there is none, or a parameter is wrong.
    """
    path = PROTOCOLS / f"{name}.yaml"
    if not path.is_file() and not Path(name).is_file():
        raise ValueError(f"no protocol {name!r}; there are {sorted(p.stem for p in PROTOCOLS.glob('*.yaml'))}")
    return Protocol.from_yaml(path if path.is_file() else Path(name))


def read_captions(path: Path, count: int) -> list[Caption]:
    """The first `count` captions of a file.

    A .json file is COCO's (`captions_val2014.json`): one caption an image, its first by annotation id, images by id.
    A .csv file has the columns file_name and text, and may have negative: the list of 30,000 captions that BK-SDM
    fixed, and Hybrid SD after it, is of this kind. A .txt file has one caption a line.

    Raises:
        ValueError: one sentence, if the file is missing, of another kind, lacks something, or is too short.
    """
    readers = {".json": _from_coco, ".csv": _from_csv, ".txt": _from_lines}
    if not path.is_file() or path.suffix not in readers:
        raise ValueError(f"captions = {path}: expected a file of captions, one of {', '.join(readers)}")
    captions = [caption for caption, _ in zip(readers[path.suffix](path), range(count), strict=False)]
    if len(captions) < count:
        raise ValueError(f"captions = {path}: count = {count} captions are asked for, the file has {len(captions)}")
    for caption in captions:
        if not caption.text or not caption.name:
            raise ValueError(f"captions = {path}: {caption} lacks its text or name")
    if len({caption.name for caption in captions}) < count:
        raise ValueError(f"captions = {path}: two captions have the same image name")
    return captions


def _from_coco(path: Path) -> Iterator[Caption]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
        notes = sorted((note["image_id"], note["id"], note["caption"]) for note in content["annotations"])
        first: dict[int, str] = {}
        for image, _, text in notes:
            first.setdefault(image, text.strip())  # COCO's captions have stray spaces and line ends
        yield from (Caption(names[image], text) for image, text in first.items())
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"captions = {path}: this is no caption file of COCO ({error!r})") from None


def _from_csv(path: Path) -> Iterator[Caption]:
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if "file_name" not in row or "text" not in row:
                raise ValueError(f"captions = {path}: needs the columns file_name and text, has {list(row)}")
            yield Caption(Path(row["file_name"]).stem, row["text"].strip(), (row.get("negative") or "").strip())


def _from_lines(path: Path) -> Iterator[Caption]:
    lines = path.read_text(encoding="utf-8").splitlines()
    yield from (Caption(f"{i:06}", line.strip()) for i, line in enumerate(lines) if line.strip())


def prepared(image: Image, protocol: Protocol, real: bool = False) -> tuple[bytes, str]:
    """Bytes and suffix of an image at the compared size, as metrics will read it.

    A generated image goes the published way where `jpeg_quality` is set: JPEG, resized by PIL's bicubic filter, JPEG
    again. A real one is resized from what it is, and stored as the generated ones are.
    """
    from PIL import Image as Pillow

    size, bicubic = (protocol.compared_size,) * 2, Pillow.Resampling.BICUBIC
    image = image.convert("RGB")
    if protocol.jpeg_quality and not real:
        image = Pillow.open(BytesIO(_stored(image, protocol)[0]))
    if real and protocol.reference_fit == "crop":  # before resizing, so that nothing outside bleeds in
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        image = image.crop((left, top, left + side, top + side))
    if image.size != size:
        image = image.resize(size, bicubic)
    return _stored(image, protocol)


def _stored(image: Image, protocol: Protocol) -> tuple[bytes, str]:
    buffer = BytesIO()
    if protocol.jpeg_quality:
        image.save(buffer, "JPEG", quality=protocol.jpeg_quality)
        return buffer.getvalue(), ".jpg"
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue(), ".png"
