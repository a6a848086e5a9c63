"""Tables of models of true size, from configurations alone: what their parts hold, and what memory plans need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from ..denoising import memory
from ..denoising.blueprints import BLUEPRINTS
from ..denoising.footprint import published_needs
from ..paths import PUBLISHED

DTYPE = "bfloat16"


def parts(names: Sequence[str]) -> pd.DataFrame:
    """One row a part: model, part, `network` (its class), weights in millions, GB in 16 bit, published parameters."""
    rows = []
    for name in names:
        weights = published_needs(name, DTYPE, None, "full")[1].weights
        for part, (kind, _) in BLUEPRINTS[name].networks.items():
            rows.append((name, part, kind, weights[part] / 2e6, weights[part] / 1e9))
    table = pd.DataFrame(rows, columns=["model", "part", "network", "weights_m", "gb"])
    published = pd.read_csv(PUBLISHED / "full_size_parts.csv")
    return table.merge(published, on=["model", "part"], how="left")


def plans(names: Sequence[str], budgets_gb: Sequence[float], t5: str = "full") -> pd.DataFrame:
    """One row a model and budget: the plan that is chosen and what it needs, in GB; where none fits, no plan.

    Columns: model, budget_gb, plan, peak_gb (with estimated activations), weights_gb (on the device), host_gb,
    `evaluations` in a forward and `decoded` images together, at the most.
    """
    rows = []
    for name in names:
        for budget in budgets_gb:
            try:
                plan = memory.make_plan(name, budget, dtype=DTYPE, t5=t5)
            except ValueError:
                rows.append((name, budget, "none fits", *[None] * 5))
                continue
            sizes = (plan.peak / 1e9, plan.on_device / 1e9, plan.in_host_memory / 1e9)
            rows.append((name, budget, plan.placement, *sizes, plan.batch_size, plan.decode_batch_size))
    columns = ["model", "budget_gb", "plan", "peak_gb", "weights_gb", "host_gb", "evaluations", "decoded"]
    table = pd.DataFrame(rows, columns=columns)
    return table.astype({"evaluations": "Int64", "decoded": "Int64"})


def placements(names: Sequence[str]) -> pd.DataFrame:
    """One row a model and placement with one guided image a forward, in GB: weights, what comes on top, host memory."""
    rows = []
    for name in names:
        for placement in memory.PLACEMENTS:
            plan = memory.make_plan(name, placement=placement, dtype=DTYPE, batch_size=2)
            plan = replace(plan, decode_batch_size=1, text_batch_size=1)
            sizes = (plan.on_device / 1e9, (plan.peak - plan.on_device) / 1e9, plan.in_host_memory / 1e9)
            rows.append((name, placement, *sizes))
    return pd.DataFrame(rows, columns=["model", "plan", "weights_gb", "activations_gb", "host_gb"])
