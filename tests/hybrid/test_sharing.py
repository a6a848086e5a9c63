"""Planned trees: against brute force over all trees, on surfaces and similarities made by hand."""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np
import pytest
from sharing_cases import PROMPTS, SIGMAS, STEPS, SURFACE, TRUTH, surface_of, words

from hybridlib.denoising.tree import Tree
from hybridlib.hybrid import hiqm, planning, share
from hybridlib.hybrid.sharing import optimise, quality
from hybridlib.hybrid.sharing.groups import Conditioner
from hybridlib.hybrid.sharing.planner import MINI_SHIFT, one_public
from hybridlib.hybrid.sharing.quality import EXPECTED, LOW, Window


def planned(prompts=PROMPTS, *args, **options):
    options = {"sigmas": SIGMAS, "surface": SURFACE, "similarity": words} | options
    return share(prompts, *args, **options)


# --- the rules


@pytest.mark.parametrize("name", quality.RULES)
def test_one_handover_is_the_surface(name):
    view = quality.forecast(SURFACE, SIGMAS)
    row = int(view.rows(0.5))
    for step in (1, 4, 9):
        kept = quality.RULES[name](view.table, [Window(row, 0, step)])
        known = SURFACE.predict(SIGMAS[step], view.edges[row - 1])
        np.testing.assert_allclose(kept[:2], [known.mean, known.low], atol=1e-12)


def test_rules_in_the_limits_where_the_answer_is_known():
    view = quality.forecast(SURFACE, SIGMAS, same_scale=True)
    far, near = view.rows([0.3, 0.8])
    whole, cut = [Window(far, 0, 8)], [Window(far, 0, 3), Window(far, 3, 8)]
    own = [Window(far, 0, 3), Window(view.own, 3, 20)]
    for rule in (quality.added, quality.worst):
        np.testing.assert_allclose(rule(view.table, cut), rule(view.table, whole), atol=1e-12)
        np.testing.assert_allclose(rule(view.table, own), rule(view.table, [Window(far, 0, 3)]), atol=1e-12)
        np.testing.assert_array_equal(rule(view.table, []), [1, 1, 1])
    # the control: the product charges a node that was cut in two twice
    assert quality.product(view.table, cut)[EXPECTED] < quality.product(view.table, whole)[EXPECTED] - 0.01
    nearer = [Window(far, 0, 4), Window(near, 4, 12)]
    assert quality.added(view.table, nearer)[EXPECTED] < quality.worst(view.table, nearer)[EXPECTED]


def test_similarity_outside_the_fitted_range():
    view = quality.forecast(SURFACE, SIGMAS)
    assert np.isnan(view.table[:, view.rows(0.1999), 1:]).all()  # less alike than anything measured: not known
    assert view.rows(0.2) == 1
    np.testing.assert_array_equal(view.table[:, view.rows(0.99)], view.table[:, view.rows(0.9)])  # as the top
    assert (np.diff(view.table[:, 1:], axis=2) <= 0).all()
    assert (view.table[:, :, 0] == 1).all()


# --- the optimum


def partitions(items):
    if not items:
        yield []
        return
    first, *rest = items
    for mask in range(2 ** len(rest)):
        block = (first, *(x for i, x in enumerate(rest) if mask >> i & 1))
        for others in partitions([x for i, x in enumerate(rest) if not mask >> i & 1]):
            yield [block, *others]


def brute_force(charge, prompts, steps, nfe, slack):
    """Least NFE over all trees of any shape, every stop of every node tried, loss as real numbers."""

    @lru_cache(None)
    def forest(members, start, spent, whole):
        best = np.inf
        for blocks in partitions(list(members)):
            if len(blocks) > 1 or whole or len(members) == 1:
                best = min(best, sum(node(block, start, spent) for block in blocks))
        return best

    @lru_cache(None)
    def node(members, start, spent):
        if len(members) == 1:
            return nfe[1] * (steps - start)
        best = np.inf
        for stop in range(start + 1, steps):
            charged = round(spent + charge[members][start, stop], 12)
            if charged <= slack + 1e-12:
                best = min(best, nfe[0] * (stop - start) + forest(members, stop, charged, False))
        return best

    return forest(tuple(prompts), 0, 0.0, True)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("nfe", "each"), [((2, 2), False), ((1, 2), True)])
