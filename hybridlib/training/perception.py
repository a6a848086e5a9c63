"""What frozen networks see in images: the perceptual distance and the discriminator's features are made of it.

LPIPS: Zhang et al., arXiv 1801.03924, as piq computes it. Its own class fetches weights from the web; here they are
local files. At miniature scale the features are those of mini-clip's image tower, and the distance is called so.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VGG_LAYERS = ("3", "8", "15", "22", "29")  # relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3 of torchvision's VGG16
DINO_BLOCKS = (2, 5, 8, 11)  # of ViT-S/16, as StyleGAN-T reads it


class Distance(NamedTuple):
    """How unlike two batches of images look."""

    name: str
    between: Callable[[Tensor, Tensor], Tensor]  # two (B, 3, H, W) in [-1, 1] to their mean distance


class Features(NamedTuple):
    """What a discriminator reads of images."""

    name: str
    maps: Callable[[Tensor], list[Tensor]]  # images (B, 3, size, size) in [-1, 1] to maps (B, C, L), one a layer
    channels: tuple[int, ...]  # C of each
    size: int  # pixels a side


def lpips(vgg: Path, weights: Path) -> Distance:
    """LPIPS on VGG16.

    Args:
        vgg: torchvision's VGG16 state dictionary, .safetensors or .pth.
        weights: LPIPS's five layer weights: a list of tensors in a .pt (piq's `lpips_weights.pt`), or a .safetensors
            whose sorted names give their order.

    Raises:
        ValueError: if a file is not there, or holds other weights.
    """
    from torchvision.models.vgg import cfgs, make_layers

    network, layers = make_layers(cfgs["D"]), _tensors(weights, "weights")  # without VGG's huge linear layers
    state = _tensors(vgg, "vgg")
    try:
        network.load_state_dict({key[9:]: value for key, value in state.items() if key.startswith("features.")})
    except RuntimeError as error:
        raise ValueError(f"vgg = {vgg}: these are not the weights of torchvision's VGG16") from error
    layers = [layers[name] for name in sorted(layers)] if isinstance(layers, dict) else layers
    shapes = [tuple(layer.shape) for layer in layers]
    if shapes != [(1, channels, 1, 1) for channels in (64, 128, 256, 512, 512)]:
        raise ValueError(f"weights = {weights}: these are not LPIPS's five layer weights for VGG16, got {shapes}")
    return _distance("LPIPS (VGG16)", network, VGG_LAYERS, layers, IMAGENET_MEAN, IMAGENET_STD)


def clip_distance(model: Any, name: str) -> Distance:
    """LPIPS's formula on the stem and the first three stages of an open_clip ResNet tower, all channels alike."""
    stages = _tower(model)
    mean, std = (model.visual.preprocess_cfg[key] for key in ("mean", "std"))
    return _distance(f"feature distance in {name}", stages, list(stages._modules), [1.0] * len(stages), mean, std)


def clip_features(model: Any, name: str) -> Features:
    """Maps of the stem and the first three stages of an open_clip ResNet tower."""
    stages, size = _tower(model), model.visual.image_size
    mean, std = (torch.tensor(model.visual.preprocess_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))

    def maps(images: Tensor) -> list[Tensor]:
        x = ((images + 1) / 2 - mean.to(images)) / std.to(images)
        found = []
        for stage in stages.to(images.device):
            x = stage(x)
            found.append(x.flatten(2))
        return found

    return _measured(f"{name} image tower", maps, size[0] if isinstance(size, tuple) else size)


def dino_features(folder: Path, blocks: tuple[int, ...] = DINO_BLOCKS) -> Features:
    """Patch tokens of a DINO vision transformer: of its patch embedding and after some of its blocks.

    Args:
        folder: a transformers ViT, such as a copy of `facebook/dino-vits16`.

    Raises:
        ValueError: if the folder holds no such model, or it has fewer blocks.
    """
    from transformers import ViTModel

    if not (folder / "config.json").is_file():
        raise ValueError(f"folder = {folder}: there is no vision transformer here; copy facebook/dino-vits16 to it")
    network = ViTModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True)
    if max(blocks) >= network.config.num_hidden_layers:
        raise ValueError(f"blocks must lie below {network.config.num_hidden_layers}, got {blocks}")
    network.requires_grad_(False).eval()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))

    def maps(images: Tensor) -> list[Tensor]:
        x = ((images + 1) / 2 - mean.to(images)) / std.to(images)
        states = network.to(images.device)(x, output_hidden_states=True).hidden_states
        return [states[i][:, 1:].transpose(1, 2) for i in (0, *(block + 1 for block in blocks))]

    return _measured(f"DINO {folder.name}", maps, network.config.image_size)


def _measured(name: str, maps: Callable[[Tensor], list[Tensor]], size: int) -> Features:
    with torch.no_grad():
        channels = tuple(found.shape[1] for found in maps(torch.zeros(1, 3, size, size)))
    return Features(name, maps, channels, size)


def _distance(name: str, network: nn.Module, layers: Any, weights: Any, mean: Any, std: Any) -> Distance:
    from piq.perceptual import ContentLoss

    network.requires_grad_(False).eval()
    content = ContentLoss(network, layers, weights, mean=list(mean), std=list(std), normalize_features=True)

    def between(first: Tensor, second: Tensor) -> Tensor:
        return content((first + 1) / 2, (second + 1) / 2)

    return Distance(name, between)


def _tower(model: Any) -> nn.Sequential:
    tower = model.visual.requires_grad_(False).eval()
    if not hasattr(tower, "stem"):
        raise ValueError(f"the image tower must be an open_clip ResNet, got a {type(tower).__name__}")
    layers = ("conv1", "bn1", "act1", "conv2", "bn2", "act2", "conv3", "bn3", "act3", "avgpool")
    stages = nn.Sequential(nn.Sequential(*(getattr(tower, layer) for layer in layers)))
    return stages.extend([tower.layer1, tower.layer2, tower.layer3])


def _tensors(path: Path, name: str) -> Any:
    if not path.is_file():
        raise ValueError(f"{name} = {path}: there is no such file; weights are not downloaded, copy them here")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)
