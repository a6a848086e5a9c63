"""The published grids of hybrid inference as tables of trajectories, with their published file names.

Each function returns a DataFrame with one row per image: `path` (relative, unique), `trajectory`, and the grid's own
columns, `prompt` (what the image should show) among them. The published file names omit what varies between runs
(common step, variant, seed), so each of those has a folder.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import pandas as pd

from ..denoising.trajectory import Trajectory
from ..denoising.tree import Tree
from ..files import table_of
from ..paths import PUBLISHED
from ..prompts import PromptSet

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
    rows = (
        {
            "path": f"sim/common_step_{step:02d}/scale{scale:g}_prompt{index}_seed{seed}_{_INJECTED[injected]}.png",
            "common_step": step,
            "public_scale": scale,
            "personal": index,
            "seed": seed,
            "npi": injected,
            "prompt": prompts.personal[index],
            "trajectory": _hybrid(prompts, index, step, seed, scale, personal_scale, injected, num_inference_steps),
        }
        for step, scale, index, seed, injected in product(common_steps, public_scales, personal, seeds, (True, False))
    )
    return table_of(rows)


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
    rows = (
        {
            "path": f"npi/common_step_{step:02d}/prompt{index}_seed{seed}_{_INJECTED[injected]}.png",
            "common_step": step,
            "public_scale": public_scale,
            "personal": index,
            "seed": seed,
            "npi": injected,
            "prompt": prompts.personal[index],
            "trajectory": _hybrid(
                prompts, index, step, seed, public_scale, personal_scale, injected, num_inference_steps
            ),
        }
        for step, index, seed, injected in product(common_steps, personal, seeds, (True, False))
    )
    return table_of(rows)


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


class Variant(NamedTuple):
    """How the two phases are guided, and whether personal prompts bring their negatives (NPI)."""

    public_scale: float
    personal_scale: float
    npi: bool


PUBLISHED_VARIANTS = {"wSIM_wNPI": Variant(2.0, 8.0, True), "woSIM_woNPI": Variant(7.0, 7.0, False)}
LATER_VARIANTS = {"wSIM": Variant(2.0, 7.0, False), "woSIM": Variant(7.0, 7.0, False)}
FACTORIAL_VARIANTS = {
    f"public{public:g}_personal{personal:g}_{_INJECTED[npi]}": Variant(public, personal, npi)
    for public, personal, npi in product((7.0, 2.0), (7.0, 8.0), (False, True))
}


def similarity_study(
    prompts: PromptSet,
    variants: Mapping[str, Variant],
    seeds: Sequence[int],
    common_steps: Sequence[int],
    chosen: Sequence[int] | None = None,
    num_inference_steps: int = 28,
) -> pd.DataFrame:
    """Every joint prompt as public prompt of every other and itself. `chosen` are joint indices, all by default.

    Published grid: 22 x 22 prompts, common steps 0..27, seeds 1 and 2, two variants: 54,208 images. Unlike the
    published scripts, which draw fresh noise for every cell, a seed means one noise for all cells.
    """
    joint = range(len(prompts.joint)) if chosen is None else chosen
    cells = product(variants, seeds, joint, joint, common_steps)
    return table_of(
        _pair(prompts, variants[name], name, seed, public, personal, step, num_inference_steps)
        | {"path": f"{name}/seed{seed}/Public{public}_Personal{personal}_CommonStep{step}.png"}
        for name, seed, public, personal, step in cells
    )


def factorial_study(
    prompts: PromptSet,
    seeds: Sequence[int],
    common_steps: Sequence[int],
    chosen: Sequence[int] | None = None,
    num_inference_steps: int = 28,
) -> pd.DataFrame:
    """The pairs of `similarity_study` under `FACTORIAL_VARIANTS` in which NPI can act: different prompts, of which the
    second is a personal one and so has a negative."""
    table = similarity_study(prompts, FACTORIAL_VARIANTS, seeds, common_steps, chosen, num_inference_steps)
    has_negative = table["personal"] >= len(prompts.public)
    return table[has_negative & (table["public"] != table["personal"])]


def anchored_study(
    prompts: PromptSet,
    variants: Mapping[str, Variant],
    seeds: Sequence[int],
    common_steps: Sequence[int],
    chosen: Sequence[int] | None = None,
    num_inference_steps: int = 28,
) -> pd.DataFrame:
    """The later protocol: public prompts anchor the personal ones, and each personal prompt anchors the others.

    `chosen` are personal indices, all by default. Published grid: 2 x 20 and 20 x 19 pairs, common steps 0..27,
    seeds 1..3, two variants: 70,560 images.
    """
    first = len(prompts.public)
    own = range(len(prompts.personal)) if chosen is None else chosen
    pairs = [(i, first + j, f"Public{i}_Personal{j}") for i in range(first) for j in own]
    pairs += [(first + i, first + j, f"PAnchor{i}_POther{j}") for i in own for j in own if i != j]
    return table_of(
        _pair(prompts, variants[name], name, seed, anchor, target, step, num_inference_steps)
        | {"path": f"{name}/{stem}_CommonStep{step}_Seed{seed}.png"}
        for name, seed, (anchor, target, stem), step in product(variants, seeds, pairs, common_steps)
    )


def _pair(
    prompts: PromptSet,
    variant: Variant,
    name: str,
    seed: int,
    public: int,
    personal: int,
    step: int,
    num_inference_steps: int,
) -> dict[str, object]:
    joint = prompts.joint
    for role, index in (("public", public), ("personal", personal)):
        if not 0 <= index < len(joint):
            raise ValueError(f"{role} prompt index {index} lies outside 0..{len(joint) - 1} of {prompts.source}")
    negative = prompts.joint_negative[personal] if variant.npi else ""
    trajectory = Trajectory.hybrid(
        joint[public],
        joint[personal],
        step,
        seed,
        variant.public_scale,
        variant.personal_scale,
        negative,
        num_inference_steps,
    )
    return {
        "variant": name,
        "public": public,
        "personal": personal,
        "common_step": step,
        "seed": seed,
        "public_scale": variant.public_scale,
        "personal_scale": variant.personal_scale,
        "npi": variant.npi,
        "prompt": joint[personal],
        "trajectory": trajectory,
    }


class Spend(NamedTuple):
    """What a way of running a grid costs: denoising steps, and denoiser evaluations (two a guided step)."""

    steps: int
    nfe: int


def published_spend(grid: pd.DataFrame) -> Spend:
    """What the published scripts spend on a grid.

    A public run evaluates common_step + 1 steps and discards the last; a personal run follows for each image. In the
    SIM and NPI grids one public run serves an image with and one without negative; in the similarity study (columns
    `public`, `variant`) every image has its own.
    """
    handover = ["common_step", "public_scale", "personal", "seed"]
    if "variant" in grid:
        handover += ["variant", "public"]
    runs = grid.groupby(handover).size().index.to_frame()
    public_steps = runs["common_step"] + 1
    steps, nfe = int(public_steps.sum()), int((public_steps * (1 + (runs["public_scale"] > 1))).sum())
    for step, trajectory in zip(grid["common_step"], grid["trajectory"], strict=True):
        personal = [s for s in trajectory.segments if s.start >= step]
        steps += sum(s.stop - s.start for s in personal)
        nfe += sum(s.conditioning.nfe * (s.stop - s.start) for s in personal)
    return Spend(steps, nfe)


def tree_spend(grid: pd.DataFrame) -> Spend:
    """What the denoising tree needs for a grid. Counted, not run."""
    tree = Tree(list(grid["trajectory"]))
    return Spend(tree.steps, tree.cost.tree)


def published_cost_check(prompts: PromptSet, studies: Collection[str] = ("SIM", "NPI")) -> pd.DataFrame:
    """Denoising steps of full published grids, counted with the tree, beside the published counts.

    `studies` are those whose names begin so: "SIM", "NPI", "similarity", "anchored".
    """
    published = pd.read_csv(PUBLISHED / "hybrid_denoising_steps.csv").rename(columns={"steps": "published"})
    wanted = published[published["study"].str.startswith(tuple(studies))]
    counted = []
    for study in wanted["study"].unique():
        grid = _full_grid(study, prompts)
        spent, needed = published_spend(grid).steps, tree_spend(grid).steps
        counted += [(study, "spent by the published scripts", spent), (study, "needed", needed)]
    closing = wanted.merge(
        pd.DataFrame(counted, columns=["study", "quantity", "counted here"]),
        on=["study", "quantity"],
        how="left",
        validate="one_to_one",
    )
    closing["agrees"] = closing["published"] == closing["counted here"]
    return closing


def _full_grid(study: str, prompts: PromptSet) -> pd.DataFrame:
    personal, seven_steps = range(len(prompts.personal)), range(3, 22, 3)
    if study.startswith("SIM"):
        return sim_sweep(prompts, personal, range(8), (1, 2, 3), seven_steps)
    if study.startswith("NPI"):
        return npi_set(prompts, personal, range(1, 10), seven_steps)
    if study.startswith("anchored"):
        return anchored_study(prompts, LATER_VARIANTS, (1, 2, 3), range(28))
    name = study.split(", ")[1]
    return similarity_study(prompts, {name: PUBLISHED_VARIANTS[name]}, (1,), range(28))
