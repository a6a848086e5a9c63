from __future__ import annotations

import pickle
import re
import struct
import sys

import numpy as np
import piq
import pytest
import torch
from PIL import Image
from piq.brisque import _natural_scene_statistics, _scale_features, _score_svr
from piq.functional import imresize
from safetensors.torch import load

from hybridlib.metrics import brisque_svm
from hybridlib.metrics.fidelity import PIQ_URL, SHIPPED, Brisque, SupportVectors, summarise
from hybridlib.metrics.scene_statistics import _nearest, _tables, features
from hybridlib.miniature.scenes import render, sample_scenes


def scenes(number, seed=5):
    pixels = render(sample_scenes(number, seed)).permute(0, 2, 3, 1).mul(255).round().byte().numpy()
    return [Image.fromarray(array) for array in pixels]


def luma(images):
    return torch.stack([torch.from_numpy(np.array(i.convert("L"))).float() for i in images])[:, None] / 255 * 255


def piq_features(image):
    """Of one image (1, 1, height, width), as the body of `piq.brisque` computes them."""
    half = imresize(image, sizes=(image.shape[2] // 2, image.shape[3] // 2))
    return torch.cat([_natural_scene_statistics(image), _natural_scene_statistics(half)], -1)


@pytest.fixture(scope="module")
def shipped():
    return Brisque.load("shipped", batch_size=5)


def assert_same_features(ours, theirs):
    """Equal up to rounding; a shape parameter may then fall on the neighbouring entry of its table, 0.001 away."""
    shapes = [i for s in (0, 18) for i in (s, s + 2, s + 6, s + 10, s + 14)]
    others = [i for i in range(36) if i not in shapes]
    torch.testing.assert_close(ours[:, others], theirs[:, others], rtol=2e-3, atol=1e-6)
    torch.testing.assert_close(ours[:, shapes], theirs[:, shapes], rtol=0, atol=1.01e-3)
    assert (ours == theirs).float().mean() > 0.98


@pytest.mark.parametrize("size", [(64, 64), (33, 47)])
def test_features_of_a_batch_are_those_of_piq_one_at_a_time(size):
    noise = torch.rand(6, 1, *size, generator=torch.Generator().manual_seed(1)).mul(255).round()
    stripes = (torch.arange(size[1]) % 7).mul(36.0).expand(1, 1, *size) + noise[:1] / 20
    images = torch.cat([noise, stripes] + ([luma(scenes(6))] if size == (64, 64) else []))
    assert_same_features(features(images), torch.cat([piq_features(image[None]) for image in images]))


def test_table_lookup_is_the_exhaustive_search():
    gamma, ratios = _tables(torch.float32)
    generator = torch.Generator().manual_seed(0)
    for table in (-ratios[0], ratios[1]):
        assert (table.diff() > 0).all()
        low, high = table[0].item(), table[-1].item()
        inside = torch.rand(300, generator=generator) * (high - low) * 1.2 + low - 0.1 * (high - low)
        exact = torch.cat([inside, table[[0, 17, -1]], (table[40:60:2] + table[41:61:2]) / 2])
        expected = (exact[:, None] - table).abs().argmin(-1)
        assert torch.equal(_nearest(table, exact), expected)
    assert _nearest(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.5, 1.5])).tolist() == [0, 1]  # ties: the first
    assert len(gamma) == 9801


def test_scores_do_not_depend_on_the_batch(shipped):
    images = [*scenes(7), scenes(1, seed=9)[0].resize((48, 40))]
    together = shipped.score(images, [""] * 8)
    alone = np.concatenate([shipped.score([image]) for image in images])
    # a shape parameter on the neighbouring table entry moves the score by a few hundredths at most
    np.testing.assert_allclose(together, alone, rtol=0, atol=0.05)
    assert together.dtype == np.float64
    assert np.isfinite(together).all()
    assert np.ptp(together) > 1


