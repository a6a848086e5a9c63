from __future__ import annotations

import time

import numpy as np
import pytest
from reference import mec_loop

from hybridlib.scheduling.learners.training import published_arrivals
from hybridlib.scheduling.system.arrivals import Arrivals
from hybridlib.scheduling.system.environment import Decision, Environment, simulate
from hybridlib.scheduling.system.model import MecConfig, Model

SMALL = MecConfig(servers=3, max_tasks=4, slots=6, capacity_gcycles_s=(2, 5))


def random_actions(model, generator, episodes=1):
    return generator.integers(0, model.config.servers, (episodes, model.config.servers, model.config.max_tasks))


def loop_delays(model, sizes, actions, rank=None):
    """Delays of the plain loop under given actions[t], padded to (T-1, B, N)."""
    delays, backlog = mec_loop.play(
        *(values.tolist() for values in (model.capacity, model.rate, model.work, model.result)),
        sizes,
        lambda t, b, n, *_: actions[t][b, n],
        rank,
    )
    padded = np.zeros((len(delays), model.config.servers, model.config.max_tasks))
    for t, slot in enumerate(delays):
        for b, station in enumerate(slot):
            padded[t, b, : len(station)] = station
    return padded, backlog


def ragged(arrivals, episode):
    return [
        [arrivals.size[episode, t, b, :m].tolist() for b, m in enumerate(counts)]
        for t, counts in enumerate(arrivals.count[episode])
    ]


def test_golden_draws():
    model = Model.draw()
    assert model.capacity.astype(int).tolist() == [
        *(50, 25, 18, 32, 28, 21, 50, 17, 44, 41, 21, 31, 41, 36, 30, 47, 49, 13, 48, 14)
    ]
    assert model.rate.astype(int).tolist() == [
        *(499, 478, 461, 416, 473, 408, 500, 462, 427, 430, 480, 407, 476, 415, 453, 480, 427, 444, 477, 475)
    ]
    assert model.work[:5].round(6).tolist() == [1.126837, 2.999069, 1.331505, 1.478859, 1.324556]
    slow = Model.draw(MecConfig(capacity_gcycles_s=(10, 20)))
    assert slow.capacity.astype(int).tolist() == [
        *(18, 18, 16, 12, 18, 17, 12, 11, 15, 20, 14, 14, 15, 17, 13, 16, 14, 20, 13, 17)
    ]
    density = (model.result - 0.6) / 0.4 * 0.2048 + 0.1024  # result and density come from the same uniforms
    assert np.rint(model.work / density)[:10].astype(int).tolist() == [6, 12, 13, 9, 10, 12, 6, 1, 1, 2]
    assert (model.offered_gcycles, model.load, slow.load) == pytest.approx((811.8, 1.237, 2.62), abs=0.05)


def test_golden_task_counts():
    assert Arrivals.published(MecConfig(), 3).tasks.tolist() == [30287, 29869, 30427]
    assert Arrivals.published(MecConfig(), 3, after_latents=True).tasks.tolist() == [30411, 30413, 30083]


def test_published_stream_for_training_can_go_back():
    config = MecConfig(3, 4, 6)
    whole, of = (
        Arrivals.published(config, 4, after_latents=True),
        published_arrivals(config, (7, 8), after_latents=True),
    )
    for episode in (0, 3, 1, 2):
        batch = of(episode)
        assert batch.count.shape[0] == 2
        for row in range(2):
            assert np.array_equal(batch.size[row], whole.size[episode])


def test_draws_and_arrivals_equal_the_published_loop():
    model, arrivals = Model.draw(), Arrivals.published(MecConfig(), 2)
    *fixed, stream = mec_loop.published_system()
    for ours, theirs in zip((model.capacity, model.rate, model.work, model.result), fixed, strict=True):
        assert ours.tolist() == theirs
    for episode in range(2):
        assert ragged(arrivals, episode) == mec_loop.draw_episode(stream)


