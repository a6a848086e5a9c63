"""A pickle may run anything when it is read: no line of the package reads one, and one in disguise is refused."""

from __future__ import annotations

import ast
import hashlib
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import hybridlib
from hybridlib.denoising import models
from hybridlib.denoising.state import DenoiseState
from hybridlib.files import read_array, read_image, read_table, read_yaml
from hybridlib.metrics import inception
from hybridlib.paths import MODELS, NOTEBOOKS, ROOT
from hybridlib.scheduling.learners import training
from hybridlib.scheduling.learners.dqn import DqnTs
from hybridlib.scheduling.rules.identity import read_scheduler
from hybridlib.scheduling.system.model import Model
from hybridlib.training import perception
from hybridlib.training.semidiscrete import SemidiscreteCoupling

PACKAGE = Path(hybridlib.__file__).parent
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# A call that reads pickles -> what has to be said so that it does not: only tensors, no arrays of objects, plain YAML.
CALLS = {
    "torch.load": "weights_only=True",
    "torch.hub.load_state_dict_from_url": "weights_only=True",
    "np.load": "allow_pickle=False",
    "numpy.load": "allow_pickle=False",
    "np.lib.format.read_array": "allow_pickle=False",
    "pd.read_pickle": None,
    "pandas.read_pickle": None,
    "yaml.load": "_PlainLoader",
    "yaml.unsafe_load": None,
    "yaml.full_load": None,
}


def sources():
    yield from PACKAGE.rglob("*.py")
    yield from (ROOT / "benchmarks").rglob("*.py")
    yield from (ROOT / "docs").rglob("*.py")


def unpickling(code, name="code"):
    """Imports of unpicklers and calls that would unpickle, each as one line."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (f"{name}: import {a.name}" for a in node.names if a.name.split(".")[0] in UNPICKLERS)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLERS and not node.level:
            yield f"{name}: from {node.module} import"
        elif isinstance(node, ast.Call):
            called, text = ast.unparse(node.func), ast.unparse(node)
            if called in CALLS and (CALLS[called] is None or CALLS[called] not in text):
                yield f"{name}: {text}"


def test_no_line_of_the_package_reads_pickles():
    found = [line for path in sources() for line in unpickling(path.read_text(), path.name)]
    assert found == ["inception.py: import pickle"]  # the name of an exception, and nothing else, is taken from it
    text = (PACKAGE / "metrics" / "inception.py").read_text()
    assert text.count("pickle.") == text.count("pickle.UnpicklingError") == 1
    for notebook in NOTEBOOKS.glob("*.ipynb"):
        assert not any(word in notebook.read_text() for word in ("pickle", "torch.load", "np.load", "joblib")), notebook


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "yaml.load(text, yaml.Loader)",
    ],
)
def test_the_search_finds_what_it_looks_for(line):
    assert list(unpickling(line))


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "sprung")


@pytest.fixture
def sprung(tmp_path):
    return tmp_path / "sprung"


@pytest.fixture(params=["pickle", "torch.save", "array"])
def trap(request, tmp_path, sprung):
    """Bytes that run code where they are unpickled: plain, as torch saves them, as an array of objects."""
    file = tmp_path / "trap"
    if request.param == "pickle":
        file.write_bytes(pickle.dumps({"weights": Trap(sprung)}))
    elif request.param == "torch.save":
        torch.save({"weights": Trap(sprung), "tensor": torch.zeros(3)}, file)
    else:
        with file.open("wb") as opened:
            np.save(opened, np.array([Trap(sprung)], dtype=object), allow_pickle=True)
    return file.read_bytes()


def test_the_traps_work(trap, tmp_path, sprung):
    (tmp_path / "x").write_bytes(trap)
    if trap[:6] == b"\x93NUMPY":
        np.load(tmp_path / "x", allow_pickle=True)
    elif trap[:2] == b"PK":
        torch.load(tmp_path / "x", weights_only=False)
    else:
        pickle.loads(trap)
    assert sprung.read_text() == "sprung"


READERS = {
    "state": (".safetensors", DenoiseState.load),
    "table": (".parquet", read_table),
    "image": (".png", read_image),
    "parameters": (".yaml", read_yaml),
    "checkpoint": (".safetensors", lambda p: training.load(DqnTs(Model.draw(), (0,)), p)),
    "scheduler": (".safetensors", read_scheduler),
    "coupling": (".safetensors", lambda p: SemidiscreteCoupling.load(p, torch.zeros(2, 1, 1, 1))),
    "perceptual weights": (".safetensors", lambda p: perception._tensors(p, "weights")),
    "published perceptual weights": (".pth", lambda p: perception._tensors(p, "weights")),
    "Inception weights": (".pth", inception.check),
}


@pytest.mark.parametrize(("suffix", "read"), READERS.values(), ids=READERS)
def test_a_pickle_in_disguise_is_refused_and_runs_nothing(trap, tmp_path, sprung, suffix, read):
    path = tmp_path / f"disguised{suffix}"
    path.write_bytes(trap)
    with pytest.raises(Exception):  # noqa: B017 - ours, or of safetensors, or of torch's reader of tensors
        read(path)
    assert not sprung.exists()


def test_a_cached_array_of_objects_is_made_again(trap, tmp_path, sprung):
    (tmp_path / "a.npy").write_bytes(trap + hashlib.sha256(trap).digest())  # whoever wrote it knows the checksum
    assert read_array(tmp_path / "a.npy") is None
    assert not sprung.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"])
def test_a_model_with_a_pickle_for_weights_is_refused_and_runs_nothing(trap, tmp_path, sprung, name):
    """In disguise, and as diffusers would read it, were it not asked for safetensors."""
    folder = tmp_path / "model"
    shutil.copytree(MODELS / "mini-sd3", folder)
    for weights in (folder / "transformer").glob("*.safetensors"):
        weights.unlink()
    (folder / "transformer" / name).write_bytes(trap)
    with pytest.raises(Exception):  # noqa: B017 - of diffusers or safetensors
        models.load(str(folder), device="cpu")
    assert not sprung.exists()
