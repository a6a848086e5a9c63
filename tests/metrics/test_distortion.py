from __future__ import annotations

import numpy as np
import piq
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from hybridlib.metrics.distortion import psnr, ssim


def noisy_pairs(sizes, seed=0):
    """A smooth image and a noisy copy for each (width, height)."""
    rng = np.random.default_rng(seed)
    images, references = [], []
    for number, (width, height) in enumerate(sizes):
        y, x = np.mgrid[:height, :width]
        smooth = 128 + 90 * np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 11)], -1)
        noisy = smooth + rng.normal(0, 4 + 9 * number, smooth.shape)
        references.append(Image.fromarray(smooth.astype(np.uint8)))
        images.append(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))
    return images, references


SIZES = [(64, 64), (33, 48), (64, 64), (7, 40)]


@pytest.mark.parametrize("grey", [False, True])
def test_against_scikit_image(grey):
    images, references = noisy_pairs(SIZES)
    mode = "L" if grey else "RGB"
    pairs = [[np.asarray(image.convert(mode)) / 255 for image in pair] for pair in zip(references, images, strict=True)]
    expected_psnr = [peak_signal_noise_ratio(*pair, data_range=1.0) for pair in pairs]
    expected_ssim = [structural_similarity(*pair, data_range=1.0, channel_axis=None if grey else -1) for pair in pairs]
    # both in float64; the references' sliding sums round differently
    np.testing.assert_allclose(psnr(images, references, grey=grey, batch_size=2), expected_psnr, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ssim(images, references, grey=grey, batch_size=2), expected_ssim, rtol=0, atol=1e-9)


def test_ssim_by_hand():
    """One window, one channel: the formula written out with NumPy's sample covariance."""
    rng = np.random.default_rng(3)
    a, b = (rng.integers(0, 256, (7, 7), dtype=np.uint8) for _ in range(2))
    x, y = a / 255, b / 255
    covariance = np.cov(x.ravel(), y.ravel())
    expected = (2 * x.mean() * y.mean() + 0.01**2) / (x.mean() ** 2 + y.mean() ** 2 + 0.01**2)
    expected *= (2 * covariance[0, 1] + 0.03**2) / (covariance[0, 0] + covariance[1, 1] + 0.03**2)
    score = ssim([Image.fromarray(a)], [Image.fromarray(b)], grey=True)
    np.testing.assert_allclose(score, [expected], rtol=1e-9)


@pytest.mark.parametrize("grey", [False, True])
def test_against_piq_one_at_a_time(grey):
    images, references = noisy_pairs([(64, 64), (32, 48), (64, 64)])
    mode = "L" if grey else "RGB"

    def tensor(image):
        pixels = torch.from_numpy(np.array(image.convert(mode))).double() / 255
        return pixels[None, None] if grey else pixels.permute(2, 0, 1)[None]

    pairs = [(tensor(a), tensor(b)) for a, b in zip(images, references, strict=True)]
    expected = [piq.psnr(*pair, data_range=1.0).item() for pair in pairs]
    np.testing.assert_allclose(psnr(images, references, "piq", grey), expected, rtol=1e-9)
    expected = [piq.ssim(*pair, data_range=1.0).item() for pair in pairs]
    np.testing.assert_allclose(ssim(images, references, "piq", grey), expected, rtol=1e-9)


def test_known_errors():
    black, dark = (Image.new("RGB", (16, 16), (v, v, v)) for v in (0, 51))
    np.testing.assert_allclose(psnr([dark], [black]), [-20 * np.log10(51 / 255)], rtol=1e-12)
    assert psnr([dark], [dark]).tolist() == [np.inf]
    np.testing.assert_allclose(psnr([dark], [dark], "piq"), [80.0], atol=1e-6)
    np.testing.assert_allclose(ssim([dark], [dark]), [1.0], rtol=1e-12)
    assert psnr([], []).shape == (0,)


def test_bad_input():
    image, wide, tiny = (Image.new("RGB", size) for size in ((16, 16), (17, 16), (6, 16)))
    with pytest.raises(ValueError, match="equal in number, got 2 and 1"):
        psnr([image, image], [image])
    with pytest.raises(ValueError, match=r"image 1 of \(17, 16\) cannot be compared with a reference of \(16, 16\)"):
        ssim([image, wide], [image, image])
    with pytest.raises(ValueError, match=r"variant must be one of .*, got 'matlab'"):
        ssim([image], [image], variant="matlab")
    with pytest.raises(ValueError, match="needs 7 pixels a side"):
        ssim([tiny], [tiny])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        psnr([image], [image], batch_size=0)
