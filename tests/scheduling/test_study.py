from __future__ import annotations

import dataclasses
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from hybridlib import figures
from hybridlib.scheduling.learners.dqn import DqnTs
from hybridlib.scheduling.learners.lad import LadTs
from hybridlib.scheduling.learners.sac import SacTs
from hybridlib.scheduling.rules.fluid import FluidScheduler
from hybridlib.scheduling.rules.heuristics import (
    YARDSTICKS,
    greedy_oracle,
    scaled_size_split,
    size_split,
    uniform_random,
)
from hybridlib.scheduling.study import claims, price, reports, shipped
from hybridlib.scheduling.study import pieces as study
from hybridlib.scheduling.study.variants import sweep_points
from hybridlib.scheduling.system.arrivals import Arrivals
from hybridlib.scheduling.system.environment import simulate
from hybridlib.scheduling.system.model import MecConfig, Model
from hybridlib.study import results
from hybridlib.study.parameters import SchedulingParameters

TINY = SchedulingParameters(
    servers=3,
    slots=9,
    methods=["LAD-TS", "DQN-TS"],
    episodes=3,
    fluid_iterations=2,
    load_methods=["DQN-TS"],
    load_episodes=1,
    sweep_tasks=[40],
    sweep_quality=[5],
    sweep_servers=[2],
    sweep_capacity=[20],
    sweep_denoising=[2],
    sweep_episodes=1,
    quirk_episodes=2,
)
SMALL = MecConfig(servers=3, max_tasks=50, slots=9)


def curves_of(**delays):
    """A curves table from method=(seeds, episodes) arrays."""
    parts = []
    for method, values in delays.items():
        episode, seed = np.indices(np.transpose(values).shape)
        columns = {"seed": seed.ravel(), "episode": episode.ravel() + 1, "delay_s": np.transpose(values).ravel()}
        parts.append(pd.DataFrame({"method": method.replace("_", "-"), **columns}))
    return pd.concat(parts)


@pytest.mark.slow
def test_a_finished_study_is_read_back_and_an_interrupted_one_goes_on(tmp_path, monkeypatch):
    first = study.Study(TINY, tmp_path, progress=False)
    wanted = {name: getattr(first, name)() for name in ("curves", "leaderboard", "sweeps", "quirks")}
    for name in wanted:
        assert (tmp_path / f"{name}.json").is_file()
    names = {path.name for path in (tmp_path / "training").iterdir()}
    assert names == {"LAD-TS.safetensors", "DQN-TS.safetensors"}  # short trainings leave none behind

    lost = sorted((tmp_path / "pieces").iterdir())[::3]  # a third of the pieces is made again
    for path in lost:
        path.unlink()
    again = study.Study(TINY, tmp_path, progress=False)
    for name, table in wanted.items():
        pd.testing.assert_frame_equal(getattr(again, name)(), table)

    monkeypatch.setattr(study, "train", None)
    monkeypatch.setattr(study, "simulate", None)
    finished = study.Study(TINY, tmp_path, progress=False)
    pd.testing.assert_frame_equal(finished.leaderboard(), wanted["leaderboard"])


def test_all_policies_of_a_leaderboard_meet_the_same_arrivals(tmp_path):
    """Total work and sizes are the same for all, so a policy measured alone gives the row of the table."""
    run = study.Study(TINY, tmp_path, progress=False)
    table = run.leaderboard()
    model = Model.draw(run.config)
    arrivals = Arrivals.draw(run.config, [0, 1], study.REPORT_SEED)
    rows = table[(table["policy"] == "Opt-TS (greedy oracle)") & (table["load"] == round(model.load, 4))]
    result = simulate(model, greedy_oracle, arrivals)
    assert rows["mean_s"].tolist() == pytest.approx(result.mean_s.tolist(), abs=1e-4)
    delays = np.sort(result.delay_s[1][result.present[1]])
    assert rows["p95_s"].iloc[1] == pytest.approx(delays[round(0.95 * (len(delays) - 1))], rel=0.02)
    assert set(table["policy"]) >= {*YARDSTICKS, study.OURS, study.BOUND, "LAD-TS", "LAD-TS, arg-max"}
    bound = table[table["policy"] == study.BOUND].set_index(["load", "episode"])["mean_s"]
    rest = table.set_index(["load", "episode"])["mean_s"]
    assert (rest >= bound.reindex(rest.index) - 1e-4).all()


