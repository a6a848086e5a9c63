"""Whole pipelines as configurations: networks without weights, to be counted, or with random ones, to be timed.

Speed and memory do not depend on the values of the weights, so what they are at true size can be computed, and
measured on a device, where the weights themselves cannot be had. The configurations were written down without the hub
at hand: compare them with a downloaded `config.json` before a count of theirs is relied on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import Module, Parameter

from ..names import require_known

INDEX = "model_index.json"


class Blueprint(NamedTuple):
    """A pipeline of diffusers: the classes of its networks and their configurations, and that of its scheduler."""

    pipeline: str
    networks: Mapping[str, tuple[str, Mapping[str, Any]]]  # name in the pipeline -> class, configuration
    scheduler: tuple[str, Mapping[str, Any]]

    def __repr__(self) -> str:
        return f"Blueprint({self.pipeline}: {', '.join(self.networks)})"


_CLIP_L: dict[str, Any] = {
    **{"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768},
    **{"num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu"},
}
_CLIP_G: dict[str, Any] = _CLIP_L | {
    **{"hidden_size": 1280, "intermediate_size": 5120, "projection_dim": 1280, "num_hidden_layers": 32},
    **{"num_attention_heads": 20, "hidden_act": "gelu"},
}
_T5_XXL: dict[str, Any] = {
    **{"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64},
    "feed_forward_proj": "gated-gelu",
}
_VAE: dict[str, Any] = {
    **{"latent_channels": 16, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "sample_size": 1024},
    **{"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4},
    **{"use_quant_conv": False, "use_post_quant_conv": False, "force_upcast": True},
}
_SD3_VAE = _VAE | {"scaling_factor": 1.5305, "shift_factor": 0.0609}
_FLUX_VAE = _VAE | {"scaling_factor": 0.3611, "shift_factor": 0.1159}
_SD3: dict[str, Any] = {
    **{"sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24},
    **{"attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096},
    **{"caption_projection_dim": 1536, "pooled_projection_dim": 2048, "pos_embed_max_size": 192},
}
_SD35 = _SD3 | {"pos_embed_max_size": 384, "dual_attention_layers": list(range(13)), "qk_norm": "rms_norm"}
_FLUX: dict[str, Any] = {
    **{"in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128},
    **{"num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768},
}
_EULER = "FlowMatchEulerDiscreteScheduler"
_DYNAMIC = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


def _sd3(transformer: dict[str, Any]) -> Blueprint:
    networks = {
        "text_encoder": ("CLIPTextModelWithProjection", _CLIP_L),
        "text_encoder_2": ("CLIPTextModelWithProjection", _CLIP_G),
        "text_encoder_3": ("T5EncoderModel", _T5_XXL),
        "transformer": ("SD3Transformer2DModel", transformer),
        "vae": ("AutoencoderKL", _SD3_VAE),
    }
    return Blueprint("StableDiffusion3Pipeline", networks, (_EULER, {"shift": 3.0}))


def _flux(guidance_embeds: bool, scheduler: dict[str, Any]) -> Blueprint:
    networks = {
        "text_encoder": ("CLIPTextModel", _CLIP_L),
        "text_encoder_2": ("T5EncoderModel", _T5_XXL),
        "transformer": ("FluxTransformer2DModel", _FLUX | {"guidance_embeds": guidance_embeds}),
        "vae": ("AutoencoderKL", _FLUX_VAE),
    }
    return Blueprint("FluxPipeline", networks, (_EULER, scheduler))


BLUEPRINTS = {
    "sd3-medium": _sd3(_SD3),
    "sd3.5-medium": _sd3(_SD35),
    "flux.1-dev": _flux(True, _DYNAMIC),
    "flux.1-schnell": _flux(False, {"shift": 1.0}),
}
HUB = {  # id on the hub -> name here
    "stabilityai/stable-diffusion-3-medium-diffusers": "sd3-medium",
    "stabilityai/stable-diffusion-3.5-medium": "sd3.5-medium",
    "black-forest-labs/FLUX.1-dev": "flux.1-dev",
    "black-forest-labs/FLUX.1-schnell": "flux.1-schnell",
}


def blueprint(name_or_folder: str) -> Blueprint:
    """Of a published pipeline by its name or hub id, or of a folder as diffusers saves pipelines, which is only read.

    Raises:
        ValueError: if it is neither.
    """
    folder = Path(name_or_folder)
    if not folder.is_dir():
        name = HUB.get(name_or_folder, name_or_folder)
        require_known("pipeline (it is no folder here)", name, BLUEPRINTS)
        return BLUEPRINTS[name]
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder} holds no {INDEX}; a folder as diffusers saves pipelines is needed")
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    networks = {
        name: (entry[1], json.loads((folder / name / "config.json").read_text(encoding="utf-8")))
        for name, entry in index.items()
        if isinstance(entry, list) and (folder / name / "config.json").is_file()
    }
    kind = index["scheduler"][1]
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    return Blueprint(index["_class_name"], networks, (kind, scheduler))


def network(kind: str, config: Mapping[str, Any]) -> Any:
    """A network of diffusers or transformers whose parameters have shapes and no values; its buffers are real."""
    import diffusers
    import transformers
    from accelerate import init_empty_weights

    with init_empty_weights():
        if hasattr(diffusers, kind):
            model = getattr(diffusers, kind).from_config(dict(config))
        else:
            cls = getattr(transformers, kind)
            model = cls(cls.config_class.from_dict(dict(config)))
    if hasattr(model, "tie_weights"):
        model.tie_weights()  # parameters that are one were made twice
    return model.eval()


def shell(plan: Blueprint) -> Any:
    """The whole pipeline without weights, on the meta device, without tokenizers."""
    pipeline = assemble(plan, {name: network(*entry).to("meta") for name, entry in plan.networks.items()}, {})
    pipeline.tokenizer_max_length = pipeline.text_encoder.config.max_position_embeddings
    return pipeline


def random_pipeline(
    plan: Blueprint, tokenizers: Mapping[str, Any], device: str | torch.device, dtype: torch.dtype, seed: int = 0
) -> Any:
    """The whole pipeline with random weights, drawn where they will be: no second copy, and none in float32."""
    generator = torch.Generator(device).manual_seed(seed)
    networks = {}
    for name, entry in plan.networks.items():
        networks[name] = network(*entry)
        _fill(networks[name], torch.device(device), dtype, generator)
    return assemble(plan, networks, tokenizers)


def assemble(plan: Blueprint, networks: Mapping[str, Module], tokenizers: Mapping[str, Any]) -> Any:
    """A hybrid pipeline of these networks."""
    import diffusers

    from . import pipelines

    kind, config = plan.scheduler
    cls = getattr(pipelines, f"Hybrid{plan.pipeline.removeprefix('Hybrid')}")
    words = [name.replace("text_encoder", "tokenizer") for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
    wanted = {word: None for word in words if word in cls._get_signature_keys(cls)[0]}
    encoders = {word.replace("tokenizer", "text_encoder"): None for word in wanted}
    scheduler = getattr(diffusers, kind).from_config(dict(config))
    pipeline = cls(**encoders | dict(networks), **wanted | dict(tokenizers), scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _fill(model: Module, device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> None:
    made: dict[int, Parameter] = {}
    for module in model.modules():
        for name, empty in module.named_parameters(recurse=False):
            if id(empty) not in made:
                values = torch.empty(empty.shape, device=device, dtype=dtype)
                if empty.ndim > 1:
                    values.normal_(std=0.02, generator=generator)
                else:  # weights of norms, and biases
                    values.fill_(float(name == "weight"))
                made[id(empty)] = Parameter(values, requires_grad=False)
            module._parameters[name] = made[id(empty)]
    Module.to(model, device=device, dtype=dtype)  # buffers; that of diffusers warns of dtypes that it keeps apart