def test_against_piq_with_the_same_support_vectors(monkeypatch):
    """piq's own support vectors need the network; the shipped ones under piq's scaling test the same code."""
    vectors = SupportVectors.shipped()
    weights = vectors.coefficients.float()[:, None], vectors.vectors.float()
    monkeypatch.setattr(sys.modules["piq.brisque"], "load_url", lambda *_, **__: [w.clone() for w in weights])
    images = scenes(4)
    rows = torch.cat([piq_features(image[None]) for image in luma(images)])
    regression = SupportVectors.as_piq(*weights)
    exact = _score_svr(_scale_features(rows.double()))[:, 0]
    torch.testing.assert_close(regression.predict(rows), exact, rtol=0, atol=1e-7)
    published = [piq.brisque(image[None] / 255, reduction="none").item() for image in luma(images)]
    # float32 sums of 770 terms up to 1024 in size: an error of some 770 * 1024 * 2**-24 = 0.05 at most
    np.testing.assert_allclose(Brisque(regression, "test").score(images), published, rtol=0, atol=0.05)


def test_shipped_regression_is_that_of_libsvm():
    svmutil = pytest.importorskip("libsvm.svmutil")
    folder = brisque_svm.installed()
    if folder is None:
        pytest.skip("the package brisque is not installed")
    rows = features(luma(scenes(5))).double()
    ranges = brisque_svm.read_ranges((folder / "normalize.pickle").read_bytes())
    low, high = ranges["feature_minimum"], ranges["feature_maximum"]
    scaled = -1 + 2 * (rows - low) / (high - low)
    expected, _, _ = svmutil.svm_predict(
        [0.0] * 5, [row.tolist() for row in scaled], svmutil.svm_load_model(str(folder / "svm.txt")), "-q"
    )
    # float64 on both sides, sums of size 1e5 in another order
    np.testing.assert_allclose(SupportVectors.shipped().predict(rows), expected, rtol=0, atol=1e-7)


def test_shipped_file_is_the_conversion_of_the_package():
    folder = brisque_svm.installed()
    if folder is None:
        pytest.skip("the package brisque is not installed")
    content = load(brisque_svm.convert(folder))
    shipped = load(SHIPPED.read_bytes())
    assert set(content) == set(shipped)
    assert all(torch.equal(content[name], shipped[name]) for name in shipped)
    plain = (folder / "normalize.pickle").read_bytes()  # each number is a G and a big-endian double
    numbers = [struct.unpack(">d", number)[0] for number in re.findall(rb"G(.{8})", plain, re.DOTALL)]
    assert torch.cat([shipped["feature_minimum"], shipped["feature_maximum"]]).tolist() == numbers


def test_conversion_by_command_line(tmp_path, capsys):
    numbers = {"min_": [float(i) for i in range(36)], "max_": [i + 2.0 for i in range(36)]}
    (tmp_path / "normalize.pickle").write_bytes(pickle.dumps(numbers, protocol=4))
    (tmp_path / "svm.txt").write_text(LIBSVM)
    brisque_svm.main(["--source", str(tmp_path), "--target", str(tmp_path / "out" / "model.safetensors")])
    content = load((tmp_path / "out" / "model.safetensors").read_bytes())
    assert content["feature_maximum"].tolist() == numbers["max_"]
    assert content["support_vectors"][1].tolist() == [0.0, -0.5, *[0.0] * 34]
    assert (content["coefficients"].tolist(), content["gamma"].item(), content["rho"].item()) == ([4, -2.5], 0.25, -3)
    assert "sha256" in capsys.readouterr().out