def test_batched_delays_equal_the_loop_bit_for_bit():
    """Published size, random actions, three episodes in one batch against one task at a time."""
    model, arrivals, generator = Model.draw(), Arrivals.published(MecConfig(), 3), np.random.default_rng(0)
    actions = np.stack([random_actions(model, generator, 3) for _ in range(59)])
    result = simulate(model, lambda view, _: actions[view.slot], arrivals)
    for episode in range(3):
        delays, backlog = loop_delays(model, ragged(arrivals, episode), actions[:, episode])
        assert np.array_equal(result.delay_s[episode], delays)
        assert result.backlog[episode].tolist() == backlog


def test_a_chosen_order_equals_the_loop():
    model, arrivals, generator = Model.draw(SMALL), Arrivals.draw(SMALL, range(8)), np.random.default_rng(0)
    actions = np.stack([random_actions(model, generator, 8) for _ in range(5)])
    priority = generator.integers(0, 3, actions.shape).astype(float)  # with ties: those keep the published order
    result = simulate(model, lambda view, _: Decision(actions[view.slot], priority[view.slot]), arrivals)
    for e in range(8):
        delays, _ = loop_delays(model, ragged(arrivals, e), actions[:, e], lambda t, b, n, e=e: priority[t, e, b, n])
        assert np.array_equal(result.delay_s[e], delays)


def test_an_episode_does_not_depend_on_what_else_is_drawn():
    several, alone = Arrivals.draw(SMALL, range(5), seed=3), Arrivals.draw(SMALL, [4], seed=3)
    assert np.array_equal(several.size[4:], alone.size)
    assert not np.array_equal(several.size[:1], Arrivals.draw(SMALL, [0], seed=4).size)


def test_slots_without_tasks_drain():
    model = Model.draw(SMALL)
    count = np.zeros((1, 6, 3), np.int64)
    count[0, 0] = 4
    environment = Environment(model, Arrivals(count, np.full((1, 6, 3, 4), 3.0)))
    nowhere = np.zeros((1, 3, 4), np.int64)
    environment.step(nowhere)
    full = environment.backlog[0, 0]
    assert full == pytest.approx(3 * model.work.sum() - model.capacity[0])
    assert not environment.step(nowhere).any()
    assert environment.backlog[0, 0] == pytest.approx(full - model.capacity[0])


@pytest.mark.parametrize("load", [0.5, 1.3])
def test_load_is_set(load):
    config = MecConfig().at_load(load)
    assert Model.draw(config).load == pytest.approx(load)
    work = np.where(Arrivals.draw(config, range(50)).size > 0, Model.draw(config).work, 0.0).sum(axis=(2, 3)).mean()
    assert work / 656 == pytest.approx(load, rel=0.01)  # 3000 slots of standard deviation 13 %: 0.24 %


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("servers", 0, "servers must be a whole number at least 1, got 0"),
        ("servers", 2.5, "servers must be a whole number at least 1, got 2.5"),
        ("slots", 1, "slots must be a whole number at least 2, got 1"),
        (
            "capacity_gcycles_s",
            (0, 50),
            r"capacity_gcycles_s must be two whole numbers with 0 < low <= high, got \(0, 50",
        ),
        ("rate_mbit_s", (500, 400), r"rate_mbit_s .* got \(500, 400\)"),
        ("density_gcycles", (0.1, float("nan")), "density_gcycles must be two finite numbers .* nan"),
        ("slot_s", 0.0, "slot_s must be finite and above 0, got 0.0"),
        ("task_seed", -1, "task_seed must be a whole number in 0..4294967295, got -1"),
    ],
)
def test_config_refuses(name, value, message):
    with pytest.raises(ValueError, match=message):
        MecConfig(**{name: value})


