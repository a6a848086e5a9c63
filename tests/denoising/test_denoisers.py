from __future__ import annotations

import pytest
import torch
from factories import random_sd3

from hybridlib.denoising.families import denoiser_of


def test_the_place_is_asked_for_once_and_again_where_weights_moved(monkeypatch):
    pipeline, asked = random_sd3(), []
    own = type(pipeline)._execution_device
    counted = property(lambda self: asked.append(1) or own.fget(self))
    monkeypatch.setattr(type(pipeline), "_execution_device", counted)
    denoiser = denoiser_of(pipeline)
    for _ in range(3):
        assert (denoiser.device, denoiser.dtype) == (torch.device("cpu"), torch.float32)
    assert len(asked) == 1
    pipeline.transformer.double()
    assert denoiser.dtype == torch.float64
    assert len(asked) == 2


def test_another_network_has_a_place_of_its_own():
    first = denoiser_of(random_sd3())
    assert first.dtype == torch.float32
    other = first.of_model(random_sd3(seed=1).transformer.double())
    assert (first.dtype, other.dtype) == (torch.float32, torch.float64)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        denoiser_of(random_sd3(), batch_size=0)
