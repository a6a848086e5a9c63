"""The published grids of hybrid inference as tables of trajectories, with their published file names.

Each function returns a DataFrame with one row per image: `path` (relative, unique), `trajectory`, and the grid's own
columns. The published file names omit the common step, so each common step has a folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import pandas as pd

from .paths import PUBLISHED
from .prompts import PromptSet
from .trajectory import Trajectory, Tree

_INJECTED = {True: "wNPG", False: "woNPG"}  # NPI is spelled NPG in the published file names


def case_study(
    prompts: PromptSet,
    personal: int,
    seed: int,
    common_step: int,
    public_scale: float,
    personal_scale: float,
    num_inference_steps: int = 28,
) -> pd.DataFrame:
    """The demonstration: one public prompt, one personal prompt, and what becomes of their shared start."""
    public, prompt, negative = prompts.public_of(personal), prompts.personal[personal], prompts.negative[personal]

    def hybrid(text: str, negative_prompt: str = "") -> Trajectory:
        return Trajectory.hybrid(
            public, text, common_step, seed, public_scale, personal_scale, negative_prompt, num_inference_steps
        )

    rows = [
        ("public only", public, Trajectory.plain(public, seed, public_scale, "", num_inference_steps)),
        ("personal", prompt, hybrid(prompt)),
        ("personal + negative", prompt, hybrid(prompt, negative)),
        ("negative as prompt", negative, hybrid(negative)),
    ]
    table = pd.DataFrame(rows, columns=["role", "prompt", "trajectory"])
    table.insert(0, "path", "case/" + table["role"].str.replace(r"\W+", "_", regex=True) + ".png")
    return table


def sim_sweep(
    prompts: PromptSet,
    personal: Sequence[int],
    public_scales: Sequence[float],
    seeds: Sequence[int],
    common_steps: Sequence[int],
    personal_scale: float = 8.0,
    num_inference_steps: int = 28,
) -> pd.DataFrame:
    """SIM: every public scale, personal prompt, seed and common step, with and without the negative prompt (NPI).

    Published grid: scales 0..7, 20 prompts, seeds 1..3, common steps 3, 6, .., 21: 6,720 images.
    """
    rows = [
        {
            "path": f"sim/common_step_{step:02d}/scale{scale:g}_prompt{index}_seed{seed}_{_INJECTED[injected]}.png",
            "common_step": step,
            "public_scale": scale,
            "personal": index,
            "seed": seed,
            "npi": injected,
            "trajectory": _hybrid(prompts, index, step, seed, scale, personal_scale, injected, num_inference_steps),
        }
        for step, scale, index, seed, injected in product(common_steps, public_scales, personal, seeds, (True, False))
    ]
    return pd.DataFrame(rows)


def npi_set(
    prompts: PromptSet,
    personal: Sequence[int],
    seeds: Sequence[int],
    common_steps: Sequence[int],
    public_scale: float = 2.0,
    personal_scale: float = 8.0,
    num_inference_steps: int = 28,
) -> pd.DataFrame:
    """NPI: one public scale, more seeds. Published grid: 20 prompts, seeds 1..9, seven common steps: 2,520 images."""
    rows = [
        {
            "path": f"npi/common_step_{step:02d}/prompt{index}_seed{seed}_{_INJECTED[injected]}.png",
            "common_step": step,
            "public_scale": public_scale,
            "personal": index,
            "seed": seed,
            "npi": injected,
            "trajectory": _hybrid(
                prompts, index, step, seed, public_scale, personal_scale, injected, num_inference_steps
            ),
        }
        for step, index, seed, injected in product(common_steps, personal, seeds, (True, False))
    ]
    return pd.DataFrame(rows)


def _hybrid(
    prompts: PromptSet,
    personal: int,
    common_step: int,
    seed: int,
    public_scale: float,
    personal_scale: float,
    injected: bool,
    num_inference_steps: int,
) -> Trajectory:
    return Trajectory.hybrid(
        prompts.public_of(personal),
        prompts.personal[personal],
        common_step,
        seed,
        public_scale,
        personal_scale,
        prompts.negative[personal] if injected else "",
        num_inference_steps,
    )


class Spend(NamedTuple):
    """What a way of running a grid costs: denoising steps, and denoiser evaluations (two a guided step)."""

    steps: int
    nfe: int


def published_spend(grid: pd.DataFrame) -> Spend:
    """What the published scripts spend on a SIM or NPI grid.

    One public run for each (common step, scale, prompt, seed), which evaluates common_step + 1 steps and discards the
    last, then one personal run for each image.
    """
    steps = nfe = 0
    for _, images in grid.groupby(["common_step", "public_scale", "personal", "seed"]):
        step, scale = int(images["common_step"].iloc[0]), float(images["public_scale"].iloc[0])
        steps += step + 1
        nfe += (step + 1) * (2 if scale > 1 else 1)
        for trajectory in images["trajectory"]:
            personal = [s for s in trajectory.segments if s.start >= step]
            steps += sum(s.stop - s.start for s in personal)
            nfe += sum(s.conditioning.nfe * (s.stop - s.start) for s in personal)
    return Spend(steps, nfe)


def tree_spend(grid: pd.DataFrame) -> Spend:
    """What the denoising tree needs for a grid. Counted, not run."""
    tree = Tree(list(grid["trajectory"]))
    return Spend(tree.steps, tree.cost.tree)


def published_cost_check(prompts: PromptSet) -> pd.DataFrame:
    """Denoising steps of the full published SIM and NPI grids: published vs counted here."""
    personal, common_steps = range(len(prompts.personal)), range(3, 22, 3)
    full = {
        "SIM sweep with and without NPI": sim_sweep(prompts, personal, range(8), (1, 2, 3), common_steps),
        "NPI set": npi_set(prompts, personal, range(1, 10), common_steps),
    }
    counted = [
        {"study": study, "quantity": quantity, "counted here": count(grid).steps}
        for study, grid in full.items()
        for quantity, count in (("spent by the published scripts", published_spend), ("needed", tree_spend))
    ]
    published = pd.read_csv(PUBLISHED / "hybrid_denoising_steps.csv").rename(columns={"steps": "published"})
    closing = published.merge(pd.DataFrame(counted), on=["study", "quantity"], how="left", validate="one_to_one")
    closing["agrees"] = closing["published"] == closing["counted here"]
    return closing
