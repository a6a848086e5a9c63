"""Drift certificates and exact mode, tried on models whose drift is known because it is put in."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from factories import random_sd3

from hybridlib.commands import certify
from hybridlib.denoising import models
from hybridlib.denoising.trajectory import Trajectory
from hybridlib.files import checksum, read_table
from hybridlib.prompts import PromptSet
from hybridlib.study import certificate, origin, runner
from hybridlib.study.origin import Models
from hybridlib.study.parameters import AlignmentParameters, Settings
from hybridlib.study.runner import generate

SETTINGS = Settings(num_inference_steps=2, image_size=32, batch_size=16, max_sequence_length=4)


class Brightness:
    """A metric one can check by hand; `crowded` adds something for every image of the batch."""

    name, identity = "brightness", "mean of 8-bit values"

    def __init__(self, crowded=0.0):
        self.crowded = crowded

    def score(self, images, prompts):
        return np.array([np.asarray(image).mean() + self.crowded * len(images) for image in images])


@pytest.fixture
def pipeline():
    return random_sd3()


def paths():
    return certificate.trajectories_of(PromptSet.load("miniature"), 2, users=1)


def drifting(pipeline, monkeypatch, change):
    """Let the transformer's output depend on what it should not depend on."""
    forward = pipeline.transformer.forward

    def drifted(*arguments, **named):
        (output,) = forward(*arguments, **named)
        return (output + change(len(output)),)

    monkeypatch.setattr(pipeline.transformer, "forward", drifted)


def by_name(measured):
    return measured.drift.set_index("comparison")


@pytest.mark.slow
def test_what_does_not_drift_is_told_so(pipeline):
    measured = certificate.measure(pipeline, paths(), SETTINGS, [Brightness()])
    drift = by_name(measured)
    assert measured.exact_holds
    assert "exact mode holds" in str(measured)
    for comparison in ("the same again", certificate.EXACT_REVERSED, certificate.EXACT_ALONE):
        row = drift.loc[comparison]
        assert (row["latents_max"], row["pixels_max"], row["images_equal"], row["brightness"]) == (0, 0, 1, 0)
        assert row["psnr_db"] == np.inf
    # The network has a few thousand operations in float32, whose relative rounding is 6e-8.
    assert drift["latents_max"].max() < 1e-4
    assert drift.loc["half of the rows", "rows"] == len(paths()) // 2
    assert drift.loc[certificate.SCORES_ALONE, "brightness"] == 0
    assert set(measured.seconds) == {"batched", "exact"}


@pytest.mark.slow
def test_drift_that_is_put_in_is_found_and_exact_mode_removes_it(pipeline, monkeypatch):
    """The control: outputs that grow with the batch, scores that do, and another model in place of another device."""
    drifting(pipeline, monkeypatch, lambda rows: 1e-2 * rows)
    others = [("other weights", lambda: random_sd3(seed=1))]
    measured = certificate.measure(pipeline, paths(), SETTINGS, [Brightness(crowded=0.5)], others)
    drift = by_name(measured)
    assert drift.loc["the same again", "latents_max"] == 0
    assert drift.loc["rows in reverse", "latents_max"] < 1e-4  # as many rows
    for comparison in ("half of the rows", certificate.EXACT, "other weights"):
        assert drift.loc[comparison, "latents_max"] > 1e-3
        assert drift.loc[comparison, "images_equal"] < 1
        assert drift.loc[comparison, "psnr_db"] < 80
    assert drift.loc[certificate.SCORES_ALONE, "brightness"] == pytest.approx(0.5 * (len(paths()) - 1))
    assert measured.exact_holds  # a row of its own has the same batch every time


@pytest.mark.slow
def test_exactness_that_cannot_be_kept_is_refused(pipeline, tmp_path, monkeypatch):
    calls = iter(range(10**6))
    drifting(pipeline, monkeypatch, lambda rows: 1e-3 * next(calls))
    measured = certificate.measure(pipeline, paths(), SETTINGS)
    assert not measured.exact_holds
    assert by_name(measured).loc["the same again", "latents_max"] > 0
    table = pd.DataFrame({"path": ["a.png"], "trajectory": [Trajectory.plain("a star", 1, num_inference_steps=2)]})
    with pytest.raises(ValueError, match="exact = True: on this machine a row of this model gets other bits beside"):
        generate(table, pipeline, tmp_path, SETTINGS._replace(exact=True), progress=False)


class Own:
    identity = "mine"

    def __call__(self, latents, timestep, conditionings):
        return latents


