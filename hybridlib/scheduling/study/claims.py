"""What study 08 measured, in the form a reader asks for: bands, rankings, effects, and every published claim tested.

Intervals are 95 % Student-t intervals over seeds, or over episodes where a rule has no seeds; the column `redrawn` says
which. Methods meet the same arrivals, so differences are paired by seed.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ...intervals import HOLDS, NEGATIVE, POSITIVE, verdict
from ...paths import PUBLISHED
from ...runs import Interval, percent_above, percent_below, t_interval
from ..rules.heuristics import YARDSTICKS
from .pieces import BOUND, LEARNERS, LINES, OURS
from .variants import SWITCHES

Floats = NDArray[np.float64]
WINDOW = 20  # episodes of a trailing mean
CONVERGED = 1.05  # of the final level
SETTLED = 300  # a training of fewer episodes has no final level to speak of
# Arrivals of an episode move every delay by 10 %, learned or not. Opt-TS removes that: it draws nothing of its own.
REFERENCE = LINES[2]
NOTHING, TOO_SHORT = "nothing to learn", "too short to tell"
CLAIMED_FEWER = {"D2SAC-B": 0.60, "D2SAC-A": 0.60, "SAC-TS": 0.70, "DQN-TS": 0.80}
CLAIMED_LOWER = (8.58, 30.67)  # per cent
PUBLISHED_NAMES = {"D2SAC-A": "D2SAC-TS", "D2SAC-B": "D2SAC-TS"}
UNTOLD = Interval(np.nan, np.nan, np.nan)


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
    """Mean over seeds of the trailing mean, with its interval: method, episode, mean, low, high (seconds)."""
    rows = []
    for method in (m for m in LEARNERS if m in set(curves["method"])):
        smooth = trailing(by_seed(curves, method))
        last = smooth.shape[1]
        for e in np.unique(np.geomspace(1, last, min(points, last)).round().astype(int)):
            rows.append((method, e, *t_interval(smooth[:, e - 1])))
    return pd.DataFrame(rows, columns=["method", "episode", "mean", "low", "high"])


def line_levels(curves: pd.DataFrame) -> dict[str, float]:
    """Mean delay of the rules, ours and the bound over all arrivals of a run, seconds."""
    rest = curves[~curves["method"].isin(list(LEARNERS))]
    return {str(name): float(value) for name, value in rest.groupby("method", sort=False)["delay_s"].mean().items()}


def final_levels(curves: pd.DataFrame, method: str, until: int | None = None) -> Floats:
    """Mean of the last fifth of the episodes, or of those up to episode `until`, of every seed; seconds, (seeds,)."""
    return _last_fifth(by_seed(curves, method)[:, :until])


def _last_fifth(delays: Floats) -> Floats:
    return np.asarray(delays[:, -max(delays.shape[1] // 5, 1) :].mean(axis=1))


def over_reference(curves: pd.DataFrame, method: str) -> Floats:
    """Delay of every episode as a multiple of that of Opt-TS on the same arrivals, (seeds, episodes)."""
    delays = by_seed(curves, method)
    return delays / by_seed(curves, REFERENCE)[:, : delays.shape[1]]


def converged_at(curves: pd.DataFrame, method: str) -> Floats:
    """First episode from which the trailing mean stays at most 5 % above the final level of its seed, (seeds,).

    Of the delay over that of Opt-TS on the same arrivals: in seconds the arrivals alone let rules that never learn
    "converge" anywhere up to episode 475. Where the first episodes do not lie more than 5 % above the final level, by
    their interval over seeds, nothing was learned and all is nan.
    """
    relative = over_reference(curves, method)
    final = _last_fifth(relative)
    learned = t_interval(np.log(relative[:, :WINDOW].mean(axis=1) / final))
    if not learned.low > np.log(CONVERGED):
        return np.full(len(final), np.nan)
    outside = trailing(relative) > CONVERGED * final[:, None]
    after_last = outside.shape[1] - np.argmax(outside[:, ::-1], axis=1)
    return np.where(outside.any(axis=1), after_last + 1, 1).astype(float)


def convergence(curves: pd.DataFrame) -> pd.DataFrame:
    """Episodes to converge of learners, and of rules that cannot learn as the control that must show none.

    Returns:
        By method: delay over that of Opt-TS in the first 20 episodes and in the last fifth, mean over seeds; episodes
        to converge (`converged_at`) as geometric mean over seeds with interval; redrawn; and what is to be said.
    """
    rows = []
    for method in dict.fromkeys(curves["method"]):
        relative = over_reference(curves, method)
        start, end = relative[:, :WINDOW].mean(), _last_fifth(relative).mean()
        at, says = converged_at(curves, method), NOTHING
        if relative.shape[1] < SETTLED:
            at, says = np.full(len(at), np.nan), TOO_SHORT
        elif np.isfinite(at).all():
            says = "converges"
        episodes = np.exp(t_interval(np.log(at))) if says == "converges" else UNTOLD
        rows.append((method, start, end, *episodes, f"{len(at)} seeds", says))
    names = ["method", "start / Opt-TS", "end / Opt-TS", "episodes", "low", "high", "redrawn", "verdict"]
    return pd.DataFrame(rows, columns=names).set_index("method")


def ranking(leaderboard: pd.DataFrame, load: float) -> pd.DataFrame:
    """Policies at one load, best first: mean delay with interval, percentiles, ratio to the proven bound.

    Intervals run over seeds for learners (all on the same episodes), over episodes for rules. The ratio takes the
    bound of the same episodes, since slow rules are measured on fewer.
    """
    here = leaderboard[leaderboard["load"] == load]
    bounds = here[here["policy"] == BOUND].set_index("episode")["mean_s"]
    rows = []
    for policy, part in here.groupby("policy", sort=False):
        scores = part.pivot(index="seed", columns="episode", values="mean_s").to_numpy(float)
        seeds, episodes = scores.shape
        redrawn = f"{seeds} seeds" if seeds > 1 else f"{episodes} episodes"
        interval = t_interval(scores.mean(axis=1) if seeds > 1 else scores[0])
        percentiles = part[["p50_s", "p95_s", "p99_s"]].mean().tolist()
        ratio = interval.estimate / bounds.loc[sorted(set(part["episode"]))].mean()
        rows.append((policy, *interval, redrawn, *percentiles, ratio, _sees(str(policy))))
    names = ["policy", "mean_s", "low", "high", "redrawn", "p50_s", "p95_s", "p99_s", "times the bound", "sees"]
    return pd.DataFrame(rows, columns=names).sort_values("mean_s").set_index("policy")


def _sees(policy: str) -> str:
    if policy in YARDSTICKS:
        return YARDSTICKS[policy].sees
    if policy == OURS:
        return "backlog at slot start, place in the order; its fit: capacities, arrival law, task types, horizon"
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
        lower = percent_below(final_levels(curves, "LAD-TS", until), final_levels(curves, rival, until))
        published = 100 * (1 - delay["LAD-TS"] / delay[PUBLISHED_NAMES.get(rival, rival)])
        rows.append((f"LAD-TS is below {rival} (% lower)", until, published, lower, POSITIVE))
        rows.append((f"by 8.58 to 30.67 % ({rival})", until, published, lower, CLAIMED_LOWER))
    for rival in rivals:
        claimed, until = 100 * CLAIMED_FEWER[rival], by_seed(curves, rival).shape[1]
        fewer = _fewer_episodes(curves, rival) if until >= SETTLED else UNTOLD
        published = 100 * (1 - episodes["LAD-TS"] / episodes[PUBLISHED_NAMES.get(rival, rival)])
        rows.append((f"LAD-TS needs fewer episodes than {rival} (% fewer)", until, published, fewer, POSITIVE))
        rows.append((f"{claimed:.0f} % fewer episodes than {rival}", until, published, fewer, (claimed, np.inf)))
    until = by_seed(curves, "LAD-TS").shape[1]
    lad = final_levels(curves, "LAD-TS")
    near = percent_above(lad, final_levels(curves, REFERENCE, until))
    published = 100 * (delay["LAD-TS"] / delay["Opt-TS"] - 1)
    rows.append(("LAD-TS is near Opt-TS (% above, within 5)", until, published, near, (-np.inf, 5.0)))
    for line in (*LINES[:2], OURS):
        above = percent_above(lad, final_levels(curves, line, until))
        rows.append((f"not claimed: LAD-TS is below {line} (% above)", until, np.nan, above, NEGATIVE))
    redrawn = f"{len(lad)} seeds"
    return pd.DataFrame(
        [(c, n, p, *i, redrawn, verdict(i.low, i.high, allowed)) for c, n, p, i, allowed in rows],
        columns=["claim", "episodes", "published", "measured", "low", "high", "redrawn", "verdict"],
    )


def _fewer_episodes(curves: pd.DataFrame, rival: str) -> Interval:
    """Per cent of a rival's episodes to converge that LAD-TS saves; untold where one of them learned nothing."""
    ours, theirs = converged_at(curves, "LAD-TS"), converged_at(curves, rival)
    return percent_below(ours, theirs) if np.isfinite([ours, theirs]).all() else UNTOLD


