"""Study 08: trainings, the leaderboard over load, the published sweeps and the quirks, each a tidy table on disk.

Every part is a list of small pieces of work. A finished piece is remembered under a digest of everything that decides
its numbers, and a training goes on from its checkpoint, so a killed run goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from ...files import digest
from ...progress import bar
from ...study.pieces import remembered, written
from ..learners.d2sac import D2sacA, D2sacB
from ..learners.dqn import DqnTs
from ..learners.lad import LadTs
from ..learners.sac import SacTs
from ..learners.training import Curve, Learner, common_arrivals, published_arrivals, train
from ..rules.fluid import VERSION, FluidScheduler
from ..rules.heuristics import YARDSTICKS, scaled_size_split
from ..system.arrivals import Arrivals
from ..system.bounds import lower_bound
from ..system.environment import Policy, Result, View, simulate
from ..system.model import Ints, MecConfig, Model
from .variants import SWITCHES, sweep_points

if TYPE_CHECKING:
    from ...study.parameters import SchedulingParameters

LEARNERS: dict[str, type[Learner]] = {c.name: c for c in (LadTs, D2sacB, D2sacA, SacTs, DqnTs)}
OURS, BOUND = "fluid split (ours)", "lower bound"
LINES = ("capacity-weighted random", "size split", "Opt-TS (greedy oracle)")  # beside every learned curve
SLOW = {"slot assignment": 2}  # rules that take many seconds an episode are measured on the first few alone
REPORT_SEED = 1000  # of arrivals that no learner is trained, no policy fitted and no default chosen on


@dataclass(frozen=True)
class Training:
    """One training and all that decides its numbers; `settings` are differences from the published ones."""

    method: str
    config: MecConfig
    episodes: int
    seeds: tuple[int, ...]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    published_stream: bool = False  # Q5: all seeds on the arrivals of the published script

    def learner(self) -> Learner:
        """Untrained."""
        cls = LEARNERS[self.method]
        return cls(Model.draw(self.config), self.seeds, cls.settings_type(**self.settings))

    def run(self, checkpoint: Path, progress: bool = True) -> tuple[Learner, Curve]:
        """Train to the end, from the checkpoint if there is one.

        Raises:
            ValueError: if the checkpoint is of another architecture.
        """
        learner = self.learner()
        arrivals_of = common_arrivals(self.config, self.seeds)
        if self.published_stream:
            arrivals_of = published_arrivals(self.config, self.seeds, after_latents=True)
        return learner, train(learner, self.episodes, arrivals_of, checkpoint, progress)

    def curve_table(self, curve: Curve) -> pd.DataFrame:
        """One row per seed and episode, counted from 1: method, seed, episode, delay_s."""
        episode, seed = np.indices(curve.mean_s.shape)
        columns = {"seed": np.array(self.seeds)[seed.ravel()], "episode": episode.ravel() + 1}
        return pd.DataFrame({"method": self.method, **columns, "delay_s": curve.mean_s.ravel().round(4)})


def as_policy(learner: Learner, greedy: bool = False) -> Policy:
    """A learner as it stands, without learning, for a batch of one episode a seed; with `greedy`, the likeliest server.

    LAD-TS goes on writing its memory, which belongs to the policy.
    """
    played = 0

    def policy(view: View, generator: np.random.Generator) -> Ints:
        nonlocal played
        if view.slot == 0:
            played += 1
            learner.draws.restart(2_000_000 + played)  # no training gets that far
        learner.greedy = greedy
        try:
            present = torch.from_numpy(view.present.reshape(learner.groups, -1))
            actions, _ = learner.act_on(view.slot, learner.states(view), present)
        finally:
            learner.greedy = False
        return actions.numpy().reshape(view.size.shape)

    return policy


def yardsticks(model: Model) -> dict[str, Policy]:
    """Every rule without learning, by name; the size split cut at the published shares of work and capacity."""
    return {name: y.policy for name, y in YARDSTICKS.items()} | {"size split": scaled_size_split(model)}


def fitted(model: Model, path: Path, iterations: int) -> FluidScheduler:
    """Our scheduler for this system, read from `path` if it was fitted before."""
    scheduler = FluidScheduler(model)
    if path.exists():
        scheduler.load(path)
    else:
        scheduler.fit(iterations)
        scheduler.save(path)
    return scheduler


def rows_of(name: str, result: Result, seeds: Sequence[int], episodes: Sequence[int]) -> list[dict[str, Any]]:
    """One row per episode of a result: policy, seed, episode, mean and percentiles of the delay in seconds."""
    rows = []
    for r, (seed, episode) in enumerate(zip(seeds, episodes, strict=True)):
        p50, p95, p99 = np.percentile(result.delay_s[r][result.present[r]], (50, 95, 99)).round(4)
        mean = round(float(result.mean_s[r]), 4)
        rows.append({"policy": name, "seed": seed, "episode": episode, "mean_s": mean, "p50_s": p50, "p95_s": p95})
        rows[-1]["p99_s"] = p99
    return rows


def measure(name: str, policy: Policy, model: Model, episodes: int) -> list[dict[str, Any]]:
    """Rows of a policy on the reporting arrivals, all episodes in one batch."""
    result = simulate(model, policy, Arrivals.draw(model.config, range(episodes), REPORT_SEED))
    return rows_of(name, result, [0] * episodes, range(episodes))


def measure_learner(name: str, learner: Learner, episodes: int, greedy: bool = False) -> list[dict[str, Any]]:
    """Rows of all seeds of a learner on the same arrivals, one episode after the other."""
    policy, rows = as_policy(learner, greedy), []
    for episode in range(episodes):
        arrivals = Arrivals.draw(learner.model.config, [episode], REPORT_SEED)
        result = simulate(learner.model, policy, Arrivals.join([arrivals] * len(learner.seeds)))
        rows += rows_of(name, result, learner.seeds, [episode] * len(learner.seeds))
    return rows


class Study:
    """The parts of study 08 under one set of parameters; `folder` holds tables, checkpoints and finished pieces."""

    def __init__(self, parameters: SchedulingParameters, folder: Path, progress: bool = True) -> None:
        self.parameters, self.folder = parameters, folder
        self.progress = progress
        self.config = MecConfig(parameters.servers, parameters.max_tasks, parameters.slots)

    def training(self, method: str) -> Training:
        """One of the long trainings."""
        return Training(method, self.config, self.parameters.episodes, tuple(self.parameters.seeds))

    def trained(self, method: str) -> tuple[Learner, Curve]:
        """A long training, finished."""
        return self.training(method).run(self.folder / "training" / f"{method}.safetensors", self.progress)

    def ours(self, config: MecConfig, iterations: int | None = None) -> FluidScheduler:
        """Our scheduler fitted to a system."""
        iterations = self.parameters.fluid_iterations if iterations is None else iterations
        key = digest(VERSION, dataclasses.asdict(config), iterations)
        return fitted(Model.draw(config), self.folder / "fluid" / f"{key}.safetensors", iterations)

    def curves(self) -> pd.DataFrame:
        """Delay of every episode and seed while training, and of `LINES`, ours and the bound on the same arrivals."""
        parts = [self._piece(self.training(m), partial(self._curve, m)) for m in self.parameters.methods]
        parts.append(self._piece(["lines", VERSION, dataclasses.asdict(self.training("LAD-TS"))], self._lines))
        return written(pd.concat(parts), self.folder, "curves", self.parameters)

    def leaderboard(self) -> pd.DataFrame:
        """Every policy at every load on the same arrivals: one row per load, policy, seed and episode.

        The published load is that of the long trainings; at the others learners are trained for `load_episodes`.
        """
        p, parts = self.parameters, []
        published = Model.draw(self.config).load
        for load in bar([None, *p.loads], desc="loads", show=self.progress):
            config = self.config if load is None else self.config.at_load(load)
            episodes, seeds = (p.episodes, p.seeds) if load is None else (p.load_episodes, p.load_seeds)
            rules = self._rules(config, tuple(YARDSTICKS), p.fluid_iterations)
            methods = p.methods if load is None else p.load_methods
            learned = [self._learned(Training(m, config, episodes, tuple(seeds)), load is None) for m in methods]
            parts.append(pd.concat([rules, *learned]).assign(load=round(load or published, 4)))
        return written(pd.concat(parts), self.folder, "leaderboard", self.parameters)

    def sweeps(self) -> pd.DataFrame:
        """LAD-TS, `LINES`, ours and the bound along the published axes: a row per point, policy, seed and episode."""
        p, parts = self.parameters, []
        for axis, value, config, settings in bar(sweep_points(self.config, p), desc="sweeps", show=self.progress):
            training = Training("LAD-TS", config, p.sweep_episodes, tuple(p.sweep_seeds), settings)
            both = [self._rules(config, LINES, p.sweep_fluid_iterations), self._learned(training)]
            parts.append(pd.concat(both).assign(axis=axis, value=value, load=round(Model.draw(config).load, 4)))
        return written(pd.concat(parts), self.folder, "sweeps", self.parameters)

    def quirks(self) -> pd.DataFrame:
        """Short trainings, published and with one switch turned: one row per switch, seed and episode."""
        p, parts = self.parameters, []
        for name, switch in bar(SWITCHES.items(), desc="quirks", show=self.progress):
            method, settings, stream, _ = switch
            training = Training(method, self.config, p.quirk_episodes, tuple(p.quirk_seeds), settings, stream)
            if self._contains(training):
                curve = self._piece(self.training(method), partial(self._curve, method))
                curve = curve[(curve["episode"] <= p.quirk_episodes) & curve["seed"].isin(p.quirk_seeds)]
            else:
                curve = self._piece(training, partial(self._short_curve, training))
            parts.append(curve.assign(switch=name))
        return written(pd.concat(parts), self.folder, "quirks", self.parameters)

    # Pieces of work.
    def _contains(self, short: Training) -> bool:
        """Whether a long training begins with this one."""
        p = self.parameters
        same = not short.settings and not short.published_stream and short.method in p.methods
        return same and short.episodes <= p.episodes and set(short.seeds) <= set(p.seeds)

    def _curve(self, method: str) -> pd.DataFrame:
        return self.training(method).curve_table(self.trained(method)[1])

    def _lines(self) -> pd.DataFrame:
        """Rules without learning on every arrival the learners meet, 50 episodes of a seed at a time."""
        p, model, parts = self.parameters, Model.draw(self.config), []
        policies = {name: policy for name, policy in yardsticks(model).items() if name in LINES}
        policies[OURS] = self.ours(self.config).policy()
        for seed in p.seeds:
            for first in range(0, p.episodes, 50):
                episodes = range(first, min(first + 50, p.episodes))
                arrivals = Arrivals.draw(self.config, episodes, seed)
                delays = {name: simulate(model, policy, arrivals).mean_s for name, policy in policies.items()}
                delays[BOUND] = lower_bound(model, arrivals)
                columns = {"seed": seed, "episode": np.array(episodes) + 1}
                parts += [pd.DataFrame({"method": m, **columns, "delay_s": d.round(4)}) for m, d in delays.items()]
        return pd.concat(parts)

    def _rules(self, config: MecConfig, names: Sequence[str], iterations: int) -> pd.DataFrame:
        """Rows of the named yardsticks, ours, and the bound."""
        episodes = self.parameters.evaluation_episodes

        def compute() -> pd.DataFrame:
            model = Model.draw(config)
            policies = {name: policy for name, policy in yardsticks(model).items() if name in names}
            policies[OURS] = self.ours(config, iterations).policy()
            rows = []
            for name, policy in policies.items():
                rows += measure(name, policy, model, min(episodes, SLOW.get(name, episodes)))
            bound = lower_bound(model, Arrivals.draw(config, range(episodes), REPORT_SEED)).round(4)
            rows += [{"policy": BOUND, "seed": 0, "episode": e, "mean_s": bound[e]} for e in range(episodes)]
            return pd.DataFrame(rows).assign(trained=0)

        key = ["rules", VERSION, dataclasses.asdict(config), list(names), episodes, iterations]
        return self._piece(key, compute)

    def _learned(self, training: Training, long: bool = False) -> pd.DataFrame:
        """Rows of a learner after training; of a long one, also those of its likeliest servers (Q9)."""
        episodes = self.parameters.evaluation_episodes

        def compute() -> pd.DataFrame:
            learner = self.trained(training.method)[0] if long else self._short(training)[0]
            rows = measure_learner(training.method, learner, episodes)
            if long:
                rows += measure_learner(f"{training.method}, arg-max", learner, episodes, greedy=True)
            return pd.DataFrame(rows).assign(trained=training.episodes)

        return self._piece(["learned", dataclasses.asdict(training), episodes, long], compute)

    def _short(self, training: Training) -> tuple[Learner, pd.DataFrame]:
        """A training whose checkpoint lives only until it is finished."""
        checkpoint = self.folder / "training" / f"{digest(dataclasses.asdict(training))}.safetensors"
        learner, curve = training.run(checkpoint, self.progress)
        checkpoint.unlink(missing_ok=True)  # another process may have finished the same training
        return learner, training.curve_table(curve)

    def _short_curve(self, training: Training) -> pd.DataFrame:
        return self._short(training)[1]

    def _piece(self, key: Any, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The table of a finished piece, or of the piece now computed."""
        name = digest(dataclasses.asdict(key) if dataclasses.is_dataclass(key) else key)  # type: ignore[arg-type]
        return remembered(self.folder, name, compute)
