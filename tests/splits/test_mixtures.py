"""Mixtures of shared starts, handoffs and codecs: what they are made of, what they cost, and their front."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from factories import random_sd, random_unet

from hybridlib import figures
from hybridlib.codecs import Adaptive, MinMax
from hybridlib.denoising.costs import work
from hybridlib.denoising.families import collect, denoiser_of
from hybridlib.prompts import PromptSet
from hybridlib.splits import grids, mixtures
from hybridlib.study.parameters import Settings
from hybridlib.study.runner import Models

CODECS = [MinMax(4), Adaptive(1.0)]
PROMPTS = PromptSet.load("miniature")


@pytest.fixture(scope="module")
def table():
    return mixtures.grid(PROMPTS, [0, 1, 10], [1, 2], [0, 2], ["4,0", "3,1", "1,3", "0,4"], CODECS, 4, 2.0, 4.0)


def test_every_mixture_that_makes_sense_once(table):
    assert table["path"].is_unique
    found = table.drop_duplicates(mixtures.MIXTURE)[mixtures.MIXTURE]
    splits = found.groupby("split")[["common_step", "codec"]].apply(lambda part: sorted(map(tuple, part.to_numpy())))
    coded = sorted(["fp16", *(codec.specification for codec in CODECS)])
    assert splits["3,1"] == sorted((c, name) for c in (0, 2) for name in coded)
    assert splits["1,3"] == [(0, name) for name in coded]  # two shared updates are more than the cloud makes
    assert splits["4,0"] == [(0, "fp16"), (2, "fp16")]  # nobody goes on with final latents
    assert splits["0,4"] == [(0, "fp16")]


def test_a_trajectory_says_all_of_it(table):
    row = table[(table["common_step"] == 2) & (table["split"] == "3,1") & (table["codec"] == "fp16")].iloc[0]
    first, second, third = row["trajectory"].segments
    assert (first.prompt, first.stop, first.guidance_scale, first.denoiser) == ("a circle", 2, 2.0, "")
    assert (second.prompt, second.stop, second.guidance_scale, second.denoiser) == (row["prompt"], 3, 4.0, "")
    assert (third.stop, third.denoiser, third.codec) == (4, "small", None)
    coded = table[(table["common_step"] == 2) & (table["split"] == "3,1") & (table["codec"] == MinMax(4).specification)]
    assert coded.iloc[0]["trajectory"].segments[2].codec == MinMax(4)


@pytest.mark.slow
def test_bytes_and_compute_are_counted(table):
    pipeline, small = random_sd(), random_unet(width=16, seed=5)
    models, settings = Models({"small": small}, "reset"), Settings(4, 32)
    sizes = mixtures.message_bytes(pipeline, table, CODECS, settings, models).set_index(mixtures.MIXTURE)[
        "message_bytes"
    ]
    values = 4 * 8 * 8
    assert sizes[2, "3,1", "fp16"] == sizes[0, "4,0", "fp16"] == 2 * values
    assert sizes[0, "0,4", "fp16"] == 0
    assert values / 2 < sizes[0, "1,3", MinMax(4).specification] < 2 * values
    denoisers = collect(denoiser_of(pipeline), {"small": small})
    spent = mixtures.compute(table, denoisers, 32).set_index(mixtures.MIXTURE)
    large, edge = (work(denoisers[name]).macs for name in ("", "small"))
    assert spent.loc[(0, "3,1", "fp16")].tolist() == [6 * large, 2 * edge]
    # Prompts 0 and 1 share the two public updates of the circle, prompt 10 has its own: four evaluations for two, and
    # four for one, so 8/3 an image; then one update of its own each.
    assert spent.loc[(2, "3,1", "fp16"), "cloud_macs"] == pytest.approx((8 / 3 + 2) * large)
    assert set(sizes.index) == set(spent.index)


def test_the_front_is_that_of_brute_force():
    rng = np.random.default_rng(0)
    points = pd.DataFrame(rng.integers(0, 4, (60, 3)), columns=["quality", "edge_macs", "message_bytes"])
    front = mixtures.undominated(points, "quality", ["edge_macs", "message_bytes"])
    for i, mine in points.iterrows():
        beaten = any(
            other["quality"] >= mine["quality"]
            and other["edge_macs"] <= mine["edge_macs"]
            and other["message_bytes"] <= mine["message_bytes"]
            and tuple(other) != tuple(mine)
            for _, other in points.iterrows()
        )
        assert front[i] == (not beaten)
    assert 0 < front.sum() < len(points)


def test_summary_joins_and_the_figure_shows_every_mixture(table):
    scores = table.drop(columns="trajectory").assign(
        correct=np.linspace(0, 1, len(table)),
        message_bytes=np.where(table["split"] == "0,4", 0.0, 512.0),
        cloud_macs=1e6,
        edge_macs=[1e6 * float(s.split(",")[1]) for s in table["split"]],
    )
    keys = table.drop_duplicates(mixtures.MIXTURE)
    summary = mixtures.summary(scores, "correct")
    assert len(summary) == len(keys)
    assert summary["front"].any()
    assert (summary["front_with_cloud"] >= summary["front"]).all()  # one more axis beats no more rows
    figure = figures.mixture_front(summary, "correct")
    for ax in figure.axes:
        assert len(ax.collections) == len(keys)
    lone = summary.iloc[0]
    per_seed = (
        scores[(scores[mixtures.MIXTURE] == lone[mixtures.MIXTURE]).all(axis=1)].groupby("seed")["correct"].mean()
    )
    assert lone["quality"] == pytest.approx(per_seed.mean())


def test_what_the_solver_remembers_is_judged_pair_by_pair(table):
    """One prompt is .2 better with memory in seed 1 and .4 in seed 2; other rows must not count."""
    mixed = table.drop(columns="trajectory").assign(correct=0.5)
    coded = mixed["codec"] != mixtures.UNCODED
    mixed.loc[coded | (mixed["common_step"] > 0), "correct"] = 99.0
    kept = mixed[~coded & (mixed["common_step"] == 0)].assign(method=grids.LARGE_FIRST)
    kept["correct"] += np.where(kept["personal"] == 10, np.where(kept["seed"] == 1, 0.2, 0.4), 0.0)
    other = kept.assign(method=grids.SMALL_FIRST, correct=-99.0)
    found = mixtures.memory_kept(pd.concat([kept, other]), mixed, "correct").set_index("split")
    assert set(found.index) == {"4,0", "3,1", "1,3", "0,4"}
    # Means over three prompts: .0667 and .1333, so .1 with a standard error of .0333 and Student's 12.71 at one degree.
    low, high = 0.1 - 12.7062 / 30, 0.1 + 12.7062 / 30
    assert found.loc["3,1"].tolist() == pytest.approx([0.6, 0.5, 0.1, low, high], rel=1e-4)


def test_quality_against_compute_draws_each_method_once():
    rows = [
        ("large first", "4,0", 0.9),
        ("large first", "2,2", 0.8),
        ("small first", "2,2", 0.7),
        ("thinned", "2,1,0.3,4", 0.6),
    ]
    table = pd.DataFrame(rows, columns=["method", "split", "mean"]).assign(macs=[4.0, 3.0, 3.0, 2.0])
    table = table.assign(low=table["mean"] - 0.1, high=table["mean"] + 0.1)
    figure = figures.quality_against_compute(table, {"macs": "compute"}, "correct", reference=(0.85, 0.95))
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert lines == {"large first": [[3, 0.8], [4, 0.9]], "small first": [[3, 0.7]], "thinned": [[2, 0.6]]}
    assert {text.get_text() for text in figure.axes[0].texts} == {"4,0", "2,2"}
