from __future__ import annotations

import math
from collections import deque

import numpy as np
import pytest
import safetensors.torch
import torch
from reference import lad_script

from hybridlib.scheduling.learners import training
from hybridlib.scheduling.learners.d2sac import D2sacA, D2sacB, D2sacBSettings
from hybridlib.scheduling.learners.diffusion import DiffusionActor, Schedule, embedding, mish
from hybridlib.scheduling.learners.dqn import DqnSettings, DqnTs
from hybridlib.scheduling.learners.lad import LadSettings, LadTs
from hybridlib.scheduling.learners.networks import SeededDraws, StackedAdam, choose
from hybridlib.scheduling.learners.replay import Replay
from hybridlib.scheduling.learners.sac import SacSettings, SacTs
from hybridlib.scheduling.study.pieces import as_policy
from hybridlib.scheduling.system.arrivals import Arrivals
from hybridlib.scheduling.system.environment import Environment, simulate
from hybridlib.scheduling.system.model import MecConfig, Model

LEARNERS = [LadTs, D2sacA, D2sacB, SacTs, DqnTs]
BUSY = MecConfig(3, 10, 8, capacity_gcycles_s=(2, 5))
QUICK = {"warmup": 40, "batch_size": 16, "replay_size": 100}


def quick(learner, config=None, seeds=(0,), **options):
    return learner(Model.draw(config or BUSY), seeds, learner.settings_type(**QUICK | options))


class SharedDraws(SeededDraws):
    """Keeps what it hands out by purpose and slot, so that the sequential script can use the same numbers."""

    slot = 0

    def __init__(self, *arguments):
        self.kept = {}
        super().__init__(*arguments)

    def _keep(self, purpose, drawn):
        self.kept[purpose, self.slot] = drawn
        return drawn

    def uniform(self, purpose, *shape):
        return self._keep(purpose, super().uniform(purpose, *shape))

    def normal(self, purpose, *shape):
        return self._keep(purpose, super().normal(purpose, *shape))


class ScriptDraws:
    """The same numbers, asked for one task at a time."""

    def __init__(self, kept):
        self.kept = kept

    def denoising(self, purpose, slot, b, n, steps, servers, rows=1):
        noise = self.kept[f"{purpose} noise", slot][b].transpose(1, 2)  # (steps - 1, rows, servers)
        noise = noise if n is None else noise[:, n : n + 1]
        return torch.cat([torch.zeros(1, rows, servers, dtype=noise.dtype), noise])

    def action(self, slot, b, n, probabilities):
        edges = probabilities[0].cumsum(0)
        return int((self.kept["action", slot][b, n] * edges[-1] >= edges).sum())

    def batch(self, slot, b, size, wanted):
        return self.kept["replay", slot][b, :size].argsort(descending=True)[:wanted].tolist()


def script_agents(learner):
    """The published structure with the same initial weights, float64."""
    agents = []
    for b in range(learner.servers):
        agent = lad_script.Agent(b, learner.servers, dtype=torch.float64, warmup=20, batch=16)
        x, time, state, bias, w2, b2, w3, b3 = (part[b] for part in learner.actor.parts)
        layers = agent.actor.model.layers
        with torch.no_grad():
            layers[0].weight.copy_(torch.cat([x, time, state], dim=1))
            for layer, weight in ((layers[2], w2), (layers[4], w3)):
                layer.weight.copy_(weight)
            for layer, offset in ((layers[0], bias), (layers[2], b2), (layers[4], b3)):
                layer.bias.copy_(offset[:, 0])
            for copy, (critic, target) in enumerate(zip(agent.critics, agent.targets, strict=True)):
                parts = [part[copy * learner.groups + b] for part in learner.critics.parts]
                for network in (critic, target):
                    for i in range(3):
                        network[2 * i].weight.copy_(parts[2 * i])
                        network[2 * i].bias.copy_(parts[2 * i + 1][:, 0])
        agents.append(agent)
    return agents