LIBSVM = """svm_type epsilon_svr
kernel_type rbf
gamma 0.25
nr_class 2
total_sv 2
rho -3
probA 6.3
SV
4 1:0.5 36:1
-2.5 2:-0.5
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rbf", "linear", "kernel_type rbf"),
        ("\nSV\n", "\n", "kernel_type rbf"),
        ("total_sv 2", "total_sv 3", "should have 3 support vectors, got 2"),
        ("36:1", "37:1", "lie in 1..36, got 37"),
    ],
)
def test_damaged_models_are_refused(old, new, message):
    with pytest.raises(ValueError, match=message):
        brisque_svm.read_libsvm(LIBSVM.replace(old, new))


class Hostile:
    def __reduce__(self):
        return pytest.fail, ("the pickle was executed",)


@pytest.mark.parametrize("content", [Hostile(), {"min_": [Hostile()], "max_": []}, {"min_": ["a"], "max_": [1.0]}])
def test_pickles_are_never_executed(content):
    with pytest.raises(ValueError):
        brisque_svm.read_ranges(pickle.dumps(content, protocol=4))


@pytest.mark.parametrize("grey", [0, 1, 255])
def test_a_flat_image_is_nan_alone(shipped, grey):
    flat = Image.new("RGB", (64, 64), (grey,) * 3)
    with pytest.raises(AssertionError):  # piq refuses the batch
        piq_features(luma([flat]))
    images = scenes(3)
    with pytest.warns(UserWarning, match="undefined for 1 of 3 images"):
        scores = shipped.score([images[0], flat, images[2]])
    assert np.isnan(scores[1])
    np.testing.assert_allclose(scores[[0, 2]], shipped.score([images[0], images[2]]), rtol=0, atol=0.05)


def test_distortion_raises_the_score(shipped):
    image = scenes(1)[0]
    noise = np.random.default_rng(0).normal(0, 60, (64, 64, 3))
    spoilt = Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
    clean, noisy = shipped.score([image, spoilt])
    assert noisy > clean + 10


def put_into_hub(monkeypatch, folder, content):
    monkeypatch.setenv("TORCH_HOME", str(folder))
    file = folder / "hub" / "checkpoints" / PIQ_URL.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True)
    torch.save(content, file)


def test_piq_weights_from_the_hub_folder(monkeypatch, tmp_path):
    vectors = SupportVectors.shipped()
    put_into_hub(monkeypatch, tmp_path, (vectors.coefficients.float()[:, None], vectors.vectors.float()))
    metric, automatic = Brisque.load("piq"), Brisque.load()
    assert PIQ_URL in _score_svr.__code__.co_consts
    assert "support vectors of piq, sha256" in metric.identity
    assert automatic.identity == metric.identity
    assert metric.regression.rho == -153.591
    assert metric.regression.coefficients.shape == (770,)
    low = (-1 - metric.regression.offset) / metric.regression.slope  # the two ends of piq's first range, 0.338 to 10
    torch.testing.assert_close(low[0], torch.tensor(0.338, dtype=torch.float64))
    torch.testing.assert_close(low[0] + 2 / metric.regression.slope[0], torch.tensor(10.0, dtype=torch.float64))


def test_foreign_weights_are_refused(monkeypatch, tmp_path):
    put_into_hub(monkeypatch, tmp_path / "shapes", (torch.zeros(5), torch.zeros(6, 36)))
    with pytest.raises(ValueError, match=r"m support vectors of 36, got shapes \[\(5,\), \(6, 36\)\]"):
        Brisque.load()
    put_into_hub(monkeypatch, tmp_path / "code", Hostile())
    with pytest.raises(pickle.UnpicklingError):
        Brisque.load()


def test_without_network(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    assert Brisque.load().identity == Brisque.load("shipped").identity
    assert "(shipped), sha256 6dc06c368ad9" in Brisque.load().identity
    with pytest.raises(ValueError, match="could not be downloaded; put brisque_svm_weights.pt"):
        Brisque.load("piq")


def test_bad_input(shipped):
    with pytest.raises(ValueError, match=r"needs 8 pixels a side, got an image of \(7, 64\)"):
        shipped.score([Image.new("L", (7, 64))])
    with pytest.raises(ValueError, match="weights must be 'auto', 'piq' or 'shipped', got 'matlab'"):
        Brisque.load("matlab")
    assert shipped.score([]).shape == (0,)


def test_summary_keeps_both_conventions():
    summary = summarise(np.array([10.0, -4.0, 0.0, 20.0, np.nan]))
    assert summary == (6.5, 4, 15.0, 2, 1)
    empty = summarise(np.array([-1.0]))
    assert (empty.mean, empty.number_above_zero) == (-1.0, 0)
    assert np.isnan(empty.mean_above_zero)
