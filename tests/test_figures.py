from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hybridlib import figures, intervals
from hybridlib.fits import sigmoid
from hybridlib.hybrid import hiqm

STEPS = np.arange(28)


@pytest.fixture
def fits():
    """Of four bins, the second a straight line, whose sigmoid is not identified."""
    curves = [
        pd.DataFrame({"variant": "a", "similarity": m, "common_step": STEPS, "score": score})
        for m in (0.3, 0.4, 0.5, 0.6)
        for score in [1 - 0.01 * STEPS if m == 0.4 else sigmoid(STEPS, 0.3 - 0.1 * m, 0.3, 12.0, m)]
    ]
    return pd.concat(curves), hiqm.fit_curves(pd.concat(curves))


def test_parameter_lines_break_where_a_fit_is_not_identified(fits):
    figure = figures.fit_parameters({"x": fits[1]}, {"a": "A"})
    for ax in figure.axes:
        line = ax.containers[0].lines[0]
        np.testing.assert_allclose(line.get_xdata().astype(float), [0.3, 0.4, 0.5, 0.6])
        assert np.isnan(line.get_ydata().astype(float)).tolist() == [False, True, False, False]


def test_points_without_an_identified_fit_stand_without_a_curve(fits):
    ax = figures.fitted_curves(*fits, {"a": "A"}, "score").axes[0]
    assert [len(line.get_xdata()) for line in ax.lines] == [28, 200, 28, 28, 200, 28, 200]  # points, curve, points, ...


def sweep():
    rng = np.random.default_rng(0)
    rows = [(s, g, p, npi) for s in (3, 9, 21) for g in (1.0, 7.0) for p in range(5) for npi in (False, True)]
    table = pd.DataFrame(rows, columns=["common_step", "public_scale", "personal", "npi"])
    return table.assign(seed=1, clip=rng.random(len(table)))


def test_changes_from_a_setting_are_the_paired_ones():
    table = sweep()
    changes = intervals.changes_from(table, "clip", {"public_scale": 7.0, "npi": False}, by=["common_step"])
    assert len(changes) == 3 * 4
    keyed = changes.set_index(["npi", "public_scale", "common_step"]).sort_index()
    assert (keyed.loc[(False, 7.0), ["mean", "low", "high"]] == 0).all(axis=None)
    one = intervals.paired_changes(table[~table["npi"]], "clip", "public_scale", 7.0, 1.0, by=["common_step"])
    ours = keyed.loc[(False, 1.0)].reset_index()
    pd.testing.assert_frame_equal(ours, one, check_dtype=False)  # intervals too: the same redraws
    both = table.pivot(index=["common_step", "personal"], columns=["public_scale", "npi"], values="clip")
    expected = (both[1.0, True] - both[7.0, False]).groupby("common_step").mean()
    np.testing.assert_allclose(keyed.loc[(True, 1.0), "mean"], expected)
    with pytest.raises(ValueError, match=r"no cell has the reference setting \{'public_scale': 2.0\}"):
        intervals.changes_from(table, "clip", {"public_scale": 2.0})
    with pytest.raises(ValueError, match="lacks the column 'score'"):
        intervals.changes_from(table, "score", {"public_scale": 7.0})


def test_interval_panels_draw_every_setting_once():
    changes = intervals.changes_from(sweep(), "clip", {"public_scale": 7.0, "npi": False}, by=["common_step"])
    names = {False: "without", True: "with"}
    figure = figures.interval_panels(changes, "public_scale", "common_step", "npi", names, {"common_step": "step"})
    assert [ax.get_title() for ax in figure.axes] == ["step 3", "step 9", "step 21"]
    for ax, step in zip(figure.axes, (3, 9, 21), strict=True):
        for line, npi in zip(ax.lines[1:], names, strict=True):
            part = changes[(changes["common_step"] == step) & (changes["npi"] == npi)]
            np.testing.assert_allclose(line.get_ydata(), part["mean"])


def test_tables_show_long_sentences_whole():
    sentence = "a claim whose sentence is longer than the fifty characters at which pandas would cut it"
    with pd.option_context("display.max_colwidth", 50):
        assert sentence not in pd.DataFrame({"claim": [sentence]})._repr_html_()
        figures.use_house_style()
        assert sentence in pd.DataFrame({"claim": [sentence]})._repr_html_()


