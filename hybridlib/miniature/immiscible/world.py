"""What study 11 trains and measures on: lone objects as latents, their captions, two small networks, and judges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DModel,
)
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ...files import digest, write_atomically
from ...metrics.alignment import ClipAlignment
from ...paths import MODELS
from ...training.denoising_loss import Batch, Scheduler
from ...training.loop import Draw
from ...training.vae import decode, normalised
from ..corpus import token_ids
from ..diffusion import SHIFT, TextToVelocity
from ..judge import Judge
from ..scenes import COLOURS, SHAPES, plain, render, sample_lone
from ..sd import start_as_identity, trained_betas
from ..tokens import build_tokenizer
from ..vae import shipped

CLASSES = len(SHAPES) * len(COLOURS)  # of lone objects: shape times colour; the number after them stands for none
TOKENS = slice(2, 5)  # of a caption such as "a red star": colour, shape, end
REFERENCE_SEED = 900_011  # of scenes that no network is trained on


class Told(NamedTuple):
    """What the networks are told of every class, the empty caption last: (CLASSES + 1, ...) each."""

    embeds: Tensor
    pooled: Tensor

    @staticmethod
    @torch.no_grad()
    def by_mini_sd3() -> Told:
        """Captions as the text encoders of mini-sd3 read them; what all captions share is left out of the tokens."""
        names = [f"{colour} {shape}" for shape, colour in product(SHAPES, COLOURS)]
        texts = [*(f"{'an' if name[0] == 'o' else 'a'} {name}" for name in names), ""]
        encoders = TextToVelocity.shipped()
        states, pooled = [], []
        for encoder, pad in ((encoders.text_encoder, None), (encoders.text_encoder_2, "!")):
            tokenizer = build_tokenizer(pad_token=pad) if pad else build_tokenizer()
            read = encoder(token_ids(tokenizer)(texts), output_hidden_states=True)
            states.append(read.hidden_states[-2])
            pooled.append(read.text_embeds)
        return Told(torch.cat(states, dim=-1)[:, TOKENS].clone(), torch.cat(pooled, dim=-1))

    def conditioning(self, model: str, labels: Tensor) -> dict[str, Tensor]:
        """Keyword arguments of the network for classes (B,)."""
        if model == "epsilon":
            return {"class_labels": labels}
        return {"encoder_hidden_states": self.embeds[labels], "pooled_projections": self.pooled[labels]}

    def directions(self) -> Tensor:
        """Embeddings (CLASSES, E) whose cosine tells captions apart: the pooled ones less their mean."""
        return self.pooled[:-1] - self.pooled[:-1].mean(dim=0)


class LoneObjects(NamedTuple):
    """Latents (N, 16, 8, 8) of plain scenes with one object, float32, and their classes (N,)."""

    latents: Tensor
    labels: Tensor

    @staticmethod
    @torch.no_grad()
    def drawn(count: int, seed: int, shapes: int, colours: int, folder: Path) -> LoneObjects:
        """Plain scenes of the first `shapes` and `colours`, encoded once and kept in `folder`."""
        scenes = plain(sample_lone(count, seed, shapes, colours))
        labels = scenes.shape[:, 0] * len(COLOURS) + scenes.colour[:, 0]
        path = folder / f"{digest('plain objects', count, seed, shapes, colours)}.safetensors"
        if not path.exists():
            vae = shipped()
            parts = [vae.encode(2 * render(scenes[i : i + 16]) - 1).latent_dist.mean for i in range(0, len(scenes), 16)]
            write_atomically(path, save({"latents": normalised(vae, torch.cat(parts)).contiguous()}))
        return LoneObjects(load_file(path)["latents"], labels)


class Training:
    """Lone objects as examples of a training; without `conditional` the network is told nothing, the groups remain."""

    def __init__(self, objects: LoneObjects, told: Told, model: str, conditional: bool = True) -> None:
        self.objects, self.told, self.model, self.conditional = objects, told, model, conditional
        self.directions = told.directions()

    def __len__(self) -> int:
        return len(self.objects.latents)

    def batch(self, rows: Tensor, draw: Draw) -> Batch:
        """See `denoising_loss.Examples`; nothing here is random."""
        labels = self.objects.labels[rows]
        seen = labels if self.conditional else torch.full_like(labels, CLASSES)
        conditioning = self.told.conditioning(self.model, seen)
        return Batch(self.objects.latents[rows], conditioning, labels, self.directions[labels])


def network(model: str, seed: int, size: int = 8) -> nn.Module:
    """An untrained SD3 transformer (0.45 M parameters) or UNet (0.48 M) for latents (16, size, size)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _transformer(size) if model == "flow" else _unet(size)


