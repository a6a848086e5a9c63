"""mini-sd3: two CLIP text encoders and an SD3 transformer, trained together by rectified flow on captioned scenes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from ..paths import MODELS
from ..progress import quiet_libraries
from ..training.loop import Draw, History, Recipe, fit
from .corpus import corpus, draw_captions, token_ids
from .tokens import MAX_TOKENS, build_tokenizer

RECIPE = Recipe(steps=10_000, batch_size=128, learning_rate=2e-3, seed=2, ema_decay=0.999, warmup_steps=400)
SHIFT = 0.35  # of the noise schedule: the closest to SD3's curves in data/results/05_schedules.parquet
MAX_NULL_TOKENS = 256  # what the stock pipeline pads with where there is no T5


class TextToVelocity(nn.Module):
    """The trained part of the pipeline: token ids and noisy latents to velocity."""

    def __init__(self, vocabulary: int, eos_token_id: int) -> None:
        super().__init__()
        self.text_encoder = _text_encoder(64, vocabulary, eos_token_id)
        self.text_encoder_2 = _text_encoder(96, vocabulary, eos_token_id)
        self.transformer = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=5,
            attention_head_dim=32,
            num_attention_heads=4,
            joint_attention_dim=160,
            pooled_projection_dim=160,
            caption_projection_dim=128,
            pos_embed_max_size=8,
        )
        for name, parameter in self.transformer.named_parameters():  # DiT: every block starts as the identity
            if any(part in name for part in ("norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out")):
                nn.init.zeros_(parameter)

    def forward(self, latents: Tensor, sigmas: Tensor, ids: Tensor, ids_2: Tensor) -> Tensor:
        """Velocity of latents (B, 16, 8, 8) at noise levels (B,) under token ids (B, 16) of both tokenizers."""
        first = self.text_encoder(ids, output_hidden_states=True)
        second = self.text_encoder_2(ids_2, output_hidden_states=True)
        embeds = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        embeds = torch.cat([embeds, torch.zeros_like(embeds[:, :1])], dim=1)  # one null token stands for all
        pooled = torch.cat([first.text_embeds, second.text_embeds], dim=-1)
        return self.transformer(
            latents,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            timestep=1000 * sigmas,
            return_dict=False,
        )[0]

    @staticmethod
    def shipped() -> TextToVelocity:
        """That of mini-sd3 as it ships, in float32."""
        folder, tokenizer = MODELS / "mini-sd3", build_tokenizer()
        model = TextToVelocity(len(tokenizer), tokenizer.eos_token_id)
        with quiet_libraries():
            for name in ("text_encoder", "text_encoder_2"):
                part = CLIPTextModelWithProjection.from_pretrained(folder / name, dtype=torch.float32)
                setattr(model, name, part)
            model.transformer = SD3Transformer2DModel.from_pretrained(folder / "transformer", dtype=torch.float32)
        return model.requires_grad_(False).eval()


def _text_encoder(width: int, vocabulary: int, eos_token_id: int) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=MAX_TOKENS,
            hidden_act="quick_gelu",
            bos_token_id=eos_token_id - 1,
            eos_token_id=eos_token_id,
            pad_token_id=eos_token_id,
        )
    )


class NullTokenAttention:
    """SD3's joint attention in which the last text token counts `multiplicity` times.

    Without T5 the stock pipeline appends up to 256 identical zero tokens. They stay identical in every layer, so one
    token whose attention logit is raised by log(n) gives the same result as n of them. Training with a random n costs
    one token and leaves the model indifferent to `max_sequence_length`.
    """

    def __init__(self) -> None:
        self.multiplicity = 1.0

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any
    ) -> tuple[Tensor, Tensor] | Tensor:
        """An attention processor as diffusers calls it."""

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        query = torch.cat([split(attn.to_q(hidden_states)), split(attn.add_q_proj(encoder_hidden_states))], dim=2)
        key = torch.cat([split(attn.to_k(hidden_states)), split(attn.add_k_proj(encoder_hidden_states))], dim=2)
        value = torch.cat([split(attn.to_v(hidden_states)), split(attn.add_v_proj(encoder_hidden_states))], dim=2)
        bias = torch.zeros(key.shape[2], dtype=query.dtype)
        bias[-1] = math.log(self.multiplicity)
        joint = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.expand(query.shape[2], -1))
        joint = joint.transpose(1, 2).flatten(2).to(query.dtype)
        image, text = joint.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], dim=1)
        image = attn.to_out[0](image)
        return (image, text if attn.context_pre_only else attn.to_add_out(text))


def train(folder: Path, vae: AutoencoderKL, recipe: Recipe = RECIPE) -> tuple[StableDiffusion3Pipeline, History]:
    """Rectified flow with logit-normal noise levels, random caption detail and caption dropout, over cached latents."""
    scenes, latents = corpus(folder, vae)
    tokenizer = build_tokenizer()
    tokenize, tokenize_2 = token_ids(tokenizer), token_ids(build_tokenizer(pad_token="!"))
    torch.manual_seed(recipe.seed)
    model = TextToVelocity(len(tokenizer), tokenizer.eos_token_id)
    stock_processors = model.transformer.attn_processors
    attention = NullTokenAttention()
    model.transformer.set_attn_processor(attention)

    def loss_of(draw: Draw) -> Tensor:
        generator = draw.generator
        rows = torch.randint(len(latents), (draw.size,), generator=generator)
        texts = draw_captions(scenes[rows], draw)
        attention.multiplicity = MAX_NULL_TOKENS ** torch.rand((), generator=generator).item()
        sigmas = torch.sigmoid(0.5 + torch.randn(len(rows), generator=generator))
        clean = latents[rows].float()
        noise = torch.randn(clean.shape, generator=generator)
        noisy = torch.lerp(clean, noise, sigmas[:, None, None, None])
        velocity = model(noisy, sigmas, tokenize(texts), tokenize_2(texts))
        return F.mse_loss(velocity.float(), noise - clean)

    history = fit("transformer", model, loss_of, recipe, folder)
    model.transformer.set_attn_processor(stock_processors)
    pipeline = StableDiffusion3Pipeline(
        transformer=model.transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=build_tokenizer(),  # fresh: a used one is saved with the padding of its last call
        text_encoder_2=model.text_encoder_2,
        tokenizer_2=build_tokenizer(pad_token="!"),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    return pipeline, history
