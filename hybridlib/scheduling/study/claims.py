"""What study 08 measured, in the form a reader asks for: bands, rankings, effects, and every published claim tested.

Intervals are 95 % bootstrap intervals over seeds. Methods meet the same arrivals, so differences are paired by seed.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ...intervals import HOLDS, verdict
from ...paths import PUBLISHED
from ..rules.heuristics import YARDSTICKS
from .pieces import BOUND, LEARNERS, LINES, OURS
from .statistics import Interval, bootstrap_interval, difference_interval, mean
from .variants import SWITCHES

Floats = NDArray[np.float64]
WINDOW = 20  # episodes of a trailing mean
CONVERGED = 0.05  # above the final level
SETTLED = 300  # a training of fewer episodes has no final level to speak of
CLAIMED_FEWER = {"D2SAC-B": 0.60, "D2SAC-A": 0.60, "SAC-TS": 0.70, "DQN-TS": 0.80}
CLAIMED_LOWER = (8.58, 30.67)  # per cent
PUBLISHED_NAMES = {"D2SAC-A": "D2SAC-TS", "D2SAC-B": "D2SAC-TS"}


def by_seed(curves: pd.DataFrame, method: str, column: str = "method") -> Floats:
    """Delays (seeds, episodes) of one method."""
    table = curves[curves[column] == method].pivot(index="seed", columns="episode", values="delay_s")
    return table.to_numpy(float)


def trailing(delays: Floats, window: int = WINDOW) -> Floats:
    """Mean of the last `window` episodes at every episode, of fewer at the start; (seeds, episodes)."""
    total = np.cumsum(np.pad(delays, ((0, 0), (1, 0))), axis=1)
    stop = np.arange(1, delays.shape[1] + 1)
    start = np.maximum(stop - window, 0)
    return np.asarray((total[:, stop] - total[:, start]) / (stop - start))


def curve_bands(curves: pd.DataFrame, points: int = 60) -> pd.DataFrame:
    """Interquartile mean over seeds of the trailing mean, with its interval: method, episode, mean, low, high."""
    rows = []
    for method in (m for m in LEARNERS if m in set(curves["method"])):
        smooth = trailing(by_seed(curves, method))
        last = smooth.shape[1]
        for e in np.unique(np.geomspace(1, last, min(points, last)).round().astype(int)):
            interval = bootstrap_interval(smooth[:, [e - 1]], resamples=1000)
            rows.append((method, e, interval.estimate, interval.low, interval.high))
    return pd.DataFrame(rows, columns=["method", "episode", "mean", "low", "high"])


def line_levels(curves: pd.DataFrame) -> dict[str, float]:
    """Mean delay of the rules, ours and the bound over all arrivals of a run, seconds."""
    rest = curves[~curves["method"].isin(list(LEARNERS))]
    return {str(name): float(value) for name, value in rest.groupby("method", sort=False)["delay_s"].mean().items()}


def final_levels(curves: pd.DataFrame, method: str, until: int | None = None) -> Floats:
    """Mean of the last fifth of the episodes, or of those up to episode `until`, of every seed; seconds, (seeds, 1)."""
    delays = by_seed(curves, method)[:, :until]
    return delays[:, -max(delays.shape[1] // 5, 1) :].mean(axis=1, keepdims=True)


def converged_at(curves: pd.DataFrame, method: str) -> Floats:
    """First episode from which the trailing mean stays within 5 % of the final level of its seed, (seeds, 1)."""
    smooth = trailing(by_seed(curves, method))
    outside = smooth > (1 + CONVERGED) * final_levels(curves, method)
    after_last = smooth.shape[1] - np.argmax(outside[:, ::-1], axis=1)
    return np.where(outside.any(axis=1), after_last + 1, 1).astype(float)[:, None]


def ranking(leaderboard: pd.DataFrame, load: float) -> pd.DataFrame:
    """Policies at one load, best first: mean delay with interval, percentiles, ratio to the proven bound.

    Intervals run over seeds for learners, over episodes for rules, whose episodes share no randomness. The ratio takes
    the bound of the same episodes, since slow rules are measured on fewer.
    """
    here = leaderboard[leaderboard["load"] == load]
    bounds = here[here["policy"] == BOUND].set_index("episode")["mean_s"]
    rows = []
    for policy, part in here.groupby("policy", sort=False):
        scores = part.pivot(index="seed", columns="episode", values="mean_s").to_numpy(float)
        interval = bootstrap_interval(scores if len(scores) > 1 else scores.T, mean)
        percentiles = part[["p50_s", "p95_s", "p99_s"]].mean().tolist()
        ratio = interval.estimate / bounds.loc[sorted(set(part["episode"]))].mean()
        rows.append((policy, *interval, *percentiles, ratio, _sees(str(policy))))
    names = ["policy", "mean_s", "low", "high", "p50_s", "p95_s", "p99_s", "times the bound", "sees"]
    return pd.DataFrame(rows, columns=names).sort_values("mean_s").set_index("policy")


def _sees(policy: str) -> str:
    if policy in YARDSTICKS:
        return YARDSTICKS[policy].sees
    if policy == OURS:
        return "backlog at slot start, place in the order; capacities in the fit"
    return "all arrivals" if policy == BOUND else "backlog at slot start"


def check(curves: pd.DataFrame) -> pd.DataFrame:
    """Every published claim on the learning curves: what it allows, what was measured, and whether it holds."""
    summary = pd.read_csv(PUBLISHED / "lad_ts_summary.csv", index_col="method")
    delay, episodes = summary["delay_400_500_s"], summary["converged_episode"]
    rivals = [m for m in ("DQN-TS", "SAC-TS", "D2SAC-B", "D2SAC-A") if m in set(curves["method"])]
    rows: list[tuple[str, int, float, Interval, tuple[float, float]]] = []
    for rival in rivals:
        # A training that was stopped early is compared at its last episodes, on the same arrivals.
        until = min(by_seed(curves, m).shape[1] for m in ("LAD-TS", rival))
        lower = _share(final_levels(curves, "LAD-TS", until=until), final_levels(curves, rival, until=until))
        published = 100 * (1 - delay["LAD-TS"] / delay[PUBLISHED_NAMES.get(rival, rival)])
        rows.append((f"LAD-TS is below {rival} (% lower)", until, published, lower, (np.nextafter(0, 1), np.inf)))
        rows.append((f"by 8.58 to 30.67 % ({rival})", until, published, lower, CLAIMED_LOWER))
    for rival in rivals:
        claimed, until = 100 * CLAIMED_FEWER[rival], by_seed(curves, rival).shape[1]
        fewer = Interval(np.nan, np.nan, np.nan)
        if until >= SETTLED:
            fewer = _share(converged_at(curves, "LAD-TS"), converged_at(curves, rival))
        published = 100 * (1 - episodes["LAD-TS"] / episodes[PUBLISHED_NAMES.get(rival, rival)])
        rows.append((f"{claimed:.0f} % fewer episodes than {rival}", until, published, fewer, (claimed, np.inf)))
    until = by_seed(curves, "LAD-TS").shape[1]
    lad = final_levels(curves, "LAD-TS")
    near = _share(lad, final_levels(curves, LINES[2], until=until), sign=1)
    published = 100 * (delay["LAD-TS"] / delay["Opt-TS"] - 1)
    rows.append(("LAD-TS is near Opt-TS (% above, within 5)", until, published, near, (-np.inf, 5.0)))
    for line in (*LINES[:2], OURS):
        above = _share(lad, final_levels(curves, line, until=until), sign=1)
        claim = f"not claimed: LAD-TS is below {line} (% above)"
        rows.append((claim, until, np.nan, above, (-np.inf, np.nextafter(0, -1))))
    return pd.DataFrame(
        [(c, n, p, i.estimate, i.low, i.high, verdict(i.low, i.high, allowed)) for c, n, p, i, allowed in rows],
        columns=["claim", "episodes", "published", "measured", "low", "high", "verdict"],
    )


def _share(ours: Floats, theirs: Floats, sign: int = -1) -> Interval:
    """Per cent by which one is below the other (sign -1) or above it (1), paired by seed; mean and interval."""
    return bootstrap_interval(sign * 100 * (ours / theirs - 1), mean)


def quirk_effects(quirks: pd.DataFrame) -> pd.DataFrame:
    """Change of the delay by each switch over the last `WINDOW` episodes: switch, effect (s) with interval, verdict."""
    rows = []
    for name, switch in SWITCHES.items():
        if name == switch.against or name not in set(quirks["switch"]):
            continue
        with_it, without = (by_seed(quirks, key, "switch")[:, -WINDOW:] for key in (name, switch.against))
        change = difference_interval(with_it.mean(1, keepdims=True), without.mean(1, keepdims=True), mean)
        inside = change.low <= 0 <= change.high
        says = "no effect seen" if inside else "slower" if change.low > 0 else "faster"
        rows.append((name, switch.against, with_it.mean(), change.estimate, change.low, change.high, says))
    return pd.DataFrame(rows, columns=["switch", "against", "delay_s", "effect_s", "low", "high", "delay is"])


def script_agreement(script: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """The one-task-at-a-time script beside our seeds: episode, script, ours, low, high (95 % for one further seed)."""
    from scipy.stats import t

    ours = by_seed(curves, "LAD-TS")[:, : len(script)]
    script = script.head(ours.shape[1])
    seeds, centre = len(ours), ours.mean(axis=0)
    half = t.ppf(0.975, seeds - 1) * ours.std(axis=0, ddof=1) * np.sqrt(1 + 1 / seeds)
    table = pd.DataFrame({"episode": script["episode"], "script": script["delay_s"], "ours": centre})
    table["low"], table["high"] = centre - half, centre + half
    return table


def acceptance(curves: pd.DataFrame, capacity_rule_s: float) -> pd.DataFrame:
    """Checks (e) to (h) of the reproduction: what is wanted, what was measured, and whether it holds.

    Args:
        capacity_rule_s: mean delay of the capacity-proportional rule on the first 20 published episodes.
    """
    seeds = sorted(curves["seed"].unique())
    rows: list[tuple[str, str, str, bool]] = []

    def add(what: str, values: Floats, low: float, high: float) -> None:
        value, spread = float(values.mean()), f" (seeds {values.min():.2f} to {values.max():.2f})"
        wanted = f"{low:g} to {high:g} s" if low > 0 else f"at most {high:g} s"
        rows.append((what, wanted, f"{value:.2f} s{spread if values.size > 1 else ''}", low <= value <= high))

    for method, low, high in (("LAD-TS", 15.0, 19.0), ("SAC-TS", 25.0, 65.0), ("DQN-TS", 25.0, 65.0)):
        if method in set(curves["method"]):
            add(f"(e) {method}, episode 1", by_seed(curves, method)[:, 0], low, high)
    add("(f) capacity-proportional rule, 20 published episodes", np.array([capacity_rule_s]), 7.52, 7.82)
    smooth = trailing(by_seed(curves, "LAD-TS"))
    for episode, low, high in ((60, 8.5, 9.2), (300, 0.0, 8.1), (500, 7.4, 7.9)):
        if smooth.shape[1] >= episode:
            add(f"(g) LAD-TS, 20 episodes up to {episode}", smooth[:, episode - 1], low, high)
    both = set(LINES[:2]) <= set(curves["method"])
    rows.append(("(h) at least 5 seeds, two rules beside", "5", f"{len(seeds)}", len(seeds) >= 5 and both))
    table = pd.DataFrame(rows, columns=["check", "wanted", "measured (mean over seeds)", "verdict"])
    return table.assign(verdict=np.where(table["verdict"], HOLDS, "does not hold"))


def seed_table(curves: pd.DataFrame) -> pd.DataFrame:
    """Q4: level of the last fifth of the episodes by method: interquartile mean with interval, mean, sd over seeds."""
    rows = []
    for method in dict.fromkeys(curves["method"]):
        levels = final_levels(curves, method)
        spread = levels.std(ddof=1) if len(levels) > 1 else np.nan
        episodes = by_seed(curves, method).shape[1]
        rows.append((method, episodes, len(levels), *bootstrap_interval(levels), levels.mean(), spread))
    names = ["method", "episodes", "seeds", "IQM_s", "low", "high", "mean_s", "sd_s"]
    return pd.DataFrame(rows, columns=names).sort_values("IQM_s").set_index("method")