@pytest.mark.slow
def test_short_trainings_that_a_long_one_contains_are_not_made_again(tmp_path):
    run = study.Study(TINY, tmp_path, progress=False)
    base = run.quirks()
    base = base[base["switch"] == "LAD-TS, as published"].drop(columns="switch").reset_index(drop=True)
    alone = study.Training("LAD-TS", run.config, 2, (0, 1))
    _, curve = alone.run(tmp_path / "alone.safetensors", progress=False)
    pd.testing.assert_frame_equal(base, alone.curve_table(curve), rtol=1e-4)


def test_a_learner_as_policy_decides_as_its_networks_say():
    learner = DqnTs(Model.draw(SMALL), (4, 7))
    arrivals = Arrivals.draw(SMALL, [3])
    result = simulate(learner.model, study.as_policy(learner, greedy=True), Arrivals.join([arrivals] * 2))
    weights = [part.detach().numpy().astype(float) for part in learner.network.parts]

    def network(group):
        def policy(view, _):
            actions = np.zeros(view.size.shape, int)
            for b, n in np.argwhere(view.present[0]):
                x = np.array([view.size[0, b, n], view.model.work[n], *view.backlog[0]])[:, None]
                for w, bias in ((0, 1), (2, 3)):
                    x = np.maximum(weights[w][group * 3 + b] @ x + weights[bias][group * 3 + b], 0)
                actions[0, b, n] = (weights[4][group * 3 + b] @ x + weights[5][group * 3 + b]).argmax()
            return actions

        return policy

    for group in range(2):
        alone = simulate(learner.model, network(group), arrivals)
        assert result.mean_s[group] == pytest.approx(alone.mean_s[0], rel=1e-9)
    assert not learner.greedy


def test_scaled_size_split_is_the_published_one_where_that_applies():
    for load in (None, 0.6):
        config = MecConfig() if load is None else MecConfig().at_load(load)
        model, arrivals = Model.draw(config), Arrivals.draw(config, [0])
        published = size_split(1.6 * (1.0 if load is None else load / Model.draw().load))
        expected = simulate(model, published, arrivals).mean_s
        assert simulate(model, scaled_size_split(model), arrivals).mean_s.tolist() == expected.tolist()
    for config in (
        MecConfig(servers=1),
        MecConfig(servers=2),
        MecConfig(max_tasks=1),
        MecConfig(servers=7, max_tasks=3),
    ):
        model = Model.draw(config)
        assert np.isfinite(simulate(model, scaled_size_split(model), Arrivals.draw(config, [0])).mean_s).all()


def test_sweep_points_are_the_published_axes():
    points = list(sweep_points(MecConfig(), TINY))
    assert [(axis, value) for axis, value, _, _ in points] == [
        ("tasks", 40),
        ("quality", 5),
        ("servers", 2),
        ("capacity", 20),
        ("denoising", 2),
    ]
    assert points[1][2].quality_steps == (1, 4)
    assert points[3][2].capacity_gcycles_s == (10, 20)
    assert points[4][3] == {"denoising_steps": 2}


def test_trailing_mean_and_convergence_by_hand():
    delays = np.array([[10.0, 8, 6, 4, 4, 4], [9, 9, 9, 4, 4, 4]])
    smooth = claims.trailing(delays, 2)
    assert smooth[0].tolist() == [10, 9, 7, 5, 4, 4]
    assert smooth[1].tolist() == [9, 9, 9, 6.5, 4, 4]
    # 300 episodes: a step from 10 to 4 after episode 50. The 20-episode mean is 4.3 when one 10 is left in it, above
    # 1.05 x 4 = 4.2, and 4.0 when none is. Whatever arrivals do to both cancels.
    arrivals = np.random.default_rng(0).lognormal(0, 0.3, (2, 300))
    step = np.where(np.arange(300) < 50, 10.0, 4.0) * arrivals
    curves = pd.concat([curves_of(LAD_TS=step, SAC_TS=4 * arrivals), reference(arrivals)])
    assert claims.converged_at(curves, "LAD-TS").tolist() == [70, 70]
    assert np.isnan(claims.converged_at(curves, "SAC-TS")).all()


