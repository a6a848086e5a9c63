from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridlib.codecs import MinMax
from hybridlib.denoising.trajectory import Segment, Trajectory
from hybridlib.denoising.tree import Cost, Tree
from hybridlib.hybrid import grids
from hybridlib.prompts import PromptSet


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a ring", 3, 3), "start=3, stop=3"),
        (("a ring", -1, 3), "start=-1"),
        (("a ring", 0, 3, float("nan")), "guidance_scale.*nan"),
        (("a ring", 0, 3, -1.0), "guidance_scale.*-1"),
    ],
)
def test_segment_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        Segment(*arguments)


def test_trajectory_refuses_gaps_and_emptiness():
    with pytest.raises(ValueError, match="stops at 3, the next starts at 4"):
        Trajectory(0, (Segment("a", 0, 3), Segment("b", 4, 8)))
    with pytest.raises(ValueError, match="at least one segment"):
        Trajectory(0, ())


@pytest.mark.parametrize("common_step", [-1, 29, 2.5])
def test_common_step_outside_schedule_is_refused(common_step):
    with pytest.raises(ValueError, match=rf"common_step must lie in 0..28 .* got {common_step}"):
        Trajectory.hybrid("a ring", "a red ring", common_step, seed=1)


def test_both_ends_of_common_step():
    assert Trajectory.hybrid("a", "b", 0, 1).segments == (Segment("b", 0, 28, 8.0),)
    assert Trajectory.hybrid("a", "b", 28, 1).segments == (Segment("a", 0, 28, 2.0),)


def test_trees_need_trajectories_over_the_same_steps():
    with pytest.raises(ValueError, match=r"0\.\.6, 0\.\.8"):
        Tree([Trajectory.plain("a", 1, num_inference_steps=n) for n in (8, 6)])
    with pytest.raises(ValueError, match="got none"):
        Tree([])


def test_without_guidance_scale_and_negative_do_not_matter():
    tree = Tree([Trajectory.plain("a ring", 1, scale, negative) for scale in (0, 0.5, 1) for negative in ("", "blue")])
    assert tree.cost.tree == 28
    assert tree.cost.one_at_a_time == 6 * 28


def brute_force_cost(trajectories):
    """NFE as the number of distinct (seed, conditionings so far) prefixes, two for a guided step."""
    prefixes = set()
    for t in trajectories:
        conditionings = tuple((move.denoiser, move.conditioning) for move in t.moves())
        prefixes |= {(t.seed, conditionings[: i + 1]) for i in range(len(conditionings))}
    return sum(2 if path[-1][1].guidance_scale > 1 else 1 for _, path in prefixes), len(prefixes)


hybrids = st.builds(
    Trajectory.hybrid,
    st.sampled_from("ab"),
    st.sampled_from("abc"),
    st.integers(0, 6),
    st.integers(0, 2),
    st.sampled_from([0.0, 1.0, 2.0, 7.0]),
    st.sampled_from([1.0, 7.0]),
    st.sampled_from(["", "blue"]),
    st.just(6),
)


splits = st.builds(lambda t, a: t.with_denoisers([("", a), ("small", 6 - a)]), hybrids, st.integers(0, 6))


@given(st.lists(hybrids | splits, min_size=1, max_size=20))
@pytest.mark.slow
def test_tree_shares_exactly_the_common_prefixes(trajectories):
    tree = Tree(trajectories)
    assert (tree.cost.tree, tree.steps) == brute_force_cost(trajectories)
    for level, step in zip(tree.levels, range(6), strict=True):
        assert sorted(i for edge in level for i in edge.members) == list(range(len(trajectories)))
        for edge in level:
            moves = {list(trajectories[i].moves())[step] for i in edge.members}
            assert {(move.conditioning, move.denoiser) for move in moves} == {(edge.conditioning, edge.denoiser)}
    assert Cost.total([tree.cost, tree.cost]).tree == 2 * sum(tree.cost.of(name).tree for name in tree.denoisers)


def test_the_default_denoiser_leaves_no_trace_in_json():
    """Ledgers and states of studies with one model keep their bytes."""
    path = Trajectory.plain("a ring", 1, num_inference_steps=6)
    told = {"prompt": "a ring", "start": 0, "stop": 6, "guidance_scale": 7.0, "negative_prompt": ""}
    assert path.as_json() == {"seed": 1, "segments": [told]}
    split = path.with_denoisers([("", 2), ("small", 4)])
    assert [segment.get("denoiser") for segment in split.as_json()["segments"]] == [None, "small"]
    assert Trajectory.from_json(split.as_json()) == split
    assert path.with_denoisers([("", 6)]) == path


def test_parts_cut_segments_and_leave_codecs_where_they_were():
    path = Trajectory.hybrid("a", "b", 3, 1, num_inference_steps=8).with_codec(3, MinMax(4)).with_codec(5, MinMax(8))
    split = path.with_denoisers([("x", 2), ("y", 0), ("z", 3), ("x", 3)])
    assert [(s.start, s.stop, s.prompt, s.denoiser, s.codec) for s in split.segments] == [
        (0, 2, "a", "x", None),
        (2, 3, "a", "z", None),
        (3, 5, "b", "z", MinMax(4)),
        (5, 8, "b", "x", MinMax(8)),
    ]
    with pytest.raises(ValueError, match="the parts end after 5 updates, the trajectory after 8"):
        path.with_denoisers([("x", 5)])


@pytest.mark.slow
def test_counts_of_the_published_similarity_study():
    """Published needs: 184,162 steps per seed with SIM and NPI, 175,252 without (22 x 22 pairs, s = 0..27)."""
    prompts = PromptSet.load("miniature")
    everyone = [*prompts.public, *prompts.personal]
    negatives = ["", "", *prompts.negative]
    pairs = list(product(range(22), range(22), range(28)))
    with_sim = [Trajectory.hybrid(everyone[a], everyone[b], s, 1, 2.0, 8.0, negatives[b]) for a, b, s in pairs]
    without = [Trajectory.hybrid(everyone[a], everyone[b], s, 1, 7.0, 7.0) for a, b, s in pairs]
    assert Tree(with_sim).steps == 184_162
    assert Tree(without).steps == 175_252


HEAVY = (pytest.param(study, marks=pytest.mark.slow) for study in ("similarity", "anchored"))


@pytest.mark.parametrize("study", ["SIM", "NPI", *HEAVY])
def test_counts_of_the_published_grids(study):
    check = grids.published_cost_check(PromptSet.load("miniature"), [study])
    assert len(check) >= 2
    assert check["agrees"].all()