def test_significance_ranks_groups_and_tells_what_they_keep():
    scores = {"resnet_1": 3.0, "selfattn_1": 1.0, "crossattn_1": 2.0}
    ax = figures.significance(scores, {"resnet_1": 0.75, "selfattn_1": 0.25}).axes[0]
    assert [bar.get_width() for bar in ax.patches] == [1.0, 2.0, 3.0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["self-attention 1", "cross-attention 1", "residual block 1"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["keeps 1/4", "keeps 3/4", "kept whole"]


def test_loss_curves_show_positive_terms_over_their_steps():
    runs = {"a": {"task": [2.0, 1.0], "adversarial": [0.5, -0.1]}, "b": {"loss": [1.0, 0.5, 0.2, 0.1]}}
    axes = figures.loss_curves(runs, {"a": 100, "b": 8}).axes
    assert [len(ax.lines) for ax in axes] == [1, 1]
    assert axes[0].lines[0].get_xdata().tolist() == [25.0, 75.0]
    assert axes[1].lines[0].get_xdata().tolist() == [1.0, 3.0, 5.0, 7.0]


def test_kept_shares_and_decoders():
    table = pd.DataFrame({"kind": ["width"] * 2 + ["heads"], "block": [1, 2, 1], "kept": [0.5, 1.0, 0.75]})
    axes = figures.kept_shares({"published": table, "ours": table}).axes
    assert [len(ax.lines) for ax in axes] == [2, 2]
    assert axes[0].lines[1].get_ydata().tolist() == [0.5, 1.0]
    rows = {
        "model": ["large", "tiny"],
        "decode_ms": [10.0, 2.0],
        "psnr": [30.0, 27.0],
        "decoder_parameters": [9e5, 1e4],
    }
    ax = figures.decoders(pd.DataFrame(rows)).axes[0]
    assert [c.get_offsets().tolist() for c in ax.collections] == [[[10.0, 30.0]], [[2.0, 27.0]]]


def assignment_changes():
    rows = [
        [model, "scratch", arm, "Frechet distance", steps, change, change - 3, change + 3]
        for model in ("flow", "epsilon")
        for arm, change in (("linear", -20.0), ("linear, within condition", 4.0))
        for steps in (1, 4, 48)
    ]
    return pd.DataFrame(rows, columns=["model", "start", "arm", "measure", "steps", "change", "low", "high"])


def test_changes_over_steps_draw_every_arm_at_its_values():
    changes = assignment_changes()
    figure = figures.changes_over_steps(changes, "Frechet distance")
    assert [ax.get_title() for ax in figure.axes] == ["flow, scratch", "epsilon, scratch", "", ""]
    legends = [ax.get_legend() for ax in figure.axes if ax.get_legend()]
    named = {legend.get_title().get_text(): [text.get_text() for text in legend.get_texts()] for legend in legends}
    assert named == {"ignores the condition": ["linear"], "minds the condition": ["linear, within condition"]}
    for ax, value in zip(figure.axes, [-20.0, -20.0, 4.0, 4.0], strict=True):
        assert [bars.lines[0].get_ydata().tolist() for bars in ax.containers] == [[value] * 3]
    assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == ["1", "4", "48"]
    without = figures.changes_over_steps(changes.assign(low=np.nan, high=np.nan), "Frechet distance")
    assert not any(bars.has_yerr for ax in without.axes for bars in ax.containers)  # one seed: no interval


def test_changes_by_arm_name_every_arm():
    part = assignment_changes().query("steps == 48").assign(measure="straightness")
    ax = figures.changes_by_arm(part, "straightness").axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["linear", "linear, within condition"]
    assert [line.get_xdata().tolist() for line in ax.lines[1:3]] == [[-23.0, -17.0], [-20.0]]


def test_cost_shares_are_per_cent():
    rows = [["linear", "flow", 8, batch, share] for batch, share in ((64, 0.02), (1024, 0.1))]
    ax = figures.cost_shares(pd.DataFrame(rows, columns=["arm", "model", "side", "batch", "share"])).axes[0]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [2, 10])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["64", "1,024"]


def test_memory_bars_stack_estimates_on_counted_weights():
    rows = [("one", "resident", 14.0, 3.0), ("one", "stream", 0.5, 3.0), ("two", "resident", 33.0, 5.0)]
    table = pd.DataFrame(rows, columns=["model", "plan", "weights_gb", "activations_gb"])
    figure = figures.memory_bars(table, lines_gb=(8,))
    assert [ax.get_title() for ax in figure.axes] == ["one", "two"]
    weights, activations = figure.axes[0].containers
    assert [bar.get_height() for bar in weights] == [14.0, 0.5]
    assert [(bar.get_y(), bar.get_height()) for bar in activations] == [(14.0, 3.0), (0.5, 3.0)]


def test_a_planned_tree_shows_every_node_and_prompt():
    from sharing_cases import PROMPTS, SIGMAS, SURFACE, words

    from hybridlib.hybrid import share

    plan = share(PROMPTS, 0.8, sigmas=SIGMAS, surface=SURFACE, similarity=words)

    def nodes(roots):
        return sum(1 + nodes(node.children) for node in roots)

    ax = figures.planned_tree(plan).axes[0]
    level = [line for line in ax.lines if len(set(line.get_ydata())) == 1 and len(set(line.get_xdata())) == 2]
    assert len(level) == nodes(plan.roots)
    assert sum(line.get_xdata()[1] - line.get_xdata()[0] for line in level) * 2 == plan.nfe  # two evaluations a step
    assert len(ax.texts) == len(PROMPTS)
    assert len(figures.planned_tree(plan, most=5).axes[0].texts) == 5