def reference(delays):
    return curves_of(x=delays).assign(method=claims.REFERENCE)


@pytest.mark.slow
def test_rules_that_never_learn_have_nothing_to_converge_to():
    """The committed curves, and rules played afresh. In seconds they "converged" at episode 475, 153, 1, 125 and 8."""
    table = claims.convergence(results.load("08_curves"))
    never = [name for name in table.index if name not in study.LEARNERS]
    assert len(never) == 5
    assert (table.loc[never, "verdict"] == claims.NOTHING).all()
    assert table.loc[never, ["episodes", "low", "high"]].isna().all(axis=None)
    assert (table.loc[list(study.LEARNERS), "verdict"] == "converges").all()

    config, names = MecConfig(4, 20, 12, capacity_gcycles_s=(5, 15)), ("random", "round robin", "backlog levelling")
    model, delays = Model.draw(config), {name: [] for name in (*names, claims.REFERENCE)}
    for seed in range(5):
        arrivals = Arrivals.draw(config, range(300), seed)
        for name, rows in delays.items():
            rows.append(simulate(model, YARDSTICKS[name].policy, arrivals, seed).mean_s)
    fresh = pd.concat(curves_of(x=np.array(rows)).assign(method=name) for name, rows in delays.items())
    assert (claims.convergence(fresh)["verdict"] == claims.NOTHING).all()


def test_episodes_saved_on_the_committed_curves():
    """Recomputed here without the module: shares of the geometric means over seeds."""
    curves = results.load("08_curves")
    wide = curves.pivot(index="episode", columns=["method", "seed"], values="delay_s")
    relative = {m: wide[m] / wide[claims.REFERENCE] for m in study.LEARNERS}
    at = {}
    for method, table in relative.items():
        smooth, final = table.rolling(20, min_periods=1).mean(), table.iloc[-100:].mean()
        at[method] = np.exp(
            np.log([float(smooth.index[smooth[s] > 1.05 * final[s]].max()) + 1 for s in final.index]).mean()
        )
    found = claims.check(curves).set_index("claim")
    wanted = {"DQN-TS": 70.7, "SAC-TS": 42.5, "D2SAC-A": 65.3, "D2SAC-B": -371.5}
    for rival, per_cent in wanted.items():
        row = found.loc[f"LAD-TS needs fewer episodes than {rival} (% fewer)"]
        assert row["measured"] == pytest.approx(100 * (1 - at["LAD-TS"] / at[rival]), rel=1e-9)
        assert row["measured"] == pytest.approx(per_cent, abs=0.1)
        assert row["verdict"] == ("does not hold" if rival == "D2SAC-B" else "holds")
        assert row["redrawn"] == "5 seeds"
    assert found["verdict"]["60 % fewer episodes than D2SAC-A"] == "holds"
    assert found["verdict"]["70 % fewer episodes than SAC-TS"] == "does not hold"
    assert found["verdict"]["80 % fewer episodes than DQN-TS"] == "does not hold"


def test_every_table_says_what_is_redrawn():
    curves, board = results.load("08_curves"), results.load("08_leaderboard")
    ranking = claims.ranking(board, 1.2374)
    assert ranking.loc["LAD-TS", "redrawn"] == "5 seeds"
    assert ranking.loc[study.OURS, "redrawn"] == "10 episodes"
    assert ranking.loc["slot assignment", "redrawn"] == "2 episodes"
    part = board[(board["load"] == 1.2374) & (board["policy"] == "LAD-TS")].groupby("seed")["mean_s"].mean()
    half = 2.7764 * part.std() / np.sqrt(5)  # t quantile for 4 degrees of freedom
    assert ranking.loc["LAD-TS", "high"] - ranking.loc["LAD-TS", "mean_s"] == pytest.approx(half, rel=1e-4)
    for table in (
        claims.seed_table(curves),
        claims.quirk_effects(results.load("08_quirks")),
        claims.convergence(curves),
    ):
        assert (table["redrawn"] == "5 seeds").all()


