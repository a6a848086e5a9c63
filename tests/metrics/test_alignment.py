from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file

from hybridlib.metrics import alignment
from hybridlib.metrics.alignment import ClipAlignment, preprocess, token_counts
from hybridlib.miniature.scenes import captions, render, sample_scenes
from hybridlib.paths import MODELS

FOLDER = MODELS / "mini-clip"


@pytest.fixture(scope="module")
def clip():
    return ClipAlignment.load("mini-clip", device="cpu", batch_size=5)


@pytest.fixture(scope="module")
def stock():
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{FOLDER}")
    return model.eval(), transform, open_clip.get_tokenizer(f"local-dir:{FOLDER}")


@pytest.fixture(scope="module")
def scenes():
    drawn = sample_scenes(12, seed=77)
    pixels = render(drawn).permute(0, 2, 3, 1).mul(255).round().byte().numpy()
    return [Image.fromarray(array) for array in pixels], captions(drawn)


@torch.no_grad()
def published_score(stock, image, prompt):
    """One image, one prompt, as the published study computes it."""
    model, transform, tokenizer = stock
    a, b = model.encode_image(transform(image)[None]), model.encode_text(tokenizer([prompt]))
    return ((a / a.norm(dim=-1, keepdim=True)) @ (b / b.norm(dim=-1, keepdim=True)).T).item()


def test_scores_are_those_of_one_image_at_a_time(clip, stock, scenes):
    images, prompts = scenes
    images = [*images[:-1], images[-1].resize((100, 70))]
    scores = clip.score(images, prompts)
    expected = [published_score(stock, *pair) for pair in zip(images, prompts, strict=True)]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)  # float32 in another order of summation
    assert (scores.shape, scores.dtype) == ((12,), np.float64)


def test_right_prompts_score_higher_than_wrong_ones(clip, scenes):
    images, prompts = scenes
    assert clip.score(images, prompts).mean() > clip.score(images, prompts[1:] + prompts[:1]).mean() + 0.2


@pytest.mark.parametrize(
    "changes", [{}, {"size": (48, 48)}, {"size": 40, "resize_mode": "longest"}, {"resize_mode": "squash"}]
)
def test_preprocessing_is_that_of_open_clip(clip, changes):
    model = open_clip.create_model(f"local-dir:{FOLDER}", force_preprocess_cfg=changes)
    transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    rng = np.random.default_rng(0)
    for width, height in ((64, 64), (130, 97), (50, 200), (31, 33)):
        images = [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for _ in range(3)]
        expected = torch.stack([transform(image) for image in images])
        torch.testing.assert_close(preprocess(images, model), expected, rtol=0, atol=1e-5)
    mixed = [Image.new("L", (64, 64), 80), Image.new("RGBA", (70, 64), (9, 8, 7, 99))]
    torch.testing.assert_close(preprocess(mixed, model), torch.stack([transform(i) for i in mixed]), rtol=0, atol=1e-5)


def test_features_have_norm_one_and_texts_are_encoded_once(clip, scenes, monkeypatch):
    images, prompts = scenes
    first = clip.text_features(prompts[:7])
    monkeypatch.setattr(clip.model, "encode_text", lambda *_: pytest.fail("encoded a known text again"))
    again = clip.text_features([*prompts[:7][::-1], prompts[0]])
    assert torch.equal(again, torch.cat([first.flip(0), first[:1]]))
    for features in (first, clip.image_features(images)):
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(features)))


def test_a_score_does_not_depend_on_what_was_scored_before(scenes, monkeypatch):
    """Bit for bit: a study that was killed scores the rest in a new process, which has encoded nothing yet.

    Rounding depends on the batch. Here it does so visibly, so that a memory of single texts could not pass.
    """
    prompts = scenes[1]
    fresh, used = (ClipAlignment.load("mini-clip", device="cpu") for _ in range(2))
    single = torch.cat([fresh.text_features([prompt]) for prompt in prompts])
    torch.testing.assert_close(single, fresh.text_features(prompts), rtol=0, atol=1e-6)
    for clip in (fresh, used):
        clip._texts.clear()
        own = clip.model.encode_text
        monkeypatch.setattr(clip.model, "encode_text", lambda tokens, own=own: own(tokens) + 0.01 * len(tokens))
    for prompt in prompts[:3]:
        used.text_features([prompt])
    assert torch.equal(fresh.text_features(prompts), used.text_features(prompts))
    assert not torch.equal(fresh.text_features(prompts[:3]), fresh.text_features(prompts)[:3])  # the control
    monkeypatch.setattr(alignment, "TEXTS_KEPT", 2)
    fresh.text_features(prompts)
    assert list(fresh._texts) == [tuple(sorted(set(prompts)))]