def test_a_denoiser_of_ones_own_gets_all_rows_at_once_and_is_refused(pipeline):
    with pytest.raises(ValueError, match="exact = True: denoiser 'mine' is one of your own and gets all rows at once"):
        certificate.check_exact(pipeline, SETTINGS, Models({"mine": Own()}))


@pytest.mark.slow
def test_images_of_exact_mode_do_not_depend_on_their_company(pipeline, tmp_path, monkeypatch):
    """Under a drift that is put in, with the usual mode as control."""
    drifting(pipeline, monkeypatch, lambda rows: 0.05 * rows)
    rows = [Trajectory.hybrid("a", text, 1, 1, num_inference_steps=2) for text in ("a star", "a ring", "a cross")]
    table = pd.DataFrame({"path": ["0.png", "1.png", "2.png"], "trajectory": rows})
    for exact in (True, False):
        folder, settings = tmp_path / str(exact), SETTINGS._replace(exact=exact)
        generate(table, pipeline, folder / "all", settings, progress=False)
        generate(table.iloc[[2]], pipeline, folder / "one", settings, progress=False)
        assert (checksum(folder / "all" / "2.png") == checksum(folder / "one" / "2.png")) == exact


def test_exact_scores_are_those_of_single_images(tmp_path):
    from PIL import Image

    from hybridlib.files import write_image

    for number in range(3):
        write_image(Image.new("RGB", (8, 8), (number, 0, 0)), tmp_path / f"{number}.png")
    table = pd.DataFrame({"path": [f"{n}.png" for n in range(3)], "prompt": ["a"] * 3})
    metric = Brightness(crowded=1.0)
    exact = runner.score(table, tmp_path, [metric], progress=False, exact=True)["brightness"]
    usual = runner.score(table, tmp_path, [metric], progress=False)["brightness"]
    assert list(usual - exact) == [2.0] * 3
    assert list(runner.score(table, tmp_path, [metric], progress=False, exact=True)["brightness"]) == list(exact)


def test_exact_is_told_only_where_it_is_set():
    assert SETTINGS.as_json() == {
        "num_inference_steps": 2,
        "image_size": 32,
        "batch_size": 16,
        "max_sequence_length": 4,
        "shift": None,
    }
    exact = AlignmentParameters(exact=True).settings()
    assert exact.as_json()["exact"] is True
    assert exact.sampling()["batch_size"] == 1
    assert exact.sampling().keys() == SETTINGS.sampling().keys()


# --- the certificate of a model


@pytest.mark.slow
def test_a_study_records_the_certificate_of_its_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(origin, "OUTPUTS", tmp_path / "outputs")
    random_sd3().save_pretrained(tmp_path / "own")
    pipeline, parameters = models.load(str(tmp_path / "own"), "cpu"), AlignmentParameters()
    assert "certificate" not in origin.provenance(pipeline, parameters, [])
    file = certify.certify(str(tmp_path / "own"), "miniature", [], 2, 32, 16, 4, "cpu")
    assert origin.provenance(pipeline, parameters, [])["certificate"] == checksum(file)
    content = json.loads(file.read_text())
    assert content["exact_holds"] is True
    assert content["table"] == checksum(file.with_suffix(".parquet"))
    assert content["place"]["dtype"] == "float32"
    assert "NaN" not in file.read_text()
    assert "Infinity" not in file.read_text()
    drift = read_table(file.with_suffix(".parquet"), ("comparison", "latents_max", "pixels_max", "psnr_db"))
    assert [row["comparison"] for row in content["drift"]] == list(drift["comparison"])
    told = capsys.readouterr().out
    assert "exact mode holds: a row alone, in company and in reverse gives the same bits; it takes x" in told
    assert "bfloat16 on cpu" in told
    other = random_sd3(seed=1)
    assert "certificate" not in origin.provenance(other, parameters, [])  # of another model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, r"steps must lie in 1\.\.1000, got 0"),
        ({"batch_size": 2000}, r"batch_size must lie in 1\.\.1000, got 2000"),
        ({"metrics": ["clop"]}, "no metric 'clop'; did you mean 'clip'"),
        ({"prompts": "nothing"}, "no prompt set 'nothing'"),
        ({"model": "mini-nothing"}, "no miniature model 'mini-nothing'"),
    ],
)
def test_a_certificate_of_what_is_not_there_is_refused(changes, message):
    given = {"model": "mini-sd3", "prompts": "miniature", "metrics": [], "steps": 2, "image_size": 32}
    with pytest.raises(ValueError, match=message):
        certify.certify(**{**given, "batch_size": 8, "max_sequence_length": 1, **changes})
