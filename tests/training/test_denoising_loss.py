"""The loss against diffusers' training loops written out by hand, and what assignment may and may not change."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, UNet2DModel
from factories import random_unet
from torch import Tensor, nn

from hybridlib.training import loop
from hybridlib.training.assignment import class_means
from hybridlib.training.denoising_loss import Assignment, Batch, Pairs, denoising_loss
from hybridlib.training.loop import Recipe, fit
from hybridlib.training.mechanism import mean_cosine
from hybridlib.training.semidiscrete import SemidiscreteCoupling

RECIPE = Recipe(steps=4, batch_size=6, learning_rate=1e-3, seed=5, ema_decay=0.9, warmup_steps=0, precision="no")
GROUPS, CHANNELS = 3, 4
LINEAR = {"linear": {}, "farthest": {}, "groups": {"condition": "groups"}}
LINEAR["captions"] = {"condition": "captions", "condition_weight": 1.0}


@dataclass
class Data:
    latents: Tensor
    conditioning: dict[str, Tensor]
    labels: Tensor

    def __len__(self):
        return len(self.latents)

    def batch(self, rows, draw):
        told = {name: values[rows] for name, values in self.conditioning.items()}
        labels = self.labels[rows]
        return Batch(self.latents[rows], told, labels, F.one_hot(labels, GROUPS).float())


def transformer():
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=4,
    )
    return model


def class_unet():
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        num_class_embeds=GROUPS + 1,
    )


DIFFUSION = {kind: DDPMScheduler(prediction_type=kind) for kind in ("epsilon", "v_prediction")}
FLOW = FlowMatchEulerDiscreteScheduler(shift=3.0)
MODELS = {  # name -> how it is built, names of its conditioning, its scheduler
    "text UNet, epsilon": (random_unet, {"encoder_hidden_states": (5, 16)}, DIFFUSION["epsilon"]),
    "class UNet, v": (class_unet, {"class_labels": None}, DIFFUSION["v_prediction"]),
    "SD3, flow": (transformer, {"encoder_hidden_states": (5, 16), "pooled_projections": (16,)}, FLOW),
}


def data(shapes, rows=40, seed=1):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(GROUPS, (rows,), generator=generator)
    latents = torch.randn(rows, CHANNELS, 8, 8, generator=generator) + labels.view(-1, 1, 1, 1)
    told = {n: labels if s is None else torch.randn(rows, *s, generator=generator) for n, s in shapes.items()}
    return Data(latents, told, labels)


def empty(shapes):
    return {n: torch.tensor([GROUPS]) if s is None else torch.zeros(1, *s) for n, s in shapes.items()}


def by_hand(model, examples, scheduler, recipe, dropout=None, gamma=None, logit_normal=None):
    """The loops of diffusers' train_text_to_image.py and train_dreambooth_sd3.py, without assignment."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    losses = []
    for step in range(recipe.steps):
        generator = torch.Generator().manual_seed(recipe.seed * 10_000_019 + step)
        rows = torch.randint(len(examples), (recipe.batch_size,), generator=generator)
        clean, told = examples.latents[rows], {n: v[rows] for n, v in examples.conditioning.items()}
        noise = torch.randn(clean.shape, generator=generator)
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            if logit_normal:
                u = torch.normal(*logit_normal, size=(len(rows),), generator=generator).sigmoid()
            else:
                u = torch.rand(len(rows), generator=generator)
            sigmas = scheduler.config.shift * u / (1 + (scheduler.config.shift - 1) * u)
            times, target = 1000 * sigmas, noise - clean
            noisy = torch.lerp(clean, noise, sigmas[:, None, None, None])
        else:
            times = torch.randint(1000, (len(rows),), generator=generator)
            noisy = scheduler.add_noise(clean, noise, times)
            v = scheduler.config.prediction_type == "v_prediction"
            target = scheduler.get_velocity(clean, noise, times) if v else noise
        if dropout:
            gone = torch.rand(len(rows), generator=generator) < dropout[0]
            for name, nothing in dropout[1].items():
                told[name] = told[name].clone()
                told[name][gone] = nothing
        loss = F.mse_loss(model(noisy, timestep=times, **told).sample, target, reduction="none").mean(dim=(1, 2, 3))
        if gamma:
            kept = scheduler.alphas_cumprod[times]
            snr = kept / (1 - kept)
            loss = loss * snr.clamp(max=gamma) / (snr + v)
        loss = loss.mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate
        optimizer.step()
        losses.append(loss.item())
    return losses


