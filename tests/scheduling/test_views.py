from __future__ import annotations

import subprocess
import sys
import tomllib

import numpy as np
import pytest

from hybridlib.paths import ROOT
from hybridlib.scheduling.system.arrivals import Arrivals
from hybridlib.scheduling.system.environment import simulate
from hybridlib.scheduling.system.model import MecConfig, Model

gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("pettingzoo")

SMALL = MecConfig(servers=3, max_tasks=4, slots=6, capacity_gcycles_s=(2, 5))


def test_parallel_environment_passes_pettingzoos_own_check(capsys):
    from pettingzoo.test import parallel_api_test, parallel_seed_test

    from hybridlib.scheduling.system.views import MecParallelEnv

    parallel_api_test(MecParallelEnv(Model.draw(SMALL)), num_cycles=50)
    parallel_seed_test(lambda: MecParallelEnv(Model.draw(SMALL)), num_cycles=20)


@pytest.mark.parametrize("last_wait", [False, True])
def test_task_environment_passes_gymnasiums_own_check(last_wait):
    from gymnasium.utils.env_checker import check_env

    from hybridlib.scheduling.system.views import MecTaskEnv

    check_env(MecTaskEnv(Model.draw(SMALL), last_wait), skip_render_check=True)


def test_both_views_equal_the_batched_core():
    """One random episode: per-task delays of the Gymnasium view, per-station sums of the PettingZoo view."""
    from hybridlib.scheduling.system.views import MecParallelEnv, MecTaskEnv

    model, arrivals = Model.draw(SMALL), Arrivals.draw(SMALL, [0], seed=7)
    actions = np.random.default_rng(0).integers(0, 3, (5, 1, 3, 4))
    result = simulate(model, lambda view, _: actions[view.slot], arrivals)

    single = MecTaskEnv(model, last_wait=True)
    observation, _ = single.reset(seed=7)
    delays, waits, ended = [], [0.0], False
    for slot, b, n in np.argwhere(result.present[0]):
        assert not ended
        assert observation[0] == np.float32(arrivals.size[0, slot, b, n])
        assert observation[-1] == pytest.approx(waits[-1], rel=1e-6, abs=1e-12)  # the wait by subtraction
        j = actions[slot, 0, b, n]
        observation, reward, _, ended, _ = single.step(j)
        delays.append(-reward)
        upload = arrivals.size[0, slot, b, n] / model.rate[j] if j != b else 0.0
        waits.append(delays[-1] - upload - model.work[n] / model.capacity[j] - model.result[n] / model.rate[j])
    assert ended
    assert delays == result.delay_s[result.present].tolist()

    parallel = MecParallelEnv(model)
    parallel.reset(seed=7)
    for slot in range(5):
        step = parallel.step({f"station_{b}": actions[slot, 0, b] for b in range(3)})
        assert list(step[1].values()) == (-result.delay_s[0, slot].sum(axis=1)).tolist()
    assert all(step[3].values())
    assert parallel.agents == []


def test_bad_actions_are_refused():
    from hybridlib.scheduling.system.views import MecParallelEnv, MecTaskEnv

    single = MecTaskEnv(Model.draw(SMALL))
    single.reset(seed=0)
    with pytest.raises(ValueError, match=r"action must be a whole number in 0..2, got 3"):
        single.step(3)
    with pytest.raises(ValueError, match=r"action must be a whole number in 0..2, got 0.9"):
        single.step(0.9)
    parallel = MecParallelEnv(Model.draw(SMALL))
    parallel.reset(seed=0)
    with pytest.raises(ValueError, match="actions must hold every agent, station_0 is missing"):
        parallel.step({})
    for fresh in (MecTaskEnv(Model.draw(SMALL)), MecParallelEnv(Model.draw(SMALL))):
        with pytest.raises(ValueError, match="no episode is running, call reset"):
            fresh.step({})


@pytest.mark.parametrize("name", ["MecTaskEnv", "MecParallelEnv"])
def test_a_wrong_type_is_one_sentence_and_the_representation_short(name):
    from hybridlib.scheduling.system import views

    with pytest.raises(TypeError, match=r"model must be a Model, as Model.draw\(config\) returns it, got MecConfig"):
        getattr(views, name)(SMALL)
    made = getattr(views, name)(Model.draw(SMALL))
    assert repr(made) == f"{name}({made.model!r})"


def run_fresh(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_gymnasium_makes_it_by_name():
    """As the entry point is called, inside the namespace that gymnasium gives it; and after an import of the views."""
    group = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["gymnasium.envs"]
    module, function = group["hybridlib"].split(":")
    code = f"""
import sys
import {module} as plugin
print("gymnasium" in sys.modules, "numpy" in sys.modules)
import gymnasium
from gymnasium.envs import registration
registration.registry.pop("hybridlib/MecTask-v0", None)  # an installed copy has done it already
with registration.namespace("hybridlib"):
    plugin.{function}()
    plugin.{function}()
print("hybridlib.scheduling.system.views" in sys.modules)
made = gymnasium.make("hybridlib/MecTask-v0", last_wait=True)
print(type(made.unwrapped).__name__, made.observation_space.shape[0])
"""
    assert run_fresh(code) == ["False", "False", "False", "MecTaskEnv", "23"]
    after_import = (
        "import gymnasium, hybridlib.scheduling.system.views; print(gymnasium.make('hybridlib/MecTask-v0').spec.id)"
    )
    assert run_fresh(after_import) == ["hybridlib/MecTask-v0"]


@pytest.mark.slow
def test_an_agent_of_stable_baselines3_learns_on_it():
    """Two servers, one ten times as fast and never busy: DQN must leave the slow one."""
    stable_baselines3 = pytest.importorskip("stable_baselines3")
    from hybridlib.scheduling.system.views import MecTaskEnv

    config = MecConfig(2, 10, 10)
    model = Model(config, np.array([50.0, 5.0]), np.full(2, 1e6), np.full(10, 2.0), np.full(10, 0.6))
    agent = stable_baselines3.DQN(
        "MlpPolicy", MecTaskEnv(model), learning_starts=200, learning_rate=1e-3, gamma=0.5, seed=0, device="cpu"
    )
    agent.learn(1500)
    environment, chosen = MecTaskEnv(model), []
    observation, _ = environment.reset(seed=1)
    ended = False
    while not ended:
        action, _ = agent.predict(observation, deterministic=True)
        chosen.append(int(action))
        observation, _, _, ended, _ = environment.step(action)
    assert np.mean(np.array(chosen) == 0) > 0.9