@pytest.mark.parametrize("aliased", [True, False])
def test_lad_equals_the_script_one_task_at_a_time(aliased, monkeypatch):
    """Same weights and numbers: 14 slots of two episodes, learning from about the fifth on, to rounding in float64."""
    monkeypatch.setattr(training, "SeededDraws", SharedDraws)
    model = Model.draw(BUSY)
    settings = LadSettings(warmup=20, batch_size=16, aliased_memory=aliased)
    learner = LadTs(model, (0,), settings, torch.float64)
    agents = script_agents(learner)
    by_slot = learner.memory.view(3, 8, 10, 3).permute(1, 0, 2, 3)
    memory = by_slot.clone().numpy()
    arrivals = Arrivals.draw(BUSY, [0, 1])
    ours, theirs = [], []
    for episode, slots in ((0, 7), (1, 7)):
        environment = Environment(model, Arrivals(arrivals.count[[episode]], arrivals.size[[episode]]))
        for slot in range(slots):
            learner.draws.slot = slot
            delays = learner.play_slot(environment)
            ours += delays[environment._present[:, slot]].tolist()
        sizes = [[list(arrivals.size[episode, t, b, :m]) for b, m in enumerate(row)]
                 for t, row in enumerate(arrivals.count[episode])]  # fmt: skip
        system = (model.capacity, model.rate, model.work, model.result)
        theirs += lad_script.play_slots(
            agents, system, sizes, memory, ScriptDraws(learner.draws.kept), slots, copies=not aliased
        )
    assert learner.updates.min() >= 7
    assert ours == pytest.approx(theirs, rel=1e-12)  # equal actions; delays then are the same sums
    # Sums in another order, through some ten Adam steps: Adam divides by small roots, hence more than one rounding.
    np.testing.assert_allclose(by_slot.numpy(), memory, atol=1e-8)
    for b, agent in enumerate(agents):
        assert learner.log_temperature[b].item() == pytest.approx(agent.log_alpha.item(), rel=1e-10)
        np.testing.assert_allclose(
            learner.critics.parts[0][b].detach(), agent.critics[0][0].weight.detach(), rtol=1e-6, atol=1e-9
        )
        np.testing.assert_allclose(
            learner.actor.parts[4][b].detach(), agent.actor.model.layers[2].weight.detach(), rtol=1e-6, atol=1e-9
        )


def test_aliased_memory_is_read_when_sampled():
    """Q2: the stored latent of a transition is the probability just produced, until the next visit changes it."""
    for aliased in (True, False):
        learner = quick(LadTs, aliased_memory=aliased)
        environment = Environment(learner.model, Arrivals.draw(learner.model.config, [0]))
        before = learner.memory.clone()
        learner.play_slot(environment)
        start, following = learner.starts(learner.replay.read(torch.zeros(3, 1, dtype=torch.int64)))
        now = learner.memory if aliased else before
        assert torch.equal(start[:, :, 0], now[:, 0])
        count = environment.arrivals.count[0, 0]
        for b in range(3):  # a station's only task is followed by the first of the next slot
            assert torch.equal(following[b, :, 0], now[b, 1 if count[b] > 1 else 10])


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7, 10])
def test_schedule_constants(steps):
    schedule = Schedule.vp(steps)
    stds = {1: 0, 2: 1.61, 3: 2.98, 5: 5.11, 7: 6.54, 10: 7.90}
    assert np.prod(1 - np.array(schedule.beta)) == pytest.approx(0.00641, abs=5e-6)
    assert (schedule.gain, schedule.noise_std) == pytest.approx((12.49, stds[steps]), abs=5e-3)
    if steps == 5:
        assert np.round(schedule.beta, 4).tolist() == [0.1959, 0.4588, 0.6358, 0.7549, 0.8350]
        pushes = np.cumprod([1.0, *schedule.keep])[:-1] * schedule.push
        assert pushes.round(3).tolist() == [0.494, 0.925, 1.741, 3.906, 10.464]


def test_sampler_amplifies_the_latent_and_injects_noise_as_published():
    draws = SeededDraws([0], 1, torch.float64)
    actor = DiffusionActor(4, 5, 5, draws, output="tanh")
    zero = [torch.zeros_like(part) for part in actor.stack.parts]  # e = tanh(0) = 0
    latent, states = torch.randn(1, 4, 20_000, dtype=torch.float64), torch.zeros(1, 6, 20_000, dtype=torch.float64)
    torch.testing.assert_close(actor.denoise(zero, latent, states, None), latent * Schedule.vp(5).gain)
    noise = draws.normal("test", 4, 4, 20_000)
    # 80,000 draws: the standard error of the deviation is 0.25 %.
    assert actor.denoise(zero, 0 * latent, states, noise).std().item() == pytest.approx(5.11, rel=0.01)


