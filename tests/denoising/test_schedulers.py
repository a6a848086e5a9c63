"""Every flow-capable scheduler of the installed diffusers: walked as stock diffusers would, or refused."""

from __future__ import annotations

import inspect

import diffusers
import pytest
import torch
from reference.hybrid_loop import hybrid_latents
from reference.stock import DRIFT, noise, stock

from hybridlib.denoising.sampler import sample
from hybridlib.denoising.solvers import SCHEDULERS, check_scheduler
from hybridlib.denoising.state import DenoiseState
from hybridlib.denoising.trajectory import Segment, Trajectory

STEPS, PROMPT = 7, "a red ring on snow"
OPTIONS = {"max_sequence_length": 12, "progress": False}

WALKED = [
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 0.35, "use_karras_sigmas": True}),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    ("FlowMapEulerDiscreteScheduler", {"shift": 3.0}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3, "euler_at_final": True}),
    ("DPMSolverSinglestepScheduler", {}),
    ("DPMSolverSinglestepScheduler", {"solver_order": 3}),
    ("DEISMultistepScheduler", {}),
    ("DEISMultistepScheduler", {"solver_order": 3, "lower_order_final": False}),
    ("UniPCMultistepScheduler", {}),
    ("UniPCMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True}),
]
NOISY, OTHER = "draws noise at every step", "cannot be walked as a tree"
REFUSED = {
    "FlowMatchLCMScheduler": NOISY,
    "LTXEulerAncestralRFScheduler": NOISY,
    "SASolverScheduler": NOISY,
    "DPMSolverMultistepInverseScheduler": OTHER,  # from image to noise
    "MiniMaxH3Scheduler": OTHER,  # velocities of the other sign
    "SCMScheduler": OTHER,  # another parametrisation
    "HeliosScheduler": OTHER,  # several resolutions
    "HeliosDMDScheduler": OTHER,
    "PiflowScheduler": OTHER,  # models of its own
    "RFD4ProteinaScheduler": OTHER,
}
CONFIGURED = [
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, NOISY),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, NOISY),
    ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}, NOISY),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": False}, "needs use_flow_sigmas=True"),
    ("UniPCMultistepScheduler", {"prediction_type": "epsilon"}, "needs use_flow_sigmas=True"),
    ("DDIMScheduler", {}, OTHER),
    ("EulerDiscreteScheduler", {}, OTHER),
    ("HeunDiscreteScheduler", {}, OTHER),
]


def make(name, **options):
    cls = getattr(diffusers, name)
    allowed = inspect.signature(cls.__init__).parameters
    if "use_flow_sigmas" in allowed:
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        options = flow | ({"flow_shift": 3.0} if "flow_shift" in allowed else {}) | options
    if name == "RFD4ProteinaScheduler":
        options = {"schedule_mode": "power", "noise_mode": "tan", "noise_scale": 1.0, "tsr_k": 1.0} | options
        options = {key: value for key, value in options.items() if key in allowed}
        missing = [p for p in list(allowed.values())[1:] if p.default is p.empty and p.name not in options]
        options |= {p.name: 1.0 for p in missing}
    return cls(**options)


def identifier(value):
    return value.removesuffix("Scheduler") if isinstance(value, str) else ",".join(value) if value else "plain"


walked = pytest.mark.parametrize(("name", "options"), WALKED, ids=identifier)


@pytest.fixture
def solved(tiny, monkeypatch):
    """The tiny pipeline under another scheduler."""

    def under(name, **options):
        monkeypatch.setattr(tiny, "scheduler", make(name, **options))
        monkeypatch.setattr(tiny, "_handover", None)
        return tiny

    return under


def call(pipeline, prompt=PROMPT, **options):
    options = {"guidance_scale": 4.0, "num_inference_steps": STEPS, "output_type": "latent"} | options
    return pipeline(prompt, generator=torch.Generator().manual_seed(3), max_sequence_length=12, **options)