def _transformer(size: int) -> SD3Transformer2DModel:
    model = SD3Transformer2DModel(
        sample_size=size,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=160,
        pooled_projection_dim=160,
        caption_projection_dim=64,
        pos_embed_max_size=size,
    )
    for name, parameter in model.named_parameters():  # DiT: every block starts as the identity
        if any(part in name for part in ("norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out")):
            nn.init.zeros_(parameter)
    return model


def _unet(size: int) -> UNet2DModel:
    model = UNet2DModel(
        sample_size=size,
        in_channels=16,
        out_channels=16,
        block_out_channels=(32, 48),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=16,
        num_class_embeds=CLASSES + 1,
    )
    start_as_identity(model)
    return model


def training_scheduler(model: str) -> Scheduler:
    """Noise levels and target of a training: a straight path with uniform sigma, or mini-sd's schedule."""
    if model == "flow":
        return FlowMatchEulerDiscreteScheduler(shift=1.0)
    return DDPMScheduler(trained_betas=trained_betas())


@torch.no_grad()
def paths(model: str, net: nn.Module, noise: Tensor, conditioning: Mapping[str, Tensor], steps: int) -> Paths:
    """Euler steps of a flow on mini-sd3's schedule, or DDIM of an epsilon model, from noise (B, ...) without guidance.

    DDIM is DPM-Solver of first order, whose class in diffusers takes any number of steps to the very end.

    The first step begins at the noisiest level and the last one ends at none, so that one step is a whole path.
    """
    scheduler: Any
    if model == "flow":
        scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
        alphas = torch.ones(steps + 1)
    else:
        scheduler = DPMSolverMultistepScheduler(
            trained_betas=trained_betas(), solver_order=1, timestep_spacing="trailing"
        )
        scheduler.set_timesteps(steps)
        alphas = (1 + scheduler.sigmas.square()).rsqrt()
    states = [noise]
    for timestep in scheduler.timesteps:
        parts = []
        for i in range(0, len(noise), 128):
            told = {name: value[i : i + 128] for name, value in conditioning.items()}
            rows = states[-1][i : i + 128]
            parts.append(net(rows, timestep=timestep.expand(len(rows)), return_dict=False, **told)[0])
        states.append(scheduler.step(torch.cat(parts), timestep, states[-1]).prev_sample)
    straight = torch.stack(states) / alphas.view(-1, *[1] * noise.dim())
    return Paths(states[-1], straight, scheduler.sigmas)


class Paths(NamedTuple):
    """Where sampling ended, and the way there in coordinates in which the paths of a flow and of DDIM are alike."""

    latents: Tensor
    states: Tensor  # (steps + 1, B, ...): latents / alpha
    sigmas: Tensor  # (steps + 1,): sigma / alpha


class Judges:
    """Images of latents, what mini-judge reads in them, and their mini-clip features."""

    def __init__(self) -> None:
        self.vae, self.judge = shipped(), Judge.load(MODELS / "mini-judge")
        self.clip = ClipAlignment.load("mini-clip", "cpu").model

    @torch.inference_mode()
    def images(self, latents: Tensor) -> Iterator[Tensor]:
        """Images (b, 3, 64, 64) in [0, 1], 32 at a time."""
        for part in latents.split(32):
            yield (decode(self.vae, part) / 2 + 0.5).clamp(0, 1)

    @torch.inference_mode()
    def look(self, latents: Tensor) -> tuple[Tensor, np.ndarray]:
        """The class (B,) that is read in each image, and its mini-clip features (B, 128) of norm 1."""
        classes, features = [], []
        for images in self.images(latents):
            reading = self.judge.read(images)
            classes.append(reading.shape[:, 0] * len(COLOURS) + reading.colour[:, 0])
            features.append(F.normalize(self.clip.encode_image(2 * images - 1), dim=-1))
        return torch.cat(classes), torch.cat(features).numpy()