def trained(build, examples, scheduler, folder, assignment=Assignment(), recipe=RECIPE, **options):  # noqa: B008
    model = build()
    loss_of = denoising_loss(model, scheduler, examples, assignment, **options)
    return model, fit("model", model, loss_of, recipe._replace(schedule="constant"), folder).losses


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", [False, True], ids=["plain", "all options"])
def test_without_assignment_it_is_the_plain_recipe(name, options, tmp_path):
    build, shapes, scheduler = MODELS[name]
    examples, told = data(shapes), {}
    hand = {}
    if options:
        told, hand = {"caption_dropout": 0.5, "empty": empty(shapes)}, {"dropout": (0.5, empty(shapes))}
        told |= {"logit_normal": (0.5, 1.0)} if scheduler is FLOW else {"min_snr_gamma": 5.0}
        hand |= {"logit_normal": (0.5, 1.0)} if scheduler is FLOW else {"gamma": 5.0}
    _, losses = trained(build, examples, scheduler, tmp_path, **told)
    expected = by_hand(build().train(), examples, scheduler, RECIPE, **hand)
    # The loop by hand takes the mean of each row first, so sums are rounded in another order; the next test is exact.
    assert losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("arm", ["off", *LINEAR, "knn of 1", "knn l2 of 1"])
def test_off_or_with_one_row_nothing_changes_bit_for_bit(name, arm, tmp_path):
    build, shapes, scheduler = MODELS[name]
    examples = data(shapes)
    options = {"mode": "farthest" if arm == "farthest" else "linear"} | LINEAR.get(arm, {})
    recipe = RECIPE._replace(batch_size=1)
    if arm == "off":
        options, recipe = {}, RECIPE
    if arm.startswith("knn"):
        options, recipe = {"mode": "knn", "k": 1, "cost": "l2" if "l2" in arm else "inner"}, RECIPE
    model, losses = trained(build, examples, scheduler, tmp_path / "a", Assignment(**options), recipe)
    plain, generators = build(), []

    def loss_of(draw):
        """The plain recipe, as short as it is in diffusers' scripts."""
        rows = torch.randint(len(examples), (draw.size,), generator=draw.generator)
        clean, told = examples.latents[rows], {n: v[rows] for n, v in examples.conditioning.items()}
        noise = torch.randn(clean.shape, generator=draw.generator)
        if scheduler is FLOW:
            u = torch.rand(draw.size, generator=draw.generator)
            sigmas = 3 * u / (1 + 2 * u)
            times, noisy = 1000 * sigmas, torch.lerp(clean, noise, sigmas[:, None, None, None])
            target = noise - clean
        else:
            times = torch.randint(1000, (draw.size,), generator=draw.generator)
            noisy = scheduler.add_noise(clean, noise, times)
            epsilon = scheduler.config.prediction_type == "epsilon"
            target = noise if epsilon else scheduler.get_velocity(clean, noise, times)
        generators.append(draw.generator.get_state())
        return F.mse_loss(plain(noisy, timestep=times, **told).sample, target)

    expected = fit("plain", plain, loss_of, recipe._replace(schedule="constant"), tmp_path / "b").losses
    assert losses == expected
    for ours, theirs in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def first_draw(size=6, seed=3):
    return loop._draw(RECIPE._replace(batch_size=size, seed=seed), 0, 0, torch.device("cpu"))


def assignments(examples):
    labels = examples.labels
    arms = {name: Assignment(*["farthest" if name == "farthest" else "linear"], **o) for name, o in LINEAR.items()}
    arms["knn"] = Assignment("knn", means=class_means(examples.latents, labels))
    arms["knn, one mean"] = Assignment("knn", means=examples.latents.mean(0, keepdim=True))
    arms["knn l2"] = Assignment("knn", k=4, cost="l2_fp16")
    for name, condition in (("semidiscrete", None), ("semidiscrete, groups", labels)):
        coupling = SemidiscreteCoupling.fit(examples.latents, condition, passes=4, batch_size=32)
        arms[name] = Assignment("semidiscrete", coupling=coupling)
    return arms


def cosine(pair, examples):
    return mean_cosine(pair.batch.latents - examples.latents.mean(dim=0), pair.noise)


def test_arms_share_rows_and_noise_levels_and_what_noise_there_is():
    """All that assignment changes is which noise meets which latent."""
    examples = data({})
    plain = Pairs(examples)(first_draw(32))
    shared = plain.draw.generator.get_state()
    for name, assignment in assignments(examples).items():
        pair = Pairs(examples, assignment)(first_draw(32))
        assert torch.equal(pair.draw.generator.get_state(), shared), name  # so noise levels and dropout agree, too
        if "semidiscrete" in name:
            assert torch.equal(pair.noise, plain.noise), name
        else:
            assert torch.equal(pair.batch.latents, plain.batch.latents), name
            assert ("knn" in name) or torch.equal(*[p.noise.flatten().sort()[0] for p in (pair, plain)]), name
        found = cosine(pair, examples) - cosine(plain, examples)
        assert (found < -0.03) if name == "farthest" else (found > 0.01), (name, found)


def test_a_pool_exchanges_noise_between_steps_and_is_a_function_of_the_draw():
    examples, size = data({}), 4
    draws = [first_draw().at(step) for step in range(8)]
    plain = [Pairs(examples)(draw.at(draw.step)) for draw in draws]
    pairs = Pairs(examples, Assignment("linear", pool=size))
    pooled = [pairs(draw.at(draw.step)) for draw in draws]
    for first in (0, size):
        together = [torch.cat([p.noise for p in part[first : first + size]]) for part in (pooled, plain)]
        assert torch.equal(*[noise.flatten(1).sort(dim=0)[0] for noise in together])
    within = [torch.equal(*[p.noise.flatten().sort()[0] for p in both]) for both in zip(pooled, plain, strict=True)]
    assert not any(within)  # every step has noise of another step
    resumed = Pairs(examples, Assignment("linear", pool=size))
    for step in (6, 3, 3):  # resumed within a pool, gone back, asked twice
        again = resumed(draws[step].at(step))
        assert torch.equal(again.noise, pooled[step].noise)
        assert torch.equal(again.batch.latents, plain[step].batch.latents)