def test_prices_of_an_episode_by_hand():
    """Ten task types, so that the largest fifth are two of them."""
    config = dataclasses.replace(SMALL, max_tasks=10)
    model, arrivals = Model.draw(config), Arrivals.draw(config, [2], 4)
    rows = price.measure({"random": uniform_random}, config, episodes=3, seed=4)
    ours, oracle = (simulate(model, policy, arrivals, seed=2) for policy in (uniform_random, greedy_oracle))
    tasks = [
        (ours.delay_s[0, t, b, n], oracle.delay_s[0, t, b, n], model.work[n])
        for _, t, b, n in np.argwhere(ours.present)
    ]
    row = rows[(rows["policy"] == "random") & (rows["episode"] == 2)].iloc[0]
    rounding = 1e-4  # of the table
    assert row["mean_s"] == pytest.approx(sum(d for d, _, _ in tasks) / len(tasks), abs=rounding)
    weighted = sum(d * w for d, _, w in tasks) / sum(w for _, _, w in tasks)
    assert row["work_weighted_s"] == pytest.approx(weighted, abs=rounding)
    assert row["p99_s"] == pytest.approx(np.percentile([d for d, _, _ in tasks], 99), abs=rounding)
    largest = [d for d, _, w in tasks if w >= sorted(model.work)[-2]]
    assert 0 < len(largest) < len(tasks)
    assert row["fifth_5_s"] == pytest.approx(np.mean(largest), abs=rounding)
    assert row["slower_share"] == pytest.approx(sum(d > o for d, o, _ in tasks) / len(tasks), abs=rounding)
    assert (rows[rows["policy"] == price.ORACLE]["slower_share"] == 0).all()
    with pytest.raises(ValueError, match="there must be a policy and at least 1 episode"):
        price.measure({})


def test_prices_are_ratios_on_the_same_tasks_with_students_intervals():
    rows = price.measure({"itself": greedy_oracle, "random": uniform_random}, SMALL, episodes=3, seed=4)
    table = price.summary(rows).set_index(["policy", "measure"])
    itself = table.loc["itself"].drop("slower_share")
    assert (itself[["ratio", "ratio_low", "ratio_high"]] == 1).all(axis=None)
    assert itself["opt_ts"].tolist() == itself["estimate"].tolist()
    ours, oracle = (rows[rows["policy"] == name]["mean_s"].to_numpy() for name in ("random", price.ORACLE))
    got, half = table.loc[("random", "mean_s")], 4.302653 / math.sqrt(3)  # t quantile for 2 degrees of freedom
    assert got["estimate"] == pytest.approx(ours.mean())
    assert got["high"] - got["estimate"] == pytest.approx(half * ours.std(ddof=1), rel=1e-6)
    assert got["ratio"] == pytest.approx((ours / oracle).mean())
    assert got["ratio"] - got["ratio_low"] == pytest.approx(half * (ours / oracle).std(ddof=1), rel=1e-6)
    assert (table["redrawn"] == "3 episodes").all()
    with pytest.raises(ValueError, match="at least 2 of them, got 1"):
        price.summary(rows[rows["episode"] == 0])


def test_line_ends_are_tied_to_their_labels():
    """Three lines that end together: labels stand apart, each leader ends where its line does."""
    levels = {"LAD-TS": 8.0, "SAC-TS": 8.05, "DQN-TS": 8.1}
    curves = curves_of(**{name.replace("-", "_"): np.full((5, 9), v) for name, v in levels.items()})
    lines = {"Opt-TS (greedy oracle)": 7.9, "size split": 5.7, study.BOUND: 3.3}
    figure = figures.learning_curves({"one": claims.curve_bands(curves)}, {"one": lines})
    check_leaders(figure.axes[0], {"LAD-TS": 8.0, "SAC-TS": 8.05, "DQN-TS": 8.1, "Opt-TS": 7.9, "size split": 5.7})
    board = pd.DataFrame(
        [(p, load, 0, m) for p, m in (("lower bound", 1.0), *levels.items()) for load in (0.5, 1.0)],
        columns=["policy", "load", "episode", "mean_s"],
    )
    board = board[(board["policy"] != "SAC-TS") | (board["load"] == 0.5)]  # a line that ends early
    axes = figures.over_load({"one": board}).axes[0]
    check_leaders(axes, levels)
    assert {t.get_text(): t.xy[0] for t in axes.texts}["SAC-TS"] == 0.5
    plt.close("all")