def test_short_lists_get_the_optimum_over_all_trees(seed, nfe, each):
    rng, steps, slack = np.random.default_rng(seed), 6, 0.3
    u = np.linspace(1, 1 / steps, steps)
    vectors = rng.normal(size=(5, 3)) + 1.2
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    view = quality.forecast(SURFACE, MINI_SHIFT * u / (1 + (MINI_SHIFT - 1) * u), each=each)
    conditioner = Conditioner(tuple("abcde"), vectors, view)
    groups = optimise.every_group(5)
    charges = [conditioner.charge(members, steps - 1) for members in groups.members]
    known = {
        tuple(m): np.full((steps, steps), np.inf) if c is None else c
        for m, c in zip((m.tolist() for m in groups.members), charges, strict=True)
    }
    best = brute_force(known, range(5), steps, nfe, slack)
    found = optimise.cheapest(groups, charges, steps, nfe, slack, resolution=20_000)
    assert found.nfe == best
    assert best < 5 * nfe[1] * steps  # something is shared, or nothing was tested
    along = optimise.dendrogram(vectors)
    limited = optimise.cheapest(
        along, [conditioner.charge(m, steps - 1) for m in along.members], steps, nfe, slack, 20_000
    )
    assert best <= limited.nfe


def test_dynamic_programming_is_exact_over_a_dendrogram():
    """Every choice of stops for the groups of one dendrogram, for random charges."""
    rng, steps = np.random.default_rng(1), 5
    groups = optimise.dendrogram(rng.normal(size=(5, 4)))
    charges = []
    for _ in groups.members:
        rise = np.concatenate([[0], np.cumsum(rng.random(steps - 1) * 0.2)])
        charges.append(rise[None, :] - rise[:, None])
    parent = {child: g for g, [(a, b)] in enumerate(groups.splits) for child in (a - 5, b - 5)}
    best = np.inf
    for stops in product(range(steps), repeat=4):  # a group that its parent outlasts shares nothing itself
        cost, leaf_start, feasible = 0, {}, True
        reached, charged = {}, {}
        for g in reversed(range(4)):
            start, spent = (reached[parent[g]], charged[parent[g]]) if g in parent else (0, 0.0)
            reached[g] = max(start, stops[g])
            charged[g] = spent + charges[g][start, reached[g]]
            cost += 2 * (reached[g] - start)
            feasible &= charged[g] <= 0.3
        leaf_start = [reached[parent[leaf - 5]] for leaf in range(5)]
        if feasible:
            best = min(best, cost + sum(2 * (steps - s) for s in leaf_start))
    assert optimise.cheapest(groups, charges, steps, (2, 2), 0.3, 20_000).nfe == best < 50


# --- plans


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("level", [0.5, 0.9])
@pytest.mark.parametrize("scales", [(2.0, 7.0), (7.0, 7.0), (1.0, 7.0), (0.0, 1.0)])
@pytest.mark.parametrize("floor", [0.9, 0.7])
def test_the_floor_is_kept_and_the_count_is_the_trees(each, level, scales, floor):
    plan = planned(PROMPTS, floor, each=each, level=level, public_guidance_scale=scales[0], guidance_scale=scales[1])
    low = plan.quality[LOW]
    assert (low.min() if each else low.mean()) >= floor - 1e-9
    assert Tree(plan.trajectories([3, 5])).cost.tree == 2 * plan.nfe
    assert Tree(plan.trajectories([3])).cost.one_at_a_time <= plan.one_at_a_time
    assert plan.nfe <= plan.one_public_nfe
    assert plan.shares


def test_the_control_a_plan_for_another_surface_breaks_the_floor():
    """Where similarity decides less than the plan was told, its quality falls below what was asked for."""
    plan = planned(PROMPTS, 0.8, each=True)
    harsher = quality.forecast(surface_of(TRUTH - [0, 0, 0, 0, 1.0, 0]), SIGMAS, each=True)
    from hybridlib.hybrid.sharing.plan import expected

    vectors = words(PROMPTS)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert expected(plan.paths, PROMPTS, dict(zip(PROMPTS, vectors, strict=True)), harsher)[LOW].min() < 0.8


