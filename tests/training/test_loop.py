"""The loop against torch written out by hand, and against itself: killed, cut into parts, on two processes."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hybridlib.training import loop
from hybridlib.training.loop import Recipe, fit

RECIPE = Recipe(steps=30, batch_size=8, learning_rate=1e-2, seed=3, ema_decay=0.9, warmup_steps=5, precision="no")


class Stop(Exception):
    """Stands for a killed process."""


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))


def small_run(folder, recipe=RECIPE, stop_at=None, model=None):
    model = model or small_model()

    def loss_of(draw):
        if draw.step == stop_at:
            raise Stop
        x = torch.randn(draw.size, 4, generator=draw.generator)
        return F.mse_loss(model(x)[:, 0], x.sin().sum(1))

    return model, fit("small", model, loss_of, recipe, folder)


def by_hand(recipe):
    """The same training in plain torch, as the models that ship were trained before accelerate came in."""
    model = small_model()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    ema = {key: value.clone() for key, value in model.state_dict().items()}
    losses = []
    for step in range(recipe.steps):
        warm = min(1.0, (step + 1) / recipe.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        generator = torch.Generator().manual_seed(recipe.seed * 10_000_019 + step)
        x = torch.randn(recipe.batch_size, 4, generator=generator)
        loss = F.mse_loss(model(x)[:, 0], x.sin().sum(1))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                ema[key].lerp_(value, 1 - min(recipe.ema_decay, (1 + step) / (10 + step)))
            else:
                ema[key].copy_(value)
        losses.append(loss.item())
    return ema, losses


def test_equals_plain_torch_bit_for_bit(tmp_path):
    expected, losses = by_hand(RECIPE)
    model, history = small_run(tmp_path)
    assert history.losses == losses
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]), key
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])  # it did learn


def test_a_training_has_its_own_precision_whatever_ran_before_it(tmp_path):
    """accelerate remembers the first precision of a process, and a process may train several models."""
    small_run(tmp_path / "before", RECIPE._replace(precision="bf16"))
    _, history = small_run(tmp_path / "after")
    assert history.losses == by_hand(RECIPE)[1]


@pytest.mark.parametrize("recipe", [RECIPE, RECIPE._replace(ema_decay=0.0, parts=2, schedule="constant")])
def test_a_killed_training_resumes_to_the_same_weights(tmp_path, monkeypatch, recipe):
    whole, history = small_run(tmp_path / "whole", recipe)
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", -1.0)
    for stop_at in (7, 20):
        with pytest.raises(Stop):
            small_run(tmp_path / "killed", recipe, stop_at)
    resumed, again = small_run(tmp_path / "killed", recipe)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key])
    assert again.losses == history.losses
    assert not list(tmp_path.rglob("*.partial"))


def test_parts_are_one_batch(tmp_path):
    """Two parts of four rows give the gradient of the eight rows that they draw; 1e-6 covers the order of sums."""
    recipe = RECIPE._replace(steps=3, parts=2)
    torch.manual_seed(0)
    model, _ = small_run(tmp_path, recipe, model=nn.Linear(4, 1))
    torch.manual_seed(0)
    again = nn.Linear(4, 1)

    def both_parts(draw):
        draws = [loop._draw(recipe, draw.step, part, draw.device) for part in range(2)]
        x = torch.cat([torch.randn(d.size, 4, generator=d.generator) for d in draws])
        return F.mse_loss(again(x)[:, 0], x.sin().sum(1))

    fit("both", again, both_parts, recipe._replace(parts=1), tmp_path)
    torch.testing.assert_close(model.weight, again.weight, rtol=0, atol=1e-6)


def test_only_what_needs_gradients_moves_and_terms_are_told(tmp_path):
    model = small_model()
    model[0].requires_grad_(False)
    frozen = model[0].weight.clone()

    def loss_of(draw):
        x = torch.randn(draw.size, 4, generator=draw.generator)
        return {"fit": F.mse_loss(model(x)[:, 0], x.sum(1)), "size": 0.1 * model(x).square().mean()}

    history = fit("terms", model, loss_of, RECIPE, tmp_path)
    assert torch.equal(model[0].weight, frozen)
    assert set(history.terms) == {"fit", "size"}
    for total, *parts in zip(history.losses, *history.terms.values(), strict=True):
        assert total == pytest.approx(sum(parts), rel=1e-6)


def test_what_is_wrong_is_refused(tmp_path):
    small_run(tmp_path)
    with pytest.raises(ValueError, match="written by another recipe"):
        small_run(tmp_path, RECIPE._replace(seed=4))
    with pytest.raises(ValueError, match="schedule must be one of"):
        small_run(tmp_path / "a", RECIPE._replace(schedule="linear"))
    with pytest.raises(ValueError, match="precision must be one of"):
        small_run(tmp_path / "a", RECIPE._replace(precision="fp8"))
    with pytest.raises(ValueError, match="parts must divide batch_size 8"):
        small_run(tmp_path / "a", RECIPE._replace(parts=3))
    with pytest.raises(ValueError, match=r"rates must name submodules of the model, got \['head'\]"):
        fit("rates", small_model(), lambda draw: None, RECIPE, tmp_path, {"head": 2.0})
    with pytest.raises(ValueError, match="loss of step 0 is nan"):
        fit("nan", nn.Linear(1, 1), lambda draw: torch.tensor(math.nan, requires_grad=True), RECIPE, tmp_path)


class Turns(nn.Module):
    """Two players, of whom one learns at a step."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 1), nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))

    def loss(self, step, generator):
        x = torch.randn(8, 4, generator=generator)
        player = self.second if step % 3 == 1 else self.first
        return F.mse_loss(player(x)[:, 0], x.sin().sum(1))