@pytest.mark.slow
def test_every_flow_scheduler_of_diffusers_is_listed():
    mention_flow = {
        name
        for name, cls in inspect.getmembers(diffusers, inspect.isclass)
        if name.endswith("Scheduler")
        and cls.__module__.startswith("diffusers.schedulers")
        and "flow" in inspect.getsource(cls).lower()
    }
    assert mention_flow == {name for name, _ in WALKED} | set(REFUSED)
    assert {name for name, _ in WALKED} == set(SCHEDULERS)


@walked
def test_plain_walk_is_stock_bit_for_bit(solved, name, options):
    pipeline = solved(name, **options)
    expected = call(stock(pipeline)).images
    assert torch.equal(call(pipeline).images, expected)
    path = Trajectory.plain(PROMPT, 3, 4.0, num_inference_steps=STEPS)
    assert torch.equal(sample(pipeline, [path], **OPTIONS).latents(), expected)


@walked
@pytest.mark.parametrize("common_step", [2, 5])
def test_the_same_prompt_in_both_phases_is_stock_bit_for_bit(solved, name, options, common_step):
    pipeline = solved(name, **options)
    expected = call(stock(pipeline)).images
    output = call(pipeline, public_prompt=PROMPT, common_step=common_step)
    assert torch.equal(output.images, expected)
    path = Trajectory.hybrid(PROMPT, PROMPT, common_step, 3, 4.0, 4.0, num_inference_steps=STEPS)
    assert torch.equal(sample(pipeline, [path], **OPTIONS).latents(), expected)


@walked
def test_a_forked_walk_is_the_reference_loop(solved, name, options):
    pipeline = solved(name, **options)
    personal = [PROMPT, "a green ring on grass"]
    paths = [
        Trajectory.hybrid("a ring", text, step, 3, 2.0, 6.0, num_inference_steps=STEPS)
        for text in personal
        for step in (2, 3, 5)
    ]
    latents = sample(pipeline, paths, **OPTIONS).latents()
    order = pipeline.scheduler.order  # the loop counts evaluations
    for row, path in enumerate(paths):
        switch, text = path.segments[0].stop, path.segments[1].prompt
        start = noise(pipeline, 3)
        expected = hybrid_latents(pipeline, "a ring", text, order * switch, start, 2.0, 6.0, "", STEPS, 12)
        torch.testing.assert_close(latents[row : row + 1], expected, rtol=0, atol=DRIFT)


@walked
def test_a_state_goes_on_bitwise_from_any_step(solved, name, options):
    pipeline = solved(name, **options)
    whole = Trajectory.plain(PROMPT, 3, 6.0, num_inference_steps=STEPS)
    samples = sample(pipeline, [whole], keep=range(1, STEPS), **OPTIONS)
    for step in range(1, STEPS):
        state = DenoiseState.from_bytes(samples.state(0, step).to_bytes())
        assert len(state.sigmas) == STEPS + 1
        rest = Trajectory(3, (Segment(PROMPT, step, STEPS, 6.0),))
        resumed = sample(pipeline, [rest], num_inference_steps=STEPS, resume=state, **OPTIONS)
        assert torch.equal(resumed.latents(), samples.latents()), step


@walked
def test_two_calls_are_one(solved, name, options):
    pipeline = solved(name, **options)
    once = call(pipeline, public_prompt="a ring", common_step=3, public_guidance_scale=2.0).images
    call(pipeline, "a ring", common_step=3, prompt_unchanged=True, guidance_scale=2.0)
    assert torch.equal(call(pipeline, common_step=3, prompt_unchanged=False).images, once)


def test_two_calls_under_different_solvers_are_refused(solved):
    pipeline = solved("FlowMatchEulerDiscreteScheduler")
    call(pipeline, "a ring", common_step=3, prompt_unchanged=True)
    pipeline.scheduler = make("UniPCMultistepScheduler")
    with pytest.raises(ValueError, match="the public run had solver FlowMatchEuler"):
        call(pipeline, common_step=3, prompt_unchanged=False)


