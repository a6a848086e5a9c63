from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors import safe_open

from hybridlib.denoising import models
from hybridlib.denoising.pipelines import HybridStableDiffusion3Pipeline
from hybridlib.paths import MODELS


def test_stock_diffusers_loads_the_shipped_folder(mini):
    stock = StableDiffusion3Pipeline.from_pretrained(MODELS / "mini-sd3", text_encoder_3=None, tokenizer_3=None)
    assert stock.vae.config.latent_channels == 16
    assert stock.vae_scale_factor == 8
    assert stock.scheduler.config.shift == 3.0
    for name, weight in stock.transformer.state_dict().items():
        assert torch.equal(weight.float(), mini.transformer.state_dict()[name])


def test_a_folder_path_loads_like_the_name(mini):
    by_path = models.load(str(MODELS / "mini-sd3"), device="cpu")
    assert isinstance(by_path, HybridStableDiffusion3Pipeline)
    assert torch.equal(by_path.transformer.pos_embed.proj.weight, mini.transformer.pos_embed.proj.weight)
    assert by_path.transformer.dtype == torch.float32


def test_unknown_miniature_names_the_shipped_ones():
    with pytest.raises(ValueError, match=r"no miniature model 'mini-sd9'.*mini-sd3"):
        models.load("mini-sd9")


def test_unreachable_hub_id_names_the_alternative(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="pass its local folder instead"):
        models.load("somebody/some-model", device="cpu")


def test_shipped_models_are_small_fp16_safetensors():
    files = [path for path in MODELS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20e6
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}]
    for path in MODELS.glob("mini-*/**/*.safetensors"):
        with safe_open(path, "pt") as file:
            dtypes = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118
        assert dtypes <= {torch.float16, torch.int64}, path


def test_every_model_has_its_card():
    for folder in MODELS.iterdir():
        card = (folder / "README.md").read_text()
        if folder.name.startswith("mini-"):
            assert "## Training" in card
            assert "## Quality on held-out scenes" in card
            assert (folder / "loss.png").is_file()
        else:  # taken over, not trained here
            assert "## Source" in card
            assert "## Limits" in card
