"""Turns, augmentations and losses of the tiny autoencoder against their definitions; both trainings do learn."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from hybridlib.training import decoders, loop, vae
from hybridlib.training.discriminator import Discriminator
from hybridlib.training.loop import Recipe
from hybridlib.training.perception import Distance, Features
from hybridlib.training.vae import Pictures, Settings, TinyTraining

RECIPE = Recipe(steps=8, batch_size=4, learning_rate=2e-3, ema_decay=0.0, warmup_steps=0, precision="no")
DISTANCE = Distance("mean absolute error", lambda first, second: (first - second).abs().mean())
PIXELS = Features("pixels", lambda images: [images.flatten(2)], (3,), 16)
PLAIN = Settings(discriminator_alone=0, attenuation=0.0, colour_mixing=0.0, filter_every=0)


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    vae = AutoencoderKL(block_out_channels=(8, 16, 16), norm_num_groups=4, scaling_factor=0.7, **kinds).eval()
    vae.quant_conv.bias.data[4:] = -10.0  # of the log variance: a posterior of noise alone could not be learned
    return vae


def student():
    torch.manual_seed(1)
    sizes = {"encoder_block_out_channels": (8,) * 3, "decoder_block_out_channels": (8,) * 3}
    blocks = {"num_encoder_blocks": (1,) * 3, "num_decoder_blocks": (1,) * 3}
    return TinyTraining(AutoencoderTiny(**sizes, **blocks), Discriminator(PIXELS))


def pictures_of(draw):
    low = torch.rand(draw.size, 3, 4, 4, generator=draw.generator)
    return Pictures(2 * torch.nn.functional.interpolate(low, scale_factor=4) - 1)


def drawn(step, rows=4):
    return loop._draw(RECIPE._replace(batch_size=rows), step, 0, torch.device("cpu"))


def test_turns_are_the_published_ones():
    """Index 0 of seven the decoder, 1 the encoder, the rest the discriminator, which is alone for 5,000 steps."""
    settings = Settings()
    turns = [settings.turn(step) for step in range(100_000)]
    assert set(turns[:5000]) == {"discriminator"}
    start = 5005  # the first multiple of seven
    assert turns[start : start + 7] == ["decoder", "encoder", *["discriminator"] * 5]
    assert turns.count("decoder") == 13_571  # "about 13.6K decoder updates"
    filtered = [step for step in range(100_000) if settings.filters(step)]
    updates = [step for step, turn in enumerate(turns) if turn == "decoder"]
    assert {turns[step] for step in filtered} == {"decoder"}
    assert {b - a for a, b in itertools.pairwise(filtered)} == {21}
    assert len(filtered) == pytest.approx(len(updates) / 3, abs=1)
    assert not any(Settings(filter_every=0).filters(step) for step in updates[:100])


def test_each_turn_gives_gradients_to_one_part_alone(teacher):
    """The decoder's turn leaves the discriminator alone, and the other way round: the published code does not."""
    model = student()
    loss_of = vae.tiny_loss(teacher, model, pictures_of, DISTANCE, PLAIN)
    parts = {"decoder": model.vae.decoder, "encoder": model.vae.encoder, "discriminator": model.discriminator}
    for step, name in enumerate(("decoder", "encoder", "discriminator")):
        model.zero_grad(set_to_none=True)
        sum(loss_of(drawn(step)).values()).backward()
        learning = {
            part
            for part, module in parts.items()
            if any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
        }
        assert learning == {name}
        assert all(p.grad is None for p in teacher.parameters())
        assert all(p.requires_grad for p in model.parameters())


def test_encoder_and_decoder_losses_by_hand(teacher):
    model = student()
    settings = PLAIN._replace(adversarial=0.0, pixel=3.0, attenuation=0.25)
    images, draw = pictures_of(drawn(1)).images, drawn(1)
    terms = vae.tiny_loss(teacher, model, pictures_of, DISTANCE, settings)(draw)
    generator = drawn(1).generator
    torch.rand(4, 3, 4, 4, generator=generator)  # the images
    with torch.no_grad():
        latents = 0.7 * teacher.encode(images).latent_dist.sample(generator)
        expected = (model.vae.encode(images).latents - latents).abs().sum() / 4
    assert set(terms) == {"encoder"}
    assert terms["encoder"].item() == pytest.approx(expected.item(), rel=1e-5)
    images, generator = pictures_of(drawn(0)).images, drawn(0).generator
    torch.rand(4, 3, 4, 4, generator=generator)
    terms = vae.tiny_loss(teacher, model, pictures_of, DISTANCE, settings)(drawn(0))
    with torch.no_grad():
        latents = 0.7 * teacher.encode(images).latent_dist.sample(generator)
        weaker = latents * (1 - 0.25 * torch.rand((), generator=generator))
        decoded = model.vae.decode(weaker).sample
    assert terms["perceptual"].item() == pytest.approx((decoded - images).abs().mean().item(), rel=1e-5)
    squared = ((decoded / 2 + 0.5) - (images / 2 + 0.5)).square().mean().item()
    assert terms["pixel"].item() == pytest.approx(3 * squared, rel=1e-5)
    assert set(terms) == {"perceptual", "pixel"}


