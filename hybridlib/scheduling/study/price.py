"""What a policy's gain costs: who waits longer for it, beside Opt-TS on the same tasks.

A low mean can be bought by letting some tasks wait. `prices({"ours": shipped.load("fluid split (ours)")})` is one call
of a few seconds on any policy, a shipped file or another.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from ...runs import Interval, percent_above, t_interval
from ..rules.heuristics import greedy_oracle
from ..system.arrivals import Arrivals
from ..system.environment import Policy, Result, simulate
from ..system.model import Model
from .pieces import REPORT_SEED

SLOWER = "tasks slower than under Opt-TS (%)"
FIFTHS = ("smallest fifth", "second fifth", "third fifth", "fourth fifth", "largest fifth")


def statistics_of(model: Model, result: Result) -> dict[str, float]:
    """Of the delays of one episode, seconds: mean, percentiles, mean weighted by work, mean by size of task.

    A fifth is a fifth of the task types (indices n) in the order of their work; nan if none of them came.
    """
    delay, work = result.delay_s[result.present], np.broadcast_to(model.work, result.present.shape)[result.present]
    found = {"mean": float(delay.mean()), "work-weighted mean": float((work * delay).sum() / work.sum())}
    for q, name in ((50, "median"), (95, "95th percentile"), (99, "99th percentile")):
        found[name] = float(np.percentile(delay, q))
    for name, types in zip(FIFTHS, np.array_split(np.argsort(model.work, kind="stable"), 5), strict=True):
        these = result.present[..., types]
        found[f"{name} of task types"] = float(result.delay_s[..., types][these].mean()) if these.any() else np.nan
    return found


def prices(policies: Mapping[str, Policy], episodes: int = 10, model: Model | None = None) -> pd.DataFrame:
    """Delay statistics of policies beside those of Opt-TS, on the reporting arrivals, played one by one.

    Intervals (95 %, Student t) run over episodes. Changes are paired: both sides meet the same tasks.

    Returns:
        One row per policy and statistic: policy, statistic, value, low, high (seconds, or per cent of tasks), opt_ts
        (the same statistic of Opt-TS), change_pct, change_low, change_high, redrawn.

    Raises:
        ValueError: if there is no policy or episodes is below 1.
    """
    if not policies or episodes < 1:
        raise ValueError(f"there must be a policy and at least 1 episode, got {list(policies)} and {episodes}")
    model = Model.draw() if model is None else model
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("", *policies)}
    for episode in range(episodes):
        arrivals = Arrivals.draw(model.config, [episode], REPORT_SEED)
        reference = simulate(model, greedy_oracle, arrivals)
        found[""].append(statistics_of(model, reference) | {SLOWER: np.nan})
        for name, policy in policies.items():
            result = simulate(model, policy, arrivals, seed=episode)
            slower = 100 * float((result.delay_s > reference.delay_s)[result.present].mean())
            found[name].append(statistics_of(model, result) | {SLOWER: slower})
    rows = []
    for name in policies:
        for statistic in found[name][0]:
            ours, theirs = (np.array([row[statistic] for row in found[key]]) for key in (name, ""))
            both = np.isfinite(ours) & np.isfinite(theirs)
            change = percent_above(ours[both], theirs[both]) if both.any() else Interval(*[np.nan] * 3)
            value = t_interval(ours[np.isfinite(ours)]) if np.isfinite(ours).any() else Interval(*[np.nan] * 3)
            opt_ts = theirs[both].mean() if both.any() else np.nan
            rows.append((name, statistic, *value, opt_ts, *change, f"{episodes} episodes"))
    names = ["policy", "statistic", "value", "low", "high", "opt_ts", "change_pct", "change_low", "change_high"]
    return pd.DataFrame(rows, columns=[*names, "redrawn"])
