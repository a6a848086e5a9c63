"""The recipes of mini-sd's students, run for two steps on an untrained mini-sd: sizes, folders, and what loads them."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL

from hybridlib.denoising import models
from hybridlib.miniature import sd, students, vae, zoo
from hybridlib.paths import MODELS
from hybridlib.training import pruning


@pytest.fixture
def untrained(monkeypatch, tmp_path):
    torch.manual_seed(0)
    autoencoder = vae.for_sd(AutoencoderKL.from_pretrained(MODELS / "mini-sd3" / "vae", torch_dtype=torch.float32))
    encoder = sd.start_text_encoder()
    pipeline = sd.pipeline(sd.build_unet(encoder.config.hidden_size), encoder, autoencoder)
    pipeline.set_progress_bar_config(disable=True)
    names = pruning.groups(pruning.remove_blocks(pipeline.unet, "tiny"))
    monkeypatch.setattr(students, "mini_sd", lambda: pipeline)
    for module in (students, zoo, models):
        monkeypatch.setattr(module, "MODELS", tmp_path)
    monkeypatch.setattr(students, "_scores", lambda *_: {name: float(i % 7) for i, name in enumerate(names)})
    monkeypatch.setattr(sd, "CORPUS_SCENES", 32)
    for name in ("SMALL", "LCM", "LCM_SMALL"):
        monkeypatch.setattr(students, name, getattr(students, name)._replace(steps=2, batch_size=4))
    return pipeline


def parameters(unet):
    return sum(parameter.numel() for parameter in unet.parameters())


@pytest.mark.slow
def test_students_are_made_and_draw(untrained, tmp_path):
    large = parameters(untrained.unet)
    assert large <= 1.65e6
    small = students.train_small(tmp_path / "runs")
    assert parameters(small.unet) <= min(0.75e6, large / 2)
    zoo._ship_unet("mini-sd-small", small)
    lcm, lcm_small = (students.train_lcm(tmp_path / "runs", small=which) for which in (False, True))
    embedding = 256 * untrained.unet.config.block_out_channels[0]
    assert parameters(lcm.unet) == large + embedding
    assert parameters(lcm_small.unet) == parameters(small.unet) + embedding
    assert {run.history.losses[0] > 0 for run in (small, lcm, lcm_small)} == {True}
    zoo._ship_unet("mini-lcm-small", lcm_small, students.lcm_scheduler())
    untrained.save_pretrained(tmp_path / "mini-sd")
    evaluations = []
    for name, steps, each in (("mini-sd-small", 2, 2), ("mini-lcm-small", 2, 1)):
        pipeline = models.load(name, "cpu", "float32")
        handle = pipeline.unet.register_forward_pre_hook(lambda _, args: evaluations.append(len(args[0])))
        images = pipeline(["a red ring"], num_inference_steps=steps, guidance_scale=4.0, output_type="pt").images
        handle.remove()
        assert images.shape == (1, 3, 64, 64)
        assert evaluations == [each] * steps  # rows a step: LCM has its guidance embedded
        evaluations.clear()


@pytest.mark.slow
def test_scores_are_remembered(monkeypatch, tmp_path):
    """The recipe's own scores, on two images and one step, and from the file the second time."""
    torch.manual_seed(0)
    encoder = sd.start_text_encoder()
    autoencoder = vae.for_sd(AutoencoderKL.from_pretrained(MODELS / "mini-sd3" / "vae", torch_dtype=torch.float32))
    pipeline = sd.pipeline(sd.build_unet(encoder.config.hidden_size), encoder, autoencoder)
    pipeline.set_progress_bar_config(disable=True)
    student = pruning.remove_blocks(pipeline.unet, "tiny")
    torch.nn.init.normal_(student.conv_out.weight, std=0.1)  # untrained, it would say nothing at all
    for block in pruning.resnets(student):
        torch.nn.init.normal_(block.conv2.weight, std=0.1)
    monkeypatch.setattr(students, "SCORED_IMAGES", 2)
    monkeypatch.setattr(students, "SCORED_STEPS", 2)
    scores = students._scores(pipeline, student, tmp_path / "scores.json")
    assert len(scores) == 27
    assert scores["resnet_1"] > 0
    for group in pruning.groups(student).values():  # at a quarter or a half the rules would leave most of them whole
        assert pruning.kept_size(group, students.KEEP) < pruning.kept_size(group, 1.0)
    assert students._scores(None, None, tmp_path / "scores.json") == scores
