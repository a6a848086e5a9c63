"""What the arms of study 11 do to pairs before any training, and what assigning costs beside a training step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ...study.pieces import written
from ...training.assignment import assign_noise, class_means
from ...training.denoising_loss import Assignment, Pairs
from ...training.loop import Draw
from ...training.mechanism import component_correlation, marginal, mechanism, principal_components
from ...training.semidiscrete import SemidiscreteCoupling
from . import world
from .study import LINEAR, UNCONDITIONAL, Study
from .world import CLASSES, Training

COMPONENTS = 8
MEASURED_ROWS = 16  # of the training step that stands for larger ones
CROPS = (2, 4, 8)  # sides of latents


def measured(study: Study) -> dict[str, pd.DataFrame]:
    """The tables below, by the name under which they are written to the folder of the study."""
    tables = {"pairs": statistics(study), "dimensions": dimensions(study), "costs": costs(study)}
    return {name: written(table, study.folder, name, study.parameters) for name, table in tables.items()}


def statistics(study: Study) -> pd.DataFrame:
    """One row per arm: what its pairs look like over two pools, and whether the noise is still normal.

    `mean z` and `std z` are the largest deviation of the noise from N(0, 1) over the leading components, in units of
    what exact noise exceeds once in a thousand such tables; above 1 the prior is bent. Those "in a class" are over all
    classes, which is what a conditional model learns. `chi2` says how unevenly a semidiscrete coupling draws latents.
    """
    p, (latents, labels) = study.parameters, study.objects
    classes = labels.unique()
    means = class_means(latents, torch.searchsorted(classes, labels))
    components, _ = principal_components(latents, COMPONENTS)
    rows = []
    for arm in dict.fromkeys([*p.flow_arms, *p.epsilon_arms]):
        if arm.startswith(UNCONDITIONAL):
            continue
        assignment = study.assignment(arm)
        x, noise, groups = _pairs(study, assignment)
        correlation = component_correlation(x, noise, components)
        found = mechanism(x, noise, means, torch.searchsorted(classes, groups))._asdict()
        found |= {f"r{i + 1}": float(r) for i, r in enumerate(correlation)}
        whole = marginal(noise, components)
        inside = [marginal(noise[groups == g], components) for g in groups.unique() if (groups == g).sum() > 2]
        for name, parts in (("", [whole]), (" in a class", inside)):
            found[f"mean z{name}"] = max(part.worst_mean / part.allowed for part in parts)
            found[f"std z{name}"] = max(part.worst_std / part.allowed for part in parts)
        coupling = assignment.coupling
        found["chi2"] = float("nan") if coupling is None else coupling.chi_squared()
        rows.append({"arm": arm} | found)
    return pd.DataFrame(rows)


def dimensions(study: Study) -> pd.DataFrame:
    """One row per size of centre crops of the latents: what linear assignment of one pool does there.

    The relative distance shrinks with the square root of the dimension; the correlation on the leading component, which
    is what bends paths, hardly does.
    """
    p, latents = study.parameters, study.objects.latents
    count = min(p.pool * p.batch_size, len(latents))
    generator, rows = torch.Generator().manual_seed(0), []
    chosen = torch.randperm(len(latents), generator=generator)[:count]
    for side in CROPS:
        low = (latents.shape[-1] - side) // 2
        x = latents[..., low : low + side, low : low + side].contiguous()
        components, shares = principal_components(x, 1)
        noise = assign_noise(x[chosen], generator=generator)
        found = mechanism(x[chosen], noise)
        facts = {"side": side, "dimension": x[0].numel(), "rows": count, "top variance share": float(shares[0])}
        facts |= {"mean_cosine": found.mean_cosine, "distance_reduction": found.distance_reduction}
        rows.append(facts | {"top correlation": float(component_correlation(x[chosen], noise, components)[0])})
    return pd.DataFrame(rows)


def costs(study: Study) -> pd.DataFrame:
    """Seconds of assigning a batch, and their share of step and assignment together, measured once on this machine.

    One row per arm, network, latent side and batch size. Latents are random: the solver's time hardly depends on them.
    A step is measured on 16 rows and taken to be linear in them. A semidiscrete coupling holds as many latents as the
    batch has rows, or 1,024 at least.
    """
    p, rows = study.parameters, []
    for side in p.cost_latent_sizes:
        steps = {model: _step_seconds(model, side, study.told) for model in ("flow", "epsilon")}
        for batch in p.cost_batch_sizes:
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(batch, 16, side, side, generator=generator)
            for arm, assign in _assigning(x, p.k, generator).items():
                seconds = _seconds(assign)
                for model, step in steps.items():
                    share = seconds / (seconds + step * batch)
                    row = {"arm": arm, "model": model, "side": side, "batch": batch, "seconds": seconds}
                    rows.append(row | {"step seconds": step * batch, "share": share})
    return pd.DataFrame(rows)


def _pairs(study: Study, assignment: Assignment) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, noise and classes of two pools."""
    p = study.parameters
    pairs = Pairs(Training(study.objects, study.told, "flow"), assignment)
    parts = []
    for step in range(2 * p.pool):
        pair = pairs(Draw(step, p.batch_size, step, torch.Generator().manual_seed(step), torch.device("cpu")))
        assert pair.batch.groups is not None
        parts.append((pair.batch.latents, pair.noise, pair.batch.groups))
    latents, noise, groups = (torch.cat(part) for part in zip(*parts, strict=True))
    return latents, noise, groups


def _assigning(x: Tensor, k: int, generator: torch.Generator) -> dict[str, Callable[[], Any]]:
    groups = torch.arange(len(x)) % 12
    count = max(len(x), 1024)
    latents = torch.randn(count, *x.shape[1:], generator=generator)
    coupling = SemidiscreteCoupling(latents, torch.zeros(count))
    return {
        LINEAR: lambda: assign_noise(x, generator=generator),
        "linear, within condition": lambda: assign_noise(x, condition=groups, generator=generator),
        f"KNN of {k}": lambda: assign_noise(x, "knn", k=k, generator=generator),
        "semidiscrete": lambda: coupling.draw(len(x), generator),
    }


def _step_seconds(model: str, side: int, told: world.Told) -> float:
    """Of a training step, per row."""
    net, scheduler = world.network(model, 0, side), world.training_scheduler(model)
    x, labels = torch.randn(MEASURED_ROWS, 16, side, side), torch.arange(MEASURED_ROWS) % CLASSES
    optimizer, conditioning = torch.optim.AdamW(net.parameters()), told.conditioning(model, labels)
    times = torch.full((MEASURED_ROWS,), scheduler.config.num_train_timesteps // 2)

    def step() -> None:
        net(x, timestep=times, return_dict=False, **conditioning)[0].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return _seconds(step) / MEASURED_ROWS


def _seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of one call, the better of two after a first one; a slow call is made once only."""
    taken = []
    for _ in range(3):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
        if taken[0] > 2.0:
            break
    return min(taken)