def taking_turns(folder, rates, stop_at=None):
    model = Turns()

    def loss_of(draw):
        if draw.step == stop_at:
            raise Stop
        return {"second" if draw.step % 3 == 1 else "first": model.loss(draw.step, draw.generator)}

    return model, fit("turns", model, loss_of, RECIPE._replace(ema_decay=0.0), folder, rates)


def test_parts_that_take_turns_are_optimizers_of_their_own(tmp_path, monkeypatch):
    """Bit for bit two AdamW of plain torch, each with its own rate and steps; also when killed. One rate differs."""
    model, history = taking_turns(tmp_path / "whole", {"second": 20.0})
    expected = Turns()
    optimizers = [
        torch.optim.AdamW(part.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        for part in (expected.first, expected.second)
    ]
    for step in range(RECIPE.steps):
        second = step % 3 == 1
        rate = (20.0 if second else 1.0) * RECIPE.learning_rate * loop._schedule(step, RECIPE)
        optimizer = optimizers[second]
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        expected.loss(step, torch.Generator().manual_seed(RECIPE.seed * 10_000_019 + step)).backward()
        nn.utils.clip_grad_norm_((expected.second if second else expected.first).parameters(), 1.0)
        optimizer.step()
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", -1.0)
    for stop_at in (1, 20):
        with pytest.raises(Stop):
            taking_turns(tmp_path / "killed", {"second": 20.0}, stop_at)
    resumed, _ = taking_turns(tmp_path / "killed", {"second": 20.0})
    same, _ = taking_turns(tmp_path / "same", {"second": 1.0})
    for key, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
        assert torch.equal(resumed.state_dict()[key], value), key
    assert torch.equal(same.first.weight, expected.first.weight)
    assert not torch.equal(same.second[0].weight, expected.second[0].weight)
    assert (len(history.terms["first"]), len(history.terms["second"])) == (20, 10)


SCRIPT = """
import sys, torch
from torch import nn
from pathlib import Path
from hybridlib.training.loop import Recipe, fit
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
recipe = Recipe(steps=6, batch_size=8, learning_rate=1e-2, parts=4, warmup_steps=0, precision=sys.argv[2])
turns = sys.argv[3] == "turns"
def loss_of(draw):
    x = torch.randn(draw.size, 4, generator=draw.generator)
    first = model[0](x).detach() if turns and draw.step % 2 else model[0](x)  # then only the last layer learns
    return (model[2](model[1](first))[:, 0] - x.sin().sum(1)).square().mean()
fit("shared", model, loss_of, recipe, Path(sys.argv[1]), {"2": 3.0} if turns else {})
"""


@pytest.mark.slow
def test_two_processes_share_the_parts_of_a_batch(tmp_path):
    """Equal to one process that accumulates, also where parts of the model take turns; 1e-6 covers the order of sums.
    bf16 must differ: the control."""
    from safetensors.torch import load_file

    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for name, command, precision, turns in (
        ("one", [sys.executable], "no", "all"),
        ("two", launch, "no", "all"),
        ("bf16", [sys.executable], "bf16", "all"),
        ("one in turns", [sys.executable], "no", "turns"),
        ("two in turns", launch, "no", "turns"),
    ):
        arguments = [*command, str(script), str(tmp_path / name), precision, turns]
        ran = subprocess.run(arguments, capture_output=True, text=True, env=_environment())
        assert ran.returncode == 0, ran.stderr
    names = ("one", "two", "bf16", "one in turns", "two in turns")
    one, two, bf16, alone, together = (load_file(tmp_path / name / "shared.safetensors") for name in names)
    for single, pair in ((one, two), (alone, together)):
        torch.testing.assert_close(pair["ema.0.weight"], single["ema.0.weight"], rtol=0, atol=1e-6)
        torch.testing.assert_close(pair["curve.loss"], single["curve.loss"], rtol=1e-5, atol=0)
    assert (alone["ema.0.weight"] - one["ema.0.weight"]).abs().max() > 1e-4
    assert (bf16["ema.0.weight"] - one["ema.0.weight"]).abs().max() > 1e-5


def _environment():
    import os
    from pathlib import Path

    import hybridlib

    return os.environ | {"PYTHONPATH": str(Path(hybridlib.__file__).parents[1]), "ACCELERATE_USE_CPU": "true"}
