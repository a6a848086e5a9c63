from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from hybridlib.miniature import diffusion, judge, vae, zoo
from hybridlib.miniature.tokens import build_tokenizer
from hybridlib.paths import MODELS


def test_one_weighted_null_token_stands_for_many():
    """Exact in real arithmetic; 1e-5 covers float32 summation over 60 against 17 text tokens."""
    torch.manual_seed(1)
    tokenizer = build_tokenizer()
    transformer = diffusion.TextToVelocity(len(tokenizer), tokenizer.eos_token_id).transformer.eval()
    for parameter in transformer.parameters():
        nn.init.normal_(parameter, std=0.06)
    latents, text, pooled = torch.randn(2, 16, 8, 8), torch.randn(2, 16, 160), torch.randn(2, 160)

    def velocity(null_tokens):
        embeds = torch.cat([text, torch.zeros(2, null_tokens, 160)], dim=1)
        with torch.no_grad():
            return transformer(
                latents, encoder_hidden_states=embeds, pooled_projections=pooled, timestep=torch.tensor([900.0, 100.0])
            ).sample

    stock = velocity(44)
    attention = diffusion.NullTokenAttention()
    attention.multiplicity = 44.0
    transformer.set_attn_processor(attention)
    torch.testing.assert_close(velocity(1), stock, rtol=0, atol=1e-5)


def test_tokenizer_ids_are_the_shipped_ones(mini):
    assert build_tokenizer().get_vocab() == mini.tokenizer.get_vocab()
    assert mini.tokenizer_2.pad_token == "!"


@pytest.mark.slow
def test_shipped_models_are_as_good_as_their_cards_say():
    """A quarter of the evaluation's scenes; the margins are three standard errors of such a sample."""
    measured = zoo.evaluate(64, write=False)
    for name, figures in measured.items():
        recorded = json.loads((MODELS / name / "evaluation.json").read_text())
        for quality, value in figures.items():
            margin = (
                0.2 if "PSNR" in quality else 3 * (max(recorded[quality] * (1 - recorded[quality]), 0.01) / 64) ** 0.5
            )
            assert value >= recorded[quality] - margin, quality


def test_judge_reads_what_the_renderer_drew():
    assert judge.accuracy(judge.Judge.load(MODELS / "mini-judge"), count=512) >= 0.97


@pytest.mark.slow
def test_autoencoder_psnr_is_piq_psnr(mini):
    """Our mean of per-image PSNR against piq on the same reconstructions."""
    import piq

    from hybridlib.miniature.scenes import render, sample_scenes

    images = render(sample_scenes(64, seed=900_001))
    with torch.no_grad():
        decoded = mini.vae.decode(mini.vae.encode(2 * images - 1).latent_dist.mean).sample
    expected = piq.psnr((decoded / 2 + 0.5).clamp(0, 1), images, data_range=1.0).item()
    assert vae.reconstruction_psnr(mini.vae, count=64) == pytest.approx(expected, abs=1e-3)