def check_leaders(axes, levels):
    labels = {text.get_text(): text for text in axes.texts}
    for name, level in levels.items():
        assert labels[name].xy[1] == pytest.approx(level)
        assert labels[name].arrow_patch is not None
    places = sorted(text.get_position()[1] for text in axes.texts)
    assert np.diff(places).min() > 0.039


def test_claims_say_what_the_curves_show():
    generator = np.random.default_rng(0)

    def levels(level, until):
        noise = generator.normal(0, 0.02, (5, 300))
        return np.where(np.arange(300) < until, 3 * level, level) + noise

    lines = {
        name: np.full((5, 300), value) for name, value in zip((*study.LINES, study.OURS), (8.1, 6, 7.9, 5), strict=True)
    }
    curves = curves_of(LAD_TS=levels(8, 20), DQN_TS=levels(10, 200), SAC_TS=levels(8.0, 30))
    curves = pd.concat([curves, *(curves_of(x=values).assign(method=name) for name, values in lines.items())])
    table = claims.check(curves).set_index("claim")
    verdicts = table["verdict"].to_dict()
    assert verdicts["LAD-TS is below DQN-TS (% lower)"] == "holds"
    assert verdicts["by 8.58 to 30.67 % (DQN-TS)"] == "holds"
    assert table["measured"]["LAD-TS is below DQN-TS (% lower)"] == pytest.approx(20, abs=0.2)
    assert verdicts["by 8.58 to 30.67 % (SAC-TS)"] == "does not hold"
    assert verdicts["80 % fewer episodes than DQN-TS"] == "holds"
    short = claims.check(curves[(curves["method"] != "SAC-TS") | (curves["episode"] <= 60)]).set_index("claim")
    assert short["verdict"]["70 % fewer episodes than SAC-TS"] == "cannot be told"
    assert short["episodes"]["LAD-TS is below SAC-TS (% lower)"] == 60
    assert verdicts["70 % fewer episodes than SAC-TS"] == "does not hold"
    assert verdicts["LAD-TS is near Opt-TS (% above, within 5)"] == "holds"
    assert verdicts["not claimed: LAD-TS is below capacity-weighted random (% above)"] == "holds"
    assert verdicts["not claimed: LAD-TS is below size split (% above)"] == "does not hold"
    assert table["published"]["LAD-TS is below DQN-TS (% lower)"] == pytest.approx(100 * (9.15 - 7.57) / 9.15)
    assert claims.seed_table(curves)["redrawn"].unique().tolist() == ["5 seeds"]


def test_quirk_effects_are_paired_differences():
    base = np.random.default_rng(0).normal(10, 3, (5, 30))
    parts = {"LAD-TS, as published": base, "Q1 real queues in the boundary state": base + 1.0}
    parts |= {"Q6 act by arg-max": base + np.array([-1, 1, -1, 1, 0.0])[:, None]}
    quirks = pd.concat([curves_of(x=v).drop(columns="method").assign(switch=k) for k, v in parts.items()])
    table = claims.quirk_effects(quirks).set_index("switch")
    found = table.loc["Q1 real queues in the boundary state"]
    assert [found["effect_s"], found["low"], found["high"]] == pytest.approx([1.0, 1.0, 1.0])
    assert found["delay is"] == "slower"
    assert table.loc["Q6 act by arg-max", "delay is"] == "no effect seen"


def test_script_agreement_is_a_prediction_interval():
    curves = curves_of(LAD_TS=np.array([[1.0], [2], [3], [4], [5]]))
    script = pd.DataFrame({"episode": [1, 2], "delay_s": [3.5, 9.0]})
    row = claims.script_agreement(script, curves).iloc[0]
    # t quantile 2.7764 for 4 degrees of freedom, sd 1.5811
    assert row["high"] - row["ours"] == pytest.approx(2.7764 * 1.5811 * np.sqrt(1.2), rel=1e-4)