def test_unrelated_prompts_share_nothing():
    plan = planned(["red star snow", "blue circle sand", "green ring wood"], 0.5)
    assert not plan.shares
    assert plan.nfe == plan.one_at_a_time == plan.one_public_nfe == 3 * 2 * STEPS
    np.testing.assert_array_equal(plan.quality, np.ones((3, 3)))
    # two that are alike among unrelated ones share with each other only
    mixed = planned(["red star snow", "red star sand", "blue circle wood", "green ring grass"], 0.7)
    assert sorted(root.members for root in mixed.roots) == [(0, 1), (2,), (3,)]


def test_repeated_prompts_are_drawn_once_and_counted_for_each():
    once, twice = planned(PROMPTS[:5], 0.8), planned([*PROMPTS[:5], *PROMPTS[:3]], 0.8)
    assert twice.nfe == once.nfe
    assert twice.one_at_a_time == 8 * 2 * STEPS
    assert twice.texts == once.texts
    assert twice.table["copies"].tolist() == [2, 2, 2, 1, 1]
    assert planned(["a star"] * 3).nfe == 2 * STEPS


def test_fewer_steps_and_sharing_together():
    """The cheaper of both schedules, each with what its own steps leave of the floor."""
    options = {"similarity": words, "surface": SURFACE}
    plain = share(PROMPTS, 0.85, **options)
    assert share(PROMPTS, 0.85, num_inference_steps={28: 1.0}, **options).nfe == plain.nfe
    for kept in (0.99, 0.9, 0.8):
        both = share(PROMPTS, 0.85, num_inference_steps={28: 1.0, 14: kept}, **options)
        short = share(PROMPTS, 1 - (kept - 0.85), num_inference_steps=14, **options) if kept > 0.85 else plain
        assert both.nfe == min(plain.nfe, short.nfe)
        assert both.quality[1].mean() >= 0.85 - 1e-9
        assert both.one_at_a_time == plain.one_at_a_time
    assert both.num_inference_steps == 28  # fourteen steps alone keep less than the floor
    budget = share(PROMPTS, budget=plain.nfe // 2, num_inference_steps={28: 1.0, 14: 0.99}, **options)
    assert budget.nfe <= plain.nfe // 2
    assert budget.num_inference_steps == 14


@pytest.mark.parametrize("number", [4, len(PROMPTS)])
def test_a_budget_buys_the_highest_floor(number):
    alone = 2 * STEPS * number
    plans = [planned(PROMPTS[:number], budget=int(part * alone)) for part in (0.6, 0.8, 1.0)]
    kept = [plan.quality[LOW].mean() for plan in plans]
    assert kept == sorted(kept)
    assert kept[-1] == 1
    for plan, part in zip(plans, (0.6, 0.8, 1.0), strict=True):
        assert plan.nfe <= part * alone
    # a floor a little above what the budget bought costs more than the budget
    assert planned(PROMPTS[:number], kept[1] + 0.02).nfe > 0.8 * alone
    with pytest.raises(ValueError, match="budget must be at least .* NFE, which the cheapest tree takes, got 3"):
        planned(budget=3)


def test_conditionings():
    public = planned(PROMPTS, 0.7, conditioning="public", public_prompts=["a star", "a circle"])
    assert {part.texts for path in public.paths for part in path[:-1]} <= {("a star",), ("a circle",)}
    assert Tree(public.trajectories(1)).cost.tree == public.nfe
    blend = planned(PROMPTS, 0.7, conditioning="blend")
    assert max(len(part.texts) for path in blend.paths for part in path) > 1
    for root in blend.roots:
        assert set(root.part.texts) == {blend.texts[i] for i in root.members}
    assert Tree(blend.trajectories(1)).cost.tree == blend.nfe


def test_one_public_prompt_is_the_planner_of_study_06():
    view = quality.forecast(SURFACE, SIGMAS)
    vectors = np.tile([1.0, 0.0], (3, 1))
    angle = np.arccos(0.6)
    vectors[1:] = [[np.cos(angle), np.sin(angle)], [np.cos(angle), -np.sin(angle)]]
    paths = one_public(Conditioner(("a", "b", "c"), vectors, view), 0.05, (2.0, 7.0))
    # "a" is the closest to both, at .6; itself it counts as the most alike that was fitted
    mean = (SURFACE.predict(SIGMAS, 0.9).low + 2 * SURFACE.predict(SIGMAS, view.edges[view.rows(0.6) - 1]).low) / 3
    assert paths[1][0].stop == int(np.argmin(mean >= 0.95)) - 1
    assert paths[1][0].texts == ("a",)


def test_long_lists_are_planned_in_blocks(monkeypatch):
    monkeypatch.setattr(optimise, "BLOCK", 30)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 8))
    groups = optimise.dendrogram(vectors)
    assert len(groups.splits) == 199
    assert sorted(groups.members[-1].tolist()) == list(range(200))
    seen = set()
    for number, (members, [(a, b)]) in enumerate(zip(groups.members, groups.splits, strict=True)):
        parts = [[x] if x < 200 else groups.members[x - 200].tolist() for x in (a, b)]
        assert sorted(members.tolist()) == sorted(parts[0] + parts[1])
        assert max(a, b) < 200 + number  # small groups first
        seen |= {a, b}
    assert len(seen) == 398
    same = optimise.dendrogram(np.ones((100, 3)))  # nothing tells them apart
    assert len(same.splits) == 99


