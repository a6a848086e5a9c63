from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from hybridlib.scheduling.rules.fluid import FluidScheduler, balanced_split
from hybridlib.scheduling.rules.heuristics import YARDSTICKS
from hybridlib.scheduling.system.arrivals import Arrivals
from hybridlib.scheduling.system.bounds import lower_bound
from hybridlib.scheduling.system.environment import View, simulate
from hybridlib.scheduling.system.model import MecConfig, Model

SMALL = MecConfig(servers=3, max_tasks=4, slots=6, capacity_gcycles_s=(2, 5))


def test_fluid_delay_is_the_exact_one_where_tasks_are_identical_and_the_choice_is_certain():
    """One server: the fluid has no choice to make and pairs of equal tasks have no order to average over."""
    config = MecConfig(1, 4, 6)
    model = Model(config, np.full(1, 2.0), np.full(1, 1e12), np.full(4, 0.7), np.ones(4))
    arrivals = Arrivals.draw(config, range(3))
    exact = simulate(model, lambda view, _: np.zeros(view.size.shape, int), arrivals).mean_s
    scheduler = FluidScheduler(model)
    fluid = scheduler.fluid_delay(scheduler.count_tasks(arrivals.count[:, :-1]))
    assert fluid.tolist() == pytest.approx(exact.tolist(), rel=1e-9)


def test_fluid_delay_equals_a_loop_over_its_definition():
    config = dataclasses.replace(SMALL, servers=7)
    model, arrivals = Model.draw(config), Arrivals.draw(config, [0])
    scheduler = FluidScheduler(model)
    with torch.no_grad():
        for name in ("outer", "place"):
            scheduler.parameters[name].normal_(generator=torch.Generator().manual_seed(0))
    places = [[0, 1], [2], [3, 4], [5], [6]]  # stations
    backlog, total, tasks = np.zeros(7), 0.0, 0
    for t in range(5):
        logits = scheduler.logits(torch.tensor(backlog)[None])[0].detach().numpy()
        before = backlog.copy()
        for place, stations in enumerate(places):
            p = np.exp(logits[place]) / np.exp(logits[place]).sum(axis=1, keepdims=True)
            number = [sum(arrivals.count[0, t, b] > n for b in stations) for n in range(4)]
            placed = [sum(number[n] * p[n, j] * model.work[n] for n in range(4)) for j in range(7)]
            for n in range(4):
                for j in range(7):
                    wait = (before[j] + placed[j] / 2 + model.work[n] / 2) / model.capacity[j]
                    total += number[n] * p[n, j] * wait
                tasks += number[n]
            before += placed
        backlog = np.maximum(before - model.capacity, 0)
    counts = scheduler.count_tasks(arrivals.count[:, :-1])
    assert scheduler.fluid_delay(counts).item() == pytest.approx(total / tasks, rel=1e-12)


def test_balanced_split_gives_each_server_its_share_of_work():
    model = Model.draw()
    logits = balanced_split(model, sharpness=1e4)
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    work = (share * (model.work * (1 - np.arange(50) / 50))[:, None]).sum(axis=0)
    large = np.argsort(model.work)[-5:]
    fast = np.argsort(model.capacity)[-6:]
    assert share[large][:, fast].sum(axis=1).min() > 0.99
    # With hardly any mixing the largest task is one server's whole share: within 60 % of proportional.
    assert np.abs(work / work.sum() / (model.capacity / model.capacity.sum()) - 1).max() < 1.5
    assert np.ptp(np.exp(balanced_split(model, 0.0)) - model.capacity) < 1e-9


def test_it_learns_and_beats_its_start_and_every_yardstick_of_its_information():
    """A light fit at published size: a few seconds. Same arrivals for all, none of them fitted on."""
    model, arrivals = Model.draw(), Arrivals.draw(MecConfig(), range(2), seed=11)
    scheduler = FluidScheduler(model, sharpness=60.0)
    before = simulate(model, scheduler.policy(), arrivals).mean_s.mean()
    course = scheduler.fit(30, batch=1, learning_rate=0.1)
    after = simulate(model, scheduler.policy(), arrivals).mean_s
    assert np.isfinite(course).all()
    assert after.mean() < before
    assert (after >= lower_bound(model, arrivals)).all()
    for name in ("size split", "capacity-weighted random", "backlog levelling", "Opt-TS (greedy oracle)"):
        assert after.mean() < simulate(model, YARDSTICKS[name].policy, arrivals).mean_s.mean()


def test_it_sees_only_what_an_agent_sees():
    """The server of a task does not change with any other task of the slot."""
    model, generator = Model.draw(SMALL), np.random.default_rng(0)
    scheduler = FluidScheduler(model)
    size = generator.uniform(2, 5, (1, 3, 4))
    everyone = np.ones((1, 3, 4), bool)
    alone = np.zeros_like(everyone)
    alone[0, 1, 2] = True
    actions = [
        scheduler.policy()(View(model, 3, size, present, np.full((1, 3), 4.0), np.zeros(1, int)), generator)[0, 1, 2]
        for present in (everyone, alone)
    ]
    assert actions[0] == actions[1]


def test_spreading_keeps_the_probabilities():
    """Over many slots the pattern chooses each server as often as independent draws would."""
    model = Model.draw(SMALL)
    policy = FluidScheduler(model, sharpness=2.0).policy()
    size = np.full((1, 3, 4), 3.0)
    counts = np.zeros((3, 4, 3))
    for slot in range(500):
        view = View(model, slot, size, size > 0, np.zeros((1, 3)), np.zeros(1, int))
        counts += np.eye(3)[policy(view, np.random.default_rng(0))[0]]
    wanted = FluidScheduler(model, sharpness=2.0).logits(torch.zeros(1, 3, dtype=torch.float64)).softmax(3)[0, 0]
    # A golden-ratio sequence of 500 points has a discrepancy below 1 %.
    np.testing.assert_allclose(counts / 500, np.broadcast_to(wanted.detach(), (3, 4, 3)), atol=0.01)


def test_saved_and_loaded_and_refused(tmp_path):
    path = tmp_path / "fluid.safetensors"
    first = FluidScheduler(Model.draw(SMALL), seed=1)
    first.fit(2, batch=1)
    first.save(path)
    second = FluidScheduler(Model.draw(SMALL), seed=2)
    second.load(path)
    for name, value in first.parameters.items():
        assert torch.equal(value, second.parameters[name])
    with pytest.raises(ValueError, match="holds another scheduler"):
        FluidScheduler(Model.draw(SMALL), width=3).load(path)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        FluidScheduler(Model.draw(SMALL), width=0)
    with pytest.raises(ValueError, match="sharpness must not be negative, got nan"):
        FluidScheduler(Model.draw(SMALL), sharpness=float("nan"))
