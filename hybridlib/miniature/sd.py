"""mini-sd: Stable Diffusion 1.x at miniature scale, a UNet that predicts the noise of captioned scenes."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ..paths import MODELS
from ..training.loop import Draw, History, LossOf, Recipe, fit
from .corpus import corpus, draw_captions, token_ids
from .diffusion import TextToVelocity
from .scenes import Scenes
from .tokens import build_tokenizer
from .vae import for_sd, shipped

# bfloat16's attention learns ten times slower where heads have ten channels (456 ms of a step, 45 in float32; AMX).
PRECISION = "no"
# At a constant rate, which a longer training only has to go on with, then at a falling one.
RECIPE = Recipe(
    steps=4000,
    batch_size=64,
    learning_rate=2e-3,
    seed=23,
    ema_decay=0.995,
    warmup_steps=100,
    schedule="constant",
    precision=PRECISION,
)
FINISH = RECIPE._replace(steps=2000, seed=25, warmup_steps=10, schedule="cosine")
CORPUS_SCENES = 24_576  # of one object each, to ask less of a short training
GUIDANCE_WEIGHT = 4.0  # of the error in what a caption changes, which guidance multiplies when images are drawn
MIDDLE = 0.35  # noise to signal half way through the schedule: mini-sd3's shift
LAST = 0.977  # where the schedule is cut: noise to signal 14.9, close to SD1.x's 14.6
MAX_WEIGHT = 25.0


def trained_betas(steps: int = 1000) -> list[float]:
    """The noise schedule of mini-sd, as diffusers' schedulers take it.

    Noise of one level destroys more of a small latent than of a large one, so SD1.x's betas, which belong to latents
    of 64 x 64, would decide everything in the last few steps here. This is mini-sd3's flow schedule written as a
    variance-preserving one: noise to signal is sigma/alpha = 0.35 u / (1 - u), u from 0.001 to 0.977 in equal steps.
    """
    u = torch.arange(1, steps + 1, dtype=torch.float64) / steps * LAST
    kept = 1 / (1 + (MIDDLE * u / (1 - u)) ** 2)
    return (1 - kept / torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])).tolist()


def scheduler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++ of second order at the spacing that SD1.4's configuration gives it: 999, 959, ... for 25 steps."""
    return DPMSolverMultistepScheduler(trained_betas=trained_betas(), steps_offset=1)  # stock pipelines insist on 1


class TextToNoise(nn.Module):
    """The trained part of the pipeline: token ids and noisy latents to noise."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = build_unet(text_encoder.config.hidden_size)

    def forward(self, latents: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        """Noise in latents (B, 16, 8, 8) at timesteps (B,) under token ids (B, 16)."""
        return self.unet(latents, timesteps, self.text_encoder(ids).last_hidden_state, return_dict=False)[0]


def build_unet(cross_attention_dim: int) -> UNet2DConditionModel:
    """SD1.x's four levels and middle block in 1.5 M parameters, which start as the identity."""
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=16,
        out_channels=16,
        block_out_channels=(40, 40, 32, 32),
        attention_head_dim=4,  # the number of heads, as diffusers reads it for UNets of this kind
        cross_attention_dim=cross_attention_dim,
        norm_num_groups=8,
    )
    start_as_identity(unet)
    return unet


@torch.no_grad()
def start_as_identity(unet: UNet2DConditionModel | UNet2DModel) -> None:
    """Give an untrained UNet of C channels weights with which it returns what it is shown, up to a group norm.

    Of nearly pure noise the noise is what is shown, and a network that predicts noise need not learn to copy: after
    200 steps of mini-sd's training the loss is 0.18 instead of 0.44 (one run each). Every residual branch starts as
    nothing, as in LDM; the first convolution writes x and -x into 2 C of the channels, the last shortcut passes them
    on, and the last convolution adds what the activation leaves of them, since silu(x) - silu(-x) = x.

    Raises:
        ValueError: if the first level has fewer than 2 C channels, or other channels go out than come in.
    """
    channels, width = unet.config.in_channels, unet.config.block_out_channels[0]
    if width < 2 * channels or unet.config.out_channels != channels:
        raise ValueError(
            f"block_out_channels must begin with at least 2 x {channels} and out_channels be {channels}, "
            f"got {width} and {unet.config.out_channels}"
        )
    last = (".conv2", ".proj_out", ".to_out.0") if isinstance(unet, UNet2DModel) else (".conv2", ".proj_out")
    for name, module in unet.named_modules():
        if name.endswith(last):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    shortcut = unet.up_blocks[-1].resnets[-1].conv_shortcut
    for module in (unet.conv_in, unet.conv_out, shortcut):
        nn.init.zeros_(module.bias)
    copies, ends = torch.eye(channels), slice(0, 2 * channels)
    unet.conv_in.weight[ends] = 0
    unet.conv_in.weight[ends, :, 1, 1] = torch.cat([copies, -copies])
    nn.init.zeros_(shortcut.weight)
    shortcut.weight[:, -width:, 0, 0] = torch.eye(width)
    nn.init.zeros_(unet.conv_out.weight)
    unet.conv_out.weight[:, ends, 1, 1] = torch.cat([copies, -copies], dim=1)


