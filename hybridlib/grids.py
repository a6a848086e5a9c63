"""The published grids of hybrid inference as tables of trajectories, with their published file names.

Each function returns a DataFrame with one row per image: `path` (relative, unique), `trajectory`, and the grid's own
columns. The published file names omit the common step, so each common step has a folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pandas as pd

from .prompts import PromptSet
from .trajectory import Trajectory

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
            "trajectory": _hybrid(prompts, index, step, seed, public_scale, personal_scale, injected, num_inference_steps),
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


def published_nfe(grid: pd.DataFrame) -> int:
    """Denoiser evaluations that the published scripts spend on a SIM or NPI grid.

    One public run for each (common step, scale, prompt, seed), which evaluates common_step + 1 steps and discards the
    last, then one personal run for each image.
    """
    total = 0
    for _, pair in grid.groupby(["common_step", "public_scale", "personal", "seed"]):
        trajectories = list(pair["trajectory"])
        step = int(pair["common_step"].iloc[0])
        public = trajectories[0].segments[0]
        total += (step + 1) * public.conditioning.nfe
        total += sum(s.conditioning.nfe * (s.stop - s.start) for t in trajectories for s in t.segments if s.start >= step)
    return total
