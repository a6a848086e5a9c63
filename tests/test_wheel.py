"""What is built for the package index works without a clone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import pytest

from hybridlib.paths import ROOT

USE = """
from pathlib import Path
import nbformat
import hybridlib
from hybridlib import paths, prompts
from hybridlib.denoising import models
from hybridlib.study import pages, reproduce, results
assert Path(hybridlib.__file__).is_relative_to({site!r}), hybridlib.__file__
images = models.load("mini-sd3", device="cpu")("a large red circle", num_inference_steps=2).images
assert images[0].size == (64, 64)
assert len(results.load("05_anchored")) > 1000
assert prompts.PromptSet.load("miniature").personal
assert reproduce.collect("smoke", ["01"])[0].notebook.is_file()
assert pages.render(nbformat.v4.new_notebook(), "a page").startswith("<!DOCTYPE html>")
assert paths.OUTPUTS == Path.cwd() / "outputs"
"""


@pytest.mark.slow
def test_a_wheel_holds_models_prompts_results_and_notebooks(tmp_path):
    site, home = tmp_path / "site", tmp_path / "home"
    home.mkdir()
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(built, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 60e6  # the package index takes 100 MB
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if "outputs/" in name or "tests/" in name]
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    environment = os.environ | {"PYTHONPATH": str(site), "TQDM_DISABLE": "1"}
    subprocess.run([sys.executable, "-c", USE.format(site=str(site))], check=True, cwd=home, env=environment)