def test_bad_input_is_refused_before_computing():
    model, arrivals = Model.draw(SMALL), Arrivals.draw(SMALL, [0])
    with pytest.raises(ValueError, match="capacity must be finite and above 0 everywhere, got -1.0"):
        Model(SMALL, np.array([1.0, -1.0, 2.0]), model.rate, model.work, model.result)
    with pytest.raises(ValueError, match=r"rate must have shape \(3,\), got \(2,\)"):
        Model(SMALL, model.capacity, model.rate[:2], model.work, model.result)
    size = arrivals.size.copy()
    size[0, 2, 1, 0] = np.nan
    with pytest.raises(ValueError, match="size must be finite and above 0 for every task, got nan"):
        Arrivals(arrivals.count, size)
    with pytest.raises(ValueError, match=r"count must be whole numbers in 0..4, got .*\.\.9"):
        Arrivals(np.where(arrivals.count > 0, 9, 1), arrivals.size)
    with pytest.raises(ValueError, match=r"arrivals must have shape .*\(60, 20, 50\)"):
        Environment(Model.draw(), arrivals)
    with pytest.raises(ValueError, match="load must be finite and above 0, got 0"):
        SMALL.at_load(0)


def test_a_wrong_type_is_one_sentence():
    model, arrivals = Model.draw(SMALL), Arrivals.draw(SMALL, [0])
    of_model, of_config = (
        "model must be a Model, as Model.draw.config. returns it, got",
        "config must be a MecConfig, got",
    )
    with pytest.raises(TypeError, match=f"{of_model} MecConfig"):
        Environment(SMALL, arrivals)
    with pytest.raises(TypeError, match=f"{of_model} str"):
        simulate("published", None, arrivals)
    with pytest.raises(TypeError, match="arrivals must be Arrivals, .* got ndarray"):
        Environment(model, arrivals.size)
    with pytest.raises(TypeError, match=f"{of_config} Model"):
        Arrivals.draw(model, [0])
    with pytest.raises(TypeError, match=f"{of_config} Model"):
        Arrivals.published(model, 1)
    with pytest.raises(TypeError, match=f"{of_config} int"):
        Model.draw(20)
    with pytest.raises(TypeError, match=f"{of_config} NoneType"):
        Model(None, model.capacity, model.rate, model.work, model.result)


def test_representations_are_short():
    model, arrivals = Model.draw(SMALL), Arrivals.draw(SMALL, range(3))
    assert repr(MecConfig()) == "MecConfig()"
    assert eval(repr(SMALL)) == SMALL
    assert repr(model).startswith("Model(3 servers, 4 task types, 6 slots, load ")
    assert repr(arrivals) == f"Arrivals(3 episodes, 6 slots, 3 stations, {arrivals.count.sum()} tasks)"
    environment = Environment(model, arrivals)
    assert repr(environment).endswith(", 3 episodes, slot 0 of 5)")
    result = simulate(model, lambda view, _: np.zeros(view.size.shape, int), arrivals)
    assert repr(result).startswith(f"Result(3 episodes, {arrivals.tasks.sum()} tasks, mean_s ")
    assert max(len(repr(thing)) for thing in (model, arrivals, environment, result, environment.view())) < 200


def test_bad_actions_are_refused():
    environment = Environment(Model.draw(SMALL), Arrivals.draw(SMALL, [0]))
    for bad, message in ((3, r"actions must lie in 0..2, got 3"), (-1, r"actions must lie in 0..2, got -1")):
        with pytest.raises(ValueError, match=message):
            environment.step(np.full((1, 3, 4), bad))
    with pytest.raises(ValueError, match="actions must be whole numbers of shape .* got float64"):
        environment.step(np.zeros((1, 3, 4)))
    for _ in range(5):
        environment.step(np.zeros((1, 3, 4), int))
    with pytest.raises(ValueError, match="the episode ended after 5 slots"):
        environment.step(np.zeros((1, 3, 4), int))


def test_a_million_decisions_per_second():
    """Processor seconds, so that other work on the machine hardly counts; measured 3 to 5 million."""
    model, arrivals = Model.draw(), Arrivals.draw(MecConfig(), range(4))
    actions = random_actions(model, np.random.default_rng(0), 4)
    seconds = []
    for _ in range(3):
        began = time.process_time()
        simulate(model, lambda view, _: actions, arrivals)
        seconds.append(time.process_time() - began)
    assert arrivals.tasks.sum() / min(seconds) > 1_000_000
