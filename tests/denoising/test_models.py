from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline, LatentConsistencyModelPipeline, LCMScheduler, StableDiffusion3Pipeline
from factories import diffusion_scheduler, random_sd, random_sdxl
from safetensors import safe_open

from hybridlib.denoising import models
from hybridlib.denoising.identity import model_identity
from hybridlib.denoising.pipelines import HybridStableDiffusion3Pipeline
from hybridlib.paths import MODELS, ROOT
from hybridlib.study import results

LOADING = """DiffusionPipeline.from_pretrained(
    "data/models/mini-sd3", text_encoder_3=None, tokenizer_3=None, torch_dtype=torch.float32
)"""


def test_stock_diffusers_loads_the_shipped_folder_as_printed(mini, monkeypatch):
    assert LOADING in (MODELS / "mini-sd3" / "README.md").read_text()
    assert LOADING in (ROOT / "README.md").read_text()
    monkeypatch.chdir(ROOT)
    stock = eval(LOADING, {"DiffusionPipeline": DiffusionPipeline, "torch": torch})
    assert type(stock) is StableDiffusion3Pipeline
    stock.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 4, "max_sequence_length": 1, "output_type": "np"}
    pictures = [
        pipe("a large red circle on grass at noon", generator=torch.Generator().manual_seed(1), **options).images
        for pipe in (stock, mini)
    ]
    assert (pictures[0] == pictures[1]).all()


@pytest.mark.parametrize("family", ["PixArtSigmaPipeline", None])
def test_another_family_is_refused(tmp_path, family):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": family}))
    with pytest.raises(ValueError, match=f"holds a {family}; only StableDiffusion3Pipeline"):
        models.load(str(tmp_path), device="cpu")


SAVED = {
    "StableDiffusionPipeline": lambda: random_sd(),
    "LatentConsistencyModelPipeline": lambda: random_sd(
        scheduler=diffusion_scheduler(LCMScheduler), cls=LatentConsistencyModelPipeline, time_cond_proj_dim=16
    ),
    "StableDiffusionXLPipeline": lambda: random_sdxl(),
}


@pytest.mark.parametrize("family", SAVED)
def test_a_folder_loads_as_what_its_index_says(tmp_path, family):
    """Not as what its path says: the published loader goes by words in the path."""
    folder, stock = tmp_path / "tiny-lcm-sdxl-turbo", SAVED[family]()
    stock.save_pretrained(folder)
    loaded = models.load(str(folder), device="cpu")
    assert type(loaded).__name__ == models.FAMILIES[family]
    options = {"num_inference_steps": 2, "guidance_scale": 7.0, "output_type": "np"}
    pictures = [
        pipe("a red ring", generator=torch.Generator().manual_seed(1), **options).images for pipe in (stock, loaded)
    ]
    # Weights read from a file may lie otherwise in memory, where kernels round otherwise; 7e-7 was seen.
    assert abs(pictures[0] - pictures[1]).max() < 1e-5


def test_a_folder_without_index_and_an_unknown_dtype_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no model_index.json"):
        models.load(str(tmp_path), device="cpu")
    with pytest.raises(ValueError, match=r"dtype must be one of \('float32', 'float16', 'bfloat16'\), got 'fp16'"):
        models.load("mini-sd3", device="cpu", dtype="fp16")


def test_a_folder_path_loads_like_the_name(mini):
    by_path = models.load(str(MODELS / "mini-sd3"), device="cpu")
    assert isinstance(by_path, HybridStableDiffusion3Pipeline)
    assert torch.equal(by_path.transformer.pos_embed.proj.weight, mini.transformer.pos_embed.proj.weight)
    assert by_path.transformer.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "kind", "dtype"),
    [
        ("mini-sd3", "cuda", "float32"),  # what shipped tables and surfaces were made with, also on a GPU
        (str(MODELS / "mini-lcm"), "cuda", "float32"),
        ("mini-sd", "cpu", "float32"),
        ("sd3-medium", "cuda", "float16"),
        ("sd3-medium", "cpu", "float32"),
    ],
)
def test_default_dtypes(name, kind, dtype):
    assert models.default_dtype(models.locate(name), kind) == dtype


def test_unknown_miniature_names_the_shipped_ones():
    with pytest.raises(ValueError, match=r"no miniature model 'mini-sd9'.*mini-sd3"):
        models.load("mini-sd9")


def test_unreachable_hub_id_names_the_alternative(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="pass its local folder instead"):
        models.load("somebody/some-model", device="cpu")


def test_shipped_models_are_small_fp16_safetensors():
    files = [path for path in MODELS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 30e6
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


def test_a_models_identity_is_its_weights_wherever_it_lies(tmp_path):
    """States, plans and shipped surfaces name the model that they belong to; another clone has it in another folder."""
    own = models.load("mini-sd3", "cpu")
    shutil.copytree(MODELS / "mini-sd3", tmp_path / "elsewhere")
    moved = models.load(str(tmp_path / "elsewhere"), "cpu")
    assert model_identity(moved.transformer) == model_identity(own.transformer) == results.model_of("13_pairs")
    with torch.no_grad():
        next(moved.transformer.parameters()).view(-1)[0] += 1
    assert model_identity(moved.transformer) != model_identity(own.transformer)
