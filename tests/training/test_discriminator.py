"""Augmentation against a loop over images, local batch norm against torch's own, and heads that learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hybridlib.training import discriminator
from hybridlib.training.discriminator import Discriminator, LocalBatchNorm, augment, hinge
from hybridlib.training.perception import Features


def by_loop(images, generator):
    """DiffAugment, image by image and pixel by pixel."""
    rows, _, height, width = images.shape
    colour = torch.rand(3, rows, 1, 1, 1, generator=generator).view(3, rows).double()
    share = torch.rand(4, rows, generator=generator).double()
    out = torch.zeros(images.shape, dtype=torch.float64)
    for row, image in enumerate(images.double()):
        x = image + colour[0, row] - 0.5
        grey = x.mean(0)
        x = grey + 2 * colour[1, row] * (x - grey)
        x = x.mean() + (0.5 + colour[2, row]) * (x - x.mean())
        reach = int(height / 8 + 0.5), int(width / 8 + 0.5)
        down, right = (int((2 * r + 1) * share[i, row]) - r for i, r in enumerate(reach))
        assert abs(down) <= reach[0]
        assert abs(right) <= reach[1]
        for y in range(height):
            for z in range(width):
                hidden = abs(y - share[2, row] * height) < 0.1 * height and abs(z - share[3, row] * width) < 0.1 * width
                if 0 <= y - down < height and 0 <= z - right < width and not hidden:
                    out[row, :, y, z] = x[:, y - down, z - right]
    return out


def test_augmentation_is_the_loop():
    images = 2 * torch.rand(5, 3, 16, 24, generator=torch.Generator().manual_seed(0)) - 1
    for seed in range(3):
        got = augment(images, torch.Generator().manual_seed(seed))
        expected = by_loop(images, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5)  # float32 against float64
    assert not torch.equal(got, augment(images, torch.Generator().manual_seed(0)))
    images.requires_grad_(True)
    augment(images, torch.Generator().manual_seed(0)).sum().backward()
    assert (images.grad != 0).float().mean() > 0.5


def test_local_batch_norm_is_torchs_on_eight_rows_at_a_time():
    norm = LocalBatchNorm(6)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_()
    reference = nn.BatchNorm1d(6, track_running_stats=False)
    reference.load_state_dict(norm.state_dict())
    x = torch.randn(20, 6, 5)
    expected = torch.cat([reference(x[:8]), reference(x[8:16]), reference(x[16:])])
    torch.testing.assert_close(norm(x), expected)
    assert not torch.allclose(norm(x), reference(x), atol=1e-3)  # the control: one norm over all


def pixels(size):
    return Features("pixels", lambda images: [images.flatten(2), images[:, :1].flatten(2)], (3, 1), size)


@pytest.mark.parametrize(("side", "places"), [(8, 64), (16, 64)])
def test_logits_are_of_every_place_of_every_layer(side, places):
    model = Discriminator(pixels(8))
    logits = model(torch.rand(3, 3, side, side), torch.Generator().manual_seed(0))
    assert logits.shape == (3, 2 * places)
    assert all("heads" in name for name in model.state_dict())


def test_larger_images_are_cropped_or_shrunk():
    images = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 3, 4, 4)
    small = torch.nn.functional.avg_pool2d(images, 2)
    seen = [discriminator._sized(images, 2, torch.Generator().manual_seed(seed)) for seed in range(40)]
    shrunk = [torch.equal(x, small) for x in seen]
    assert 10 < sum(shrunk) < 30  # half, within three standard deviations
    crops = [x for x, is_shrunk in zip(seen, shrunk, strict=True) if not is_shrunk]
    assert all((x[0, 0, 1, 1] - x[0, 0, 0, 0]).item() == 5.0 for x in crops)  # one row and one column on
    assert len({x[0, 0, 0, 0].item() for x in crops}) > 3


def test_hinge_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert hinge(real, fake).item() == pytest.approx(0.5 * (np.mean([0, 0.5, 2]) + np.mean([0, 1, 2])))


def test_it_learns_to_tell_noise_from_stripes():
    torch.manual_seed(0)
    frozen = nn.Conv2d(3, 24, 3).requires_grad_(False)
    features = Features("a frozen convolution", lambda images: [frozen(images).relu().flatten(2)], (24,), 8)
    model, generator = Discriminator(features), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(8, 3, 8, 8)

    def loss():
        noise = torch.randn(8, 3, 8, 8, generator=generator)
        return hinge(model(stripes, generator), model(noise, generator))

    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(loss())
        losses[-1].backward()
        optimizer.step()
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
