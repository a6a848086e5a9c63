"""Feature points on the published configurations, and the three losses against their definitions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel

from hybridlib.denoising.compact import narrow
from hybridlib.denoising.published import HYBRID_SD_WIDTHS
from hybridlib.training import distillation, loop, pruning
from hybridlib.training.distillation import Batch, Weights
from hybridlib.training.loop import Recipe

SMALL = {
    "sample_size": 8,
    "block_out_channels": (16, 24, 32, 32),
    "attention_head_dim": 4,
    "cross_attention_dim": 8,
    "norm_num_groups": 4,
}


def pair(size="tiny"):
    torch.manual_seed(0)
    teacher = UNet2DConditionModel(**SMALL).eval()
    return teacher, pruning.remove_blocks(teacher, size)


@pytest.mark.parametrize("size", pruning.SIZES)
@pytest.mark.slow
def test_features_have_the_same_shapes_at_the_published_sizes(size):
    """On the meta device, with SD1.4's configuration, and for tiny with the published widths."""
    with torch.device("meta"):
        teacher = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        student = pruning.remove_blocks(teacher, size)
        if size == "tiny":
            narrow(student, HYBRID_SD_WIDTHS)
        points = distillation.feature_points(teacher, student)
        inputs = torch.randn(1, 4, 64, 64), torch.zeros(1), torch.randn(1, 77, 768)
        with (
            distillation.tapped(teacher, [name for name, _ in points]) as theirs,
            distillation.tapped(student, [name for _, name in points]) as ours,
        ):
            teacher(*inputs)
            student(*inputs)
    shapes = [tuple(theirs[its].shape) for its, _ in points]
    assert shapes == [tuple(ours[mine].shape) for _, mine in points]
    if size == "tiny":  # the reference's six: after downsampling twice, before it once, and on the way up
        assert shapes == [
            (1, 320, 32, 32),
            (1, 640, 16, 16),
            (1, 1280, 16, 16),
            (1, 1280, 32, 32),
            (1, 640, 64, 64),
            (1, 320, 64, 64),
        ]
        assert points[2] == ("down_blocks.2.attentions.1.proj_out", "down_blocks.2.attentions.0.proj_out")
    else:
        assert len(points) == 8


def test_losses_are_those_of_the_definition():
    teacher, student = pair()
    generator = torch.Generator().manual_seed(1)
    noisy, target = (torch.randn(3, 4, 8, 8, generator=generator) for _ in range(2))
    text, steps = torch.randn(3, 5, 8, generator=generator), torch.tensor([1, 400, 999])
    terms = distillation.losses(teacher, student, noisy, steps, text, target, Weights(task=0.5, feature=2.0))
    with torch.no_grad():
        expected, predicted = teacher(noisy, steps, text).sample, student(noisy, steps, text).sample
        embedded = teacher.time_embedding(teacher.time_proj(steps))
        mine, its = student.conv_in(noisy), teacher.conv_in(noisy)
        first = F.mse_loss(
            student.down_blocks[0](mine, embedded, encoder_hidden_states=text)[0],
            teacher.down_blocks[0](its, embedded, encoder_hidden_states=text)[0],
        )
        second = distillation.losses(teacher, student, noisy, steps, text, target)["feature"] - first
    assert terms["task"].item() == pytest.approx(0.5 * F.mse_loss(predicted, target).item(), rel=1e-6)
    assert terms["output"].item() == pytest.approx(F.mse_loss(predicted, expected).item(), rel=1e-6)
    assert terms["feature"].item() == pytest.approx(2 * (first + second).item(), rel=1e-6)
    assert second > 0
    terms["feature"].backward()
    assert student.down_blocks[0].resnets[0].conv1.weight.grad is not None
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not student.down_blocks[0]._forward_hooks  # nothing is left behind


def test_a_student_equal_to_its_teacher_loses_the_task_alone():
    teacher, _ = pair()
    same = UNet2DConditionModel.from_config(teacher.config)
    same.load_state_dict(teacher.state_dict())
    noisy, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8)
    terms = distillation.losses(teacher, same.eval(), noisy, torch.tensor([5, 6]), text, torch.zeros_like(noisy))
    assert terms["output"].item() == terms["feature"].item() == 0.0
    assert terms["task"].item() > 0.0


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("flip", [False, True])
def test_the_task_is_the_schedulers_and_assigned_noise_is_what_is_added(kind, flip):
    teacher, student = pair("base")
    scheduler = DDPMScheduler(prediction_type=kind)
    seen = []

    def batch_of(draw):
        return Batch(torch.ones(draw.size, 4, 8, 8), torch.zeros(draw.size, 5, 8))

    def assign(latents, noise):
        seen.append(noise)
        return noise.flip(0) if flip else noise

    options = {"assign": assign, "timesteps": range(200, 300)}
    loss_of = distillation.distillation_loss(teacher, student, scheduler, batch_of, **options)
    terms = loss_of(first_draw())
    again = first_draw().generator
    noise = torch.randn(4, 4, 8, 8, generator=again)
    steps = torch.randint(200, 300, (4,), generator=again)
    assert torch.equal(seen[0], noise)
    noise = noise.flip(0) if flip else noise
    clean, kept = torch.ones(4, 4, 8, 8), scheduler.alphas_cumprod[steps].view(-1, 1, 1, 1)
    noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
    target = noise if kind == "epsilon" else kept.sqrt() * noise - (1 - kept).sqrt() * clean
    with torch.no_grad():
        by_hand = F.mse_loss(student(noisy, steps, torch.zeros(4, 5, 8)).sample, target).item()
    assert terms["task"].item() == pytest.approx(by_hand, rel=1e-5)


def first_draw():
    return loop._draw(Recipe(steps=1, batch_size=4, learning_rate=0.0), 0, 0, torch.device("cpu"))


@pytest.mark.slow
def test_distillation_brings_the_student_to_its_teacher(tmp_path):
    teacher, student = pair()
    recipe = Recipe(steps=30, batch_size=4, learning_rate=5e-4, warmup_steps=0, ema_decay=0.0)

    def batch_of(draw):
        return Batch(torch.randn(draw.size, 4, 8, 8, generator=draw.generator), torch.zeros(draw.size, 5, 8))

    history = distillation.distil(
        teacher, student, DDPMScheduler(), batch_of, tmp_path, recipe, weights=Weights(task=0.0)
    )
    for term in ("output", "feature"):
        assert sum(history.terms[term][-5:]) < 0.7 * sum(history.terms[term][:5])


@pytest.mark.slow
def test_what_does_not_fit_is_refused():
    teacher, student = pair()
    with pytest.raises(ValueError, match="prediction_type must be"):
        distillation.distillation_loss(teacher, student, DDPMScheduler(prediction_type="sample"), lambda draw: None)
    other = UNet2DConditionModel(**SMALL | {"cross_attention_dim": 12})
    with pytest.raises(ValueError, match="cross_attention_dim must agree, got 8 and 12"):
        distillation.distillation_loss(teacher, other, DDPMScheduler(), lambda draw: None)
    short = pruning.remove_blocks(teacher, "tiny")
    del short.down_blocks[-1]
    with pytest.raises(ValueError, match="must have 4 or 3 downward stages"):
        distillation.feature_points(teacher, short)
