"""Configurations of published UNets, for what can be counted without their weights."""

from __future__ import annotations

from typing import Any

from .compact import Widths

SD14: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}  # Stable Diffusion 1.4
BK_SDM_TINY: dict[str, Any] = SD14 | {  # arXiv 2305.15798; the starting point of Hybrid SD's pruning
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "mid_block_type": None,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 1,
}
HYBRID_SD_WIDTHS = Widths(  # Hybrid SD's UNet of 224 M parameters, pruned from BK-SDM-Tiny; read from released weights
    resnets=(256, 480, 960, 320, 320, 160, 160, 96, 256),
    self_attention=(8, 4, 6, 6, 8, 8, 4, 8, 8),
    cross_attention=(8,) * 9,
)
SDXL_BASE: dict[str, Any] = {  # arXiv 2307.01952
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
