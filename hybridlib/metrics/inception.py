"""FID and Inception Score of folders of images, by torch-fidelity, with Inception weights that lie here.

Optional: `pip install 'hybridlib[metrics]'`. Nothing is downloaded. These numbers mean what papers mean by them only
with the original Inception weights; in features of another network use `distribution` and name the network.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from .base import default_device, file_sha256

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"  # a release file of torch-fidelity


def identity(weights: Path) -> str:
    """One line: library and version, and the first 12 hex digits of the weights' SHA-256."""
    return f"FID and IS, torch-fidelity {version('torch-fidelity')}, Inception sha256 {file_sha256(weights)[:12]}"


def check(weights: Path) -> None:
    """Raise ValueError, in one sentence, unless torch-fidelity and a file of tensors are here."""
    import pickle
    from importlib.util import find_spec

    import torch

    if find_spec("torch_fidelity") is None:
        raise ValueError("FID and Inception Score need torch-fidelity: pip install 'hybridlib[metrics]'")
    if not weights.is_file():
        raise ValueError(
            f"weights = {weights}: there are no Inception weights; copy {WEIGHTS} from the releases of torch-fidelity, "
            "or leave out FID and Inception Score"
        )
    try:  # torch-fidelity itself reads with pickle, which may run anything: only a file of tensors gets that far
        torch.load(weights, map_location="meta", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"weights = {weights}: this is no file of tensors as torch saves them") from error


def fid_and_is(
    images: Path,
    references: Path | None,
    weights: Path,
    batch_size: int = 64,
    splits: int = 10,
    device: str | None = None,
) -> dict[str, float]:
    """Inception Score of a folder of images, and its FID against a folder of references if there is one.

    Images of a folder must be of one size; torch-fidelity resizes them to 299 as TensorFlow 1 did, as pytorch-fid does
    within 1e-3 of FID. What size they had before decides the number as much: say it.

    Args:
        splits: of the Inception Score, of which the mean is told; 10 is usual.

    Returns:
        "inception_score", "inception_score_std" over the splits, and "fid" with references.

    Raises:
        ValueError: one sentence, before any computing, if torch-fidelity, weights or images are missing.
    """
    check(weights)
    for name, folder in (("images", images), ("references", references)):
        if folder is not None and not any(folder.rglob("*.[pj][np]g")):
            raise ValueError(f"{name} = {folder}: there are no .png or .jpg images below this folder")
    from torch_fidelity import calculate_metrics

    options: dict[str, Any] = {"fid": references is not None}
    found = calculate_metrics(
        input1=str(images),
        input2=None if references is None else str(references),
        samples_find_deep=True,
        isc=True,
        isc_splits=splits,
        feature_extractor_weights_path=str(weights),
        batch_size=batch_size,
        cuda=(device or default_device()).startswith("cuda"),
        cache=False,
        save_cpu_ram=True,  # images are read here, not by more workers than there are cores
        verbose=False,
        **options,
    )
    scores = {name: float(found[f"inception_score_{name}"]) for name in ("mean", "std")}
    result = {"inception_score": scores["mean"], "inception_score_std": scores["std"]}
    return result | ({"fid": float(found["frechet_inception_distance"])} if references is not None else {})
