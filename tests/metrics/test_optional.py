"""ImageReward and MUSIQ against stand-ins with the packages' public interfaces; the real ones need their weights."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from hybridlib.metrics.optional import load_optional


class FakeReward(torch.nn.Linear):
    def score(self, prompt: str, image: Image.Image) -> float:
        assert isinstance(prompt, str)
        return len(prompt) - image.width / 10


class FakeMusiq(torch.nn.Linear):
    shapes: ClassVar[list[tuple[int, ...]]] = []

    def forward(self, pixels):
        self.shapes.append(tuple(pixels.shape))
        assert 0 <= pixels.min() <= pixels.max() <= 1
        return 100 * pixels.mean(dim=(1, 2, 3))[:, None]


def image_reward_load(name, device):
    assert (name, device) == ("ImageReward-v1.0", "cpu")
    return FakeReward(1, 1)


def create_metric(name, device):
    assert (name, device) == ("musiq-spaq", torch.device("cpu"))
    return FakeMusiq(1, 1)


@pytest.fixture
def fakes(monkeypatch):
    monkeypatch.setitem(sys.modules, "ImageReward", SimpleNamespace(load=image_reward_load))
    monkeypatch.setitem(sys.modules, "pyiqa", SimpleNamespace(create_metric=create_metric))
    monkeypatch.setattr(FakeMusiq, "shapes", [])


def test_scores(fakes):
    metrics, missing = load_optional("cpu")
    assert ([metric.name for metric in metrics], missing) == (["image_reward", "musiq"], [])
    images = [Image.new("RGB", (20, 20), (51,) * 3), Image.new("RGB", (1024, 300), (102,) * 3)]
    reward, musiq = (metric.score(images, ["a", "a cat"]) for metric in metrics)
    np.testing.assert_allclose(reward, [1 - 2, 5 - 102.4])
    np.testing.assert_allclose(musiq, [0.2, 0.4], atol=1e-6)
    assert reward.dtype == musiq.dtype == np.float64
    assert FakeMusiq.shapes == [(1, 3, 20, 20), (1, 3, 150, 512)]  # small images stay as they are


def test_reduction_takes_no_antialiasing(fakes):
    """Stripes of one pixel vanish under antialiasing; here the few sampled ones survive."""
    stripes = np.zeros((4, 1536, 3), dtype=np.uint8)
    stripes[:, 1::3] = 255  # at a third of the size, bilinear sampling falls on exactly these columns
    _, musiq = load_optional("cpu")[0]
    np.testing.assert_allclose(musiq.score([Image.fromarray(stripes)], [""]), [1.0], atol=1e-6)


def test_identity_tells_weights_apart(fakes):
    torch.manual_seed(0)
    first, _ = load_optional("cpu")
    torch.manual_seed(0)
    same, _ = load_optional("cpu")
    other, _ = load_optional("cpu")
    assert [m.identity for m in first] == [m.identity for m in same]
    assert not {m.identity for m in first} & {m.identity for m in other}
    assert first[1].identity.startswith("MUSIQ-SPAQ, pyiqa ")


def test_missing_packages_and_weights(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no\nweights")

    monkeypatch.setitem(sys.modules, "ImageReward", None)
    monkeypatch.setitem(sys.modules, "pyiqa", SimpleNamespace(create_metric=refuse))
    metrics, missing = load_optional("cpu")
    assert metrics == []
    assert missing[0].startswith("ImageReward is left out: its package cannot be imported")
    assert missing[1] == "MUSIQ is left out: it cannot be loaded (no weights)."


def test_bad_input(fakes):
    (reward, _), _ = load_optional("cpu")
    with pytest.raises(ValueError, match="images and prompts must be equal in number, got 1 and 0"):
        reward.score([Image.new("RGB", (8, 8))], [])
