"""Bulk images: the same files however the work is cut or interrupted, and a distance that says what it is."""

from __future__ import annotations

import numpy as np
import pytest
from factories import random_sd
from PIL import Image

from hybridlib.denoising import models
from hybridlib.files import checksum
from hybridlib.metrics.alignment import ClipAlignment
from hybridlib.metrics.distribution import frechet_distance
from hybridlib.study import bulk, runner
from hybridlib.study.parameters import Settings

SETTINGS = Settings(2, 32, 2)
PROMPTS = ["a red star", "a blue ring", "a red star"]  # a duplicate, which names by caption would lose


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sd")
    random_sd().save_pretrained(path)
    return path


def files(folder):
    return {str(path.relative_to(folder)): checksum(path) for path in folder.rglob("*.png")}


def many(folder, out, *options):
    prompts = out.parent / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n\n")
    sizes = ["--steps", "2", "--image-size", "32", "--batch-size", "2", "--guidance-scale", "3"]
    return bulk.main(["many", str(folder), str(out), "--prompts", str(prompts), "--count", "5", *sizes, *options])


def test_parts_and_interruptions_give_the_same_files(folder, tmp_path, monkeypatch, capsys):
    assert many(folder, tmp_path / "whole") == 0
    assert "5 of 5 images" in capsys.readouterr().out
    whole = files(tmp_path / "whole")
    assert sorted(whole) == [f"000/000000{i}.png" for i in range(5)]
    assert len(set(whole.values())) == 5  # a seed of its own, for equal prompts too
    for part in ("1/2", "0/2"):
        assert many(folder, tmp_path / "parts", "--part", part) == 0
    assert files(tmp_path / "parts") == whole

    killed, written = tmp_path / "killed", []
    write = runner.write_image

    def write_three(image, path):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        return write(image, path)

    monkeypatch.setattr(runner, "write_image", write_three)
    with pytest.raises(KeyboardInterrupt):
        many(folder, killed)
    monkeypatch.setattr(runner, "write_image", lambda image, path: written.append(path) or write(image, path))
    assert many(folder, killed) == 0
    assert files(killed) == whole
    assert len(written) == 3 + 3  # the finished shard of two was not made again


def test_one_image_is_that_of_the_stock_pipeline(folder, tmp_path):
    pipeline = models.load(str(folder), "cpu")
    options = ["--prompt", "a red star", "--seed", "4", "--steps", "2", "--image-size", "32"]
    assert bulk.main(["one", str(folder), str(tmp_path / "one.png"), *options]) == 0
    import torch

    noise = torch.Generator().manual_seed(4)
    stock = pipeline(
        "a red star", num_inference_steps=2, guidance_scale=1.0, height=32, width=32, generator=noise
    ).images[0]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "one.png")), np.asarray(stock))


def test_distance_is_that_of_the_features_and_names_them(tmp_path, capsys):
    rng = np.random.default_rng(0)
    pictures = {}
    for name, low in (("a", 0), ("b", 90)):
        (tmp_path / name / "000").mkdir(parents=True)
        pictures[name] = [Image.fromarray(rng.integers(low, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(6)]
        for i, picture in enumerate(pictures[name]):
            picture.save(tmp_path / name / "000" / f"{i}.png")
    clip = ClipAlignment.load("mini-clip")
    expected = frechet_distance(*(clip.image_features(pictures[name]).numpy() for name in "ab"))

    def told(reference):
        assert bulk.main(["distance", str(tmp_path / "a"), str(tmp_path / reference)]) == 0
        return dict(line.split() for line in capsys.readouterr().out.strip().splitlines())

    for _ in range(2):  # the second time from what is remembered
        row = told("b")
        assert row["features"] == "mini-clip"
        assert "fid" not in row
        assert float(row["frechet_distance"]) == pytest.approx(expected, rel=1e-4)
    assert abs(float(told("a")["frechet_distance"])) < 1e-6 < expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distance", "{}", "{}"], "must hold at least two images, found 0"),
        (["distance", "{}", "{}", "--inception", "{}/none.pth"], "Inception"),
        (["one", "mini-none", "{}/a.png"], "no miniature model 'mini-none'"),
        (["many", "mini-sd3", "{}", "--prompts", "{}/none.txt", "--count", "2"], "none.txt"),
    ],
)
def test_refusals_are_one_sentence(tmp_path, capsys, arguments, message):
    assert bulk.main([a.format(tmp_path) for a in arguments]) == 2
    assert message in capsys.readouterr().err


def test_plans_are_checked():
    with pytest.raises(ValueError, match="at least one prompt and one image are needed, got 0 prompts and count 3"):
        bulk.plan([], 3, SETTINGS, 1.0)
    with pytest.raises(ValueError, match="part must lie in 0..1, got 2"):
        bulk.part_of(bulk.plan(PROMPTS, 3, SETTINGS, 1.0), 2, 2)
