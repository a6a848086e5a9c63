"""Protocols: captions of each kind of file, the published way of an image, and a whole run on the shipped models."""

from __future__ import annotations

import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from hybridlib.metrics.alignment import ClipAlignment
from hybridlib.metrics.distribution import frechet_distance
from hybridlib.paths import ROOT
from hybridlib.study import evaluation, protocols
from hybridlib.study.protocols import Caption, Protocol

MINI = Protocol(
    count=3,
    image_size=64,
    compared_size=64,
    num_inference_steps=2,
    guidance_scale=4.0,
    batch_size=2,
    clip_model="mini-clip",
)
COCO = {
    "images": [
        {"id": 9, "file_name": "val_000009.jpg"},
        {"id": 4, "file_name": "val_000004.jpg"},
        {"id": 7, "file_name": "val_000007.jpg"},
    ],
    "annotations": [
        {"id": 30, "image_id": 9, "caption": "a red ring on sand \n"},
        {"id": 12, "image_id": 4, "caption": "a second caption"},
        {"id": 11, "image_id": 4, "caption": "a blue star on grass"},
        {"id": 13, "image_id": 7, "caption": " a green circle"},
    ],
}


@pytest.fixture
def coco(tmp_path):
    """A caption file and a folder of photographs in COCO's format."""
    path, folder = tmp_path / "captions_val2014.json", tmp_path / "val2014"
    path.write_text(json.dumps(COCO))
    folder.mkdir()
    generator = np.random.default_rng(0)
    for image, size in zip(COCO["images"], ((80, 60), (64, 96), (64, 64)), strict=True):
        low = generator.integers(0, 255, size=(5, 5, 3), dtype=np.uint8)
        Image.fromarray(low).resize(size).save(folder / image["file_name"], quality=95)
    return path, folder


@pytest.mark.parametrize("name", ["coco2014-30k", "coco2017-5k"])
def test_shipped_protocols_are_valid(name):
    protocol = protocols.named(name)
    assert protocol.count == {"coco2014-30k": 30_000, "coco2017-5k": 5000}[name]
    assert (ROOT / "data" / "protocols" / f"{name}.yaml").is_file()


def test_captions_of_coco_are_the_first_of_each_image(coco):
    expected = [
        Caption("val_000004", "a blue star on grass"),
        Caption("val_000007", "a green circle"),
        Caption("val_000009", "a red ring on sand"),
    ]
    assert protocols.read_captions(coco[0], 3) == expected
    assert protocols.read_captions(coco[0], 2) == expected[:2]


def test_captions_of_lists(tmp_path):
    table, lines = tmp_path / "a.csv", tmp_path / "a.txt"
    table.write_text('file_name,text,negative\nx_1.jpg,"a ring, red",blurry\nx_2.jpg, a star ,\n')
    assert protocols.read_captions(table, 2) == [Caption("x_1", "a ring, red", "blurry"), Caption("x_2", "a star")]
    lines.write_text("a ring\n\na star  \n")
    assert [caption.text for caption in protocols.read_captions(lines, 2)] == ["a ring", "a star"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{}", "this is no caption file of COCO"),
        ("a.csv", "file,text\na,b\n", "needs the columns file_name and text"),
        ("a.csv", "file_name,text\na.png,b\na.jpg,c\n", "two captions have the same image name"),
        ("a.csv", "file_name,text\na.png,b\nb.png, \n", "lacks its text or name"),
        ("a.txt", "one\n", "count = 2 captions are asked for, the file has 1"),
        ("a.xml", "", "expected a file of captions"),
    ],
)
def test_bad_captions_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        protocols.read_captions(tmp_path / name, 2)


def picture(width, height):
    low = np.random.default_rng(1).integers(0, 255, size=(6, 6, 3), dtype=np.uint8)
    return Image.fromarray(low).resize((width, height))


def through_jpeg(image):
    buffer = BytesIO()
    image.save(buffer, "JPEG")  # 75 is PIL's default, which the published scripts use
    return Image.open(buffer)


def opened(prepared):
    return np.asarray(Image.open(BytesIO(prepared[0])))


