"""Consistency distillation against diffusers' schedulers and against its definition written out."""

from __future__ import annotations

import sys

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, LCMScheduler, UNet2DConditionModel

from hybridlib.denoising.compact import Widths, narrow, widths_of
from hybridlib.denoising.published import BK_SDM_TINY, HYBRID_SD_WIDTHS
from hybridlib.training import lcm, loop
from hybridlib.training.distillation import Batch
from hybridlib.training.loop import Recipe

SMALL = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "mid_block_type": None,
    "layers_per_block": 1,
    "cross_attention_dim": 8,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
RECIPE = Recipe(steps=4, batch_size=4, learning_rate=1e-3, ema_decay=0.0, warmup_steps=0, parts=2)
UNCONDITIONAL = torch.zeros(1, 3, 8)


def small_unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(**SMALL).eval()


def batch_of(draw):
    latents, text = (torch.randn(draw.size, *shape, generator=draw.generator) for shape in ((4, 8, 8), (3, 8)))
    return Batch(latents, text)


def first_draw():
    return loop._draw(RECIPE, 0, 0, torch.device("cpu"))


def test_boundary_is_that_of_the_lcm_scheduler():
    for step in (0, 19, 499, 999):
        skip, out = lcm.boundary(torch.tensor([step]))
        expected = LCMScheduler().get_scalings_for_boundary_condition_discrete(torch.tensor(step, dtype=torch.float32))
        assert (skip.item(), out.item()) == pytest.approx([x.item() for x in expected], rel=1e-6)


def test_a_student_begins_as_its_teacher_and_has_the_published_size():
    with torch.device("meta"):
        published = UNet2DConditionModel(**BK_SDM_TINY)
        narrow(published, HYBRID_SD_WIDTHS)
    assert sum(p.numel() for p in lcm.with_guidance_embedding(published).parameters()) == 224_574_596
    teacher = small_unet()
    narrow(teacher, Widths((12, 32, 32, 16, 16, 16), (3, 4, 2), (4, 2, 4)))
    student = lcm.with_guidance_embedding(teacher).eval()
    assert widths_of(student) == widths_of(teacher)
    x, text, steps = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8), torch.tensor([19, 999])
    told = lcm.embed_guidance(torch.tensor([5.0, 14.0]))
    with torch.no_grad():
        assert torch.equal(student(x, steps, text, timestep_cond=told).sample, teacher(x, steps, text).sample)
        student.time_embedding.cond_proj.weight.normal_()  # the control: then it listens
        assert not torch.equal(student(x, steps, text, timestep_cond=told).sample, teacher(x, steps, text).sample)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("huber", [0.001, 0.0])
@pytest.mark.parametrize("made_by", [lcm.with_guidance_embedding, lcm.with_adapter])
def test_loss_is_that_of_the_definition(kind, huber, made_by):
    """Guidance by hand, and the solver step by diffusers' DDIM: 50 points, trailing, its last step to timestep 0."""
    teacher = small_unet()
    model = lcm.Consistency(made_by(teacher))
    with torch.no_grad():
        model.target.conv_out.bias += 0.1  # so that student and target differ
    scheduler = DDPMScheduler(prediction_type=kind)
    settings = lcm.Settings(huber=huber)
    loss = lcm.consistency_loss(teacher, model, scheduler, batch_of, UNCONDITIONAL, settings)(first_draw())

    draw = first_draw()
    clean, text = batch_of(draw)
    noise = torch.randn(clean.shape, generator=draw.generator)
    start = 20 * (torch.randint(50, (2,), generator=draw.generator) + 1) - 1
    weights = 5 + 10 * torch.rand(2, generator=draw.generator)
    ddim = DDIMScheduler(prediction_type=kind, timestep_spacing="trailing", set_alpha_to_one=False, clip_sample=False)
    ddim.set_timesteps(50)
    lcm_scheduler, total = LCMScheduler(prediction_type=kind), 0.0

    def answer(unet, noisy, step, row):
        told = lcm.embed_guidance(weights[row : row + 1]) if unet.config.time_cond_proj_dim else None
        output = unet(noisy, step, text[row : row + 1], timestep_cond=told).sample
        kept = scheduler.alphas_cumprod[step]
        image = (noisy - (1 - kept).sqrt() * output) / kept.sqrt()
        image = image if kind == "epsilon" else kept.sqrt() * noisy - (1 - kept).sqrt() * output
        skip, out = lcm_scheduler.get_scalings_for_boundary_condition_discrete(step.float())
        return skip * noisy + out * image

    with torch.no_grad():
        for row, step in enumerate(start):
            noisy = scheduler.add_noise(clean[row : row + 1], noise[row : row + 1], step[None])
            cond = teacher(noisy, step, text[row : row + 1]).sample
            free = teacher(noisy, step, UNCONDITIONAL).sample
            stepped = ddim.step(cond + weights[row] * (cond - free), step, noisy).prev_sample
            end = (step - 20).clamp(min=0)
            gap = answer(model.student, noisy, step, row) - answer(model.target, stepped, end, row)
            total += (((gap**2 + huber**2).sqrt() - huber) if huber else gap**2).mean().item() / 2
    # float32; v weighs noise and image where DDIM converts there and back
    assert loss.item() == pytest.approx(total, rel=1e-4)