def test_embedding_is_sinusoidal():
    expected = [math.sin(3 * math.exp(-k * math.log(1e4) / 7)) for k in range(8)]
    expected += [math.cos(3 * math.exp(-k * math.log(1e4) / 7)) for k in range(8)]
    assert embedding(3, torch.float64).tolist() == pytest.approx(expected, rel=1e-12)


def test_mish_is_that_of_torch():
    x = torch.linspace(-60, 60, 10_001, requires_grad=True)
    ours, theirs = mish(x), torch.nn.functional.mish(x)
    # float32: a few units in the last place of values up to 60 and of slopes near 1
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    slopes = [torch.autograd.grad(y.sum(), x)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_stacked_adam_equals_one_optimiser_a_group(decay):
    """Groups step at different times; each must equal torch's Adam fed only with its own steps."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    flat, adam = start.clone(), StackedAdam(start, 1e-2, decay)
    alone = [torch.nn.Parameter(row.clone()) for row in start]
    optimisers = [torch.optim.Adam([p], lr=1e-2, weight_decay=decay) for p in alone]
    for step in range(30):
        gradient = torch.randn(3, 5, generator=generator, dtype=torch.float64)
        active = torch.tensor([True, step >= 7, step % 3 == 0])
        untouched = [t.clone() for t in (flat, adam.mean, adam.square, adam.steps)]
        adam.step(flat, gradient, active)
        for before, after in zip(untouched, (flat, adam.mean, adam.square, adam.steps), strict=True):
            assert torch.equal(before[~active], after[~active])
        for g in range(3):
            if active[g]:
                alone[g].grad = gradient[g].clone()
                optimisers[g].step()
    torch.testing.assert_close(flat, torch.stack([p.detach() for p in alone]), rtol=1e-12, atol=1e-14)
    assert adam.steps[:, 0].tolist() == [30, 23, 10]


def test_replay_is_a_queue_for_each_group():
    replay, queues = Replay(3, 7, {"x": 1, "y": 2}, torch.float32), [deque(maxlen=7) for _ in range(3)]
    generator, number = torch.Generator().manual_seed(0), 0.0
    for _ in range(12):
        present = torch.rand(3, 5, generator=generator) < 0.6
        x = number + torch.arange(15.0).view(3, 5)
        number += 15
        replay.append({"x": x, "y": torch.stack([x, -x], dim=2)}, present)
        for g in range(3):
            queues[g].extend(x[g][present[g]].tolist())
        assert replay.filled.tolist() == [len(queue) for queue in queues]
        newest = (replay.written - 1) % 7
        order = (newest[:, None] + 1 - replay.filled[:, None] + torch.arange(int(replay.filled.min()))) % 7
        row = replay.read(order)
        for g, queue in enumerate(queues):
            assert row["x"][g].tolist() == list(queue)[: order.shape[1]]
            assert torch.equal(row["y"][g], torch.stack([row["x"][g], -row["x"][g]]))
            assert replay.newer(order)[g].tolist() == list(range(len(queue) - 1, -1, -1))[: order.shape[1]]


def test_replay_samples_uniformly_without_replacement():
    replay, generator = Replay(2, 10, {"x": 1}, torch.float32), torch.Generator().manual_seed(0)
    replay.append({"x": torch.arange(8.0).repeat(2, 1)}, torch.arange(8) < torch.tensor([[8], [6]]))
    counts = torch.zeros(2, 10)
    for _ in range(1000):
        place = replay.sample(4, torch.rand(2, 10, generator=generator))
        assert all(len(set(row)) == 4 for row in place.tolist())
        counts += torch.nn.functional.one_hot(place, 10).sum(1)
    assert not counts[0, 8:].any()
    assert not counts[1, 6:].any()
    # Binomial over 1000 draws: standard deviation about 15; five of them.
    assert (counts[0, :8] - 500).abs().max() < 80
    assert (counts[1, :6] - 2000 / 3).abs().max() < 80


def test_replay_refuses_what_does_not_fit():
    replay = Replay(1, 3, {"x": 1}, torch.float32)
    with pytest.raises(ValueError, match=r"must have fields \['x'\], got \['y'\]"):
        replay.append({"y": torch.zeros(1, 2)}, torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="at most 3 rows a group, got 4"):
        replay.append({"x": torch.zeros(1, 4)}, torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"must have widths \{'x': 1\}, got \[2\]"):
        replay.append({"x": torch.zeros(1, 2, 2)}, torch.ones(1, 2, dtype=torch.bool))


def test_choose_inverts_the_distribution():
    probabilities = torch.tensor([[[0.2], [0.0], [0.5], [0.3]]]).expand(1, 4, 6)
    uniforms = torch.tensor([[0.0, 0.19, 0.21, 0.69, 0.71, 0.999999]])
    assert choose(probabilities, uniforms).tolist() == [[0, 0, 2, 2, 3, 3]]


@pytest.mark.parametrize("zeros", [True, False])
def test_next_states(zeros):
    """Q1: over the slot boundary the published next state shows empty queues; corrected, the real ones."""
    learner = quick(DqnTs, zero_boundary_queue=zeros)
    environment = Environment(learner.model, Arrivals.draw(learner.model.config, [3]))
    for slot in range(3):
        learner.replay.written.zero_()
        learner.play_slot(environment)
        size, count = environment.arrivals.size[0], environment.arrivals.count[0]
        for b in range(3):
            row = learner.replay.rows[b, : count[slot, b]].numpy()
            state, following = row[:, :5], row[:, 5:10]
            np.testing.assert_array_equal(following[:-1], state[1:])
            backlog = np.zeros(3) if zeros else environment.backlog[0]
            expected = np.array([size[slot + 1, b, 0], learner.model.work[0], *backlog], dtype=np.float32)
            np.testing.assert_array_equal(following[-1], expected)
    assert environment.backlog.any()


def test_dqn_copies_its_target_before_update_0_and_every_200_of_each_agent():
    learner = quick(DqnTs, copy_every=5)
    environment_of = training.common_arrivals(learner.model.config, learner.seeds)
    previous = learner.network.flat.clone()
    for episode in range(4):
        environment = Environment(learner.model, environment_of(episode))
        for _ in range(environment.slots):
            updates, target = learner.updates.clone(), learner.target.flat.clone()
            learner.play_slot(environment)
            for g in range(3):
                stepped = learner.updates[g] > updates[g]
                copied = stepped and updates[g] % 5 == 0
                assert torch.equal(learner.target.flat[g], (previous if copied else target)[g])
            previous = learner.network.flat.clone()
    assert len(set(learner.updates.tolist())) > 1  # agents did start at different slots


def test_dqn_step_is_that_of_plain_torch():
    learner = quick(DqnTs)
    environment = Environment(learner.model, Arrivals.draw(learner.model.config, range(1)))
    for _ in range(4):
        learner.play_slot(environment)
    learner.updates += 1  # no target copy now
    place = torch.arange(16).repeat(3, 1)
    row, weights = learner.replay.rows[1, :16], [part[1].detach().clone() for part in learner.network.parts]
    layers = [torch.nn.Parameter(weight) for weight in weights]
    optimiser = torch.optim.Adam(layers, lr=1e-4)

    def network(x, parts):
        x = torch.relu(x @ parts[0].T + parts[1][:, 0])
        x = torch.relu(x @ parts[2].T + parts[3][:, 0])
        return x @ parts[4].T + parts[5][:, 0]

    with torch.no_grad():
        wanted = row[:, 10] + 0.95 * network(row[:, 5:10], [part[1] for part in learner.target.parts]).max(1).values
    taken = network(row[:, :5], layers).gather(1, row[:, 11:12].long())[:, 0]
    learner.adam = StackedAdam(learner.network.flat, 1e-4)
    torch.nn.functional.mse_loss(taken, wanted).backward()
    optimiser.step()
    learner.learn_from(place, torch.tensor([False, True, False]))
    for ours, theirs in zip(learner.network.parts, layers, strict=True):
        torch.testing.assert_close(ours[1], theirs, rtol=1e-4, atol=1e-7)  # float32, one step of size 1e-4


def test_three_step_returns_stop_at_the_newest_entry():
    learner = quick(D2sacB)
    rewards = torch.tensor([1.0, 10.0, 100.0, 1000.0]).repeat(3, 1)
    zeros = torch.zeros(3, 4, 5)
    everything = {"state": zeros, "next_state": zeros, "reward": rewards, "action": torch.zeros(3, 4)}
    learner.replay.append(everything, torch.ones(3, 4, dtype=torch.bool))
    with torch.no_grad():
        for part in learner.targets.parts:
            part.zero_()
        learner.targets.parts[-1].fill_(8.0)  # every value is 8
    found = learner._n_step_target(torch.arange(4).repeat(3, 1))
    g = 0.95
    expected = [1 + g * 10 + g**2 * 100 + g**3 * 8, 10 + g * 100 + g**2 * 1000 + g**3 * 8]
    expected += [100 + g * 1000 + g**2 * 8, 1000 + g * 8]
    assert found[0].tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("learner", LEARNERS)
def test_training_is_deterministic_and_seeds_do_not_touch_each_other(learner):
    def curve(seeds):
        return training.train(quick(learner, seeds=seeds), 3, progress=False).mean_s

    both, again, alone = curve((5, 2)), curve((5, 2)), curve((2,))
    assert np.array_equal(both, again)
    # The same sums in batches of another size: float32 rounding, far from any action boundary here.
    np.testing.assert_allclose(both[:, 1:], alone, rtol=1e-6)
    assert not np.allclose(both[:, 0], both[:, 1])


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_resumed_run_gives_the_same_bytes(learner, tmp_path):
    path, other = tmp_path / "run" / "a.safetensors", tmp_path / "b.safetensors"
    whole = training.train(quick(learner), 4, checkpoint=other, progress=False)
    training.train(quick(learner), 2, checkpoint=path, progress=False)
    resumed = training.train(quick(learner), 4, checkpoint=path, progress=False)
    assert np.array_equal(whole.mean_s, resumed.mean_s)
    ours, theirs = quick(learner), quick(learner)
    training.load(ours, path)
    training.load(theirs, other)
    for name, tensor in ours.all_tensors().items():
        assert torch.equal(tensor, theirs.all_tensors()[name]), name
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]


def test_checkpoints_of_another_architecture_are_refused(tmp_path):
    path = tmp_path / "lad.safetensors"
    training.train(quick(LadTs), 1, checkpoint=path, progress=False)
    cases = [
        (quick(SacTs), "another architecture: its algorithm is 'LAD-TS', this learner's 'SAC-TS'"),
        (quick(LadTs, MecConfig(4, 10, 8)), "its servers is 3, this learner's 4"),
        (quick(LadTs, seeds=(1,)), r"its seeds is \[0\], this learner's \[1\]"),
        (quick(LadTs, hidden=30), "its settings have hidden = 20, this learner 30"),
    ]
    for learner, message in cases:
        before = learner.actor.flat.clone()
        with pytest.raises(ValueError, match=message):
            training.load(learner, path)
        assert torch.equal(before, learner.actor.flat)
    damaged = [
        (b"nonsense", "cannot be read as a checkpoint"),
        (safetensors.torch.save({"actor": torch.zeros(1)}), "is no checkpoint: it does not say of which learner"),
    ]
    told = {"architecture": quick(LadTs).architecture, "seconds": "1"}
    damaged.append((safetensors.torch.save({"actor": torch.zeros(1)}, told), "is a damaged checkpoint: it lacks actor"))
    for content, message in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            training.load(quick(LadTs), path)


def test_evaluation_changes_nothing_but_the_memory():
    learner = quick(LadTs)
    training.train(learner, 2, progress=False)
    before = {name: t.clone() for name, t in learner.all_tensors().items() if name != "memory"}
    policy = as_policy(learner, greedy=True)
    for episode in range(2):
        arrivals = Arrivals.draw(learner.model.config, [episode], seed=9)
        assert simulate(learner.model, policy, arrivals).mean_s.shape == (1,)
    assert not learner.greedy
    for name, tensor in before.items():
        assert torch.equal(tensor, learner.all_tensors()[name]), name


@pytest.mark.parametrize(
    ("learner", "slots", "episodes", "rate"),
    [
        (SacTs, 16, 8, 1e-2),
        (D2sacB, 16, 8, 1e-2),
        (DqnTs, 16, 8, 1e-2),
        # A softmax denoiser can favour a server only by suppressing the others, and learns slower.
        pytest.param(LadTs, 30, 12, 3e-3, marks=pytest.mark.slow),
        pytest.param(D2sacA, 30, 12, 3e-3, marks=pytest.mark.slow),
    ],
)
def test_every_learner_finds_the_fast_server(learner, slots, episodes, rate):
    """Two servers, one ten times as fast as the other and never busy: solved by hand, everything goes there."""
    config = MecConfig(2, 10, slots)
    model = Model(config, np.array([50.0, 5.0]), np.full(2, 1e6), np.full(10, 2.0), np.full(10, 0.6))
    rates = {"actor_rate": rate} if issubclass(learner, SacTs) else {"rate": rate}
    agents = learner(model, (0,), learner.settings_type(**QUICK | rates))
    curve = training.train(agents, episodes, progress=False).mean_s[:, 0]
    assert curve[-3:].mean() < 0.6 * curve[0]


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        (SacSettings, {"hidden": 0}, "hidden must be a whole number at least 1, got 0"),
        (SacSettings, {"hidden": 20.5}, "hidden must be a whole number at least 1, got 20.5"),
        (SacSettings, {"replay_size": "1000"}, "replay_size must be a whole number at least 1, got '1000'"),
        (SacSettings, {"batch_size": True}, "batch_size must be a whole number at least 1, got True"),
        (SacSettings, {"gamma": 1.0}, r"gamma must be a number in \[0, 1\), got 1.0"),
        (SacSettings, {"gamma": math.nan}, r"gamma must be a number in \[0, 1\), got nan"),
        (SacSettings, {"warmup": 10}, r"warmup must lie in 63..999 .* got 10"),
        (SacSettings, {"warmup": 100.5}, "warmup must be a whole number at least 0, got 100.5"),
        (SacSettings, {"actor_rate": -1e-4}, r"actor_rate must be a number in \(0, inf\), got -0.0001"),
        (SacSettings, {"critic_rate": math.inf}, r"critic_rate must be a number in \(0, inf\), got inf"),
        (SacSettings, {"temperature": 0.0}, r"temperature must be a number in \(0, inf\), got 0.0"),
        (SacSettings, {"temperature_rate": -1.0}, r"temperature_rate must be a number in \[0, inf\), got -1.0"),
        (SacSettings, {"target_entropy": math.nan}, r"target_entropy must be a number in \(-inf, inf\), got nan"),
        (SacSettings, {"target_tracking": 1.5}, r"target_tracking must be a number in \[0, 1\], got 1.5"),
        (SacSettings, {"zero_boundary_queue": 0}, "zero_boundary_queue must be True or False, got 0"),
        (LadSettings, {"denoising_steps": 2.0}, "denoising_steps must be a whole number at least 1, got 2.0"),
        (LadSettings, {"argmax": "no"}, "argmax must be True or False, got 'no'"),
        (LadSettings, {"output": "relu"}, "output must be softmax or tanh, got 'relu'"),
        (D2sacBSettings, {"n_step": 0}, "n_step must be a whole number at least 1, got 0"),
        (D2sacBSettings, {"weight_decay": -1.0}, r"weight_decay must be a number in \[0, inf\), got -1.0"),
        (DqnSettings, {"rate": math.nan}, r"rate must be a number in \(0, inf\), got nan"),
        (DqnSettings, {"epsilon": 1.5}, r"epsilon must be a number in \[0, 1\], got 1.5"),
        (DqnSettings, {"copy_every": 0.5}, "copy_every must be a whole number at least 1, got 0.5"),
    ],
)
def test_settings_refuse(settings, values, message):
    with pytest.raises(ValueError, match=message):
        settings(**values)


def test_learner_refuses_bad_seeds_and_arrivals():
    for seeds in ((1, 1), (), 3):
        with pytest.raises(ValueError, match="seeds must be a list of different whole numbers, at least one, got"):
            quick(SacTs, seeds=seeds)
    with pytest.raises(ValueError, match="seeds must be a whole number at least 0, got 0.5"):
        quick(SacTs, seeds=(0.5,))
    with pytest.raises(TypeError, match="model must be a Model, .* got MecConfig"):
        SacTs(BUSY)
    with pytest.raises(TypeError, match="settings must be SacSettings, got DqnSettings"):
        SacTs(Model.draw(BUSY), (0,), DqnSettings())
    assert len(repr(quick(SacTs))) < 150
    learner = quick(SacTs, seeds=(1, 2))
    with pytest.raises(ValueError, match=r"one episode a seed \(2\), got 1"):
        training.play_episode(learner, 0, Arrivals.draw(learner.model.config, [0]))


@pytest.mark.parametrize(
    "changes", [{"memory_key": "task"}, {"memory_holds": "logits"}, {"argmax": True}, {"output": "tanh"}]
)
def test_diagram_switches_train(changes):
    learner = quick(LadTs, **changes)
    assert np.isfinite(training.train(learner, 2, progress=False).mean_s).all()
    rows = learner.memory.sum(2)
    if changes.get("memory_holds") == "logits":
        assert (rows[:, 0] - 1).abs().max() > 1e-3
    else:
        torch.testing.assert_close(rows[:, 0], torch.ones(3))
    assert learner.memory.shape == (3, 10 if "memory_key" in changes else 80, 3)
