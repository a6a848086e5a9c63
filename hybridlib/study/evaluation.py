"""Published evaluations of text-to-image models and autoencoders: images out of a protocol, one row of metrics.

`python -m hybridlib.study.evaluation coco2014-30k MODEL --captions FILE --references FOLDER --out FOLDER`
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..metrics.inception import check, fid_and_is
from .protocols import Caption, Protocol, named, prepared, read_captions

if TYPE_CHECKING:
    import pandas as pd

    from ..denoising.trajectory import Trajectory
    from ..metrics.alignment import ClipAlignment
    from ..metrics.distribution import Features

PICTURES = (".png", ".jpg", ".jpeg")
CHUNK = 128  # images whose features are remembered together


def generate(
    pipeline: Any,
    captions: Sequence[Caption],
    protocol: Protocol,
    out: Path,
    trajectory_of: Callable[[Caption, int], Trajectory] | None = None,
    **options: Any,
) -> list[Path]:
    """One image a caption, at the compared size, in `out`; what is there already is not made again.

    Args:
        trajectory_of: caption and seed to what is run; one prompt from noise to image by default. A hybrid of models
            or prompts is another.
        options: for `sampler.sample`, such as `denoisers`.
    """
    from ..denoising.sampler import sample
    from ..denoising.trajectory import Trajectory
    from ..files import write_atomically

    def plain(caption: Caption, seed: int) -> Trajectory:
        steps = protocol.num_inference_steps
        return Trajectory.plain(caption.text, seed, protocol.guidance_scale, caption.negative, steps)

    suffix = ".jpg" if protocol.jpeg_quality else ".png"
    paths = [out / f"{caption.name}{suffix}" for caption in captions]
    todo = [i for i, path in enumerate(paths) if not path.is_file()]
    options |= {"num_inference_steps": protocol.num_inference_steps, "batch_size": 2 * protocol.batch_size}
    options |= {"height": protocol.image_size, "width": protocol.image_size}
    for first in range(0, len(todo), protocol.batch_size):
        batch = todo[first : first + protocol.batch_size]
        trajectories = [(trajectory_of or plain)(captions[i], protocol.seed + i) for i in batch]
        images = sample(pipeline, trajectories, **options).images()
        for i, image in zip(batch, images, strict=True):
            write_atomically(paths[i], prepared(image, protocol)[0])
    return paths


def references(folder: Path, protocol: Protocol, out: Path, count: int | None = None) -> list[Path]:
    """The images of a folder, or its first `count` by name, at the compared size, in `out`.

    Raises:
        ValueError: if there are no images, or fewer than `count`.
    """
    from ..files import read_image, write_atomically

    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in PICTURES)
    if len(found) < max(2, count or 0):
        raise ValueError(f"references = {folder}: {max(2, count or 0)} images are needed, there are {len(found)}")
    suffix = ".jpg" if protocol.jpeg_quality else ".png"
    paths = []
    for path in found[:count]:
        paths.append(out / f"{path.stem}{suffix}")
        if not paths[-1].is_file():
            write_atomically(paths[-1], prepared(read_image(path), protocol, real=True)[0])
    return paths


def reconstruct(vae: Any, folder: Path, protocol: Protocol, out: Path) -> tuple[list[Path], list[Path]]:
    """The first images of a folder, centres cropped to the image size, and what an autoencoder makes of them.

    Both in folders of `out`; the posterior's mean is decoded.
    """
    import numpy as np
    import torch
    from PIL import Image as Pillow

    from ..files import read_image, write_atomically

    if protocol.compared_size != protocol.image_size:
        sizes = protocol.compared_size, protocol.image_size
        raise ValueError("compared_size must equal image_size for a reconstruction, got {} and {}".format(*sizes))
    cropped = protocol.model_copy(update={"reference_fit": "crop"})
    originals = references(folder, cropped, out / "originals", protocol.count)
    paths = [out / "reconstructions" / path.name for path in originals]
    for original, path in zip(originals, paths, strict=True):
        if path.is_file():
            continue
        pixels = torch.from_numpy(np.array(read_image(original))).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.inference_mode():
            encoded = vae.encode(pixels.to(vae.device, vae.dtype))
            latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
            decoded = vae.decode(latents).sample[0].float().cpu()
        array = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        write_atomically(path, prepared(Pillow.fromarray(array), protocol)[0])
    return originals, paths


def scores(
    images: Sequence[Path],
    real: Sequence[Path],
    clip_model: str,
    captions: Sequence[Caption] = (),
    inception: Path | None = None,
) -> pd.DataFrame:
    """One row: CLIP score with captions, Frechet distance and CMMD in features of the same CLIP, and FID and IS where
    Inception weights are given, for which each set must fill a folder of its own. The features are named in the row:
    only Inception's make a FID."""
    import pandas as pd

    from ..metrics.alignment import ClipAlignment
    from ..metrics.distribution import cmmd, frechet_distance

    clip = ClipAlignment.load(clip_model)
    ours, theirs = (_features(paths, clip) for paths in (images, real))
    row: dict[str, Any] = {"images": len(images), "references": len(real), "features": clip_model}
    if captions:
        texts = clip.text_features([caption.text for caption in captions]).numpy()
        row["clip_score"] = float((ours.astype(float) * texts).sum(1).mean())
    row |= {"frechet_distance": frechet_distance(ours, theirs), "cmmd": cmmd(ours, theirs)}
    if inception is not None:
        row |= fid_and_is(_folder(images), _folder(real), inception)
    return pd.DataFrame([row])


