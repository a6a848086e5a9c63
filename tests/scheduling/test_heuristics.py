from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from reference import mec_loop

from hybridlib.scheduling.rules import heuristics
from hybridlib.scheduling.system.arrivals import Arrivals
from hybridlib.scheduling.system.bounds import lower_bound, pooled_bound, rolling_horizon, slot_alone_bound
from hybridlib.scheduling.system.environment import View, simulate
from hybridlib.scheduling.system.model import MecConfig, Model

PUBLISHED = Arrivals.published(MecConfig(), 20)


def first_episodes(arrivals, number):
    return Arrivals(arrivals.count[:number], arrivals.size[:number])


def mean_delay(policy, model=None, arrivals=PUBLISHED):
    return simulate(model or Model.draw(), policy, arrivals).mean_s


@pytest.mark.slow
def test_greedy_oracle_reproduces_the_measured_digits():
    delays = mean_delay(heuristics.greedy_oracle)
    assert delays[:3].round(7).tolist() == [7.6488337, 7.4506062, 8.1181284]
    assert round(delays.mean(), 4) == 7.5414
    slow = mean_delay(heuristics.greedy_oracle, Model.draw(MecConfig(capacity_gcycles_s=(10, 20))))
    assert slow[:2].round(7).tolist() == [48.7029285, 47.8516327]
    assert round(slow.mean(), 4) == 48.1903


def test_greedy_oracle_equals_the_published_loop():
    *system, stream = mec_loop.published_system()
    sizes = mec_loop.draw_episode(stream)[:8]
    delays, _ = mec_loop.play(*system, sizes, mec_loop.greedy_oracle(*system, sizes))
    config = MecConfig(slots=8)
    short = Arrivals(PUBLISHED.count[:1, :8], PUBLISHED.size[:1, :8])
    ours = simulate(Model.draw(config), heuristics.greedy_oracle, short)
    theirs = [d for slot in delays for station in slot for d in station]
    assert ours.delay_s[ours.present].tolist() == theirs


@pytest.mark.parametrize(
    ("name", "measured", "tolerance"),
    # Standard deviation of an episode 0.6 to 1.1 s, but arrivals are the same; only the rule's own draws differ.
    [
        ("random", 16.33, 0.3),
        ("local only", 17.29, 0.005),
        ("capacity-weighted random", 7.67, 0.15),
        ("backlog levelling", 7.61, 0.05),
        ("size split", 5.75, 0.05),
        ("Opt-TS (greedy oracle)", 7.54, 0.005),
    ],
)
def test_rules_without_learning_reproduce_the_reference(name, measured, tolerance):
    assert mean_delay(heuristics.YARDSTICKS[name].policy).mean() == pytest.approx(measured, abs=tolerance)


def test_static_rules_draw_in_proportion():
    model, arrivals = Model.draw(), first_episodes(PUBLISHED, 4)
    for policy, weights in ((heuristics.capacity_weighted, model.capacity), (heuristics.uniform_random, np.ones(20))):
        counts = np.zeros(20)

        def counted(view, generator, policy=policy, counts=counts):
            actions = policy(view, generator)
            counts += np.bincount(actions[view.present], minlength=20)
            return actions

        simulate(model, counted, arrivals)
        # Chi-square with 19 degrees of freedom exceeds 44 once in a thousand seeds; the seed is fixed.
        expected = counts.sum() * weights / weights.sum()
        assert ((counts - expected) ** 2 / expected).sum() < 44


def test_round_robin_continues_over_slots():
    config = MecConfig(servers=3, max_tasks=4, slots=5)
    taken = []

    def recorded(view, generator):
        actions = heuristics.round_robin(view, generator)
        taken.extend(actions[view.present])
        return actions

    simulate(Model.draw(config), recorded, Arrivals.draw(config, [0]))
    assert taken == [i % 3 for i in range(len(taken))]


def test_levelling_fills_the_emptiest_servers():
    capacity, backlog = np.array([4.0, 2.0, 1.0]), np.array([[0.0, 4.0, 9.0], [0.0, 0.0, 0.0], [4.0, 2.0, 1.0]])
    share = heuristics._level(capacity, backlog, np.array([4.0, 7.0, 0.0]))
    # First row: filling to level 1 s puts 4 on the first server, still below the others' 2 and 9 s of waiting.
    assert share.tolist() == [[4.0, 0.0, 0.0], [4.0, 2.0, 1.0], [1.0, 0.0, 0.0]]
    levels = (backlog[:2] + share[:2]) / capacity
    assert np.ptp(np.where(share[:2] > 0, levels, levels.min()), axis=1).tolist() == [0.0, 0.0]


def brute_force(model, arrivals, reorder=False):
    """Least mean delay of one episode over all assignments, and over all orders of each slot if wanted."""
    sizes = [
        [arrivals.size[0, t, b, :m].tolist() for b, m in enumerate(row)] for t, row in enumerate(arrivals.count[0])
    ]
    system = [values.tolist() for values in (model.capacity, model.rate, model.work, model.result)]
    tasks = [[(b, n) for b in range(len(slot)) for n in range(len(slot[b]))] for slot in sizes[:-1]]
    flat = [(t, *task) for t, slot in enumerate(tasks) for task in slot]
    orders = product(*(permutations(slot) for slot in tasks)) if reorder else [tasks]
    best = np.inf
    for order in orders:
        rank = {(t, *task): i for t, slot in enumerate(order) for i, task in enumerate(slot)}
        for servers in product(range(len(system[0])), repeat=len(flat)):
            chosen = dict(zip(flat, servers, strict=True))
            delays, _ = mec_loop.play(
                *system, sizes, lambda t, b, n, *_, c=chosen: c[t, b, n], lambda t, b, n, r=rank: r[t, b, n]
            )
            best = min(best, mec_loop.mean_delay(delays))
    return best


