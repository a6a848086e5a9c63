"""A denoiser of one's own as a guest: what it is asked, what it costs, and what is refused."""

from __future__ import annotations

import pytest
import torch
from factories import random_sd3

from hybridlib.denoising import costs
from hybridlib.denoising.families import collect, denoiser_of
from hybridlib.denoising.sampler import sample
from hybridlib.denoising.trajectory import Segment, Trajectory

STEPS = 4
OPTIONS = {"height": 32, "width": 32, "max_sequence_length": 8, "progress": False}


class Twin:
    """Answers as the pipeline's own network does, and notes what it was asked."""

    identity = "twin"

    def __init__(self, pipeline):
        self.real, self.asked = denoiser_of(pipeline, max_sequence_length=8), []

    def __call__(self, latents, timestep, conditionings):
        self.asked.append((tuple(latents.shape), float(timestep), [c.prompt for c in conditionings]))
        return self.real(latents, timestep, conditionings)


class Free(Twin):
    identity = "free"

    def nfe(self, conditioning):
        return 1


def paths(*parts):
    whole = [Trajectory.plain(prompt, 1, 4.0, num_inference_steps=STEPS) for prompt in ("a star", "a ring")]
    return [path.with_denoisers(list(parts)) if parts else path for path in whole]


def test_a_guest_that_answers_alike_changes_nothing(tiny):
    guest = Twin(tiny)
    alone = sample(tiny, paths(), **OPTIONS)
    mixed = sample(tiny, paths(("guest", 2), ("", 2)), denoisers={"guest": guest}, **OPTIONS)
    assert torch.equal(mixed.latents(), alone.latents())
    assert mixed.cost.tree == alone.cost.tree
    timesteps = [float(t) for t in alone.scheduler.timesteps]
    assert [t for _, t, _ in guest.asked] == timesteps[:2]
    assert guest.asked[0][0][0] == 2
    assert guest.asked[0][2] == ["a star", "a ring"]


def test_it_says_what_it_costs_and_who_it_is(tiny):
    mixed = sample(tiny, paths(("guest", 3), ("", 1)), denoisers={"guest": Free(tiny)}, keep=[3], **OPTIONS)
    assert mixed.cost.of("guest").tree == 2 * 3
    assert mixed.cost.of("").tree == 2 * 2
    state = mixed.state(0, 3)
    assert state.model == "free"
    rest = [Trajectory(1, (Segment("a star", 3, STEPS, 4.0),))]
    resumed = sample(tiny, rest, resume=state, **OPTIONS)  # another model of the same latents may take over
    # One row instead of two: float32 sums in another order, 1e-5 in latents of order 1.
    torch.testing.assert_close(resumed.latents(), mixed.latents()[:1], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda x: x[:, :1], r"denoiser 'guest' must return a tensor of shape \(2, .*\), got \(2, 1, "),
        (lambda x: None, "must return a tensor of shape .*, got NoneType"),
        (lambda x: x / 0, "denoiser 'guest' returned values that are not finite at timestep 1000"),
    ],
)
def test_wrong_answers_are_named(tiny, answer, sentence):
    class Wrong:
        identity = "wrong"

        def __call__(self, latents, timestep, conditionings):
            return answer(latents)

    with pytest.raises(ValueError, match=sentence):
        sample(tiny, paths(("guest", 1), ("", 3)), denoisers={"guest": Wrong()}, **OPTIONS)


def test_its_work_cannot_be_counted(tiny):
    guests = collect(denoiser_of(tiny), {"guest": Twin(tiny)})
    with pytest.raises(ValueError, match="the work of denoiser 'guest' cannot be counted"):
        costs.work(guests["guest"], 32, 32)


def test_a_network_of_a_derived_class_is_a_network(tiny):
    other = random_sd3().transformer
    other.__class__ = type("Mine", (type(other),), {})
    mixed = sample(tiny, paths(("mine", 2), ("", 2)), denoisers={"mine": other}, **OPTIONS)
    assert mixed.cost.tree == 2 * 2 * STEPS


def test_what_has_no_identity_is_refused(tiny):
    with pytest.raises(TypeError, match="must be a network, a pipeline or a denoiser of your own, got"):
        collect(denoiser_of(tiny), {"guest": lambda *a: None})
