"""The cache of prefixes: the latents of a run without it, what it saves, what it never takes, what it never loses."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, LCMScheduler
from factories import diffusion_scheduler, random_sd, random_sd3, random_unet
from reference.stock import DRIFT

from hybridlib.codecs import DecimalRounding, MinMax
from hybridlib.denoising import prefixes as prefixes_module
from hybridlib.denoising.blend import Blend
from hybridlib.denoising.cache import PrefixCache
from hybridlib.denoising.prefixes import Keys
from hybridlib.denoising.sampler import Setup, sample
from hybridlib.denoising.solvers import with_solver
from hybridlib.denoising.state import DenoiseState
from hybridlib.denoising.thinning import Thinning
from hybridlib.denoising.trajectory import Segment, Trajectory
from hybridlib.files import replacing

STEPS = 6
OPTIONS = {"max_sequence_length": 12, "progress": False, "num_inference_steps": STEPS}
ROOMY = 1 << 30


def hybrid(personal="a red ring", common_step=3, seed=1, public="a ring", scale=2.0, negative=""):
    return Trajectory.hybrid(public, personal, common_step, seed, scale, 8.0, negative, STEPS)


USERS = [hybrid(f"a {colour} ring", seed=seed) for colour in ("red", "green") for seed in (1, 2)]


@pytest.fixture
def cache(tmp_path):
    return PrefixCache(tmp_path / "cache", ROOMY)


@pytest.fixture
def evaluated(tiny, monkeypatch):
    """The rows of every forward of the tiny network."""
    rows, forward = [], tiny.transformer.forward
    monkeypatch.setattr(tiny.transformer, "forward", lambda **k: rows.append(len(k["hidden_states"])) or forward(**k))
    return rows


def names(cache):
    return sorted(path.name for path in cache.files.folder.iterdir())


# --- bits


def test_a_repeated_call_goes_on_from_its_branch_points_bitwise(tiny, cache, evaluated):
    expected = sample(tiny, USERS, keep=[5], **OPTIONS)
    evaluated.clear()
    first = cache.sample(tiny, USERS, **OPTIONS)
    assert sum(evaluated) == first.cost.tree == expected.cost.tree
    assert torch.equal(first.latents(), expected.latents())
    assert cache.report()[:6] == (0, 0, 4, expected.cost.tree, 0, 2)  # one prefix a seed
    evaluated.clear()
    again = cache.sample(tiny, USERS, keep=[5], **OPTIONS)
    assert sum(evaluated) == again.cost.tree == 4 * 3 * 2
    assert torch.equal(again.latents(), expected.latents())
    assert torch.equal(again.latents(5), expected.latents(5))
    assert [a.tobytes() for a in again.images()] == [b.tobytes() for b in expected.images()]
    report = cache.report()
    assert report[:5] == (4, 0, 4, expected.cost.tree + again.cost.tree, 2 * 2 * 3)
    assert report.bytes == sum(path.stat().st_size for path in cache.files.folder.iterdir())


MIXED = [
    hybrid("a blue ring"),
    hybrid("a blue ring", common_step=4),
    hybrid("a blue ring", common_step=5, negative="a star"),
    hybrid("a white ring", seed=2).with_codec(3, MinMax(6)),
    hybrid("a blue ring", public=Blend(("a ring", "a star"))),
    Trajectory(1, (Segment("a ring", 0, 3, 4.0, thinning=Thinning(2, 1, 0.3)), Segment("a star", 3, STEPS))),
    Trajectory.plain("a star", 3, 1.0, "", STEPS),
]
SOLVERS = {
    "euler": lambda: random_sd3(),
    "dpm-solver++": lambda: with_solver(random_sd3(), "dpm-solver++"),
    "unet": lambda: random_sd(scheduler=diffusion_scheduler(DPMSolverMultistepScheduler)),
    "lcm": lambda: random_sd(scheduler=diffusion_scheduler(LCMScheduler)),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.slow
def test_one_row_a_forward_is_bitwise_whatever_is_stored(cache, solver):
    """Batches of one are the same with and without the cache, so everything is, in any mixture of hits."""
    pipeline, options = SOLVERS[solver](), {"progress": False, "num_inference_steps": STEPS, "batch_size": 1}
    expected = sample(pipeline, MIXED, **options).latents()
    cache.sample(pipeline, [hybrid("a green ring", s) for s in (2, 3, 4)], **options)
    cache.sample(pipeline, [MIXED[4]], store=range(STEPS), **options)
    before = cache.report()
    assert torch.equal(cache.sample(pipeline, MIXED, **options).latents(), expected)
    after = cache.report()
    assert (after.hits - before.hits, after.misses - before.misses) == (4, 3)
    assert after.saved > before.saved
    for path, row in zip(MIXED, expected, strict=True):
        assert torch.equal(cache.sample(pipeline, [path], **options).latents()[0], row)


def test_other_batches_differ_by_rounding_alone(tiny, cache):
    expected = sample(tiny, MIXED, **OPTIONS).latents()
    cache.sample(tiny, [hybrid("a green ring", s) for s in (2, 3, 4)], **OPTIONS)
    latents = cache.sample(tiny, MIXED, **OPTIONS).latents()
    assert cache.report().hits == 3
    torch.testing.assert_close(latents, expected, rtol=0, atol=DRIFT)
    control = sample(tiny, [hybrid("a blue ring", scale=2.1)], **OPTIONS).latents()
    assert (control - expected[:1]).abs().max() > 10 * DRIFT


def test_batches_of_one_do_not_take_what_larger_ones_have_stored(tiny, cache):
    cache.sample(tiny, USERS, **OPTIONS)
    cache.sample(tiny, USERS, batch_size=1, **OPTIONS)
    assert cache.report().hits == 0
    cache.sample(tiny, USERS, batch_size=1, **OPTIONS)
    cache.sample(tiny, USERS, batch_size=32, **OPTIONS)
    assert cache.report().hits == 8


@pytest.mark.slow
def test_solver_memory_that_began_anew_is_walked_apart(cache):
    """After a handoff that resets, rows of one step remember different numbers of updates."""
    pipeline, options = random_sd(), {"progress": False, "num_inference_steps": STEPS, "batch_size": 1}
    options |= {"denoisers": {"small": random_unet(width=16, seed=5)}, "handoff": "reset"}
    whole = Trajectory.plain("a ring", 1, 4.0, "", STEPS)
    paths = [whole, whole.with_denoisers([("", 3), ("small", 3)]), whole.with_denoisers([("", 2), ("small", 4)])]
    expected = sample(pipeline, paths, **options).latents()
    for _ in range(2):
        assert torch.equal(cache.sample(pipeline, paths, store=[4], **options).latents(), expected)
    assert cache.report().hits == 3
    states = [cache.find(Setup.of(pipeline, [path], **_of(options)), path) for path in paths]
    with pytest.raises(ValueError, match="states to resume together must hold a solver memory of one kind"):
        sample(pipeline, [path.since(4) for path in paths], resume=states, **options)


def _of(options):
    return {name: value for name, value in options.items() if name != "progress"}


def test_states_of_several_rows_are_resumed_together(tiny):
    """What the cache rests on: one walk from as many states as there are rows, two of one seed among them."""
    paths = [hybrid(), hybrid(public="a star"), hybrid("a green ring", seed=2), hybrid("a green ring")]
    samples = sample(tiny, paths, keep=[3], **OPTIONS)
    states = [samples.state(index, 3) for index in range(3)]
    rest, given = [path.since(3) for path in paths], [*states, states[0]]
    resumed = sample(tiny, rest, resume=given, **OPTIONS)
    torch.testing.assert_close(resumed.latents(), samples.latents(), rtol=0, atol=DRIFT)
    alone = [sample(tiny, [path], resume=state, **OPTIONS) for path, state in zip(rest, given, strict=True)]
    torch.testing.assert_close(resumed.latents(), torch.cat([a.latents() for a in alone]), rtol=0, atol=DRIFT)
    with pytest.raises(ValueError, match="resume must be one state, or one for each of 4, got 3"):
        sample(tiny, rest, resume=states, **OPTIONS)
    with pytest.raises(ValueError, match="the state has seed 1, a trajectory has 2"):
        sample(tiny, rest, resume=[*states[:2], *states[:2]], **OPTIONS)
    with pytest.raises(TypeError, match="resume must be a DenoiseState or a list of them, got 3"):
        sample(tiny, rest, resume=[3], **OPTIONS)


# --- what is a prefix of its own


def test_equal_beginnings_share_however_segments_are_cut(tiny, cache):
    cache.sample(tiny, [hybrid()], **OPTIONS)
    parts = (Segment("a ring", 0, 1, 2.0), Segment("a ring", 1, 3, 2.0), Segment("a star", 3, STEPS))
    cache.sample(tiny, [Trajectory(1, parts), hybrid("a green ring", common_step=5)], **OPTIONS)
    assert cache.report().hits == 2


CHANGES = {
    "seed": (hybrid(seed=2), {}),
    "public prompt": (hybrid(public="a star"), {}),
    "blend": (hybrid(public=Blend(("a ring", "a star"))), {}),
    "scale": (hybrid(scale=2.5), {}),
    "negative prompt": (Trajectory(1, (Segment("a ring", 0, 3, 2.0, "a star"), hybrid().segments[1])), {}),
    "codec": (hybrid().with_codec(2, MinMax(6)), {}),
    "another codec": (hybrid().with_codec(1, DecimalRounding(4.0)), {}),
    "shorter": (hybrid(common_step=2), {}),
    "shift": (hybrid(), {"shift": 2.0}),
    "steps": (hybrid(), {"num_inference_steps": STEPS + 1}),
    "size": (hybrid(), {"height": 40}),
    "tokens": (hybrid(), {"max_sequence_length": 11}),
    "handoff": (hybrid(), {"handoff": "reset"}),
    "batch of one": (hybrid(), {"batch_size": 1}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_decides_the_bits_decides_the_name(tiny, cache, change):
    path, options = CHANGES[change]
    setups = [Setup.of(tiny, [p], **_of(OPTIONS | o)) for p, o in ((hybrid(), {}), (path, options))]
    first, other = (Keys(setup).of(p)[:4] for setup, p in zip(setups, (hybrid(), path), strict=True))
    assert first[3] != other[3]
    assert Keys(setups[0]).of(hybrid("a green ring", negative="a star"))[:4] == first


def test_another_network_text_encoder_solver_or_version_has_other_names(tiny, monkeypatch):
    def name(pipeline):
        return Keys(Setup.of(pipeline, [hybrid()], **_of(OPTIONS))).of(hybrid())[3]

    same, network, texts = random_sd3(), random_sd3(seed=9), random_sd3()
    assert name(same) == name(tiny)
    network.text_encoder, network.text_encoder_2 = tiny.text_encoder, tiny.text_encoder_2
    texts.text_encoder_2 = random_sd3(seed=9).text_encoder_2
    without = random_sd3(with_t5=True)
    with_t5 = name(without)
    without.text_encoder_3 = None
    found = [name(tiny), name(network), name(texts), name(without), with_t5, name(with_solver(tiny, "dpm-solver++"))]
    monkeypatch.setattr(prefixes_module, "version", lambda package: "0.0.0")
    found.append(name(tiny))
    assert len({*found}) == len(found)


def test_a_named_denoiser_counts_only_where_it_takes_part(tiny):
    path = Trajectory.plain("a ring", 1, 4.0, "", STEPS).with_denoisers([("", 3), ("other", 3)])

    def chain(seed):
        options = _of(OPTIONS) | {"denoisers": {"other": random_sd3(seed=seed).transformer}}
        return Keys(Setup.of(tiny, [path], **options)).of(path)

    first, second = chain(5), chain(6)
    assert first[:4] == second[:4]
    assert first[4] != second[4]


def test_only_prefixes_up_to_the_first_kept_update_are_used(tiny, cache):
    expected = sample(tiny, [hybrid()], keep=[2, 4], **OPTIONS)
    cache.sample(tiny, [hybrid()], store=[1, 4], **OPTIONS)
    samples = cache.sample(tiny, [hybrid()], keep=[2, 4], store=(), **OPTIONS)
    for updates in (2, 4, STEPS):
        assert torch.equal(samples.latents(updates), expected.latents(updates))
    assert cache.report().saved == 2
    cache.sample(tiny, [hybrid()], keep=[0], store=(), **OPTIONS)
    assert cache.report().misses == 2
    assert cache.report().files == 2


def test_states_of_a_cached_call_tell_their_whole_past(tiny, cache):
    expected = sample(tiny, [hybrid()], keep=[5], **OPTIONS).state(0, 5)
    for _ in range(2):
        state = cache.sample(tiny, [hybrid()], keep=[5], **OPTIONS).state(0, 5)
        assert state.past == expected.past
        assert torch.equal(state.latents, expected.latents)
    assert cache.report().hits == 1
    stored = DenoiseState.load(next(cache.files.folder.iterdir()))  # a file like any other
    rest = sample(tiny, [hybrid().since(3)], resume=stored, **OPTIONS)
    assert torch.equal(rest.latents(), sample(tiny, [hybrid()], **OPTIONS).latents())


# --- prefixes of others


def test_a_rule_decides_on_prefixes_under_other_prompts(tiny, cache):
    cache.sample(tiny, [hybrid(), hybrid(common_step=4, public="a star"), hybrid(seed=2)], **OPTIONS)
    wanted, asked = hybrid("a green ring", common_step=2, public="a circle"), []

    def rule(prefix, trajectory):
        asked.append((prefix.step, prefix.past.segments[-1].prompt, round(prefix.sigma, 3)))
        assert trajectory is wanted
        return prefix.step == 3

    samples = cache.sample(tiny, [wanted], accept=rule, store=[2, 3, 5], **OPTIONS)
    sigmas = samples.scheduler.sigmas.tolist()
    assert asked == [(4, "a star", round(sigmas[4], 3)), (3, "a ring", round(sigmas[3], 3))]
    assert cache.report()[:3] == (0, 1, 3)
    walked = Trajectory(1, (Segment("a ring", 0, 3, 2.0), Segment("a green ring", 3, STEPS, 8.0)))
    assert samples.trajectories == [walked]
    # The prefix was walked beside others: float rounding of another batch.
    torch.testing.assert_close(samples.latents(), sample(tiny, [walked], **OPTIONS).latents(), rtol=0, atol=DRIFT)
    # What was stored on the way is known for what it is: no prefix of the trajectory that was asked for.
    setup = Setup.of(tiny, [wanted], **_of(OPTIONS))
    assert cache.find(setup, wanted) is None
    assert cache.find(setup, walked).past == walked.__class__(
        1, (walked.segments[0], replace(walked.segments[1], stop=5))
    )


def test_the_best_of_one_step_is_taken_and_an_own_prefix_before_shorter_ones(tiny, cache):
    cache.sample(tiny, [hybrid(public=text) for text in ("a ring", "a star", "a circle")], **OPTIONS)
    setup, wanted = Setup.of(tiny, [hybrid()], **_of(OPTIONS)), hybrid(public="a square")
    likes = {"a ring": 0.2, "a star": 0.9, "a circle": -1.0}
    state = cache.find(setup, wanted, accept=lambda prefix, _: likes[prefix.past.segments[0].prompt])
    assert state.past.segments[0].prompt == "a star"
    assert cache.find(setup, wanted, accept=lambda *_: 0) is None
    assert cache.find(setup, wanted, latest=2, accept=lambda *_: 1) is None
    cache.sample(tiny, [hybrid(public="a square", common_step=4)], **OPTIONS)
    own = cache.find(setup, hybrid(public="a square", common_step=5), accept=lambda *_: pytest.fail("asked"))
    assert (own.step, own.past.segments[0].prompt) == (4, "a square")


DIFFERENT = {  # what is stored, and after which updates it still differs from what is asked for in prompts alone
    "seed": (hybrid(seed=2), set()),
    "codec": (hybrid().with_codec(2, MinMax(6)), {2}),
    "denoiser": (hybrid().with_denoisers([("", 1), ("other", 5)]), {1}),
    "thinning": (
        Trajectory(1, (Segment("a ring", 0, 3, 2.0, thinning=Thinning(2, 1, 0.3)), Segment("a star", 3, STEPS))),
        set(),
    ),
    "prompt": (hybrid(), {3}),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_a_rule_is_asked_of_prefixes_that_differ_in_prompts_alone(tiny, cache, kind):
    (stored, expected), asked = DIFFERENT[kind], set()
    options = OPTIONS | {"denoisers": {"other": random_sd3(seed=5).transformer}}
    cache.sample(tiny, [stored], **options)
    wanted = hybrid("a green ring", public="a star")
    setups = [Setup.of(tiny, [wanted], **_of(options | more)) for more in ({}, {"batch_size": 1}, {"shift": 2.0})]
    for setup in setups:  # the others are other runs altogether
        assert cache.find(setup, wanted, accept=lambda prefix, _: asked.add(prefix.step) or 0) is None
    assert asked == expected
    assert cache.report().files >= 1


# --- files


def damaged(path, damage):
    data = path.read_bytes()
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "truncated":
        path.write_bytes(data[:-7])
    elif damage == "altered":
        path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    elif damage == "no state":
        path.write_bytes(os.urandom(300))


@pytest.mark.parametrize("damage", ["empty", "truncated", "altered", "no state"])
def test_a_damaged_prefix_is_removed_and_made_again(tiny, cache, damage):
    expected = cache.sample(tiny, [hybrid()], **OPTIONS).latents()
    (path,) = cache.files.folder.iterdir()
    whole = path.read_bytes()
    damaged(path, damage)
    setup = Setup.of(tiny, [hybrid()], **_of(OPTIONS))
    assert cache.find(setup, hybrid(), accept=lambda *_: 1) is None
    assert not path.exists()
    path.write_bytes(whole)
    damaged(path, damage)
    assert torch.equal(cache.sample(tiny, [hybrid()], **OPTIONS).latents(), expected)
    again = DenoiseState.load(path)
    assert torch.equal(again.latents, DenoiseState.from_bytes(whole).latents)
    assert again.notes == DenoiseState.from_bytes(whole).notes


def test_a_file_is_not_believed_for_its_name(tiny, cache):
    paths = [hybrid(), hybrid(public="a star")]
    expected = cache.sample(tiny, paths, **OPTIONS).latents()
    first, second = cache.files.folder.iterdir()
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b), second.write_bytes(a)
    setup = Setup.of(tiny, paths, **_of(OPTIONS))
    assert [cache.find(setup, path) for path in paths] == [None, None]
    assert not list(cache.files.folder.iterdir())
    assert torch.equal(cache.sample(tiny, paths, **OPTIONS).latents(), expected)
    # Nor one that is right in all but where it was made: the state of another text encoder under this name.
    state = DenoiseState.load(first)
    replace(state, notes={"prefix": "0" * 24}).save(first)
    assert sum(cache.find(setup, path) is None for path in paths) == 1


def test_what_was_used_longest_ago_leaves_first(tiny, tmp_path):
    paths = [hybrid(public=text) for text in ("a ring", "a star", "a circle", "a square")]
    size = len(sample(tiny, [hybrid()], keep=[3], **OPTIONS).state(0, 3).to_bytes())
    cache, setup = PrefixCache(tmp_path, 3 * size + size // 2), Setup.of(tiny, paths, **_of(OPTIONS))
    keys = [Keys(setup).of(path)[3] for path in paths]
    other = tmp_path / "model.safetensors"
    other.write_bytes(bytes(10 * size))  # somebody else's
    for age, path in enumerate(paths[:3]):
        cache.sample(tiny, [path], **OPTIONS)
        os.utime(cache.files.path(keys[age]), ns=(age, age))
    cache.find(setup, paths[0])  # used again, so the second is the oldest now
    cache.sample(tiny, [paths[3]], **OPTIONS)
    assert [cache.files.path(key).exists() for key in keys] == [True, False, True, True]
    assert other.exists()
    assert cache.report().bytes <= cache.files.max_bytes
    small = PrefixCache(tmp_path / "small", size // 2)
    small.sample(tiny, [hybrid()], **OPTIONS)
    assert small.report()[-2:] == (0, 0)


def test_what_a_kill_leaves_is_counted_and_leaves(tiny, tmp_path):
    whole, cache = PrefixCache(tmp_path / "whole", ROOMY), PrefixCache(tmp_path / "cut", ROOMY)
    whole.sample(tiny, [hybrid()], **OPTIONS)
    (state,) = whole.files.folder.iterdir()
    with pytest.raises(KeyError), replacing(tmp_path / "cut" / state.name) as partial:
        raise KeyError  # only its name is wanted: what is removed here, a kill leaves
    partial.write_bytes(state.read_bytes())
    assert cache.report()[-2:] == (1, partial.stat().st_size)
    assert cache.find(Setup.of(tiny, [hybrid()], **_of(OPTIONS)), hybrid(), accept=lambda *_: 1) is None
    cache.files.max_bytes = partial.stat().st_size
    os.utime(partial, ns=(0, 0))
    cache.sample(tiny, [hybrid()], **OPTIONS)
    assert names(cache) == [state.name]


def test_a_full_disk_costs_no_image(tiny, cache, monkeypatch):
    expected = sample(tiny, USERS, **OPTIONS).latents()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.warns(UserWarning, match="a prefix could not be stored: .*No space left on device"):
        latents = cache.sample(tiny, USERS, **OPTIONS).latents()
    assert torch.equal(latents, expected)


def test_threads_share_a_folder(tiny, tmp_path):
    """Three at once store, evict and read the same few prefixes: whatever is found is right, and nobody fails."""
    state = sample(tiny, [hybrid()], keep=[3], **OPTIONS).state(0, 3)
    setup = Setup.of(tiny, [hybrid()], **_of(OPTIONS))
    keys, size, found, failed = Keys(setup), len(state.to_bytes()), [], []
    name = keys.of(hybrid())[3]

    def work():
        files = PrefixCache(tmp_path, 2 * size).files
        try:
            for turn in range(60):
                files.store(name, state)
                if (loaded := files.load(name, keys)) is not None:
                    found.append(torch.equal(loaded.latents, state.latents))
                if turn % 7 == 0:
                    files.path(name).unlink(missing_ok=True)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert found
    assert all(found)


KILLED = """
import sys
from factories import random_sd3
from hybridlib.denoising.cache import PrefixCache
from hybridlib.denoising.trajectory import Trajectory
cache, pipeline = PrefixCache(sys.argv[1], int(sys.argv[2])), random_sd3()
print("ready", flush=True)
sys.stdin.readline()  # both begin together, however long one took to import
for seed in range(1000):
    path = Trajectory.hybrid("a ring", "a red ring", 3, seed, num_inference_steps=6)
    cache.sample(pipeline, [path], store=range(6), max_sequence_length=12, progress=False)
