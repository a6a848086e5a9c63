from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hybridlib.files import read_table
from hybridlib.paths import RESULTS
from hybridlib.scheduling.rules.fluid import FluidScheduler
from hybridlib.scheduling.rules.heuristics import YARDSTICKS, capacity_weighted, greedy_oracle, uniform_random
from hybridlib.scheduling.rules.objective import LATE, Slots, levelled, relative_cost
from hybridlib.scheduling.rules.split import SPARE, SizeSplit
from hybridlib.scheduling.study import front, price
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


@pytest.mark.parametrize("deadline_s", [math.inf, 1.5])
def test_fluid_delay_and_lateness_equal_a_loop_over_their_definition(deadline_s):
    config = dataclasses.replace(SMALL, servers=7)
    model, arrivals = Model.draw(config), Arrivals.draw(config, [0])
    scheduler = FluidScheduler(model, deadline_s=deadline_s)
    with torch.no_grad():
        for name in ("outer", "place"):
            scheduler.parameters[name].normal_(generator=torch.Generator().manual_seed(0))
    places = [[0, 1], [2], [3, 4], [5], [6]]  # stations
    backlog, total, late, tasks = np.zeros(7), 0.0, 0.0, 0
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
                    late += number[n] * p[n, j] * max(wait - deadline_s, 0)
                tasks += number[n]
            before += placed
        backlog = np.maximum(before - model.capacity, 0)
    counts = scheduler.count_tasks(arrivals.count[:, :-1])
    assert scheduler.fluid_delay(counts).item() == pytest.approx(total / tasks, rel=1e-12)
    slots = scheduler.fluid(counts)
    assert slots.late.sum().item() == pytest.approx(late, rel=1e-12)
    assert (late > 0) == math.isfinite(deadline_s)


def test_size_split_gives_each_server_its_share_of_work():
    model = Model.draw()
    capacity = torch.tensor(model.capacity)[None]
    share = SizeSplit(model, 1e4).logits(capacity)[0].softmax(1).numpy()
    work = (share * (model.work * (1 - np.arange(50) / 50))[:, None]).sum(axis=0)
    large, fast = np.argsort(model.work)[-5:], np.argsort(model.capacity)[-6:]
    assert share[large][:, fast].sum(axis=1).min() > 0.99
    # With hardly any mixing the largest task is one server's whole share: within 150 % of proportional.
    assert np.abs(work / work.sum() / (model.capacity / model.capacity.sum()) - 1).max() < 1.5
    flat = SizeSplit(model, 0.0).logits(capacity)[0].softmax(1).numpy()
    np.testing.assert_allclose(flat, np.broadcast_to(model.capacity / model.capacity.sum(), flat.shape), rtol=1e-12)


def test_filling_holds_the_backlog_on_one_server_after_the_other():
    """Three servers of 4, 2 and 1 Gcycles/s; one task type, so a station's expected work is plain."""
    config = MecConfig(3, 1, 5)
    model = Model(config, np.array([2.0, 4.0, 1.0]), np.ones(3), np.array([3.0]), np.ones(1))  # 9 arrive, 7 are done
    split = SizeSplit(model, 1.0)
    spare = SPARE * model.capacity

    def amounts(backlog, ceiling_s):
        ceiling = torch.full((1, 1), ceiling_s, dtype=torch.float64)
        return (split.filling(torch.tensor([backlog], dtype=torch.float64), ceiling)[0].numpy() - spare).tolist()

    # 2 Gcycles are left after the slot: on the fastest, which may hold 3 s x 4.
    assert amounts([0.0, 0.0, 0.0], 3.0) == pytest.approx([2.0, 6.0, 1.0])
    # 12 + 2 are left: the fastest is full and gets what it does, the next holds 2.
    assert amounts([0.0, 12.0, 0.0], 3.0) == pytest.approx([4.0, 4.0, 1.0])
    # 28 + 2 are left, more than 3 s x 7: all rise together to 30 / 7 s.
    level = 30 / 7
    assert amounts([8.0, 16.0, 4.0], 3.0) == pytest.approx([2 + 2 * level - 8, 4 + 4 * level - 16, 1 + level - 4])


def test_cost_is_relative_to_one_server_and_each_horizon_counts_alike():
    work, tasks = torch.tensor([[6.0, 2.0, 8.0]]), torch.tensor([[3.0, 1.0, 2.0]])
    reference = levelled(work, tasks, gcycles_per_slot=4.0, slot_s=2.0, deadline_s=1.5)  # backlog 0, 2, 0
    assert reference.delay[0].tolist() == pytest.approx([3 * 1.5, 1 * 1.5, 2 * 2.0])
    assert reference.late[0].tolist() == pytest.approx([0.0, 0.0, 2 * 0.5])
    ours = Slots(tasks, reference.delay * torch.tensor([[2.0, 1.0, 1.0]]), torch.zeros(1, 3))
    at_1, at_3 = 2.0, (9 + 1.5 + 4) / (4.5 + 1.5 + 4 + LATE * 1.0)
    assert relative_cost(ours, reference, (1, 3)).item() == pytest.approx((at_1 + at_3) / 2)
    assert relative_cost(reference, reference, (1, 2, 3)).item() == pytest.approx(1.0)