def test_an_image_goes_the_published_way():
    protocol = protocols.named("coco2014-30k").model_copy(update={"compared_size": 32})
    image = picture(64, 64)
    expected = through_jpeg(through_jpeg(image).resize((32, 32)))  # bicubic is PIL's default
    assert protocols.prepared(image, protocol)[1] == ".jpg"
    assert np.array_equal(opened(protocols.prepared(image, protocol)), np.asarray(expected))
    lossless = protocol.model_copy(update={"jpeg_quality": None})
    plain = opened(protocols.prepared(image, lossless))
    assert np.array_equal(plain, np.asarray(image.resize((32, 32))))
    assert not np.array_equal(plain, np.asarray(expected))  # the control: the switch matters
    assert np.array_equal(opened(protocols.prepared(image.resize((32, 32)), lossless)), plain)


def test_real_images_are_squashed_or_cropped():
    wide, size = picture(96, 64), (32, 32)
    squash = MINI.model_copy(update={"compared_size": 32})
    crop = squash.model_copy(update={"reference_fit": "crop"})
    assert np.array_equal(opened(protocols.prepared(wide, squash, real=True)), np.asarray(wide.resize(size)))
    centre = np.asarray(wide.crop((16, 0, 80, 64)).resize(size))
    assert np.array_equal(opened(protocols.prepared(wide, crop, real=True)), centre)


@pytest.mark.slow
def test_a_whole_run_and_what_is_there_is_not_made_again(coco, tmp_path, monkeypatch):
    table = evaluation.evaluate(MINI, "mini-sd3", coco[1], tmp_path / "out", captions=coco[0])
    images = sorted((tmp_path / "out" / "images").iterdir())
    assert [path.name for path in images] == ["val_000004.png", "val_000007.png", "val_000009.png"]
    clip = ClipAlignment.load("mini-clip")
    texts = ["a blue star on grass", "a green circle", "a red ring on sand"]
    ours = [Image.open(path).convert("RGB") for path in images]
    assert table.clip_score.item() == pytest.approx(clip.score(ours, texts).mean(), abs=1e-6)
    real = [Image.open(coco[1] / f"{path.stem}.jpg").resize((64, 64)) for path in images]
    features = (clip.image_features(side).numpy() for side in (ours, real))
    assert table.frechet_distance.item() == pytest.approx(frechet_distance(*features), rel=1e-6)
    assert table.features.item() == "mini-clip"
    assert "fid" not in table
    before = {path: path.read_bytes() for path in images}
    images[1].unlink()
    made = []
    import hybridlib.denoising.sampler as sampler

    original = sampler.sample
    monkeypatch.setattr(sampler, "sample", lambda *a, **k: made.append(len(a[1])) or original(*a, **k))
    evaluation.evaluate(MINI, "mini-sd3", coco[1], tmp_path / "out", captions=coco[0])
    assert made == [1]
    again, first = (np.asarray(Image.open(BytesIO(b))).astype(int) for b in (images[1].read_bytes(), before[images[1]]))
    assert np.abs(again - first).max() <= 1  # another batch, other float roundings
    assert before[images[0]] == images[0].read_bytes()


def test_reconstructions(coco, tmp_path):
    from hybridlib.metrics.distortion import psnr

    protocol = MINI.model_copy(update={"task": "reconstruction", "reference_fit": "crop"})
    table = evaluation.evaluate(protocol, "mini-sd3", coco[1], tmp_path / "out")
    pairs = [
        [Image.open(path).convert("RGB") for path in sorted((tmp_path / "out" / name).iterdir())]
        for name in ("reconstructions", "originals")
    ]
    assert table.psnr.item() == pytest.approx(psnr(*pairs).mean())
    assert table.psnr.item() > 15
    assert pairs[0][0].size == (64, 64)


def test_what_is_missing_is_said_before_anything_runs(coco, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "generate", None)
    for change, match in (
        ({"captions": None}, "captions must be given"),
        ({"inception": tmp_path / "none.pth"}, "torch-fidelity"),
    ):
        arguments = {"captions": coco[0], "inception": None} | change
        with pytest.raises(ValueError, match=match):
            evaluation.evaluate(MINI, "mini-sd3", coco[1], tmp_path / "out", **arguments)
    with pytest.raises(ValueError, match="2 images are needed, there are 0"):
        evaluation.references(tmp_path / "val2014" / "none", MINI, tmp_path / "r")
    with pytest.raises(ValueError, match="compared_size must equal image_size"):
        evaluation.reconstruct(None, coco[1], MINI.model_copy(update={"compared_size": 32}), tmp_path)
    with pytest.raises(ValueError, match="no protocol 'coco'; there are"):
        protocols.named("coco")