def test_between_images(clip, scenes):
    images, _ = scenes
    np.testing.assert_allclose(clip.between_images(images, images), np.ones(12), rtol=0, atol=1e-6)
    features = clip.image_features(images).numpy().astype(np.float64)
    expected = np.einsum("nd,nd->n", features, np.roll(features, -1, 0))
    np.testing.assert_allclose(clip.between_images(images, images[1:] + images[:1]), expected, rtol=0, atol=1e-6)


def test_truncation_is_reported():
    clip = ClipAlignment.load("mini-clip", device="cpu")
    fits = "a red circle"
    long = "a large red circle left of a small blue square on sand at dusk and then on and on"
    with pytest.warns(UserWarning, match="beginning 'a large red circle left of' has .* the model reads 16") as caught:
        clip.text_features([fits, long, fits, long])
    clip.text_features([long])  # reported once
    assert (clip.truncated, len(caught)) == ([long], 1)
    plain = clip.tokenizer.tokenizer(long, truncation=False)["input_ids"]
    assert f"has {len(plain)} tokens" in str(caught[0].message)


def test_token_counts_of_both_kinds_of_tokenizer(clip):
    own = open_clip.SimpleTokenizer(context_length=77)
    texts = ["a photo of a cat", "word " * 100]
    assert token_counts(own, texts) == [7, 102]
    padded = clip.tokenizer(["a red circle"])[0].tolist()
    end = clip.tokenizer.tokenizer.eos_token_id
    assert token_counts(clip.tokenizer, ["a red circle"]) == [padded.index(end) + 1]
    assert token_counts(own, []) == []


def test_identity_names_the_weights(clip):
    assert clip.name == "clip"
    assert clip.identity.startswith(f"CLIP cosine, open_clip {open_clip.__version__}, mini-clip, weights sha256 ")
    assert len(clip.identity.rsplit(" ", 1)[1]) == 12


def test_a_local_folder_is_the_same_model(clip, scenes, tmp_path):
    shutil.copytree(FOLDER, tmp_path / "copy")
    images, prompts = scenes
    local = ClipAlignment.load(str(tmp_path / "copy"), device="cpu", batch_size=3)
    np.testing.assert_allclose(local.score(images, prompts), clip.score(images, prompts), rtol=0, atol=1e-6)


def tiny_openai_model(monkeypatch, tmp_path, file):
    """Registers an architecture with exact GELU whose OpenAI weights, in a local file, want the quick one."""
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
    }
    (tmp_path / "tiny-openai.json").write_text(json.dumps(config))
    factory, pretrained = sys.modules["open_clip.factory"], sys.modules["open_clip.pretrained"]
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    open_clip.add_model_config(tmp_path)
    tag = pretrained._pcfg(quick_gelu=True, file=str(file))
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny-openai", {"openai": tag})


def test_openai_weights_get_the_activation_they_were_trained_with(monkeypatch, tmp_path):
    file = tmp_path / "weights.safetensors"
    tiny_openai_model(monkeypatch, tmp_path, file)
    torch.manual_seed(0)
    save_file(open_clip.create_model("tiny-openai").state_dict(), file)
    clip = ClipAlignment.load("tiny-openai", device="cpu")  # open_clip's warning of a mismatch would be an error here
    kinds = {type(module).__name__ for module in clip.model.modules()}
    assert "QuickGELU" in kinds
    assert "GELU" not in kinds
    assert clip.score([Image.new("RGB", (50, 40), "red")], ["a red image"]).shape == (1,)


def test_absent_weights(monkeypatch, tmp_path):
    tiny_openai_model(monkeypatch, tmp_path, tmp_path / "absent")

    def refuse(*_, **__):
        raise FileNotFoundError("no network")

    monkeypatch.setattr(open_clip, "download_pretrained", refuse)
    with pytest.raises(ValueError, match="weights of 'tiny-openai' could not be had; .* local folder"):
        ClipAlignment.load("tiny-openai")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mini-nothing", "no miniature model"),
        ("no-such-architecture", "no open_clip architecture with OpenAI weights"),
        ("ViT-H-14", "no open_clip architecture with OpenAI weights"),
    ],
)
def test_unknown_models(name, message):
    with pytest.raises(ValueError, match=message):
        ClipAlignment.load(name)


def test_bad_input(clip, tmp_path, scenes):
    with pytest.raises(ValueError, match="images and prompts must be equal in number, got 1 and 2"):
        clip.score(scenes[0][:1], scenes[1][:2])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        ClipAlignment.load("mini-clip", batch_size=0)
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no CLIP model: expected .* open_clip_model.safetensors"):
        ClipAlignment.load(str(tmp_path))
    assert clip.score([], []).shape == (0,)


def test_the_package_imports_no_model_libraries():
    code = "import sys, hybridlib.metrics; print({'torch', 'open_clip', 'piq', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
