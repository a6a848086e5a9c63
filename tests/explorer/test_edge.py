from __future__ import annotations

import numpy as np
import pytest

from hybridlib.explorer import edge as edges
from hybridlib.explorer.edge import Edge, Play, policies, thinned
from hybridlib.scheduling.rules.heuristics import capacity_weighted
from hybridlib.scheduling.system.arrivals import Arrivals
from hybridlib.scheduling.system.bounds import lower_bound
from hybridlib.scheduling.system.environment import simulate
from hybridlib.scheduling.system.model import Model


def test_an_episode_is_what_simulate_plays():
    model = Model.draw()
    arrivals = Arrivals.draw(model.config, [3])
    expected = simulate(model, capacity_weighted, arrivals, seed=3)
    episode = Edge().play(Play("capacity-weighted random", episode=3))
    np.testing.assert_array_equal(episode.delay_s, expected.delay_s[expected.present])
    assert episode.bound_s == lower_bound(model, arrivals)[0]
    assert episode.arriving.sum() == pytest.approx(float((expected.present[0] * model.work).sum()))


def test_queues_follow_from_what_was_placed():
    episode = Edge().play(Play("local only"))
    assert (episode.wait_s[0] == 0).all()
    assert (np.diff(episode.capacity) >= 0).all()
    # On its own server a station's work piles up: the queue of every slot is the law of the environment.
    model, order = Model.draw(), np.argsort(Model.draw().capacity, kind="stable")
    arrivals = Arrivals.draw(model.config, [0])
    present = np.arange(model.config.max_tasks) < arrivals.count[0, :, :, None]
    work, backlog = (present * model.work).sum(axis=2)[:, order], np.zeros(len(order))
    for slot, wait in enumerate(episode.wait_s):
        np.testing.assert_allclose(wait * episode.capacity, backlog, atol=1e-9)  # sums in another order
        backlog = np.maximum(backlog + work[slot] - episode.capacity, 0)


@pytest.mark.parametrize("policy", policies())
def test_every_policy_plays_above_the_bound(policy):
    episode = Edge().play(Play(policy, busiest=12))
    assert np.isfinite(episode.delay_s).all()
    assert episode.mean_s >= episode.bound_s


def test_fewer_arrivals():
    arrivals = Arrivals.draw(Model.draw().config, [0])
    few = thinned(arrivals, 10)
    assert few.count.min() == 1
    assert few.count.max() == 10
    assert few.count.mean() == pytest.approx(5.5, rel=0.05)  # uniform on 1..10; 1200 draws have a deviation of 1.5 %
    np.testing.assert_array_equal(thinned(arrivals, 50).size, arrivals.size)


def test_rivals_met_the_same_arrivals(monkeypatch):
    monkeypatch.setattr(edges, "PLAYED", 3)
    edge = Edge()
    for name in ("random", "size split"):
        edge.play(Play(name, busiest=20))
    edge.play(Play("random", busiest=30))
    assert list(edge.rivals(Play("random", busiest=20))) == ["size split", "random"]
    edge.play(Play("local only", busiest=30))
    assert len(edge._played) == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("no such",), "There is no policy 'no such'; there are random, "),
        (("random", 0), "busiest must lie in 1..50 tasks, got 0"),
        (("random", 5, -1), "episode must not be negative"),
    ],
)
def test_bad_plays_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        Play(*arguments)