@pytest.mark.slow
def test_a_killed_distillation_resumes_with_its_target(tmp_path, monkeypatch):
    teacher = small_unet()

    def run(folder, stop_at=None):
        def batches(draw):
            if draw.step == stop_at:
                raise KeyboardInterrupt
            return batch_of(draw)

        student = lcm.with_guidance_embedding(teacher)
        history = lcm.distil(teacher, student, DDPMScheduler(), batches, UNCONDITIONAL, folder, RECIPE)
        return student, history

    whole, history = run(tmp_path / "whole")
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", -1.0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", stop_at=2)
    resumed, again = run(tmp_path / "killed")
    assert history.losses == again.losses
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert not torch.equal(
        whole.time_embedding.cond_proj.weight, torch.zeros_like(whole.time_embedding.cond_proj.weight)
    )


def test_an_adapter_learns_alone_and_loads_into_a_stock_unet(tmp_path):
    teacher, student = small_unet(), lcm.with_adapter(small_unet(), rank=2)
    x, text, step = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8), torch.tensor(499)
    with torch.no_grad():
        assert torch.equal(student(x, step, text).sample, teacher(x, step, text).sample)
    settings = lcm.Settings(guidance=(7.0, 7.0))
    lcm.distil(teacher, student, DDPMScheduler(), batch_of, UNCONDITIONAL, tmp_path, RECIPE, settings)
    weights = {key.replace(".base_layer", ""): value for key, value in student.state_dict().items()}
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, weights[key]), key
    student.save_lora_adapter(tmp_path / "adapter")
    stock = small_unet()
    stock.load_lora_adapter(tmp_path / "adapter", weight_name="pytorch_lora_weights.safetensors", prefix=None)
    with torch.no_grad():
        drawn = student(x, step, text).sample
        torch.testing.assert_close(stock(x, step, text).sample, drawn, rtol=0, atol=1e-6)
        assert not torch.equal(drawn, teacher(x, step, text).sample)


def test_the_target_follows_once_a_step():
    teacher = small_unet()
    model = lcm.Consistency(lcm.with_guidance_embedding(teacher))
    with torch.no_grad():
        model.student.conv_out.bias += 1.0
    before = model.target.conv_out.bias.clone()
    loss_of = lcm.consistency_loss(teacher, model, DDPMScheduler(), batch_of, UNCONDITIONAL)
    moved = []
    for step, part in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0)):
        loss_of(loop._draw(RECIPE, step, part, torch.device("cpu")))
        moved.append((model.target.conv_out.bias - before)[0].item())
    assert moved == pytest.approx([0, 0, 0.05, 0.05, 0.0975], abs=1e-6)


def test_what_does_not_fit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match="an adapter needs the package peft: pip install"):
        lcm.with_adapter(small_unet())
    teacher = small_unet()
    model = lcm.Consistency(lcm.with_guidance_embedding(teacher))
    with pytest.raises(ValueError, match="points must divide the 1000 timesteps"):
        lcm.consistency_loss(teacher, model, DDPMScheduler(), batch_of, UNCONDITIONAL, lcm.Settings(points=7))
    with pytest.raises(ValueError, match="prediction_type must be"):
        lcm.consistency_loss(teacher, model, DDPMScheduler(prediction_type="sample"), batch_of, UNCONDITIONAL)
    with pytest.raises(ValueError, match="must have a guidance embedding"):
        lcm.distil(teacher, small_unet(), DDPMScheduler(), batch_of, UNCONDITIONAL, tmp_path, RECIPE)