@pytest.mark.parametrize(
    ("prompts", "options", "kind", "message"),
    [
        ("a star", {}, TypeError, "prompts must be a list of texts, got 'a star'"),
        ([], {}, ValueError, "prompts must hold at least one prompt, got none"),
        (["a", " "], {}, ValueError, r"prompts\[1\] must not be empty, got ' '"),
        (["a", 3], {}, TypeError, r"prompts\[1\] must be text, got 3"),
        (["a"], {"quality_floor": 0.0}, ValueError, "quality_floor must lie above 0 and at most at 1 .*, got 0.0"),
        (["a"], {"quality_floor": 1.01}, ValueError, "quality_floor must lie"),
        (["a"], {"quality_floor": float("nan")}, ValueError, "quality_floor must lie"),
        (["a"], {"level": 0.4}, ValueError, "level must lie between .5 and 1, got 0.4"),
        (["a"], {"guidance_scale": float("inf")}, ValueError, "guidance scales must be finite"),
        (["a"], {"conditioning": "publik"}, ValueError, "no conditioning 'publik'; did you mean 'public'"),
        (["a"], {"conditioning": "public"}, ValueError, "public_prompts must hold at least one prompt"),
        (["a"], {"sigmas": [0.1, 0.9]}, ValueError, "sigmas must be flow-matching noise levels"),
        (["a"], {"sigmas": None, "num_inference_steps": 0}, ValueError, "num_inference_steps must lie in 1..1000"),
        (["a"], {"sigmas": None, "shift": -1.0}, ValueError, "shift must lie above 0"),
        (["a"], {"surface": None, "guidance_scale": 5.0}, ValueError, "shipped surface is for .* 2 and 7 or 7 and 7"),
        (["a"], {"num_inference_steps": {28: 1.0}}, ValueError, "sigmas are of one schedule; give num_inference_steps"),
        (["a"], {"sigmas": None, "num_inference_steps": {}}, ValueError, r"must say what each number .*, got {}"),
        (["a"], {"sigmas": None, "num_inference_steps": {9: 1.5}}, ValueError, r"keeps, in \(0, 1\], got {9: 1.5}"),
        (["a"], {"sigmas": None, "num_inference_steps": {9: 0.7}}, ValueError, "keeps 0.95, the best keeps 0.7"),
        (
            ["a"],
            {"sigmas": None, "num_inference_steps": {9: 1.0}, "budget": 3},
            ValueError,
            r"one of \[9\] steps, got 3",
        ),
        (["a"], {"similarity": lambda texts: np.full((1, 2), np.nan)}, ValueError, "similarity must give a finite"),
    ],
)
def test_bad_input_is_one_sentence(prompts, options, kind, message):
    with pytest.raises(kind, match=message):
        planned(prompts, **options)


@pytest.mark.parametrize(
    "options", [{"shift": 1.0}, {"sigmas": SIGMAS}, {"surface": SURFACE}, {"guidance_scale": 5.0}], ids=str
)
def test_any_number_of_steps_is_known_where_it_was_measured(options):
    with pytest.raises(ValueError, match="'any' is known for mini-sd3 on its own noise schedule at guidance_scale 7"):
        share(PROMPTS, 0.9, num_inference_steps="any", similarity=words, **options)
    with pytest.raises(ValueError, match="must be a number, or 'any', got 'all'"):
        share(PROMPTS, 0.9, num_inference_steps="all", similarity=words)


