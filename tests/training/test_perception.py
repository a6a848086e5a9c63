"""Distances and features against their formulas, on open_clip's own intermediate maps and hand-run layers."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models.vgg import cfgs, make_layers

from hybridlib.metrics.alignment import ClipAlignment
from hybridlib.miniature.scenes import render, sample_scenes
from hybridlib.training import perception


@pytest.fixture(scope="module")
def clip():
    return ClipAlignment.load("mini-clip", device="cpu").model


def formula(first, second, weights):
    """LPIPS (Zhang et al. 2018, equation 1): channels of unit length, squares, weights, mean over places."""
    total = 0.0
    for a, b, w in zip(first, second, weights, strict=True):
        a, b = (x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in (a, b))
        total = total + (w * (a - b).square()).sum(1).mean(dim=(1, 2))
    return total.mean().item()


@torch.no_grad()
def test_clip_distance_is_lpips_formula_on_open_clips_maps(clip):
    images = 2 * render(sample_scenes(6, seed=1)) - 1
    first, second = images[:3], images[3:]
    distance = perception.clip_distance(clip, "mini-clip")
    found = [
        clip.visual.forward_intermediates(x, intermediates_only=True)["image_intermediates"] for x in (first, second)
    ]
    expected = formula(found[0][:4], found[1][:4], [1.0] * 4)  # its normalisation is to [-1, 1]
    assert distance.between(first, second).item() == pytest.approx(expected, rel=1e-5)
    assert distance.between(first, first).item() == 0.0
    assert distance.between(first, first + 0.01 * torch.randn(first.shape)).item() < 0.3 * expected
    assert distance.name == "feature distance in mini-clip"


@torch.no_grad()
def test_clip_features_are_open_clips_maps(clip):
    features = perception.clip_features(clip, "mini-clip")
    images = 2 * render(sample_scenes(2, seed=2)) - 1
    expected = clip.visual.forward_intermediates(images, intermediates_only=True)["image_intermediates"]
    for mine, its in zip(features.maps(images), expected[:4], strict=True):
        torch.testing.assert_close(mine, its.flatten(2), rtol=1e-5, atol=1e-5)
    assert (features.size, features.channels) == (64, (16, 64, 128, 256))


@torch.no_grad()
def test_lpips_from_local_files(tmp_path):
    """Random weights of VGG16's shapes, written as torchvision and piq write theirs."""
    torch.manual_seed(0)
    network = make_layers(cfgs["D"])
    vgg, weights = tmp_path / "vgg16.safetensors", tmp_path / "lpips_weights.pt"
    save_file({f"features.{key}": value for key, value in network.state_dict().items()}, vgg)
    layers = [torch.rand(1, channels, 1, 1) for channels in (64, 128, 256, 512, 512)]
    torch.save(layers, weights)
    first, second = 2 * torch.rand(2, 2, 3, 32, 32) - 1
    taps = (3, 8, 15, 22, 29)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (perception.IMAGENET_MEAN, perception.IMAGENET_STD))
    maps = [[network[: tap + 1](((x + 1) / 2 - mean) / std) for tap in taps] for x in (first, second)]
    between = perception.lpips(vgg, weights).between
    assert between(first, second).item() == pytest.approx(formula(*maps, layers), rel=1e-4)
    assert between(first, first).item() == 0.0
    torch.save(layers[:4], weights)
    with pytest.raises(ValueError, match="not LPIPS's five layer weights"):
        perception.lpips(vgg, weights)
    with pytest.raises(ValueError, match=r"weights = .*none.pt: there is no such file"):
        perception.lpips(vgg, tmp_path / "none.pt")
    save_file({"features.0.weight": torch.zeros(1)}, vgg)
    with pytest.raises(ValueError, match="not the weights of torchvision's VGG16"):
        perception.lpips(vgg, weights)


@torch.no_grad()
def test_dino_features_are_patch_tokens(tmp_path):
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=32)
    network = ViTModel(config, add_pooling_layer=False).eval()
    network.save_pretrained(tmp_path)
    features = perception.dino_features(tmp_path, blocks=(0, 2))
    images = 2 * torch.rand(2, 3, 32, 32) - 1
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (perception.IMAGENET_MEAN, perception.IMAGENET_STD))
    tokens = network.embeddings(((images + 1) / 2 - mean) / std)
    maps = features.maps(images)
    torch.testing.assert_close(maps[0], tokens[:, 1:].transpose(1, 2))
    assert [tuple(found.shape) for found in maps] == [(2, 24, 4)] * 3
    assert not torch.allclose(maps[1], maps[2])
    assert features.channels == (24,) * 3
    with pytest.raises(ValueError, match="blocks must lie below 3"):
        perception.dino_features(tmp_path)
    with pytest.raises(ValueError, match="there is no vision transformer here"):
        perception.dino_features(tmp_path / "none")


def test_only_a_resnet_tower_has_stages():
    with pytest.raises(ValueError, match="must be an open_clip ResNet, got a Linear"):
        perception.clip_distance(torch.nn.ModuleDict({"visual": torch.nn.Linear(1, 1)}), "x")


def test_gradients_reach_the_images_and_not_the_network(clip):
    image = torch.zeros(1, 3, 64, 64, requires_grad=True)
    perception.clip_distance(clip, "mini-clip").between(image, torch.ones(1, 3, 64, 64)).backward()
    assert image.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in clip.visual.parameters())
