"""Freshly built random pipelines: the real architectures in sizes of our choice, no download."""

from __future__ import annotations

import inspect

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    LCMScheduler,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from hybridlib.denoising.pipelines import HybridFluxPipeline, HybridStableDiffusion3Pipeline
from hybridlib.miniature.tokens import MAX_TOKENS, build_tokenizer


def random_sd3(with_t5: bool = False, seed: int = 0, **config) -> HybridStableDiffusion3Pipeline:
    """An untrained SD3 with 4x downsampling, 32x32 images, and optionally T5: another size than mini-sd3."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=48,
        caption_projection_dim=32,
        pooled_projection_dim=48,
        pos_embed_max_size=12,
        **config,
    )
    for parameter in transformer.parameters():  # large enough that prompts and guidance matter
        torch.nn.init.normal_(parameter, std=0.12)
    vae = _vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5)
    pipeline = HybridStableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae.eval(),
        text_encoder=_text_encoder(16, tokenizer).eval(),
        tokenizer=tokenizer,
        text_encoder_2=_text_encoder(32, tokenizer).eval(),
        tokenizer_2=build_tokenizer(pad_token="!"),
        text_encoder_3=_t5(48).eval() if with_t5 else None,
        tokenizer_3=_t5_tokenizer() if with_t5 else None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
DIFFUSION = {  # scheduler -> what Stable Diffusion sets
    DPMSolverMultistepScheduler: {},
    DDIMScheduler: {"clip_sample": False, "set_alpha_to_one": False},
    LCMScheduler: {},
}


def diffusion_scheduler(kind=DPMSolverMultistepScheduler, **options):
    options = BETAS | DIFFUSION.get(kind, {}) | options
    if "steps_offset" not in inspect.signature(kind.__init__).parameters:
        del options["steps_offset"]
    return kind(**options)


def random_unet(width=32, seed=0, **config):
    """An untrained UNet of one level, with attention before, in and after its middle."""
    torch.manual_seed(seed)
    config = {"cross_attention_dim": 16} | config
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(width,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        attention_head_dim=4,
        norm_num_groups=4,
        **config,
    )
    for parameter in unet.parameters():  # large enough that prompts and guidance matter
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.12)
    return unet.eval()


def random_sd(seed: int = 0, scheduler=None, cls=StableDiffusionPipeline, **config):
    """An untrained Stable Diffusion 1.x of 32x32 images; with `time_cond_proj_dim` a latent consistency model."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    pipeline = cls(
        vae=_vae(scaling_factor=0.18215).eval(),
        text_encoder=_text_encoder(16, tokenizer, CLIPTextModel).eval(),
        tokenizer=tokenizer,
        unet=random_unet(seed=seed, **config),
        scheduler=scheduler or diffusion_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


SDXL = {
    "cross_attention_dim": 48,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
}


def random_sdxl(seed: int = 0, scheduler=None, cls=StableDiffusionXLPipeline, **config):
    """An untrained SDXL of 32x32 images."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    pipeline = cls(
        vae=_vae(scaling_factor=0.13025).eval(),
        text_encoder=_text_encoder(16, tokenizer, CLIPTextModel).eval(),
        text_encoder_2=_text_encoder(32, tokenizer).eval(),
        tokenizer=tokenizer,
        tokenizer_2=build_tokenizer(pad_token="!"),
        unet=random_unet(seed=seed, **(SDXL | config)),
        scheduler=scheduler or diffusion_scheduler(),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


DYNAMIC = {"use_dynamic_shifting": True, "shift": 3.0}  # what FLUX.1-dev sets; schnell has a fixed shift of 1


def random_flux_transformer(seed=0, **config):
    """An untrained FLUX.1 transformer of 4 latent channels, with one block of each kind."""
    torch.manual_seed(seed)
    config = {"guidance_embeds": True, "num_single_layers": 1} | config
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=48,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 2, 2),
        **config,
    )
    for parameter in transformer.parameters():  # large enough that prompts and guidance matter
        torch.nn.init.normal_(parameter, std=0.12)
    return transformer.eval()


def random_flux(seed: int = 0, cls=HybridFluxPipeline, scheduler=None, **config):
    """An untrained FLUX.1 with 4x downsampling; with `guidance_embeds=False` a schnell. Images are 32x32 if asked."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    pipeline = cls(
        transformer=random_flux_transformer(seed, **config),
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(**DYNAMIC),
        vae=_vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1, scaling_factor=0.4).eval(),
        text_encoder=_text_encoder(16, tokenizer, CLIPTextModel).eval(),
        tokenizer=tokenizer,
        text_encoder_2=_t5(48).eval(),
        tokenizer_2=_t5_tokenizer(),
    )
    pipeline.default_sample_size = 8  # the stock class has 128 written in
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _vae(**config):
    return AutoencoderKL(
        latent_channels=4,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        **config,
    )


def _text_encoder(width, tokenizer, cls=CLIPTextModelWithProjection):
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return cls(config)


def _t5(width):
    return T5EncoderModel(T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=64, num_layers=1, num_heads=2))


def _t5_tokenizer():
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{c}", -2.0) for c in "abcdefghijklmnopqrs")]
    pieces += [(c, -3.0) for c in "abcdefghijklmnopqrstuvwxyz"]
    return T5TokenizerFast(vocab=pieces, extra_ids=0)
