from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hybridlib.denoising.sampler import sample
from hybridlib.denoising.solvers import with_solver
from hybridlib.explorer import session as sessions
from hybridlib.explorer.controls import STRENGTHS, Controls, codec_of
from hybridlib.explorer.session import Session
from hybridlib.metrics.alignment import ClipAlignment

USERS = ("a large red circle on grass", "a small yellow circle on water")
SHORT = Controls("a circle", USERS, common_step=3, num_inference_steps=6)


@pytest.fixture
def session(mini):
    return Session(mini)


def whole(session, controls):
    """The same picture by one walk of whole trajectories, which keeps nothing."""
    return sample(
        session.pipeline,
        controls.trajectories(),
        num_inference_steps=controls.num_inference_steps,
        shift=controls.shift,
        max_sequence_length=1,
        progress=False,
    )


MOVES = {
    "common step up": {"common_step": 5},
    "common step down": {"common_step": 1},
    "nothing shared": {"common_step": 0},
    "public scale": {"public_guidance_scale": 5.0},
    "no public guidance": {"public_guidance_scale": 1.0},
    "personal scale": {"guidance_scale": 3.0},
    "no guidance": {"guidance_scale": 0.0},
    "steps": {"num_inference_steps": 8},
    "shift": {"shift": 3.0},
    "seed": {"seed": 7},
    "negative": {"negative_prompt": "a blue circle"},
    "public prompt": {"public_prompt": "a star"},
    "a third user": {"personal_prompts": (*USERS, "a green star")},
    "two users alike": {"personal_prompts": (USERS[0], USERS[0])},
    "rounding": {"codec": codec_of("rounding, range coder", 0.5)},
    "min-max": {"codec": codec_of("min-max, range coder", 4)},
    "ours": {"codec": codec_of("adaptive (ours)", 1.0)},
}


@pytest.mark.parametrize("solver", ["euler", "dpm-solver++"])
@pytest.mark.slow
def test_every_move_draws_what_one_whole_walk_draws(mini, solver):
    # Bit for bit, though each move goes on from what the ones before left behind.
    session = Session(with_solver(mini, solver))
    for changes in MOVES.values():
        controls = replace(SHORT, **changes)
        picture, reference = session.picture(controls), whole(session, controls)
        assert torch.equal(picture.personal.latents(), reference.latents())
        assert [a.tobytes() for a in picture.images] == [b.tobytes() for b in reference.images()]
        assert picture.cost == reference.cost


def test_what_is_shared_is_not_computed_again(session):
    first = session.picture(SHORT)
    assert first.computed == first.cost.tree == 3 * 2 + 2 * 3 * 2  # 3 shared updates, then 3 for each user, all guided
    assert session.picture(replace(SHORT, guidance_scale=3.0)).computed == 2 * 3 * 2
    assert session.picture(replace(SHORT, common_step=2)).computed == 2 * 4 * 2  # its prefix is there
    assert session.picture(replace(SHORT, common_step=5)).computed == 2 * 2 + 2 * 1 * 2  # two shared updates more
    assert session.picture(replace(SHORT, seed=2)).computed == first.cost.tree  # nothing is the same
    assert session.picture(SHORT) is first


def test_frames_are_those_of_a_whole_walk(session):
    picture = session.picture(SHORT)
    reference = sample(session.pipeline, SHORT.trajectories(), keep=range(1, 7), max_sequence_length=1, progress=False)
    for updates in range(1, 7):
        expected = [image.tobytes() for image in reference.images(updates)]
        if updates <= 3:
            assert [picture.shared_frame(updates).tobytes()] * 2 == expected
        else:
            assert [image.tobytes() for image in picture.frames(updates)] == expected
    with pytest.raises(ValueError, match="nothing is shared"):
        session.picture(replace(SHORT, common_step=0)).shared_frame(1)


def test_the_link_carries_what_the_codec_writes(session):
    state = sample(session.pipeline, SHORT.trajectories(), keep=[3], max_sequence_length=1, progress=False).state(0, 3)
    plain = session.picture(SHORT).link
    assert plain.half == 2 * state.latents.numel()
    assert plain.message == plain.state > plain.half
    codec = codec_of("adaptive (ours)", 1.0)
    coded = session.picture(replace(SHORT, codec=codec)).link
    assert coded.message == len(codec.encode(state.latents, [SHORT.seed])[0]) < plain.half
    assert set(session.picture(replace(SHORT, codec=codec, common_step=0)).link) == {0}


def test_clip_scores_each_image_against_its_own_prompt(mini):
    clip = ClipAlignment.load("mini-clip", "cpu")
    picture = Session(mini, clip).picture(SHORT)
    np.testing.assert_array_equal(picture.clip, clip.score(picture.images, USERS))


@pytest.mark.slow
def test_caches_are_bounded(session, monkeypatch):
    monkeypatch.setattr(sessions, "TEXTS", 3)
    for seed in range(sessions.PICTURES + 3):
        session.picture(replace(SHORT, seed=seed, common_step=1, num_inference_steps=2))
    assert len(session._pictures) == sessions.PICTURES
    assert len(session._prefixes) == sessions.PREFIXES
    session.picture(replace(SHORT, personal_prompts=("a star", "a ring")))
    assert {text for text, _ in session._denoiser._embeds} == {"a circle", "a star", "a ring", ""}


def test_unknown_words_are_named(session):
    with pytest.raises(ValueError, match=r"^The model does not know 'dragon' and 'moon'; use the words"):
        session.picture(replace(SHORT, personal_prompts=("a dragon", "a star at moon")))
    # A negative prompt that steers nothing may say anything.
    session.picture(replace(SHORT, negative_prompt="a dragon", guidance_scale=1.0))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"public_prompt": " "}, "The public prompt is empty"),
        ({"personal_prompts": ("a star", "")}, "The prompt of user 2 is empty"),
        ({"personal_prompts": ()}, "There must be 1 to 6 personal prompts, got 0"),
        ({"common_step": 6}, "common_step must lie in 0..5"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be finite"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1"),
    ],
)
def test_bad_controls_are_refused_in_one_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(SHORT, **changes)


@pytest.mark.slow
def test_strengths_run_from_weak_to_strong(session):
    short = replace(SHORT, common_step=2, num_inference_steps=3)
    for family, strengths in STRENGTHS.items():
        sizes = [
            session.picture(replace(short, codec=codec_of(family, strength))).link.message for strength in strengths
        ]
        assert sizes == sorted(sizes, reverse=True)
