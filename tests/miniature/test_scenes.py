from __future__ import annotations

import colorsys

import pytest
import torch

from hybridlib.miniature import scenes as world
from hybridlib.miniature.judge import objects_correct, truth
from hybridlib.miniature.scenes import Scenes, captions, contradict, render, sample_scenes
from hybridlib.miniature.tokens import MAX_TOKENS, build_tokenizer, words


def test_world_is_rich_enough():
    assert len(world.COLOURS) >= 8
    assert len(world.SHAPES) >= 6
    assert len(world.SIZES) >= 2
    assert len(world.GROUNDS) >= 5
    assert len(world.RELATIONS) == 4


def test_same_seed_same_pixels_in_any_batch():
    scenes = sample_scenes(64, seed=3)
    images = render(scenes)
    assert torch.equal(images, render(sample_scenes(64, seed=3)))
    assert torch.equal(images[10:13], render(scenes[10:13]))
    assert not torch.equal(images, render(sample_scenes(64, seed=4)))
    assert images.shape == (64, 3, 64, 64)
    assert images.min() >= 0
    assert images.max() <= 1


def single(**values) -> Scenes:
    base = sample_scenes(1, seed=0)
    fields = {name: getattr(base, name).clone() for name in Scenes.__dataclass_fields__}
    fields["count"][:] = 1
    fields["light"][:] = 0
    fields["turn"][:] = 0.0
    fields["radius"][:] = 13.0
    fields["centre"][:] = 32.0
    for name, value in values.items():
        fields[name][:] = value
    return Scenes(**fields)


@pytest.mark.parametrize("colour", [c for c in world.COLOURS if c != "white"])
def test_objects_have_the_hue_of_their_colour(colour):
    index = list(world.COLOURS).index(colour)
    pixel = render(single(colour=index, shape=0))[0, :, 32, 32]
    hue = colorsys.rgb_to_hsv(*pixel.tolist())[0]
    wanted = colorsys.rgb_to_hsv(*world.COLOURS[colour])[0]
    assert min(abs(hue - wanted), 1 - abs(hue - wanted)) < 0.03


@pytest.mark.parametrize("shape", world.SHAPES)
def test_shapes_cover_what_their_outline_encloses(shape):
    """Coverage against a point-in-shape count on an 8x finer grid: anti-aliasing keeps the area to 3 %."""
    function = world.SHAPES[shape]
    axis = (torch.arange(512) + 0.5) / 8
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    fine = (function((x - 32) / 13, (y - 32) / 13) < 0).float().mean() * 64 * 64
    axis = torch.arange(64) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    soft = (0.5 - 13 * function((x - 32) / 13, (y - 32) / 13)).clamp(0, 1).sum()
    assert soft == pytest.approx(fine.item(), rel=0.03)


def test_relations_are_true_in_the_picture():
    scenes = sample_scenes(2000, seed=5)
    pair = scenes.count == 2
    dx = (scenes.centre[:, 0, 0] - scenes.centre[:, 1, 0])[pair]
    dy = (scenes.centre[:, 0, 1] - scenes.centre[:, 1, 1])[pair]
    relation = scenes.relation[pair]
    for index, offset in enumerate((-dx, dx, -dy, dy)):
        assert (offset[relation == index] > 20).all()


def test_captions_name_what_is_asked_for():
    scenes = sample_scenes(200, seed=6)
    public, personal = captions(scenes, keep=0.0), captions(scenes, keep=1.0)
    attributes = {*world.COLOURS, *world.SIZES, *world.GROUNDS, *world.LIGHTS}
    for row, (generic, detailed) in enumerate(zip(public, personal, strict=True)):
        assert not attributes & set(generic.split())
        assert list(world.SHAPES)[scenes.shape[row, 0]] in generic
        assert {list(world.COLOURS)[scenes.colour[row, 0]], list(world.GROUNDS)[scenes.ground[row]]} <= set(
            detailed.split()
        )
    assert captions(scenes, keep=0.5, seed=1) == captions(scenes, keep=0.5, seed=1)
    assert len(set(captions(scenes, keep=0.5, seed=1)) - set(public) - set(personal)) > 100
    with pytest.raises(ValueError, match=r"keep must be a probability in \[0, 1\], got 2"):
        captions(scenes, keep=2)


def test_contradictions_keep_shapes_and_change_everything_else():
    scenes = sample_scenes(500, seed=7)
    other = contradict(scenes, seed=1)
    assert torch.equal(scenes.shape, other.shape)
    for name in ("colour", "size", "ground", "light"):
        assert (getattr(scenes, name) != getattr(other, name)).all()


def test_every_caption_fits_the_tokenizer_with_one_token_a_word():
    tokenizer = build_tokenizer()
    assert all(len(tokenizer(word).input_ids) == 3 for word in words())
    assert max(len(tokenizer(text).input_ids) for text in captions(sample_scenes(2000, seed=8))) <= MAX_TOKENS


def test_objects_correct_counts_a_swap_but_not_a_wrong_colour():
    scenes = sample_scenes(300, seed=9)
    reading = truth(scenes)
    assert objects_correct(scenes, reading).all()
    swapped = reading._replace(shape=reading.shape.flip(1), colour=reading.colour.flip(1))
    assert objects_correct(scenes, swapped)[scenes.count == 2].all()
    wrong = reading._replace(colour=(reading.colour + 1) % len(world.COLOURS))
    assert not objects_correct(scenes[scenes.count == 1], reading_rows(wrong, scenes.count == 1)).any()


def reading_rows(reading, rows):
    return type(reading)(*(field[rows] for field in reading))


def test_plain_scenes_differ_in_their_objects_alone():
    """Shape, colour, turn and texture stay as they were, and so does which of two is the larger."""
    scenes = world.sample_lone(200, seed=5)
    plain = world.plain(scenes)
    for name in ("shape", "colour", "turn", "key", "count"):
        assert torch.equal(getattr(plain, name), getattr(scenes, name))
    assert plain.ground.unique().tolist() == plain.light.unique().tolist() == [0]
    assert plain.size.unique().tolist() == [list(world.SIZES).index("large")]
    low, high = world.SIZES["large"]
    radius = plain.radius[:, 0]
    assert low <= float(radius.min())
    assert float(radius.max()) <= high
    assert float((plain.centre[:, 0] - 32).abs().max()) <= 4
    small = scenes.size[:, 0] == 0
    order = scenes.radius[small, 0].argsort()
    assert radius[small][order].diff().min() >= 0