"""


@pytest.mark.slow
def test_processes_that_are_killed_leave_a_cache_that_is_right(tiny, tmp_path):
    """Two write to one small folder and are killed at work; what they left is whole or counts as absent."""
    size = len(sample(tiny, [hybrid()], keep=[3], **OPTIONS).state(0, 3).to_bytes())
    limit, folder = 20 * size, tmp_path / "cache"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    command = [sys.executable, "-c", KILLED, str(folder), str(limit)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen(command, env=environment, **pipes) for _ in range(2)]
    try:
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        while not folder.exists() or len(list(folder.iterdir())) < 12:
            assert all(worker.poll() is None for worker in workers)
            threading.Event().wait(0.05)
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    cache = PrefixCache(folder, limit)
    paths = [Trajectory.hybrid("a ring", "a red ring", 3, seed, num_inference_steps=6) for seed in range(1000)]
    setup = Setup.of(tiny, paths, **_of(OPTIONS))
    found = [path for path in paths if cache.find(setup, path) is not None]
    assert found
    for path in found[-2:]:
        assert torch.equal(cache.sample(tiny, [path], **OPTIONS).latents(), sample(tiny, [path], **OPTIONS).latents())
    assert cache.report().bytes <= limit + size


# --- bad input


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda t, c, p: PrefixCache(5, 10), TypeError, "folder must be a path, got 5"),
        (lambda t, c, p: PrefixCache(p, 1.5), TypeError, "max_bytes must be a whole number of bytes, got 1.5"),
        (lambda t, c, p: PrefixCache(p, 0), ValueError, "max_bytes must be above 0, got 0"),
        (lambda t, c, p: PrefixCache(__file__, 9), ValueError, "folder must be a folder, got the file"),
        (lambda t, c, p: c.sample(t, [hybrid()], accept=3), TypeError, "accept must be a function .*, got 3"),
        (lambda t, c, p: c.sample(t, [hybrid()], store=3), TypeError, "store must be a collection .*, got 3"),
        (lambda t, c, p: c.sample(t, [hybrid()], store=["3"]), TypeError, "store must be a collection .*, got '3'"),
        (lambda t, c, p: c.sample(t, [hybrid()], keep=[7]), ValueError, "keep must lie in 0..6, got 7"),
        (lambda t, c, p: c.sample(t, [hybrid().since(2)]), ValueError, "trajectories start at step 2; pass the state"),
        (lambda t, c, p: c.sample(t, [hybrid()], resume=None), TypeError, "unexpected keyword argument 'resume'"),
        (lambda t, c, p: c.sample(t, []), ValueError, "all trajectories of one tree must run .*, got none"),
    ],
)
def test_bad_input_is_one_sentence_before_any_evaluation(tiny, cache, tmp_path, monkeypatch, make, kind, message):
    monkeypatch.setattr(tiny.transformer, "forward", lambda *a, **k: pytest.fail("evaluated the network"))
    with pytest.raises(kind, match=message):
        make(tiny, cache, tmp_path)


def test_foreign_words_are_named_where_the_call_stands(tiny, cache):
    with pytest.warns(UserWarning, match="does not know 'dragon'") as caught:
        cache.sample(tiny, [hybrid("a dragon")], **OPTIONS)
    assert caught[0].filename == __file__