def test_parts_of_a_step_have_pools_of_their_own(tmp_path):
    examples = data({"class_labels": None})
    recipe = RECIPE._replace(parts=2, steps=5)
    made = []

    class Counting(Data):
        def batch(self, rows, draw):
            made.append((draw.step, draw.key >> 40))
            return super().batch(rows, draw)

    trained(
        class_unet,
        Counting(*vars(examples).values()),
        DIFFUSION["epsilon"],
        tmp_path,
        Assignment("linear", pool=3),
        recipe,
    )
    assert len(made) == len(set(made)) == 12  # two pools of three steps for each of two parts: no batch twice


@pytest.mark.parametrize("name", ["text UNet, epsilon", "SD3, flow"])
def test_a_killed_training_with_a_pool_resumes_to_the_same_weights(name, tmp_path, monkeypatch):
    build, shapes, scheduler = MODELS[name]
    examples, assignment = data(shapes), Assignment("linear", condition="groups", pool=3)
    whole, _ = trained(build, examples, scheduler, tmp_path / "whole", assignment)
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", -1.0)

    class Killed(Data):
        def batch(self, rows, draw):
            if draw.step > 2:
                raise KeyboardInterrupt
            return super().batch(rows, draw)

    with pytest.raises(KeyboardInterrupt):
        trained(
            build,
            Killed(*vars(examples).values()),
            scheduler,
            tmp_path / "killed",
            assignment,
        )
    resumed, _ = trained(build, examples, scheduler, tmp_path / "killed", assignment)
    for ours, theirs in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "best"}, "mode must be one of none, linear, knn, semidiscrete, farthest, got 'best'"),
        ({"mode": "knn", "condition": "groups"}, "condition serves mode linear only, got mode 'knn'"),
        ({"mode": "knn", "pool": 2}, "pool serves mode linear and farthest only, got mode 'knn'"),
        ({"mode": "linear", "k": 4}, "k serves mode knn only"),
        ({"mode": "farthest", "cost": "l2"}, "cost serves mode linear and knn only"),
        ({"mode": "linear", "means": torch.zeros(1, 4, 8, 8)}, "means serves mode knn only"),
        ({"mode": "linear", "condition": "words"}, "condition must be None, groups or captions, got 'words'"),
        ({"mode": "linear", "pool": 0}, "pool must be a positive number of steps, got 0"),
        ({"mode": "linear", "condition": "captions"}, "condition_weight goes with condition 'captions', got None"),
        ({"mode": "linear", "condition_weight": 1.0}, "condition_weight goes with condition 'captions', got 1.0"),
        ({"mode": "semidiscrete"}, "needs a coupling"),
    ],
)
def test_assignments_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Pairs(data({}), Assignment(**options))


def test_other_refusals():
    examples, model = data({"class_labels": None}), class_unet()
    other = SemidiscreteCoupling.fit(torch.randn(8, 4, 8, 8), passes=1, batch_size=8)
    with pytest.raises(ValueError, match="coupling must cover all 40 examples, got 8 latents"):
        Pairs(examples, Assignment("semidiscrete", coupling=other))
    for scheduler, options, message in (
        (FLOW, {"min_snr_gamma": 5.0}, "min_snr_gamma must be above 0 and is for epsilon and v only, got 5.0 for flow"),
        (DIFFUSION["epsilon"], {"min_snr_gamma": 0.0}, "min_snr_gamma must be above 0"),
        (DIFFUSION["epsilon"], {"logit_normal": (0.0, 1.0)}, "logit_normal must have a positive deviation"),
        (DIFFUSION["epsilon"], {"caption_dropout": 0.1}, "caption_dropout needs what stands for no caption"),
        (DIFFUSION["epsilon"], {"caption_dropout": 1.0}, r"caption_dropout must lie in \[0, 1\), got 1.0"),
        (DDPMScheduler(prediction_type="sample"), {}, "prediction_type must be 'epsilon' or 'v_prediction'"),
    ):
        with pytest.raises(ValueError, match=message):
            denoising_loss(model, scheduler, examples, **options)
    loss_of = denoising_loss(
        model, DIFFUSION["epsilon"], examples, caption_dropout=0.1, empty={"other": torch.zeros(1)}
    )
    with pytest.raises(ValueError, match="empty must say what replaces 'class_labels'"):
        loss_of(first_draw())

    class Bare(Data):
        def batch(self, rows, draw):
            return Batch(self.latents[rows])

    with pytest.raises(ValueError, match="the assignment asks for groups, and the batches of these examples have none"):
        Pairs(Bare(*vars(examples).values()), Assignment("linear", condition="groups"))(first_draw())
