"""The program of the published settings, run for three steps on a tiny Stable Diffusion and eight images."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from diffusers import UNet2DConditionModel
from factories import random_sd, random_sd3
from PIL import Image

from hybridlib.paths import ROOT
from hybridlib.training import text_to_image
from hybridlib.training.loop import Draw
from hybridlib.training.text_to_image import Images, Source, TextToImageParameters, read_source

RECIPES = sorted((ROOT / "data" / "recipes" / "immiscible").glob("*.yaml"))
SMALL = {"image_size": 32, "steps": 3, "batch_size": 4, "parts": 2, "readers": 2, "precision": "no"}
BASE = {"model": "", "from_scratch": True, "learning_rate": 1.0} | SMALL


@pytest.fixture(scope="module")
def tiny_sd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd")
    random_sd().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Eight images of two classes, none square, one of them named."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(8):
        path = folder / ("n01" if i % 2 else "red star") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)).save(path)
    (folder / "captions.json").write_text(json.dumps({"n01": "blue ring, blue circle"}))
    return folder


def small(recipe, tmp_path, **changes):
    """A published recipe in which only sizes are other."""
    content = yaml.safe_load(recipe.read_text()) | SMALL | changes
    path = tmp_path / recipe.name
    path.write_text(yaml.safe_dump(content))
    return path


def weights(folder, name="unet"):
    return UNet2DConditionModel.from_pretrained(folder / name).state_dict()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_published_recipes_run(recipe, tiny_sd, pictures, tmp_path, capsys):
    file = small(recipe, tmp_path, k=3)
    arguments = [str(file), "--model", str(tiny_sd), "--data", str(pictures), "--output", str(tmp_path / "out")]
    assert text_to_image.main(arguments) == 0
    assert "last loss" in capsys.readouterr().out
    before, after = weights(tiny_sd), weights(tmp_path / "out" / "model")
    moved = max(float((before[name] - after[name]).abs().max()) for name in before)
    # AdamW moves a weight by about the learning rate a step; a new network has nothing in common with the old one.
    assert moved > 0.05 if "scratch" in recipe.stem else 0 < moved < 1e-3


def test_published_settings():
    """Table of section 2 of the papers' settings: rows of a step, devices, steps, rates."""
    found = {path.stem: TextToImageParameters.from_yaml(path) for path in RECIPES}
    assert {name: (p.batch_size, p.steps, p.learning_rate, p.from_scratch) for name, p in found.items()} == {
        "scratch_linear": (2048, 20_000, 1e-4, True),
        "scratch_knn": (2048, 20_000, 1e-4, True),
        "finetune_linear": (512, 5_000, 1e-5, False),
        "finetune_knn": (512, 5_000, 1e-5, False),
    }
    for name, p in found.items():
        devices = 8 if name == "scratch_linear" else 4
        assert p.parts % devices == 0
        assert p.batch_size // p.parts == (256 if devices == 8 else 128)
        assert (p.seed, p.ema_decay, p.image_size, p.horizontal_flip, p.min_snr_gamma) == (42, 0.9999, 256, True, None)
        assert p.recipe().betas == (0.9, 0.999)
        assert p.noise().pool * p.batch_size // p.parts == (p.batch_size if "linear" in name else 128)
        assert "knn" not in name or (p.assignment, p.noise().k, p.noise().cost) == ("knn", 64, "l2_fp16")


def draw(size=8, seed=0):
    return Draw(0, size, seed, torch.Generator().manual_seed(seed), torch.device("cpu"))