def test_acceptance_reads_the_curve_at_the_right_episodes():
    table = claims.acceptance(
        curves_of(LAD_TS=np.full((5, 300), 8.8), SAC_TS=np.full((5, 9), 30.0), DQN_TS=np.full((5, 9), 20.0)), 7.67
    ).set_index("check")["verdict"]
    assert table["(g) LAD-TS, 20 episodes up to 60"] == "holds"
    assert table["(g) LAD-TS, 20 episodes up to 300"] == "does not hold"
    assert "(g) LAD-TS, 20 episodes up to 500" not in table
    assert table["(e) SAC-TS, episode 1"] == "holds"
    assert table["(e) DQN-TS, episode 1"] == "does not hold"


def test_published_platform_claim_is_arithmetic():
    table = reports.platforms()
    assert table.loc["the fastest of them", "images: 100"] == pytest.approx(100 * (540 - 382.4) / 540, abs=0.005)
    assert table.loc["the fastest of them", "images: 1"] < -200


@pytest.mark.parametrize("cls", [SacTs, LadTs, DqnTs])
def test_exported_schedulers_act_as_the_learner_did(cls, tmp_path):
    """Arg-max of SAC and DQN needs no random number. LAD-TS has the numbers of its first evaluated episode.

    Its memory is rounded to bytes: a few decisions of 1200 may differ, and the mean delay by a per cent or two.
    """
    model, greedy = Model.draw(SMALL), cls is not LadTs
    learner = cls(model, (0, 1, 2, 3))
    shipped.warm_up(learner, 3)
    shipped.export(learner, tmp_path / f"{cls.name}.safetensors")
    arrivals = Arrivals.draw(SMALL, [5])
    theirs = simulate(model, study.as_policy(learner, greedy), Arrivals.join([arrivals] * 4)).mean_s
    for seed in range(3):
        ours = simulate(model, shipped.load(cls.name, seed, model, tmp_path, greedy), arrivals).mean_s
        assert ours[0] == pytest.approx(theirs[seed], rel=1e-6 if greedy else 0.03)
    with pytest.raises(ValueError, match=r"holds the seeds \[0, 1, 2\], not \[3\]"):
        shipped.load(cls.name, 3, model, tmp_path)
    with pytest.raises(ValueError, match=r"the learner has the seeds \[0, 1, 2, 3\], not 9"):
        shipped.export(learner, tmp_path / "x.safetensors", seeds=[9])


def test_the_shipped_memory_is_that_of_the_learner(tmp_path):
    learner = LadTs(Model.draw(SMALL), (4, 7))
    shipped.warm_up(learner, 2)
    shipped.export(learner, tmp_path / "LAD-TS.safetensors", seeds=[7])
    loaded = shipped.load_learner("LAD-TS", [7], Model.draw(SMALL), tmp_path)
    visited = learner.memory[3:].sum(2).sub(1).abs() < 1e-4  # the others still hold the normal draws of the start
    assert 0.5 < visited.float().mean() < 0.9
    difference = (loaded.memory - learner.memory[3:]).abs().amax(2)
    assert difference[visited].max() <= 0.5 / 255 + 1e-6
    memory_of_logits = LadTs(Model.draw(SMALL), (0,), LadTs.settings_type(memory_holds="logits"))
    with pytest.raises(ValueError, match="memory_holds must be 'probabilities' to be shipped, got 'logits'"):
        shipped.export(memory_of_logits, tmp_path / "x.safetensors", seeds=[0])


@pytest.mark.parametrize("changed", [{"servers": 3}, {"max_tasks": 40}, {"slots": 240}])
@pytest.mark.parametrize("name", list(study.LEARNERS))
def test_shipped_learners_refuse_another_system(name, changed):
    with pytest.raises(ValueError, match="is of another architecture"):
        shipped.load(name, model=Model.draw(MecConfig(**changed)))