@pytest.mark.slow
def test_it_learns_and_beats_its_start_and_every_yardstick_of_its_information():
    """A light fit at published size: a few seconds. Same arrivals for all, none of them fitted on."""
    model, arrivals = Model.draw(), Arrivals.draw(MecConfig(), range(2), seed=11)
    scheduler = FluidScheduler(model, sharpness=60.0)
    before = simulate(model, scheduler.policy(), arrivals).mean_s.mean()
    course = scheduler.fit(20, batch=1, horizons=(30, 59))
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


def test_it_knows_no_slot_and_no_horizon():
    """The first slots of a long run are the slots of a short one, to the bit."""
    short = dataclasses.replace(SMALL, slots=6)
    long = dataclasses.replace(SMALL, slots=30)
    for deadline_s in (math.inf, 2.0):
        policy = FluidScheduler(Model.draw(short), deadline_s=deadline_s).policy()
        arrivals = Arrivals.draw(long, [0, 1])
        first = Arrivals(arrivals.count[:, :6], arrivals.size[:, :6])
        beginning = simulate(Model.draw(long), policy, arrivals).delay_s[:, :5]
        assert np.array_equal(beginning, simulate(Model.draw(short), policy, first).delay_s)


@pytest.mark.slow
def test_the_deadline_trades_the_mean_for_the_tail():
    """A tiny overloaded system, light fits; the control is another fit to the mean, which must not do the same."""
    config = MecConfig(servers=4, max_tasks=20, slots=21).at_load(1.3)
    model, arrivals = Model.draw(config), Arrivals.draw(config, range(8), seed=9)

    def fitted(deadline_s, seed):
        scheduler = FluidScheduler(model, deadline_s=deadline_s, seed=seed)
        scheduler.fit(45, batch=1, horizons=(10, 20), seed=seed)
        result = simulate(model, scheduler.policy(), arrivals)
        return result.mean_s.mean(), result.percentile_s(99)

    mean, control, tail = fitted(math.inf, 0), fitted(math.inf, 1), fitted(6.0, 0)

    def traded(one, other):
        return other[0] > 1.04 * one[0] and other[1] < 0.85 * one[1]

    assert traded(mean, tail)
    assert not traded(mean, control)
    assert not traded(control, mean)


@pytest.mark.slow
def test_shipped_schedulers_serve_horizons_they_were_not_fitted_to():
    """On arrivals that nothing was fitted or chosen on. The control is random choice, which must fail."""
    slots = 240
    model = Model.draw(MecConfig(slots=slots + 1))
    arrivals = Arrivals.draw(model.config, [0, 1], seed=31)
    rule, oracle = (simulate(model, policy, arrivals).mean_s for policy in (capacity_weighted, greedy_oracle))

    def holds(policy):
        mean = simulate(model, policy, arrivals).mean_s
        return bool((mean < rule).all() and (mean < oracle).all())

    for deadline_s in front.DEADLINES_S:
        scheduler = front.shipped_fluid(deadline_s)
        assert max(scheduler.fit_settings["horizons"]) < slots
        assert holds(scheduler.policy())
    assert not holds(uniform_random)


@pytest.mark.slow
def test_the_shortest_deadline_keeps_the_tail_of_opt_ts_and_a_fifth_less_mean():
    """The aim of the knob, on arrivals of its own. The control is the fit to the mean, whose tail is far longer."""
    model, arrivals = Model.draw(), Arrivals.draw(MecConfig(), range(10), seed=31)
    oracle = simulate(model, greedy_oracle, arrivals)

    def reached(deadline_s):
        result = simulate(model, front.shipped_fluid(deadline_s).policy(), arrivals)
        tails = [np.mean([np.percentile(r.delay_s[e][r.present[e]], 99) for e in range(10)]) for r in (result, oracle)]
        # 2 % for ten episodes: the standard error of the paired ratio is about 1 %.
        return bool(result.mean_s.mean() < 0.8 * oracle.mean_s.mean() and tails[0] < 1.02 * tails[1])

    assert reached(min(front.DEADLINES_S))
    assert not reached(math.inf)


