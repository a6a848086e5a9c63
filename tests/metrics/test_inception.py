"""FID and IS against numpy on the same network, whose weights are random: the numbers mean nothing here."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image

from hybridlib.metrics import inception

HAS = importlib.util.find_spec("torch_fidelity") is not None


def folder_of(path, seed, count=12, brightness=0):
    path.mkdir()
    generator = np.random.default_rng(seed)
    for i in range(count):
        low = generator.integers(0, 200, size=(4, 4, 3)) + brightness
        Image.fromarray(low.astype(np.uint8)).resize((32, 32)).save(path / f"{i:03}.png")
    return path


@pytest.mark.skipif(not HAS, reason="torch-fidelity is not installed")
@pytest.mark.slow
def test_fid_and_is_by_hand(tmp_path, monkeypatch):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Inception

    torch.manual_seed(0)
    weights = tmp_path / "inception.pth"
    with monkeypatch.context() as patch:  # the network as it is built, before it has read any weights
        patch.setattr(torch, "load", lambda *_, **__: None)
        patch.setattr(Inception, "load_state_dict", lambda *_: None)
        torch.save(Inception("x", ["2048"], "none").state_dict(), weights)
    a, b = folder_of(tmp_path / "a", 0), folder_of(tmp_path / "b", 1, brightness=50)
    network = Inception("x", ["2048", "logits_unbiased"], str(weights))
    features = {}
    for folder in (a, b):
        pixels = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
        features[folder] = [x.double().numpy() for x in network(torch.from_numpy(np.stack(pixels)).movedim(-1, 1))]
    first, second = (features[folder][0] for folder in (a, b))
    # With centred rows A and B, the trace of the root of A'A B'B is the nuclear norm of AB': exact, also where the
    # covariances are singular, as here.
    centred = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (first, second)]
    root = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    spread = sum(np.square(x).sum() for x in centred)
    fid = np.square(first.mean(0) - second.mean(0)).sum() + spread - 2 * root
    logits = features[a][1][np.random.RandomState(2020).permutation(12)]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    scores = [np.exp((q * (np.log(q) - np.log(q.mean(0)))).sum(1).mean()) for q in np.split(p, 2)]
    found = inception.fid_and_is(a, b, weights, batch_size=5, splits=2, device="cpu")
    assert found["inception_score"] == pytest.approx(np.mean(scores), rel=1e-5)
    assert found["inception_score_std"] == pytest.approx(np.std(scores), rel=1e-2, abs=1e-7)
    # torch-fidelity takes roots of 2048 eigenvalues, of which rounding leaves all but 11 near zero instead of at it
    assert found["fid"] == pytest.approx(fid, rel=1e-2)
    same = inception.fid_and_is(a, a, weights, device="cpu")["fid"]
    assert abs(same) < 0.01 * found["fid"]  # the control: no distance to itself, and one to darker images
    assert set(inception.fid_and_is(a, None, weights, device="cpu")) == {"inception_score", "inception_score_std"}
    assert "torch-fidelity" in inception.identity(weights)


def test_what_is_missing_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"need torch-fidelity: pip install 'hybridlib\[metrics\]'"):
        inception.check(tmp_path / "none.pth")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match="there are no Inception weights; copy weights-inception"):
        inception.fid_and_is(tmp_path, None, tmp_path / "none.pth")
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="no file of tensors"):
        inception.check(weights)
    torch.save({"run": print}, weights)  # a pickle that names a function
    with pytest.raises(ValueError, match="no file of tensors"):
        inception.check(weights)
    torch.save({"a": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match="there are no .png or .jpg images"):
        inception.fid_and_is(tmp_path, None, weights)
