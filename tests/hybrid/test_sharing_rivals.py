"""Rules of others against their descriptions, and prompts that arrive over time against brute force."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from sharing_cases import PROMPTS, SIGMAS, STEPS, SURFACE, words

from hybridlib.denoising.trajectory import Segment, Trajectory
from hybridlib.denoising.tree import Tree
from hybridlib.hybrid.sharing import rivals
from hybridlib.hybrid.sharing.online import OnlineTree
from hybridlib.hybrid.sharing.plan import Part, expected
from hybridlib.hybrid.sharing.planner import ask
from hybridlib.hybrid.sharing.quality import LOW
from hybridlib.hybrid.sharing.reuse import floor_rule


def asked(prompts=PROMPTS, **options):
    return ask(prompts, **{"sigmas": SIGMAS, "surface": SURFACE, "similarity": words} | options)


def cosines(prompts=PROMPTS):
    vectors = words(prompts)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors @ vectors.T


def test_nothing_shared_and_fewer_steps():
    question = asked(PROMPTS[:6])
    assert rivals.alone(question).nfe == 6 * 2 * STEPS
    plan = rivals.fewer_steps(question, asked(PROMPTS[:6], sigmas=SIGMAS[:16]))
    assert (plan.nfe, plan.num_inference_steps) == (192, 16)
    assert np.isnan(plan.quality).all()


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 3.0])
def test_clusters_part_as_the_threshold_falls(tau):
    """Written from the paper: the clusters of height at most phi(k) run under their mean at step k."""
    from scipy.cluster.hierarchy import fcluster, ward
    from scipy.spatial.distance import pdist

    plan = rivals.clustered(asked(), tau)
    tree = ward(pdist(words(PROMPTS), "cosine"))
    rows = [len(set(fcluster(tree, h, "distance"))) for h in np.linspace(tau, 0, STEPS)]
    assert plan.nfe == 2 * sum(rows)
    assert {part.guidance_scale for path in plan.paths for part in path} == {7.0}
    for path, text in zip(plan.paths, plan.texts, strict=True):
        assert path[-1] == Part((text,), STEPS, 7.0)
        assert all(text in part.texts for part in path)
        assert all(set(late.texts) < set(early.texts) for early, late in pairwise(path))
    assert plan.shares == (tau > 0)
    assert Tree(plan.trajectories(1)).cost.tree == plan.nfe


def test_semantic_groups_are_alike_and_share_the_first_steps():
    matrix, number = cosines(), {text: i for i, text in enumerate(PROMPTS)}
    plan = rivals.semantic_groups(asked(), 0.7, 0.4)
    assert plan.shares
    groups = {path[0].texts for path in plan.paths if len(path) > 1}
    for group in groups:
        members = [number[text] for text in group]
        assert matrix[np.ix_(members, members)].min() >= 0.7 - 1e-6
    assert all(path[0].stop in (11, STEPS) for path in plan.paths)  # .4 of 28, rounded
    shared = sum(len(group) - 1 for group in groups)
    assert plan.nfe == 2 * (STEPS * len(PROMPTS) - 11 * shared)
    assert not rivals.semantic_groups(asked(), 0.9999, 0.4).shares
    assert not rivals.semantic_groups(asked(), 0.1, 0.0).shares


def test_one_public_prompt_keeps_the_floor_and_one_step_more_would_not():
    question = asked(conditioning="public", public_prompts=["a large star on snow"])
    plan = rivals.public_prompt(question, 0.8)
    stop = plan.paths[0][0].stop
    assert {len(path) for path in plan.paths} == {2}
    later = [(path[0]._replace(stop=stop + 1), *path[1:]) for path in plan.paths]
    assert plan.quality[LOW].mean() >= 0.8 > question.plan(later).quality[LOW].mean()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda q: rivals.clustered(q, -1.0), "tau must not be negative, got -1.0"),
        (lambda q: rivals.semantic_groups(q, share=1.0), r"share must lie in \[0, 1\), got 1.0"),
        (lambda q: rivals.public_prompt(q, 0.0), "quality_floor must lie above 0"),
    ],
)
def test_bad_rules_are_one_sentence(rule, message):
    with pytest.raises(ValueError, match=message):
        rule(asked(PROMPTS[:3]))


# --- prompts that arrive over time


def online(**options):
    return OnlineTree.start(**{"sigmas": SIGMAS, "surface": SURFACE, "similarity": words} | options)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("keeps", [False, True])
def test_a_request_joins_at_the_latest_step_that_its_floor_allows(keeps, each):
    rng = np.random.default_rng(0)
    tree, now = online(quality_floor=0.7, keeps=keeps, each=each), 0
    joined = 0
    for prompt in rng.permutation(PROMPTS[:14]).tolist():
        now += int(rng.integers(0, 6))
        before = list(zip(tree.paths, tree.ticks, strict=True))
        fork = tree.join(prompt, now)
        best = 0
        for path, ticks in before:  # every earlier request, every step
            for step in range(1, STEPS):
                way = [
                    p._replace(stop=min(p.stop, step)) for i, p in enumerate(path) if not i or path[i - 1].stop < step
                ]
                vectors = {text: tree.vectors[text] for text in tree.vectors}
                low = expected([(*way, Part((prompt,), STEPS, 7.0))], [prompt], vectors, tree.forecast)[LOW, 0]
                if low >= 0.7 - 1e-12 and (keeps or ticks[step] >= now):
                    best = max(best, step)
        assert fork.step == best
        assert (fork.host is None) == (best == 0)
        assert fork.ends >= now + (STEPS - best)
        joined += best > 0
    assert joined > 3
    assert tree.plan.quality[LOW].min() >= 0.7 - 1e-9
    assert Tree(tree.plan.trajectories(1)).cost.tree == tree.plan.nfe < tree.plan.one_at_a_time


def test_time_in_the_online_tree():
    first, other = PROMPTS[0], PROMPTS[1]
    tree = online(quality_floor=0.7)
    assert tree.join(first, 5) == (None, 0, 5, 5 + STEPS)
    step = tree.join(other, 5).step
    assert 0 < step < STEPS
    assert tree.join(first, 6) == (0, STEPS, 5 + STEPS, 5 + STEPS)  # a repeated prompt waits for its image
    late = online(quality_floor=0.7)
    late.join(first, 0)
    assert late.join(other, 100) == (0, step, 100, 100 + STEPS - step)  # from a state that was kept
    passed = online(quality_floor=0.7, keeps=False)
    passed.join(first, 0)
    assert passed.join(other, step + 1).host is None
    with pytest.raises(ValueError, match="now must not lie before the last request, at tick 100, got 99"):
        late.join("a star", 99)
    with pytest.raises(ValueError, match="must not be empty"):
        late.join(" ", 101)


def test_unrelated_requests_share_nothing_online():
    tree = online(quality_floor=0.5)
    assert [tree.join(text).host for text in ("red star snow", "blue circle sand", "green ring wood")] == [None] * 3


# --- a cache of prefixes


def test_a_prefix_is_taken_only_if_the_floor_holds():
    first, other = PROMPTS[0], PROMPTS[1]
    view = asked().conditioner.forecast
    rule = floor_rule(view, 0.8, similarity=words)
    wanted = Trajectory.plain(other, 1, 7.0, num_inference_steps=STEPS)
    row = int(view.rows(cosines([first, other])[0, 1]))
    for step in range(1, STEPS):
        past = Trajectory(1, (Segment(first, 0, step, 2.0),))
        low = view.table[LOW, row, step]
        assert rule(SimpleNamespace(past=past), wanted) == pytest.approx(low if low >= 0.8 else 0.0, abs=1e-12)
    near = Trajectory(1, (Segment(first, 0, 1, 2.0),))
    assert rule(SimpleNamespace(past=near), wanted) > 0.8
    # what comes after the prefix counts, too
    through = Trajectory(1, (Segment(first, 0, 2, 2.0), Segment(first, 2, 20, 2.0), Segment(other, 20, STEPS, 7.0)))
    assert rule(SimpleNamespace(past=near), through) == 0
    # nothing is known of other scales, of negative prompts, of strange prompts and of other schedules
    for past, asked_for in (
        (Trajectory(1, (Segment(first, 0, 1, 5.0),)), wanted),
        (Trajectory(1, (Segment(first, 0, 1, 2.0, "a ring"),)), wanted),
        (Trajectory(1, (Segment("green ring wood", 0, 1, 2.0),)), wanted),
        (near, Trajectory.plain(other, 1, 7.0, num_inference_steps=STEPS - 1)),
        (near, Trajectory.plain(other, 1, 5.0, num_inference_steps=STEPS)),
    ):
        assert rule(SimpleNamespace(past=past), asked_for) == 0
    with pytest.raises(ValueError, match="quality_floor must lie above 0"):
        floor_rule(view, 0.0)
