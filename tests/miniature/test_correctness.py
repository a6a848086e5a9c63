"""Attribute correctness against rendered scenes, whose captions it must read back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hybridlib.miniature.correctness import Correctness, attributes_correct, scenes_of
from hybridlib.miniature.judge import truth
from hybridlib.miniature.scenes import captions, contradict, render, sample_scenes
from hybridlib.prompts import PromptSet


@pytest.fixture(scope="module")
def scenes():
    return sample_scenes(192, seed=900_007)


def pictures(scenes):
    pixels = (render(scenes).permute(0, 2, 3, 1) * 255).round().byte().numpy()
    return [Image.fromarray(array) for array in pixels]


def test_captions_are_read_back(scenes):
    again = scenes_of(captions(scenes))
    assert captions(again) == captions(scenes)
    for name in ("count", "ground", "light"):
        assert torch.equal(getattr(again, name), getattr(scenes, name))
    pair = scenes.count == 2
    for name in ("shape", "colour", "size"):  # a caption of one object says nothing of a second
        assert torch.equal(getattr(truth(again), name)[pair], getattr(truth(scenes), name)[pair])
        assert torch.equal(getattr(truth(again), name)[:, 0], getattr(truth(scenes), name)[:, 0])


def test_every_personal_prompt_that_ships_can_be_judged():
    assert len(scenes_of(PromptSet.load("miniature").personal).count) == 20


@pytest.mark.parametrize(("kind", "low", "high"), [("correct", 0.95, 0.05), ("attributes", 0.95, 0.5)])
def test_true_pictures_score_and_wrong_ones_do_not(scenes, kind, low, high):
    """mini-judge reads 98 % of rendered scenes; the same pictures under contradicting captions are the control."""
    metric = Correctness.load(kind)
    images = pictures(scenes)
    right = metric.score(images, captions(scenes))
    wrong = metric.score(images, captions(contradict(scenes, seed=3)))
    assert right.mean() > low
    assert wrong.mean() < high
    assert right.dtype == np.float64
    assert metric.name == kind
    assert metric.identity.startswith(f"{kind} by mini-judge, weights sha256 ")


def test_the_share_of_attributes_is_counted_by_hand():
    one, two = "a large red circle on grass at noon", "a small red ring above a large blue star on snow at dusk"
    scenes = scenes_of([one, two])
    perfect = truth(scenes)
    assert attributes_correct(scenes, perfect).tolist() == [1.0, 1.0]
    shifted = perfect._replace(colour=(perfect.colour + 1) % 8, light=(perfect.light + 1) % 3)
    assert attributes_correct(scenes, shifted).tolist() == pytest.approx([4 / 6, 7 / 10])
    flat = perfect._replace(axis=1 - perfect.axis, size=torch.stack([perfect.size[:, 0], 1 - perfect.size[:, 1]], 1))
    assert attributes_correct(scenes, flat).tolist() == pytest.approx([1.0, 8 / 10])  # one object has no second


def test_bad_input():
    metric = Correctness.load()
    with pytest.raises(ValueError, match="a prompt must name size, colour and shape .*, got 'a circle'"):
        metric.score([Image.new("RGB", (64, 64))], ["a circle"])
    with pytest.raises(ValueError, match=r"reads images of 64 x 64 pixels, got \(32, 32\)"):
        metric.score([Image.new("RGB", (32, 32))], ["a large red circle on grass at noon"])
    with pytest.raises(ValueError, match="images and prompts must be equal in number, got 0 and 1"):
        metric.score([], ["a large red circle on grass at noon"])
    with pytest.raises(ValueError, match=r"kind must be one of \('correct', 'attributes'\), got 'best'"):
        Correctness.load("best")
