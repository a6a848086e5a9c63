from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hybridlib.metrics import similarity
from hybridlib.metrics.base import package_folder
from hybridlib.metrics.similarity import MINILM_PACKAGE, SentenceSimilarity

TEXTS = ["a black cat asleep on a sofa", "a dark cat sleeping on the couch", "stock prices fell on Tuesday"]


@pytest.fixture(scope="module")
def folder():
    package = package_folder(MINILM_PACKAGE)
    if package is None:
        pytest.skip(f"the package {MINILM_PACKAGE} is not installed")
    return package / "model"


@pytest.fixture(scope="module")
def minilm(folder):
    return SentenceSimilarity.load(device="cpu")


def test_matrix(minilm):
    matrix = minilm.matrix(TEXTS)
    assert matrix.dtype == np.float64
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_array_equal(np.diag(matrix), np.ones(3))
    assert matrix[0, 1] > 0.7 > 0.3 > abs(matrix[0, 2])
    assert minilm.matrix([]).shape == (0, 0)
    assert "all-MiniLM-L6-v2, weights sha256 53aa51172d14" in minilm.identity


@torch.no_grad()
def test_against_the_model_by_hand(minilm, folder):
    """Mean over the tokens of the last layer, by transformers alone, one text at a time."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32)
    rows = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in TEXTS]
    expected = F.cosine_similarity(torch.stack(rows)[:, None], torch.stack(rows)[None], dim=-1)
    np.testing.assert_allclose(minilm.matrix(TEXTS), expected.numpy(), rtol=0, atol=1e-5)  # float32


def test_a_local_folder(minilm, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    local = SentenceSimilarity.load(str(tmp_path / "copy"), device="cpu")
    np.testing.assert_array_equal(local.matrix(TEXTS), minilm.matrix(TEXTS))


def test_altered_weights_are_refused(monkeypatch, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(similarity, "package_folder", lambda _: tmp_path)
    with pytest.raises(ValueError, match=r"should have SHA-256 53aa51172d14\.\.\., got "):
        SentenceSimilarity.load()


def test_absent_models(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setattr(similarity, "package_folder", lambda _: None)
    with pytest.raises(ValueError, match="the hub did not deliver it"):
        SentenceSimilarity.load()
    with pytest.raises(ValueError, match="holds no model.safetensors"):
        SentenceSimilarity.load(str(tmp_path))