def start_text_encoder() -> CLIPTextModel:
    """The wider text encoder of mini-sd3 without its last layer, whose output mini-sd3's transformer never saw.

    SD1.x, too, starts from a text encoder that knows its words; this one goes on learning.
    """
    trained = CLIPTextModelWithProjection.from_pretrained(MODELS / "mini-sd3" / "text_encoder_2", dtype=torch.float32)
    config = CLIPTextConfig(**{**trained.config.to_dict(), "num_hidden_layers": 1})
    encoder = CLIPTextModel(config)
    weights = {key.removeprefix("text_model."): value for key, value in trained.state_dict().items()}
    encoder.load_state_dict({key: weights[key] for key in encoder.state_dict()})
    encoder.final_layer_norm.reset_parameters()  # the one of mini-sd3 belongs to the layer that is gone
    return encoder


def train(folder: Path) -> tuple[StableDiffusionPipeline, dict[str, tuple[Recipe, History]]]:
    """Train at a constant rate, then let the rate fall to zero. A longer training changes `RECIPE.steps` alone."""
    torch.manual_seed(RECIPE.seed)
    vae = shipped()
    model = TextToNoise(start_text_encoder())
    model.unet.to(memory_format=torch.channels_last)
    if shutil.which("c++"):
        model.unet.compile()  # 6 minutes once, then a step takes 0.33 s instead of 0.45
    loss_of = noise_loss(model, *corpus(folder, vae, CORPUS_SCENES, lone=True))
    recipes = {"unet": RECIPE, "unet-finish": FINISH}
    runs = {name: (recipe, fit(name, model, loss_of, recipe, folder)) for name, recipe in recipes.items()}
    unet = model.unet.to(memory_format=torch.contiguous_format)
    return pipeline(unet, model.text_encoder, for_sd(vae)), runs


def noise_loss(model: nn.Module, scenes: Scenes, latents: Tensor) -> LossOf:
    """The error of a predicted noise against what mini-sd3 says of the same latents.

    mini-sd3 shares the latents, and its answer is the mean of all noises that may have been added: a target of which
    one batch tells more than of the noise itself, so that a fraction of the steps will do. Noise levels are log-normal
    around one, and errors are weighed as those of v (Salimans and Ho 2022), capped, so that noisy levels count, where
    layout is decided.

    Every noisy latent is seen with its caption and without, and the difference is learned, too: alone, what a caption
    changes is the last thing to be learned: after 2,763 steps of the plain loss it was half as large as the error that
    remained (mean squares at noise to signal 0.7: 0.025 and 0.050), and the student missed all of it.
    """
    teacher = TextToVelocity.shipped()
    tokenize, tokenize_2 = token_ids(build_tokenizer()), token_ids(build_tokenizer(pad_token="!"))
    kept = (1 - torch.tensor(trained_betas(), dtype=torch.float64)).cumprod(0)

    def loss_of(draw: Draw) -> dict[str, Tensor]:
        generator, size = draw.generator, draw.size // 2
        rows = torch.randint(len(latents), (size,), generator=generator)
        texts = draw_captions(scenes[rows], draw)
        ratio = (1.4 * torch.randn(size, generator=generator)).exp()
        timesteps = (1000 / LAST * ratio / (ratio + MIDDLE) - 1).round().long().clamp(0, 999)
        alpha, sigma = (level.sqrt().float()[:, None, None, None] for level in (kept[timesteps], 1 - kept[timesteps]))
        clean = latents[rows].float()
        noisy = alpha * clean + sigma * torch.randn(clean.shape, generator=generator)
        weight = alpha.square().reciprocal().clamp(max=MAX_WEIGHT)
        texts += [""] * size
        noisy, timesteps, alpha, sigma = (torch.cat([part, part]) for part in (noisy, timesteps, alpha, sigma))
        with torch.no_grad():
            level = sigma / (alpha + sigma)  # the same ratio of noise to signal on mini-sd3's straight path
            straight = noisy / (alpha + sigma)
            velocity = teacher(straight, level.flatten(), tokenize(texts), tokenize_2(texts))
            expected = straight + (1 - level) * velocity
        error = model(noisy, timesteps, tokenize(texts)).float() - expected
        captioned, plain = error.chunk(2)
        return {
            "noise": 0.5 * (weight * (captioned.square() + plain.square())).mean(),
            "guidance": GUIDANCE_WEIGHT * (weight * (captioned - plain).square()).mean(),
        }

    return loss_of


def pipeline(unet: UNet2DConditionModel, text_encoder: CLIPTextModel, vae: AutoencoderKL) -> StableDiffusionPipeline:
    """The stock pipeline of the trained parts."""
    return StableDiffusionPipeline(
        unet=unet,
        scheduler=scheduler(),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=build_tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