def test_saved_and_loaded_and_refused(tmp_path):
    path, model = tmp_path / "fluid.safetensors", Model.draw(SMALL)
    for deadline_s in (math.inf, 2.0):
        first = FluidScheduler(model, seed=1, deadline_s=deadline_s)
        first.fit(2, batch=1, horizons=(3, 7))
        again = FluidScheduler(model, seed=1, deadline_s=deadline_s)
        again.fit(2, batch=1, horizons=(3, 7))
        first.save(path)
        second = FluidScheduler(model, seed=2, deadline_s=deadline_s)
        second.load(path)
        for name, value in first.parameters.items():
            assert torch.equal(value, second.parameters[name])
            assert torch.equal(value, again.parameters[name])
    with safe_open(path, "pt") as file:
        told = {name: json.loads(text) for name, text in file.metadata().items()}
    assert told["system"]["capacity_gcycles_s"] == model.capacity.tolist()
    assert told["system"]["work_gcycles"] == model.work.tolist()
    assert told["fit"]["horizons"] == [3, 7]
    assert "uniform in 1..max_tasks" in told["fit"]["told"]
    FluidScheduler(Model.draw(dataclasses.replace(SMALL, slots=40)), deadline_s=2.0).load(path)  # slots may differ
    refused = {
        "width is 8, not 3": FluidScheduler(model, width=3, deadline_s=2.0),
        r"deadline_s is 2\.0, not None": FluidScheduler(model),
        "servers is 3, not 4": FluidScheduler(Model.draw(dataclasses.replace(SMALL, servers=4)), deadline_s=2.0),
        "max_tasks is 4, not 5": FluidScheduler(Model.draw(dataclasses.replace(SMALL, max_tasks=5)), deadline_s=2.0),
        r"capacity_gcycles_s\[0\] is": FluidScheduler(
            Model.draw(dataclasses.replace(SMALL, capacity_seed=3)), deadline_s=2.0
        ),
        r"work_gcycles\[0\] is": FluidScheduler(Model.draw(SMALL.at_load(0.5)), deadline_s=2.0),
        r"slot_s is 1\.0, not 2\.0": FluidScheduler(Model.draw(dataclasses.replace(SMALL, slot_s=2.0)), deadline_s=2.0),
    }
    for words, scheduler in refused.items():
        with pytest.raises(ValueError, match=f"holds another scheduler: {words}"):
            scheduler.load(path)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        FluidScheduler(model, width=0)
    with pytest.raises(ValueError, match="sharpness must not be negative, got nan"):
        FluidScheduler(model, sharpness=float("nan"))
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"deadline_s must be above 0, got {wrong}"):
            FluidScheduler(model, deadline_s=wrong)
    with pytest.raises(ValueError, match="horizons must be at least 1 slot, got 0"):
        FluidScheduler(model).fit(1, horizons=(0, 3))


def test_a_missing_or_broken_file_is_one_sentence(tmp_path):
    model, path = Model.draw(SMALL), tmp_path / "fluid.safetensors"
    scheduler = FluidScheduler(model)
    with pytest.raises(ValueError, match=r"no scheduler .*fluid\.safetensors; fit one and save it first"):
        scheduler.load(path)
    scheduler.save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    whole = path.read_bytes()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}  # the file is mapped, and changes
    for garbage in (b"", b"nonsense", whole[: len(whole) // 2]):
        path.write_bytes(garbage)
        with pytest.raises(ValueError, match="cannot be read as a scheduler"):
            scheduler.load(path)
    before = scheduler.parameters["task"].detach().clone()
    for changed in (
        tensors | {"task": tensors["task"] * math.nan},
        tensors | {"task": tensors["task"][:2]},
        {name: tensor for name, tensor in tensors.items() if name != "task"},
    ):
        save_file(changed, path, metadata)
        with pytest.raises(ValueError, match="cannot be read as a scheduler"):
            scheduler.load(path)
    for strange in ({"architecture": "[1]"}, {"architecture": "{"}):
        save_file(tensors, path, strange)
        with pytest.raises(ValueError, match="cannot be read as a scheduler"):
            scheduler.load(path)
    save_file(tensors, path)
    with pytest.raises(ValueError, match="holds another scheduler: algorithm is None"):
        scheduler.load(path)
    assert torch.equal(before, scheduler.parameters["task"])
    with pytest.raises(ValueError, match=r"no scheduler ships with deadline_s = 14\.0; there are \[inf, "):
        front.shipped_fluid(14.0)


def test_a_policy_refuses_another_system():
    policy = FluidScheduler(Model.draw(SMALL)).policy()
    for changes in ({"capacity_seed": 3}, {"max_tasks": 5}, {"servers": 4}, {"slot_s": 2.0}):
        other = dataclasses.replace(SMALL, **changes)
        with pytest.raises(ValueError, match="this scheduler is of another system than the one it is used on"):
            simulate(Model.draw(other), policy, Arrivals.draw(other, [0]))
    links = dataclasses.replace(SMALL, rate_seed=9)  # links are no part of the fit
    assert np.isfinite(simulate(Model.draw(links), policy, Arrivals.draw(links, [0])).mean_s).all()


@pytest.mark.slow
def test_shipped_tables_are_those_of_the_shipped_files():
    """Two episodes of each table are measured again, from the files."""
    for name, again in (("08_front", front.front(2)), ("08_horizons", front.horizons(2, slots=(30, 120)))):
        table = read_table(RESULTS / f"{name}.parquet")
        assert table.attrs["profile"] == "shipped schedulers"
        both = again.merge(table, on=["policy", "slots", "episode"], suffixes=("", "_shipped"))
        assert len(both) == len(again) > 0
        for measure in price.MEASURES:
            # A last-bit difference of a softmax may move single tasks to a neighbouring server.
            np.testing.assert_allclose(both[measure], both[f"{measure}_shipped"], rtol=0.01)
