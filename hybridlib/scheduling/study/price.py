"""What a policy's gain costs: who waits longer for it, beside Opt-TS on the same tasks.

A low mean can be bought by letting some tasks wait. `summary(measure({"ours": shipped.load("fluid split (ours)")}))`
tells it in a few seconds for any policy, a shipped one or another.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from ...runs import Interval, t_interval
from ..rules.heuristics import greedy_oracle
from ..system.arrivals import Arrivals
from ..system.environment import Policy, Result, simulate
from ..system.model import MecConfig, Model
from .pieces import REPORT_SEED

ORACLE = "Opt-TS (greedy oracle)"
SLOWER = "slower_share"
MEASURES = {  # column -> what it is
    "mean_s": "mean",
    "work_weighted_s": "mean weighted by work",
    "p50_s": "median",
    "p95_s": "95th percentile",
    "p99_s": "99th percentile",
    "fifth_1_s": "smallest fifth of task types",
    "fifth_2_s": "second fifth of task types",
    "fifth_3_s": "third fifth of task types",
    "fifth_4_s": "fourth fifth of task types",
    "fifth_5_s": "largest fifth of task types",
    SLOWER: "share of tasks slower than under Opt-TS",
}


def measure(
    policies: Mapping[str, Policy], config: MecConfig | None = None, episodes: int = 10, seed: int = REPORT_SEED
) -> pd.DataFrame:
    """Opt-TS and the given policies on the same episodes: a row per policy and episode, with the columns `MEASURES`.

    The mean weighted by work counts each task by its Gcycles. A fifth is a fifth of the task types (indices n) in the
    order of their work; nan if none of them came. Links are counted. Episodes are played one by one, so that a row
    does not depend on how many there are.

    Args:
        config: of the system; the published one by default.
        episodes: how many; their arrivals are drawn from `seed`, the reporting arrivals by default.

    Raises:
        ValueError: if there is no policy or no episode.
    """
    if not policies or episodes < 1:
        raise ValueError(f"there must be a policy and at least 1 episode, got {list(policies)} and {episodes}")
    config = MecConfig() if config is None else config
    model, rows = Model.draw(config), []
    for episode in range(episodes):
        arrivals = Arrivals.draw(config, [episode], seed)
        oracle = simulate(model, greedy_oracle, arrivals)
        for name, policy in {ORACLE: greedy_oracle, **policies}.items():
            result = oracle if name == ORACLE else simulate(model, policy, arrivals, seed=episode)
            at = {"policy": name, "slots": config.slots - 1, "episode": episode}
            rows.append(at | _of_episode(model, result, oracle))
    return pd.DataFrame(rows)


def summary(rows: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Mean over episodes of each measure by policy and slots, and its ratio to Opt-TS on the same episodes.

    Intervals (`low`, `high`) are Student's t over episodes: the arrivals are redrawn, a fitted scheduler is not.
    Ratios are paired, the mean over episodes of one episode's ratio; of `slower_share` there is none. Episodes in
    which no task of a fifth came do not count for it.

    Returns:
        One row per slots, policy and measure: what, opt_ts, estimate, low, high, ratio, ratio_low, ratio_high, redrawn.

    Raises:
        ValueError: if there are fewer than two episodes.
    """
    table = []
    for (slots, policy), part in rows.groupby(["slots", "policy"], sort=False):
        oracle = rows[(rows["slots"] == slots) & (rows["policy"] == ORACLE)].set_index("episode")
        own = part.set_index("episode")
        for name, what in MEASURES.items():
            ratio = own[name] / oracle[name] if name != SLOWER else own[name] * np.nan
            values = dict(zip(("estimate", "low", "high"), _interval(own[name], level), strict=True))
            values |= dict(zip(("ratio", "ratio_low", "ratio_high"), _interval(ratio, level), strict=True))
            at = {"slots": slots, "policy": policy, "measure": name, "what": what, "opt_ts": oracle[name].mean()}
            table.append(at | values | {"redrawn": f"{len(own)} episodes"})
    return pd.DataFrame(table)


def _of_episode(model: Model, result: Result, oracle: Result) -> dict[str, float]:
    delay, theirs = (r.delay_s[result.present] for r in (result, oracle))
    work = np.broadcast_to(model.work, result.present.shape)[result.present]
    found = {"mean_s": delay.mean(), "work_weighted_s": np.average(delay, weights=work)}
    found |= {f"p{q}_s": np.percentile(delay, q) for q in (50, 95, 99)}
    for number, types in enumerate(np.array_split(np.argsort(model.work, kind="stable"), 5), start=1):
        these = result.present[..., types]
        found[f"fifth_{number}_s"] = result.delay_s[..., types][these].mean() if these.any() else np.nan
    found[SLOWER] = (delay > theirs).mean()
    return {name: round(float(value), 4) for name, value in found.items()}


def _interval(values: pd.Series, level: float) -> Interval:
    if len(values) < 2:
        raise ValueError(f"an interval over episodes needs at least 2 of them, got {len(values)}")
    known = values[np.isfinite(values)]
    return t_interval(known, level) if len(known) > 1 else Interval(*[float("nan")] * 3)