def compare(folder: Path, reference: Path, clip_model: str, inception: Path | None = None) -> pd.DataFrame:
    """The row of `scores` for all images below two folders.

    Raises:
        ValueError: one sentence, if a folder holds fewer than two images, or model or weights are missing.
    """
    if inception is not None:
        check(inception)
    sets = []
    for each in (folder, reference):
        sets.append([path for path in sorted(each.rglob("*")) if path.suffix.lower() in PICTURES])
        if len(sets[-1]) < 2:
            raise ValueError(f"{each} must hold at least two images, found {len(sets[-1])}")
    return scores(sets[0], sets[1], clip_model, inception=inception)


def _folder(paths: Sequence[Path]) -> Path:
    """The deepest folder that holds them all."""
    return Path(os.path.commonpath([path.parent.resolve() for path in paths]))


def _features(paths: Sequence[Path], clip: ClipAlignment) -> Features:
    """Features (n, D) of images, remembered by chunk beside their folder, so that a killed run goes on where it was."""
    import numpy as np

    from ..files import checksum, digest, read_array, read_image, write_array

    folder = _folder(paths)
    memory = folder.with_name(f".{folder.name}.features")
    parts = []
    for first in range(0, len(paths), CHUNK):
        chunk = paths[first : first + CHUNK]
        file = memory / f"{digest(clip.identity, [checksum(path) for path in chunk])}.npy"
        if (features := read_array(file)) is None:
            features = clip.image_features([read_image(path) for path in chunk]).numpy()
            write_array(features, file)
        parts.append(features)
    return np.concatenate(parts)


def evaluate(
    protocol: Protocol,
    model: str,
    folder: Path,
    out: Path,
    captions: Path | None = None,
    inception: Path | None = None,
) -> pd.DataFrame:
    """Run a protocol with one model, or with its autoencoder, and write `out/scores.parquet`, the protocol beside it.

    Raises:
        ValueError: one sentence, before anything is generated, if captions, references or weights are missing.
    """
    from ..denoising.models import load
    from ..files import read_image, write_json, write_table
    from ..metrics.distortion import psnr

    if inception is not None:
        check(inception)
    if protocol.task == "reconstruction":
        real, images = reconstruct(load(model).vae, folder, protocol, out)
        table = scores(images, real, protocol.clip_model, inception=inception)
        table["psnr"] = float(psnr([read_image(path) for path in images], [read_image(path) for path in real]).mean())
    else:
        if captions is None:
            raise ValueError("captions must be given for a text-to-image protocol, got None")
        asked = read_captions(captions, protocol.count)
        real = references(folder, protocol, out / "references")
        images = generate(load(model), asked, protocol, out / "images")
        table = scores(images, real, protocol.clip_model, asked, inception)
    write_json({"model": model, **protocol.model_dump()}, out / "protocol.json")
    write_table(table, out / "scores.parquet")
    return table


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m hybridlib.study.evaluation", description=__doc__)
    parser.add_argument("protocol", help="a name in data/protocols, or a parameter file")
    parser.add_argument("model", help="a miniature's name, a folder or a hub id")
    parser.add_argument("--captions", type=Path, help="COCO's .json, a .csv or a .txt; not needed for autoencoders")
    parser.add_argument("--references", type=Path, required=True, help="folder of real images")
    parser.add_argument("--out", type=Path, required=True, help="folder for images and scores")
    parser.add_argument("--inception", type=Path, help="Inception weights, for FID and Inception Score")
    given = parser.parse_args()
    try:
        protocol = named(given.protocol)
        table = evaluate(protocol, given.model, given.references, given.out, given.captions, given.inception)
    except ValueError as error:
        parser.error(str(error))
    print(table.T.to_string(header=False))


if __name__ == "__main__":
    main()