def test_shipped_schedulers_refuse_what_they_cannot_serve(tmp_path):
    with pytest.raises(ValueError, match="no shipped scheduler 'PPO'; there are LAD-TS, "):
        shipped.load("PPO")
    with pytest.raises(ValueError, match="holds another scheduler"):
        shipped.load(study.OURS, model=Model.draw(SMALL))
    for name in ("SAC-TS", study.OURS):
        with pytest.raises(ValueError, match="there is no policy file .*safetensors"):
            shipped.load(name, folder=tmp_path)
    architecture = shipped._architecture(SacTs(Model.draw()))
    told = {"architecture": architecture, "seeds": "[0]"}
    for content, message in (
        (b"nonsense", "cannot be read as a shipped scheduler"),
        (b"", "cannot be read as a shipped scheduler"),
        (safetensors.torch.save({"acting": torch.zeros(20, 1300)}), "is of another architecture: None"),
        (safetensors.torch.save({"acting": torch.zeros(1)}, {"architecture": architecture}), "holds the seeds None"),
        (safetensors.torch.save({"acting": torch.zeros(1)}, told | {"seeds": "oops"}), "holds the seeds oops"),
        (safetensors.torch.save({"acting": torch.zeros(3, 3)}, told), "is damaged: acting must have a row for each of"),
        (safetensors.torch.save({"other": torch.zeros(3, 3)}, told), "is damaged: acting must have a row for each of"),
    ):
        (tmp_path / "SAC-TS.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            shipped.load("SAC-TS", folder=tmp_path)


@pytest.mark.slow
def test_the_card_states_what_the_files_give():
    """Each learner's row ends in the mean delay of its seeds on the reporting arrivals, to 0.01 s.

    Networks are float32, so another processor may round a decision to another server now and then.
    """
    card = (shipped.FOLDER / "README.md").read_text()
    for policy, part in shipped.levels().groupby("policy"):
        row = next(line for line in card.splitlines() if line.startswith(f"| `{policy}.safetensors`"))
        stated = [float(cell) for cell in row.rstrip(" |").split("|")[-1].split(",")]
        assert stated == pytest.approx(part.sort_values("seed")["mean_s"].tolist(), abs=0.006, rel=0.002), policy
    board = results.load("08_leaderboard")
    opt_ts = board[(board["policy"] == claims.REFERENCE) & (board["load"] == 1.2374)]["mean_s"].mean()
    assert f"Opt-TS {opt_ts:.2f} s" in card


def test_our_shipped_scheduler_beats_the_rules_at_the_published_load():
    """Arrivals that nothing was fitted or chosen on; the margins are several times the spread between episodes."""
    model, arrivals = Model.draw(), Arrivals.draw(MecConfig(), range(2), seed=31)
    ours = simulate(model, shipped.load(study.OURS), arrivals).mean_s
    assert (ours < 0.9 * simulate(model, scaled_size_split(model), arrivals).mean_s).all()
    assert (ours < 0.7 * simulate(model, greedy_oracle, arrivals).mean_s).all()


@pytest.mark.parametrize("name", list(study.LEARNERS))
def test_shipped_learners_are_better_than_random(name):
    model, arrivals = Model.draw(), Arrivals.draw(MecConfig(), [0], seed=31)
    delay = simulate(model, shipped.load(name), arrivals).mean_s[0]
    assert delay < 0.8 * simulate(model, YARDSTICKS["random"].policy, arrivals).mean_s[0]


def test_noise_of_whole_tasks_has_the_variance_of_independent_choices():
    """One slot, then a second without tasks would show the queue; here the spread of the delay is compared."""
    config = dataclasses.replace(SMALL, slots=3, capacity_gcycles_s=(2, 5))
    model = Model.draw(config)
    scheduler = FluidScheduler(model, sharpness=0.0)
    counts = torch.zeros(4000, 2, 3, 50, dtype=torch.float64)
    counts[:, 0], counts[:, 1, 0, 0] = 1.0, 1.0
    noisy = scheduler.fluid_delay(counts, torch.Generator().manual_seed(0)).detach().numpy()
    generator, chance = np.random.default_rng(0), model.capacity / model.capacity.sum()
    delays = []
    for _ in range(1000):
        placed = np.array(
            [(generator.choice(3, size=3 * 50, p=chance) == j) @ np.repeat(model.work, 3) for j in range(3)]
        )
        queue = np.maximum(placed - model.capacity, 0)
        delays.append(chance @ (queue / model.capacity) / 151)  # what the one task of the second slot waits for
    assert noisy.std() == pytest.approx(np.std(delays), rel=0.1)


def test_parameters_refuse_equal_seeds():
    with pytest.raises(ValueError, match=r"quirk_seeds = \[1, 1\]: must be different"):
        SchedulingParameters(quirk_seeds=[1, 1])