def test_known_latents_are_taken_and_refused_for_changed_images(teacher):
    known = torch.randn(4, 4, 4, 4)
    model = student()

    def with_latents(draw):
        return Pictures(pictures_of(draw).images, known)

    for settings, same in ((PLAIN, True), (PLAIN._replace(colour_mixing=1e-9), False)):
        images, latents = vae._prepared(teacher, model.vae, with_latents(drawn(1)), drawn(1), settings)
        assert torch.equal(latents, known) == same
        assert torch.equal(images, pictures_of(drawn(1)).images)
    filtering = PLAIN._replace(filter_every=1)
    images, latents = vae._prepared(teacher, model.vae, with_latents(drawn(0)), drawn(0), filtering)
    white = images == 1.0
    assert 0.45 < white.float().mean() < 0.55  # below the median
    assert not torch.equal(latents, known)
    error = (model.vae.decode(known).sample - vae.decode(teacher, known)).abs()
    assert error[white].max() <= error[~white].min() + 1e-6


def test_adaptive_weight_makes_both_gradients_equally_long():
    weight = torch.randn(5, requires_grad=True)
    first, second = (weight * 3).square().sum(), (weight * torch.arange(5)).sum()
    scale = vae.adaptive_weight(first, second, weight)
    own, other = (torch.autograd.grad(x, weight)[0].norm() for x in (first, second))
    assert (scale * other).item() == pytest.approx(own.item(), rel=1e-4)
    assert not scale.requires_grad
    assert vae.adaptive_weight((weight * 1e9).sum(), (weight * 0).sum(), weight) == 1e4


def test_mixed_colours_stay_images():
    images = 2 * torch.rand(40, 3, 4, 4) - 1
    mixed = vae.mix_colours(images, 0.5, torch.Generator().manual_seed(0))
    changed = (mixed != images).flatten(1).any(1)
    assert 10 < changed.sum() < 30
    assert mixed.abs().max() <= 1.0 + 1e-6
    assert torch.equal(vae.mix_colours(images, 0.0, torch.Generator()), images)
    grey = images.mean(1, keepdim=True).expand_as(images)
    assert vae.mix_colours(grey, 1.0, torch.Generator().manual_seed(0)).std(1).max() > 0.1  # channels differ now


@pytest.mark.slow
def test_tiny_training_learns_and_resumes(teacher, tmp_path, monkeypatch):
    settings = PLAIN._replace(cycle=("decoder", "encoder", "discriminator"), colour_mixing=0.1, filter_every=3)
    settings = settings._replace(discriminator_rate=1.0)
    recipe = RECIPE._replace(steps=45)
    model = student()
    history = vae.train_tiny(teacher, model, pictures_of, DISTANCE, tmp_path / "whole", recipe, settings)
    assert set(history.terms) == {"perceptual", "adversarial", "encoder", "discriminator"}
    for term, share in (("perceptual", 0.8), ("encoder", 0.95)):
        assert sum(history.terms[term][-4:]) < share * sum(history.terms[term][:4])
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", -1.0)

    def stopping(draw):
        if draw.step == 31:
            raise KeyboardInterrupt
        return pictures_of(draw)

    with pytest.raises(KeyboardInterrupt):
        vae.train_tiny(teacher, student(), stopping, DISTANCE, tmp_path / "killed", recipe, settings)
    again = student()
    vae.train_tiny(teacher, again, pictures_of, DISTANCE, tmp_path / "killed", recipe, settings)
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


@pytest.mark.slow
def test_small_decoder_comes_back_to_the_original(teacher, tmp_path):
    small = decoders.with_decoder_widths(teacher, (4, 8, 8))
    latents = torch.randn(8, 4, 4, 4)

    def error():
        with torch.no_grad():
            return (vae.decode(small, latents) - vae.decode(teacher, latents)).square().mean().item()

    first, encoder = error(), small.encoder.conv_in.weight.clone()
    recipe = RECIPE._replace(steps=30)
    history = vae.finetune_small(teacher, small, pictures_of, DISTANCE, tmp_path, recipe)
    assert error() < 0.7 * first
    assert set(history.terms) == {"pixel", "perceptual"}
    assert torch.equal(small.encoder.conv_in.weight, encoder)
    again = decoders.with_decoder_widths(teacher, decoders.widths_of(teacher))
    terms = vae.small_loss(teacher, again, pictures_of, DISTANCE)(drawn(0))
    assert {term: value.item() for term, value in terms.items()} == {"pixel": 0.0, "perceptual": 0.0}


def test_pictures_of_a_folder_are_its_centres(tmp_path):
    from PIL import Image

    (tmp_path / "below").mkdir()
    for name, size in (("a.png", (48, 32)), ("below/b.jpg", (16, 40))):
        image = Image.new("RGB", size, (0, 0, 255))
        image.paste((255, 0, 0), (size[0] // 2 - 2, size[1] // 2 - 2, size[0] // 2 + 2, size[1] // 2 + 2))
        image.save(tmp_path / name, quality=100)
    images = vae.pictures_in(tmp_path, 16)(drawn(0, rows=20)).images
    assert images.shape == (20, 3, 16, 16)
    assert images.abs().max() <= 1.0
    assert len({image.sum().item() for image in images}) == 2  # both are drawn
    assert (images[:, 0, 7:9, 7:9] > 0.7).all()  # red in the middle, blurred by the smaller size
    assert (images[:, 0, 0, 0] < -0.9).all()  # blue at the edge
    again = vae.pictures_in(tmp_path, 16)(drawn(0, rows=20)).images
    assert torch.equal(images, again)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="there are no images"):
        vae.pictures_in(tmp_path / "empty", 16)


def test_what_does_not_fit_is_refused(teacher):
    with pytest.raises(ValueError, match="cycle must be of"):
        vae.tiny_loss(teacher, student(), pictures_of, DISTANCE, Settings(cycle=("decoder", "critic")))
    other = TinyTraining(AutoencoderTiny(latent_channels=16), Discriminator(PIXELS))
    with pytest.raises(ValueError, match="latent_channels must agree, got 4 and 16"):
        vae.tiny_loss(teacher, other, pictures_of, DISTANCE)
