"""mini-sd's noise schedule, its latents and what its training asks for, each against its definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from torch import nn
from transformers import CLIPTextModelWithProjection

from hybridlib.miniature import sd, vae
from hybridlib.miniature.immiscible import world as immiscible
from hybridlib.miniature.scenes import render, sample_scenes
from hybridlib.paths import MODELS
from hybridlib.training import loop


def test_noise_to_signal_is_that_of_mini_sd3s_schedule():
    """The ratio of noise to signal of diffusers' flow scheduler with shift 0.35 at the same share of the schedule."""
    flow = FlowMatchEulerDiscreteScheduler(shift=0.35)
    kept = DDIMScheduler(trained_betas=sd.trained_betas()).alphas_cumprod.double()
    for step in (99, 511, 899, 999):
        share = (step + 1) / 1000 * sd.LAST
        flow.set_timesteps(sigmas=[share])
        straight = flow.sigmas[0].item() / (1 - flow.sigmas[0].item())
        # 1000 rounded float32 factors in alphas_cumprod
        assert ((1 - kept[step]) / kept[step]).sqrt().item() == pytest.approx(straight, rel=1e-3)
    assert ((1 - kept[511]) / kept[511]).sqrt().item() == pytest.approx(0.35, rel=0.01)  # half way


def test_25_steps_are_sd14s():
    scheduler = sd.scheduler()
    scheduler.set_timesteps(25)
    assert scheduler.timesteps[:4].tolist() == [999, 959, 919, 879]
    assert scheduler.timesteps[-2:].tolist() == [80, 40]
    assert scheduler.sigmas[0].item() == pytest.approx(14.9, abs=0.05)


@torch.no_grad()
def test_the_shift_of_the_latents_moves_into_the_autoencoder():
    """Same normalised latents and same pictures; 1e-5 covers a float32 sum in another order."""
    original = AutoencoderKL.from_pretrained(MODELS / "mini-sd3" / "vae", torch_dtype=torch.float32)
    moved = vae.for_sd(original)
    images = 2 * render(sample_scenes(4, seed=1)) - 1
    latents = (original.encode(images).latent_dist.mean - original.config.shift_factor) * original.config.scaling_factor
    ours = moved.encode(images).latent_dist.mean * moved.config.scaling_factor
    torch.testing.assert_close(ours, latents, rtol=0, atol=1e-5)
    picture = original.decode(latents / original.config.scaling_factor + original.config.shift_factor).sample
    torch.testing.assert_close(moved.decode(ours / moved.config.scaling_factor).sample, picture, rtol=0, atol=1e-5)
    assert not moved.config.shift_factor  # a stock SD pipeline would not read it


@torch.no_grad()
@pytest.mark.parametrize("make", [lambda: sd.build_unet(96), lambda: immiscible.network("epsilon", 0)])
def test_an_untrained_unet_returns_what_it_is_shown(make):
    """Of pure noise the noise is what is asked for, and an untrained answer of zero would have an error of one. The
    group norm sets the power of 4 or 5 channels of 8 x 8 values to one, from which it lies a few per cent off."""
    torch.manual_seed(0)
    unet, noise = make(), torch.randn(8, 16, 8, 8)
    condition = {"class_labels": torch.zeros(8, dtype=torch.long)}
    if unet.config.get("cross_attention_dim"):
        condition = {"encoder_hidden_states": torch.randn(8, 16, 96)}
    answer = unet(noise, 999, return_dict=False, **condition)[0]
    assert float((answer - noise).square().mean()) < 0.02


def test_a_unet_too_narrow_for_the_identity_is_refused():
    unet = UNet2DModel(in_channels=16, out_channels=16, block_out_channels=[24] * 4, norm_num_groups=8)
    with pytest.raises(ValueError, match="block_out_channels must begin with at least 2 x 16 .*, got 24 and 16"):
        sd.start_as_identity(unet)


@torch.no_grad()
def test_the_text_encoder_starts_where_mini_sd3_listened():
    ids = torch.randint(100, 500, (2, 16), generator=torch.Generator().manual_seed(0))
    trained = CLIPTextModelWithProjection.from_pretrained(MODELS / "mini-sd3" / "text_encoder_2", dtype=torch.float32)
    expected = trained(ids, output_hidden_states=True).hidden_states[-2]
    started = sd.start_text_encoder()(ids).last_hidden_state
    torch.testing.assert_close(started, F.layer_norm(expected, expected.shape[-1:], eps=1e-5), rtol=0, atol=1e-5)


def test_the_teachers_answer_becomes_noise(monkeypatch):
    """Of a teacher that knows the clean latents on its straight path: the noise that was added, captioned or not."""
    clean = 0.7
    kept = DDIMScheduler(trained_betas=sd.trained_betas()).alphas_cumprod

    class Teacher(nn.Module):
        def forward(self, straight, levels, ids, ids_2):
            levels = levels[:, None, None, None]
            return (straight - (1 - levels) * clean) / levels - clean

    class Student(nn.Module):
        def __init__(self, says):
            super().__init__()
            self.says = says

        def forward(self, noisy, timesteps, ids):
            assert timesteps.dtype == torch.int64
            signal = kept[timesteps][:, None, None, None]
            empty = (ids == ids[:, -1:]).sum(1) > ids.shape[1] - 2
            return self.says((noisy - signal.sqrt() * clean) / (1 - signal).sqrt(), empty[:, None, None, None])

    def losses(says):
        loss_of = sd.noise_loss(Student(says), sample_scenes(6, seed=1), torch.full((6, 16, 8, 8), clean))
        return loss_of(loop._draw(sd.RECIPE, 3, 0, torch.device("cpu")))

    monkeypatch.setattr(sd.TextToVelocity, "shipped", staticmethod(Teacher))
    # float32: the noise is a difference of latents divided by a level as small as 0.01
    assert losses(lambda noise, empty: 0 * noise)["noise"].item() > 1.0
    assert max(term.item() for term in losses(lambda noise, empty: noise).values()) < 1e-3
    same = losses(lambda noise, empty: noise + 1)  # wrong alike with and without a caption
    assert same["noise"].item() > 1.0 > 1e-3 > same["guidance"].item()
    other = losses(lambda noise, empty: noise + empty)  # wrong where there is none
    assert other["guidance"].item() > 1.0