def test_batches_are_posterior_samples_of_cropped_images(tiny_sd, pictures):
    pipeline = random_sd()
    source = read_source(
        TextToImageParameters(model="", data=str(pictures), from_scratch=True, learning_rate=1.0, **SMALL)
    )
    assert sorted(set(source.captions)) == ["blue ring, blue circle", "red star"]
    images = Images(source, pipeline, 32, flip=True)
    rows = torch.arange(8)
    batch = images.batch(rows, draw())
    generator = torch.Generator().manual_seed(0)
    flipped = torch.rand(8, generator=generator) < 0.5
    assert 0 < flipped.sum() < 8
    pixels = []
    for row in rows.tolist():
        image = source.open(row)
        scale = 32 / min(image.size)
        resized = image.resize([int(side * scale) for side in image.size], Image.Resampling.BILINEAR)
        left, top = round((resized.width - 32) / 2), round((resized.height - 32) / 2)
        array = np.asarray(resized.crop((left, top, left + 32, top + 32))).copy()
        array = array[:, ::-1].copy() if flipped[row] else array
        pixels.append(torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1)
    with torch.no_grad():
        posterior = pipeline.vae.encode(torch.stack(pixels)).latent_dist
        expected = posterior.sample(generator) * pipeline.vae.config.scaling_factor
        text = pipeline.text_encoder(
            pipeline.tokenizer(source.captions, padding="max_length", max_length=16, return_tensors="pt").input_ids
        )[0]
    torch.testing.assert_close(batch.latents, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(batch.conditioning["encoder_hidden_states"], text)
    assert batch.groups.tolist() == [source.captions.index(c) // 4 for c in source.captions]


def test_sd3_is_told_embeddings_and_pooled_ones():
    pipeline = random_sd3()
    source = Source(lambda row: Image.new("RGB", (40, 40), (row, 0, 0)), ["a red star"] * 3)
    batch = Images(source, pipeline, 32, flip=False).batch(torch.arange(3), draw(3))
    assert batch.latents.shape == (3, 4, 8, 8)
    with torch.no_grad():
        output = pipeline.transformer(batch.latents, timestep=torch.full((3,), 500.0), **batch.conditioning)
    assert output.sample.shape == (3, 4, 8, 8)


def test_metadata_is_read_and_checked(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    lines = tmp_path / "metadata.jsonl"
    base = BASE | {"data": str(tmp_path)}
    lines.write_text('{"file_name": "a.png", "text": "red"}\n')
    assert read_source(TextToImageParameters(**base)).captions == ["red"]
    for text, message in (
        ('{"file_name": "a.png"}', "every line needs file_name and text"),
        ('{"file_name": "b.png", "text": "red"}', "names b.png, which is not there"),
        ("", "holds neither metadata.jsonl nor sub-folders of images"),
    ):
        lines.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_source(TextToImageParameters(**base))


def test_datasets_are_optional(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert text_to_image.main([str(RECIPES[0]), "--output", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "'ILSVRC/imagenet-1k' is no folder, and a Hugging Face dataset needs the package datasets" in told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": 3}, "parts = 3: must divide batch_size = 4"),
        ({"assignment": "knn", "pool": 2}, "assignment = 'knn': condition and pool are for 'linear'"),
        ({"caption_dropout": 1.0}, "caption_dropout = 1.0: input should be less than 1"),
        ({"asignment": "knn"}, "asignment is no parameter; did you mean 'assignment'"),
    ],
)
def test_recipes_are_checked(tmp_path, changes, message, capsys):
    assert text_to_image.main([str(small(RECIPES[0], tmp_path, **changes))]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_accelerate_launches_it_and_two_processes_share_its_parts(tiny_sd, pictures, tmp_path):
    """On a CPU accelerate launches one process only, so two are torchrun's; they end at the same weights."""
    file, folders = small(RECIPES[1], tmp_path), []
    accelerate = ["accelerate.commands.launch", "--cpu", "--num_processes=1", "--num_machines=1"]
    accelerate += ["--mixed_precision=no", "--dynamo_backend=no"]
    for launcher in (accelerate, ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]):
        folders.append(tmp_path / launcher[0])
        command = [sys.executable, "-m", *launcher, "-m", "hybridlib.training.text_to_image", str(file)]
        command += ["--model", str(tiny_sd), "--data", str(pictures), "--output", str(folders[-1])]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (weights(folder / "model") for folder in folders)
    for name, value in one.items():  # the parts are summed in another order
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4)
