"""The copied snippet, run in a namespace of its own, draws the bytes that the explorer shows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hybridlib.denoising import models
from hybridlib.explorer.code import snippet
from hybridlib.explorer.controls import Controls, codec_of
from hybridlib.explorer.session import Session

BASE = Controls(
    "a circle", ("a large red circle on grass", "a small yellow circle"), common_step=3, num_inference_steps=6
)
CASES = {
    "plain": {},
    "everything": {
        "public_guidance_scale": 3.5,
        "guidance_scale": 6.0,
        "negative_prompt": "a small blue circle",
        "shift": 1.5,
        "seed": 11,
        "codec": codec_of("rounding, range coder", 0.5),
    },
    "min-max": {"codec": codec_of("min-max, range coder", 5)},
    "ours": {"codec": codec_of("adaptive (ours)", 0.5), "negative_prompt": "a star", "shift": 2.0},
    "nothing shared": {"common_step": 0, "codec": codec_of("adaptive (ours)", 0.5)},
    "own shift, told": {"shift": 0.35},
}


@pytest.mark.parametrize("name", CASES)
def test_the_snippet_makes_the_same_images(mini, monkeypatch, name):
    session, controls = Session(mini), replace(BASE, **CASES[name])
    text = snippet(controls, "mini-sd3", session)
    own, loaded = mini.scheduler, []
    monkeypatch.setattr(models, "load", lambda model: loaded.append(model) or mini)  # the same weights, loaded once
    names = {}
    try:
        exec(compile(text, "snippet", "exec"), names)
    finally:
        mini.scheduler = own
    assert loaded == ["mini-sd3"]
    shown = session.picture(controls).images
    assert [image.tobytes() for image in names["images"]] == [image.tobytes() for image in shown]


def test_the_snippet_is_the_call_of_the_readme(mini):
    text = snippet(BASE, "mini-sd3", Session(mini))
    assert "images = pipe(" in text
    assert "common_step=3," in text
    assert "shift" not in text  # the model's own goes without saying


def test_a_folder_is_loaded_by_its_path(mini):
    assert "models.load('/data/sd3 medium')" in snippet(BASE, "/data/sd3 medium", Session(mini))
