from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from factories import random_sd3

from hybridlib.denoising import state as state_module
from hybridlib.denoising.sampler import sample
from hybridlib.denoising.state import DenoiseState
from hybridlib.denoising.trajectory import Segment, Trajectory

STEPS, SWITCH = 8, 5
WHOLE = Trajectory.hybrid("a ring", "a red ring", SWITCH, 1, 2.0, 8.0, "a blue ring", STEPS)
REST = Trajectory(1, (Segment("a red ring", SWITCH, STEPS, 8.0, "a blue ring"),))
OPTIONS = {"max_sequence_length": 12, "progress": False, "num_inference_steps": STEPS}


def stopped(pipeline, at=SWITCH):
    return sample(pipeline, [WHOLE], keep=[at], **OPTIONS)


def finish(pipeline, state, trajectory=REST, **options):
    return sample(pipeline, [trajectory], resume=state, **(OPTIONS | options)).latents()


def test_resume_after_a_round_trip_is_bitwise(pipeline, tmp_path):
    samples = stopped(pipeline)
    path = tmp_path / "state.safetensors"
    samples.state(0, SWITCH).save(path)
    assert torch.equal(finish(pipeline, DenoiseState.load(path)), samples.latents())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_resume_carries_the_history_of_a_multistep_solver(tiny, monkeypatch):
    solver = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    monkeypatch.setattr(tiny, "scheduler", solver)
    samples = stopped(tiny)
    state = DenoiseState.from_bytes(samples.state(0, SWITCH).to_bytes())
    assert state.history
    assert torch.equal(finish(tiny, state), samples.latents())
    without = dataclasses.replace(state, history={})
    with pytest.raises(ValueError, match=r"after 5 updates DPMSolver.* remembers .*model_outputs.*, the state \{\}"):
        finish(tiny, without)


def test_state_records_the_past_up_to_its_step(tiny):
    state = stopped(tiny, at=3).state(0, 3)
    assert state.past == Trajectory(1, (Segment("a ring", 0, 3, 2.0),))
    with pytest.raises(ValueError, match="at least one update"):
        sample(tiny, [WHOLE], keep=[0], **OPTIONS).state(0, 0)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_file_is_refused(tiny, keep):
    data = stopped(tiny).state(0, SWITCH).to_bytes()
    with pytest.raises(ValueError, match="truncated or is no safetensors file"):
        DenoiseState.from_bytes(data[:keep])


def test_altered_file_is_refused(tiny):
    data = bytearray(stopped(tiny).state(0, SWITCH).to_bytes())
    data[-3] ^= 1
    with pytest.raises(ValueError, match="altered after it was written"):
        DenoiseState.from_bytes(bytes(data))
    text = stopped(tiny).state(0, SWITCH).to_bytes().replace(b'\\"step\\": 5', b'\\"step\\": 6')
    with pytest.raises(ValueError, match="altered after it was written"):
        DenoiseState.from_bytes(text)


def test_foreign_safetensors_file_is_refused():
    from safetensors.torch import save

    with pytest.raises(ValueError, match="format None"):
        DenoiseState.from_bytes(save({"latents": torch.zeros(1)}))


def test_another_model_schedule_version_seed_or_step_is_refused(tiny, monkeypatch):
    state = stopped(tiny).state(0, SWITCH)
    with pytest.raises(ValueError, match="made by model SD3Transformer2DModel:.* this pipeline holds"):
        finish(random_sd3(seed=9), state)
    with pytest.raises(ValueError, match=r"noise schedule \(8 steps\) is not this pipeline's \(9 steps\)"):
        finish(tiny, state, num_inference_steps=9)
    with pytest.raises(ValueError, match="state has seed 1, a trajectory has 2"):
        finish(tiny, state, Trajectory(2, REST.segments))
    with pytest.raises(ValueError, match="taken after 5 updates, a trajectory starts at 4"):
        finish(tiny, state, Trajectory(1, (Segment("a red ring", 4, STEPS),)))
    monkeypatch.setattr(state_module, "version", lambda package: "0.0.0")
    with pytest.raises(ValueError, match=r"made with hybridlib .*, here it is 0\.0\.0"):
        finish(tiny, state)


def test_late_start_needs_a_state(tiny):
    with pytest.raises(ValueError, match="trajectories start at step 5; pass the state"):
        sample(tiny, [REST], **OPTIONS)