@pytest.mark.parametrize("seed", range(4))
def test_bound_below_optimum_below_every_rule(seed):
    config = MecConfig(2, 2, 4, capacity_gcycles_s=(1, 2), capacity_seed=seed, task_seed=seed)
    model, arrivals = Model.draw(config), Arrivals.draw(config, [0], seed)
    optimum = brute_force(model, arrivals)
    plan = rolling_horizon(model, arrivals, horizon=3)
    assert plan.optimal
    assert plan.mean_s == pytest.approx(optimum, abs=1e-6)  # the solver's own feasibility tolerance
    assert lower_bound(model, arrivals)[0] <= optimum + 1e-12
    for name, rule in heuristics.YARDSTICKS.items():
        if name != "size split" and "order" not in rule.sees:
            assert mean_delay(rule.policy, model, arrivals)[0] >= optimum - 1e-12
    for horizon in (1, 2):
        assert rolling_horizon(model, arrivals, horizon).mean_s >= optimum - 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_bound_holds_for_every_order_and_slot_assignment_is_best_in_one_slot(seed):
    config = MecConfig(2, 2, 2, capacity_gcycles_s=(1, 3), capacity_seed=seed, task_seed=seed)
    model, arrivals = Model.draw(config), Arrivals(np.full((1, 2, 2), 2), np.full((1, 2, 2, 2), 3.0))
    optimum = brute_force(model, arrivals, reorder=True)
    assert mean_delay(heuristics.slot_assignment, model, arrivals)[0] == pytest.approx(optimum, rel=1e-12)
    assert lower_bound(model, arrivals)[0] <= optimum + 1e-12


def test_bounds_are_exact_where_the_relaxation_is():
    """One server, one task a slot, no transfer to speak of: the pooled server is the server."""
    config = MecConfig(1, 1, 5, capacity_gcycles_s=(1, 1))
    model = Model(config, np.ones(1), np.full(1, 1e12), np.full(1, 2.0), np.ones(1))
    arrivals = Arrivals(np.ones((1, 5, 1), int), np.ones((1, 5, 1, 1)))
    # Delays 2, 3, 4, 5 s: each slot brings 2 Gcycles and drains 1.
    assert pooled_bound(model, arrivals)[0] == pytest.approx(3.5, rel=1e-9)
    assert slot_alone_bound(model, arrivals)[0] == pytest.approx(2.0, rel=1e-9)


@pytest.mark.parametrize("load", [0.3, 0.9, 1.24])
def test_bound_below_every_rule_at_published_size(load):
    config = MecConfig(slots=20).at_load(load)
    model, arrivals = Model.draw(config), Arrivals.draw(config, [0])
    bound = lower_bound(model, arrivals)
    for name, rule in heuristics.YARDSTICKS.items():
        if name != "slot assignment":
            assert (mean_delay(rule.policy, model, arrivals) >= bound).all()


@pytest.mark.parametrize("seed", range(3))
def test_rolling_horizon_leaves_no_gap(seed):
    """Results of 1e5 Mbit over 1 Mbit/s: a relative gap of 1e-4, the solver's default, would be worth 10 s a task."""
    config = MecConfig(2, 2, 4, capacity_gcycles_s=(1, 2), capacity_seed=seed, task_seed=seed)
    drawn = Model.draw(config)
    model = Model(config, drawn.capacity, np.ones(2), drawn.work, np.full(2, 1e5))
    arrivals = Arrivals.draw(config, [0], seed)
    plan = rolling_horizon(model, arrivals, horizon=3)
    assert plan.optimal
    # The solver accepts 1e-6 of what is then 1e6 s in all.
    assert plan.mean_s == pytest.approx(brute_force(model, arrivals), abs=1e-3)


def test_bad_input_is_refused():
    config = MecConfig(2, 2, 3)
    model, arrivals = Model.draw(config), Arrivals.draw(config, [0])
    with pytest.raises(ValueError, match="horizon must be at least 1 slot, got 0"):
        rolling_horizon(model, arrivals, 0)
    with pytest.raises(ValueError, match="plans one episode, got 2"):
        rolling_horizon(model, Arrivals.draw(config, [0, 1]), 1)
    with pytest.raises(ValueError, match=r"large_servers must be some but not all of 0\.\.1"):
        simulate(model, heuristics.size_split(), arrivals)


def test_rules_accept_a_slot_without_tasks():
    model = Model.draw(MecConfig(2, 2, 3))
    empty = np.zeros((1, 2, 2))
    view = View(model, 0, empty, empty > 0, np.zeros((1, 2)), np.zeros(1, np.int64))
    for name, rule in heuristics.YARDSTICKS.items():
        if name != "size split":
            rule.policy(view, np.random.default_rng(0))