def quirk_effects(quirks: pd.DataFrame) -> pd.DataFrame:
    """Change of the delay by each switch over the last `WINDOW` episodes: switch, effect (s) with interval, verdict."""
    rows = []
    for name, switch in SWITCHES.items():
        if name == switch.against or name not in set(quirks["switch"]):
            continue
        levels = [by_seed(quirks, key, "switch")[:, -WINDOW:].mean(axis=1) for key in (name, switch.against)]
        change, redrawn = t_interval(levels[0] - levels[1]), f"{len(levels[0])} seeds"
        says = "slower" if change.low > 0 else "faster" if change.high < 0 else "no effect seen"
        rows.append((name, switch.against, levels[0].mean(), *change, redrawn, says))
    names = ["switch", "against", "delay_s", "effect_s", "low", "high", "redrawn", "delay is"]
    return pd.DataFrame(rows, columns=names)


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
    """Q4: level of the last fifth of the episodes by method: mean over seeds with interval, and their sd."""
    rows = []
    for method in dict.fromkeys(curves["method"]):
        levels = final_levels(curves, method)
        spread = levels.std(ddof=1) if len(levels) > 1 else np.nan
        episodes = by_seed(curves, method).shape[1]
        rows.append((method, episodes, *t_interval(levels), spread, f"{len(levels)} seeds"))
    names = ["method", "episodes", "mean_s", "low", "high", "sd_s", "redrawn"]
    return pd.DataFrame(rows, columns=names).sort_values("mean_s").set_index("method")