def test_single_prompts_need_their_scatter():
    bare = planning.QualitySurface(TRUTH, np.empty((0, 6)), (0.2, 0.9), np.arange(28), SIGMAS, 0.1)
    assert planned(surface=bare, quality_floor=0.8).shares
    with pytest.raises(ValueError, match="does not know how single prompts scatter"):
        planned(surface=bare, each=True)


def test_spread_holds_for_the_stated_share_of_cells():
    """Quality with scatter that grows as more is shared: bounds hold for nine of ten cells at every step."""
    rng, prompts = np.random.default_rng(0), 30
    similarity = np.full((prompts, prompts), 0.5) + 0.2 * rng.random((prompts, prompts))
    levels = SIGMAS[::4]
    noise = rng.normal(size=(prompts, prompts, 7)) * np.linspace(0.001, 0.2, 7)
    truth = SURFACE(levels[None, None, :], similarity[..., None])
    cube = hiqm.Cube(truth + noise, similarity, np.arange(0.0, 28, 4), levels)
    fitted = planning.fit_surface(cube, rounds=0)
    fresh = truth + rng.normal(size=noise.shape) * np.linspace(0.001, 0.2, 7)
    bound = fitted.predict_each(levels[None, None, :], similarity[..., None], 0.9)
    kept = ((fresh >= bound.low)[cube.measured.all(axis=2)]).mean(axis=0)
    np.testing.assert_allclose(kept[1:], 0.9, atol=0.05)  # 870 cells: standard error .01, and that of the quantile
    below = (fresh >= fitted(levels[None, None, :], similarity[..., None]))[cube.measured.all(axis=2)].mean(axis=0)
    assert (below[1:] < 0.7).all()  # the control: the mean itself holds for about half


# --- images


def test_images_come_in_the_order_of_the_prompts(tiny):
    plan = share(["a star", "a circle", "a star"], 0.5, sigmas=sigmas_of(tiny, 4), surface=SURFACE, similarity=alike)
    assert plan.shares
    images = plan.run(tiny, [1, 2], max_sequence_length=1, progress=False)
    assert [len(row) for row in images] == [2, 2, 2]
    first, second, third = ([np.asarray(image) for image in row] for row in images)
    np.testing.assert_array_equal(first, third)
    assert np.abs(first[0].astype(int) - second[0]).max() > 0
    from hybridlib.denoising.sampler import sample

    way = sample(tiny, [plan.trajectories([2])[1]], max_sequence_length=1, progress=False).images()
    np.testing.assert_allclose(second[1].astype(int), np.asarray(way[0]).astype(int), atol=1)  # rows round alike


def test_a_plan_goes_on_from_a_cache(tiny, tmp_path):
    from hybridlib.denoising.cache import PrefixCache

    plan = share(["a star", "a circle"], 0.5, sigmas=sigmas_of(tiny, 4), surface=SURFACE, similarity=alike)
    cache, options = PrefixCache(tmp_path, 2**24), {"max_sequence_length": 1, "progress": False, "batch_size": 1}
    runs = [plan.run(tiny, 1, **options), *(plan.run(tiny, 1, cache=cache, **options) for _ in range(2))]
    pixels = [[np.asarray(row[0]) for row in images] for images in runs]
    np.testing.assert_array_equal(pixels[0], pixels[1])  # bits, where each row has a forward of its own
    np.testing.assert_array_equal(pixels[0], pixels[2])
    report = cache.report()
    assert (report.hits, report.misses) == (2, 2)
    assert report.saved == plan.roots[0].part.stop * plan.roots[0].part.nfe


def test_a_plan_refuses_another_model_and_other_noise_levels(tiny):
    with pytest.raises(ValueError, match="the surface was fitted to images of other, this pipeline holds SD3Trans"):
        share(["a star"], sigmas=sigmas_of(tiny, 4), surface=surface_of(model="other"), similarity=alike).run(tiny)
    with pytest.raises(ValueError, match="the plan was made for noise levels 1.0000 .. "):
        share(["a star"], sigmas=sigmas_of(tiny, 4) ** 2, surface=SURFACE, similarity=alike).run(tiny)


def sigmas_of(pipeline, steps):
    from hybridlib.denoising.families import denoiser_of
    from hybridlib.denoising.solvers import noise_levels, prepared_scheduler

    return noise_levels(prepared_scheduler(denoiser_of(pipeline), steps, (8, 8)))[:-1].double().numpy()


def alike(texts):
    return np.array([[1.0, 0.5 * i] for i in range(len(texts))])