@walked
def test_cost_counts_every_evaluation(solved, monkeypatch, name, options):
    pipeline, rows = solved(name, **options), []
    forward = pipeline.transformer.forward
    monkeypatch.setattr(
        pipeline.transformer, "forward", lambda *a, **k: rows.append(len(k["hidden_states"])) or forward(*a, **k)
    )
    paths = [
        Trajectory.hybrid("a ring", text, 3, 3, 1.0, 6.0, num_inference_steps=STEPS) for text in (PROMPT, "a ring")
    ]
    samples = sample(pipeline, paths, **OPTIONS)
    assert sum(rows) == samples.cost.tree
    alone, rows[:] = sum(rows), []
    for path in paths:
        sample(pipeline, [path], **OPTIONS)
    assert sum(rows) == samples.cost.one_at_a_time > alone
    twice = name == "FlowMatchHeunDiscreteScheduler"
    assert samples.cost.tree == (3 * 2 + 2 * 2 * (3 * 2 + 1) if twice else 3 + 2 * 2 * 4)


REFUSALS = [(name, {}, message) for name, message in REFUSED.items()] + CONFIGURED


@pytest.mark.parametrize(("name", "options", "message"), REFUSALS, ids=identifier)
def test_the_rest_is_refused_before_any_evaluation(solved, monkeypatch, name, options, message):
    pipeline = solved(name, **options)
    monkeypatch.setattr(pipeline.transformer, "forward", lambda *a, **k: pytest.fail("evaluated the network"))
    sentence = f"{name} {message}.*; the pipeline's scheduler must be one of FlowMatchEuler"
    with pytest.raises(ValueError, match=sentence):
        sample(pipeline, [Trajectory.plain(PROMPT, 3, num_inference_steps=STEPS)], **OPTIONS)
    for arguments in (
        {"public_prompt": "a ring", "common_step": 2},
        {"common_step": 2, "prompt_unchanged": True},
        {"compress_at_step": 2},
        {"get_intermediate_result": True},
    ):
        with pytest.raises(ValueError, match=sentence):
            call(pipeline, **arguments)


@pytest.mark.parametrize("name", ["FlowMatchLCMScheduler", "SASolverScheduler", "LTXEulerAncestralRFScheduler"])
def test_without_hybrid_arguments_a_noisy_scheduler_is_stock(solved, name):
    pipeline, pictures = solved(name), []
    for pipe in (pipeline, stock(pipeline)):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            pictures.append(call(pipe).images)
    assert torch.equal(*pictures)


def test_a_scheduler_of_ones_own_is_refused():
    class Own(diffusers.FlowMatchEulerDiscreteScheduler):
        """May do anything."""

    with pytest.raises(ValueError, match="Own cannot be walked as a tree"):
        check_scheduler(Own())


def test_another_number_of_sigmas_is_refused(solved):
    with pytest.raises(ValueError, match="makes 2 updates of num_inference_steps=7"):
        call(solved("FlowMatchEulerDiscreteScheduler"), public_prompt="a ring", common_step=2, sigmas=[1.0, 0.5])
    with pytest.raises(ValueError, match="FlowMatchHeunDiscreteScheduler takes no mu"):
        call(solved("FlowMatchHeunDiscreteScheduler"), public_prompt="a ring", common_step=2, mu=1.0)


def test_a_state_of_another_solver_is_refused(solved):
    path = Trajectory.plain(PROMPT, 3, 4.0, num_inference_steps=STEPS)
    state = sample(solved("FlowMatchEulerDiscreteScheduler", shift=3.0), [path], keep=[3], **OPTIONS).state(0, 3)
    rest = Trajectory(3, (Segment(PROMPT, 3, STEPS, 4.0),))
    with pytest.raises(ValueError, match="made by solver FlowMatchEuler.*, this pipeline has FlowMatchHeun"):
        sample(solved("FlowMatchHeunDiscreteScheduler", shift=3.0), [rest], resume=state, **OPTIONS)
