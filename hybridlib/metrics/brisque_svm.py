"""Converts the support vectors of the Python package `brisque` 0.2.0 to a safetensors file.

The package itself needs OpenCV and a compiled libsvm, and keeps its feature ranges in a pickle. This reads its two
files as data: the regression from libsvm's text format, the ranges from the pickle's opcodes, of which nothing is
executed.

`python -m hybridlib.metrics.brisque_svm` rewrites `data/models/brisque-svm/model.safetensors`.
"""

from __future__ import annotations

import argparse
import pickletools
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..files import write_atomically
from ..paths import MODELS
from .base import file_sha256, package_folder

FEATURES = 36
CONTAINERS = {"PROTO", "FRAME", "EMPTY_DICT", "EMPTY_LIST", "MARK", "MEMOIZE", "APPENDS", "SETITEMS", "STOP"}


def read_libsvm(text: str) -> dict[str, Tensor]:
    """Tensors of a libsvm regression: `support_vectors` (m, 36), `coefficients` (m,), `gamma` and `rho`, float64.

    `probA`, the width of libsvm's noise model, takes no part in a prediction.

    Raises:
        ValueError: if it is no epsilon regression with a Gaussian kernel, or its length is not what it says.
    """
    head, found, body = text.partition("\nSV\n")
    header = dict(line.split(maxsplit=1) for line in head.splitlines())
    if not found or (header.get("svm_type"), header.get("kernel_type")) != ("epsilon_svr", "rbf"):
        raise ValueError("expected a libsvm model with svm_type epsilon_svr and kernel_type rbf")
    rows = [line.split() for line in body.splitlines()]
    if len(rows) != int(header["total_sv"]):
        raise ValueError(f"the model should have {header['total_sv']} support vectors, got {len(rows)}")
    vectors = torch.zeros(len(rows), FEATURES, dtype=torch.float64)  # libsvm leaves out zeros
    for vector, row in zip(vectors, rows, strict=True):
        for entry in row[1:]:
            index, value = entry.split(":")
            if not 1 <= int(index) <= FEATURES:
                raise ValueError(f"feature indices must lie in 1..{FEATURES}, got {index}")
            vector[int(index) - 1] = float(value)
    return {
        "support_vectors": vectors,
        "coefficients": torch.tensor([float(row[0]) for row in rows], dtype=torch.float64),
        "gamma": torch.tensor(float(header["gamma"]), dtype=torch.float64),
        "rho": torch.tensor(float(header["rho"]), dtype=torch.float64),
    }


def read_ranges(pickled: bytes) -> dict[str, Tensor]:
    """`feature_minimum` and `feature_maximum` (36,), float64, of a pickled `{"min_": [...], "max_": [...]}`.

    Raises:
        ValueError: at any opcode that is not plain data, or if the content is another.
    """
    ranges: dict[str, list[float]] = {}
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "SHORT_BINUNICODE":
            ranges[str(argument)] = []
        elif isinstance(argument, float) and ranges:
            list(ranges.values())[-1].append(argument)
        elif opcode.name not in CONTAINERS:
            raise ValueError(f"a pickle of feature ranges holds no opcode {opcode.name}")
    if {key: len(values) for key, values in ranges.items()} != {"min_": FEATURES, "max_": FEATURES}:
        raise ValueError(f"expected {FEATURES} numbers for each of min_ and max_, got {sorted(ranges)}")
    low, high = (torch.tensor(ranges[key], dtype=torch.float64) for key in ("min_", "max_"))
    return {"feature_minimum": low, "feature_maximum": high}


def convert(source: Path) -> bytes:
    """The safetensors file made of `svm.txt` and `normalize.pickle` in a folder."""
    svm, ranges = source / "svm.txt", source / "normalize.pickle"
    tensors = read_libsvm(svm.read_text()) | read_ranges(ranges.read_bytes())
    checksums = {f"{file.name} sha256": file_sha256(file) for file in (svm, ranges)}
    return save(tensors, {"source": "brisque 0.2.0, Rehan Guha", "licence": "Apache-2.0", **checksums})


def installed() -> Path | None:
    """Folder of the installed package's two files, if it is installed."""
    package = package_folder("brisque")
    return package / "models" if package else None


def main(arguments: list[str] | None = None) -> None:
    """Command line, see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--source", type=Path, help="folder of svm.txt and normalize.pickle (default: the package's)")
    parser.add_argument("--target", type=Path, default=MODELS / "brisque-svm" / "model.safetensors")
    options = parser.parse_args(arguments)
    source = options.source or installed()
    if source is None:
        parser.error("the package brisque is not installed; install it, or give the folder of its files with --source")
    print(f"{options.target.name}: sha256 {write_atomically(options.target, convert(source))}")


if __name__ == "__main__":
    main()
