"""Describe every table that ships: `python docs/tables.py` writes data/results/README.md from the tables themselves.

What a column means is written here once, or taken from the code that measures it; types, ranges, prompts and settings
are read from the tables and the JSON beside them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from hybridlib.files import write_atomically
from hybridlib.paths import RESULTS
from hybridlib.prompts import PromptSet
from hybridlib.scheduling.study.price import MEASURES
from hybridlib.scheduling.study.variants import AXES

PERSONAL = "place of the personal prompt among the personal prompts (list below)"
JOINT = "place in the joint list of prompts (below): public prompts first, then personal ones"
DELAY = "of the delay of all tasks of the episode"

# name -> what one row is
TABLES = {
    "02_alignment": "An image of the SIM sweep: its alignment with the personal prompt.",
    "03_fidelity": "The same images: how natural they look.",
    "05_anchored": "An image of the later protocol: public prompts share with personal ones, these among each other.",
    "05_factorial": "An image with public scale, personal scale and negative prompt varied one by one and together.",
    "05_image_quality": "An image of the published grid: every pair of prompts at every common step.",
    "05_schedules": "An image of the plain variant under one of eleven noise schedules.",
    "07_links": "An image whose latents crossed a link once, with the bytes of the message.",
    "07_rates": "An image of the second published compression study (min-max quantiser).",
    "07_ratios": "An image of the first published compression study (rounding).",
    "08_curves": "An episode of a training, or of a rule on the same arrivals.",
    "08_front": "An episode of a shipped scheduler or rule at the published size: what its low mean costs.",
    "08_horizons": "The same measures with other numbers of slots played.",
    "08_leaderboard": "An episode of a policy at one load, on arrivals that no policy was trained on.",
    "08_quirks": "An episode of a short training with one switch of the published code turned.",
    "08_script_curve": "An episode of LAD-TS as published, one task at a time (benchmarks/scheduling.py).",
    "08_sweeps": "An episode of a policy at one point of the published sweeps.",
    "09_hybrid_sd": "An image that a large and a small denoiser made together, and how far it is from the large one's.",
    "09_lcm": "The same by the models of eight steps, whose guidance is embedded.",
    "09_mixtures": "An image with a shared start, a handoff to the small denoiser and a codec, in all mixtures.",
    "11_costs": "Assigning noise to one batch, beside the training step of it.",
    "11_dimensions": "What linear assignment does to pairs of noise and centre crops of latents.",
    "11_immiscible": "A measure of one small network, trained under one arm of noise assignment from one seed.",
    "11_pairs": "What an arm does to pairs of latents and noise, over two pools, before any training.",
    "13_pairs": "An image of a pair of prompts, the first shared until the common step: what the surface is fitted to.",
    "13_planned_trees": "An image of a list of prompts under one plan of one method.",
    "13_steps": "An image of a prompt alone, at a number of steps: what fewer steps keep.",
    "13_savings": "A list of prompts that was planned and not drawn.",
}

# column -> unit, what it is; "table.column" goes before "column"
COLUMNS = {
    "common_step": ("updates", "shared: made under the public prompt before the personal one takes over"),
    "public_scale": ("", "guidance scale of the shared part; 0 and 1 both mean no guidance"),
    "personal_scale": ("", "guidance scale after the handover"),
    "npi": ("", "whether the personal prompt brings its negative prompt (negative prompt injection)"),
    "public": ("", JOINT),
    "personal": ("", JOINT),
    "02_alignment.personal": ("", PERSONAL),
    "03_fidelity.personal": ("", PERSONAL),
    "seed": ("", "of the initial noise"),
    "variant": (
        "",
        "wSIM_wNPI: public scale 2, personal scale 8, negative prompts; woSIM_woNPI: 7, 7, none. In the later "
        "protocol wSIM: 2, 7, none; woSIM: 7, 7, none",
    ),
    "schedule": ("", "steps/shift/solver"),
    "similarity": ("", "cosine of the sentence embeddings (all-MiniLM-L6-v2) of the two prompts, -1..1"),
    "clip": ("", "CLIP cosine of image and personal prompt, -1..1, neither rescaled nor clamped; higher is better"),
    "brisque": ("", "BRISQUE, no fixed range; lower is better"),
    "num_inference_steps": ("updates", "of the noise schedule"),
    "shift": ("", "of the noise schedule"),
    "sigma": ("", "noise level at the handover, 0 (image) .. 1 (noise)"),
    "07_links.sigma": ("", "noise level of the latents that were coded, 0 (image) .. 1 (noise)"),
    "07_rates.sigma": ("", "noise level of the latents that were coded, 0 (image) .. 1 (noise)"),
    "07_ratios.sigma": ("", "noise level of the latents that were coded, 0 (image) .. 1 (noise)"),
    "prompt_index": ("", "place among the prompts of this table (below)"),
    "run": ("", "prompt_index:seed, what is redrawn for intervals"),
    "step": ("", "index of the update right after which the latents were coded; step + 1 updates were made"),
    "ratio": ("", "quantisation step r: latents are rounded to multiples of r; coarser is larger"),
    "bits": ("bits", "of the quantiser for each value"),
    "family": ("", "of codecs, as figures name it"),
    "codec": ("", "specification: name:parameters; `hybridlib.codecs.parse` makes the codec"),
    "message_bytes": ("bytes", "of the whole message: header, payload, checksum"),
    "bits_per_value": ("bits", "of the message for each value of the latents"),
    "latent_mse": ("", "mean squared error of the decoded latents"),
    "psnr": ("dB", "of the final image's luma against the run without coding"),
    "ssim": ("", "structural similarity of the final image's luma with the run without coding, at most 1"),
    "large_steps": ("updates", "of the large denoiser, extrapolated ones too"),
    "split": ("", "updates of the large and of the small denoiser, or p,k,alpha,s of a thinned one"),
    "correct": ("", "1 if mini-judge reads every object of the prompt with its colour and shape, else 0"),
    "attributes": ("", "share of what the prompt says that mini-judge reads"),
    "rmse": ("", "root mean squared error of the image's luma, 0..1, against the large denoiser's of the same seed"),
    "09_hybrid_sd.ssim": ("", "structural similarity with the large denoiser's image of the same seed, at most 1"),
    "09_hybrid_sd.method": ("", "who goes first, or how the large denoiser's updates are thinned"),
    "09_hybrid_sd.common_step": ("updates", "before the denoiser changes; all of them where it does not"),
    "09_hybrid_sd.personal": ("", PERSONAL),
    "09_hybrid_sd.sigma": ("", "noise to signal of the latents where the denoiser changes; 0 is the image"),
    "09_hybrid_sd.share": ("", "of the multiply-adds of the large denoiser alone"),
    "cloud_macs": ("multiply-adds", "of the large denoiser for this image; of a shared start, its part"),
    "edge_macs": ("multiply-adds", "of the small denoiser for this image"),
    "macs": ("multiply-adds", "of both"),
    "09_mixtures.message_bytes": ("bytes", "of the latents on the link, mean over prompts; 0 where nothing crosses"),
    "09_mixtures.personal": ("", PERSONAL),
    "09_mixtures.codec": ("", "on the link: its specification, or fp16 for 16-bit floats"),
    "09_mixtures.step": ("updates", "before the latents cross to the small denoiser"),
    "method": ("", "learner, rule, or `lower bound`, which no policy can beat"),
    "policy": ("", "learner, rule, or `lower bound`, which no policy can beat"),
    "trained": ("episodes", "of training; 0 for rules and for our scheduler, which is fitted"),
    "episode": ("", "number of the episode; its arrivals are the same for all policies"),
    "delay_s": ("s", "mean delay of all tasks of the episode"),
    "load": ("", "work that arrives over work that the servers can do"),
    "slots": ("", "of one second, played"),
    "axis": ("", "what is swept: " + "; ".join(f"{name}: {what}" for name, what in AXES.items())),
    "value": ("", "on the axis"),
    "model": ("", "flow: SD3 transformer by rectified flow; epsilon: UNet that predicts the noise"),
    "start": ("", "scratch, or fine-tune of a network that was trained on all shapes and colours"),
    "arm": ("", "how noise is assigned in training; see the notebook"),
    "measure": ("", "Frechet distance in mini-clip features, prompt correct (share), straightness, and others"),
    "steps": ("updates", "of sampling; 0 where there is none; straightness is told at the most steps"),
    "11_costs.arm": ("", "how noise is assigned"),
    "side": ("values", "of the square latents of 16 channels"),
    "batch": ("rows", "assigned at once"),
    "seconds": ("s", "of processor time for assigning, one thread"),
    "step seconds": (
        "s",
        "of processor time for a training step without it, measured on 16 rows and taken as linear",
    ),
    "share": ("", "of assigning in both together"),
    "dimension": ("", "of a latent"),
    "rows": ("", "assigned at once"),
    "top variance share": ("", "of the leading principal component of the latents"),
    "mean_cosine": ("", "of latents and their noise"),
    "distance_reduction": ("", "of the mean distance of latents and noise against independent noise"),
    "top correlation": ("", "of latents and noise along the leading principal component"),
    "noise_std": ("", "standard deviation of all values of the noise; 1 if it is normal"),
    "class_shift": ("standard deviations", "how far the noise of a class lies towards the mean of its latents"),
    "mean z": ("", "largest deviation of a mean of the noise, in units of what exact noise exceeds once in 1,000"),
    "std z": ("", "the same for standard deviations"),
    "mean z in a class": ("", "the same, over the classes"),
    "std z in a class": ("", "the same, over the classes"),
    "chi2": ("", "how unevenly a semidiscrete coupling draws the latents, 0 if evenly"),
    "11_immiscible.value": ("", "of the measure"),
    "11_immiscible.seed": ("", "of initial weights, data order, noise and samples: the same for all arms"),
    "kind": ("", "of list: alike, mixed or unrelated prompts"),
    "list": ("", "kind and number of the list that the prompt belongs to"),
    "prompt": ("", "what is to be seen"),
    "prompts": ("", "of the list"),
    "setting": ("", "what a method trades quality with: a floor, a threshold, a share of the steps, or steps"),
    "nfe": ("evaluations", "of the whole plan, one seed"),
    "nfe_share": ("", "evaluations of the whole plan, as a share of those with nothing shared"),
    "retained": ("", "CLIP cosine as a share of what nothing shared gives, of the same prompt and seed"),
    "quality": ("", "share of the CLIP cosine that the plan expects to keep"),
    "low": ("", "lower end of the same, of 90 % confidence: for single prompts, or for the mean over a list"),
    "high": ("", "upper end of the same"),
    "added": ("", "the same by the planner's rule: losses of several shared stretches add up"),
    "worst": ("", "the same if the worst shared stretch decides"),
    "product": ("", "the same if what every stretch keeps is multiplied"),
    "encoding_s": ("s", "of comparing the prompts, wall time"),
    "planning_s": ("s", "of planning, prompts being compared, wall time"),
    "13_planned_trees.method": ("", "ours in three forms, or a rival; see the notebook"),
    "13_planned_trees.common_step": ("updates", "before the prompt runs by itself"),
    "13_steps.personal": ("", "place of the prompt in the list `mixed` of seed 1000"),
    "13_pairs.personal": ("", "place of the prompt in the list `mixed` of seed 1000"),
    "13_pairs.public": ("", "place of the prompt in the list `mixed` of seed 1000"),
    "13_savings.quality": ("", "share of the CLIP cosine that the plan expects to keep, mean over prompts"),
    "switch": ("", "that is turned; a name with Q and a number is a quirk of the published code"),
} | {
    name: ("", what) if name.endswith("share") else ("s", f"{what} {DELAY}" if "fifth" not in name else f"mean, {what}")
    for name, what in MEASURES.items()
}
COLUMNS |= {key.replace("09_hybrid_sd", "09_lcm"): COLUMNS[key] for key in list(COLUMNS) if key.startswith("09_hybrid")}
COLUMNS |= {f"r{i}": ("", f"correlation of latents and noise along their principal component {i}") for i in range(1, 9)}
COLUMNS |= {f"{table}.seed": ("", "of the training; rules have 0") for table in TABLES if table.startswith("08")}
PROMPTS_OF = {"07_links": "link_prompts", "07_rates": "rate_prompts", "07_ratios": "ratio_prompts"}


def main() -> int:
    """Write the description; 1 if a table or column has none."""
    try:
        write_atomically(RESULTS / "README.md", description().encode())
    except KeyError as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
        return 1
    return 0


def paths() -> list[Path]:
    """Every table that ships."""
    return sorted(path for path in RESULTS.iterdir() if path.suffix in {".parquet", ".csv"})


def read(path: Path) -> pd.DataFrame:
    """A shipped table."""
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


def settings_of(table: str) -> dict[str, Any]:
    """The parameters that a table was made with."""
    file = RESULTS / f"{table}.json"
    return json.loads(file.read_text())["parameters"] if file.is_file() else {}


def meaning(table: str, column: str) -> tuple[str, str]:
    """Unit and meaning of a column.

    Raises:
        KeyError: if nobody has described it.
    """
    for key in (f"{table}.{column}", column):
        if key in COLUMNS:
            return COLUMNS[key]
    raise KeyError(f"{table}: the column {column!r} is not described in docs/tables.py")


def description() -> str:
    """The whole page."""
    parts = [
        "# Tables of the full runs\n\nWritten by `python docs/tables.py` from the tables; a test holds that no column "
        "is left out. All numbers are measured on the miniature models: they say how a method behaves, not how good "
        "SD3 is. Parquet is read by `pandas.read_parquet`; `table.attrs` tells the profile and the metrics with the "
        "checksum of their weights. The JSON file beside a table holds its settings, versions and git revision; "
        "`*.spent.json` and `scoring.json` say what runs took, on which the dry runs of `hybridlib` rest.\n"
    ]
    for path in paths():
        parts.append(_section(path))
    parts.append(_prompts())
    return "\n".join(parts)


def _section(path: Path) -> str:
    name, table = path.stem, read(path)
    if name not in TABLES:
        raise KeyError(f"the table {name!r} is not described in docs/tables.py")
    lines = [f"## {path.name}\n", f"One row: {TABLES[name][0].lower()}{TABLES[name][1:]} {len(table):,} rows.\n"]
    lines += ["| column | unit | values | what |", "|---|---|---|---|"]
    for column in table:
        unit, what = meaning(name, column)
        lines.append(f"| `{column}` | {unit} | {values(table[column])} | {what} |")
    if name in PROMPTS_OF:
        settings = settings_of(name)
        prompts = PromptSet.load(settings["prompts"]).personal
        listed = "; ".join(f"{i}: {prompts[p]}" for i, p in enumerate(settings[PROMPTS_OF[name]]))
        lines.append(f"\nPrompts of `prompt_index`: {listed}.")
    return "\n".join(lines) + "\n"


def values(column: pd.Series) -> str:
    """The values that a column holds, in a few words."""
    found = sorted(column.dropna().unique())
    if not found:
        return "none"
    if column.dtype == bool:
        return "True, False"
    if column.dtype.kind in "iuf":
        if len(found) <= 9:
            return ", ".join(f"{value:.4g}" for value in found)
        missing = f", {column.isna().sum()} missing" if column.isna().any() else ""
        return f"{found[0]:.4g} to {found[-1]:.4g}{missing}"
    words = ", ".join(f"{value}" for value in found)
    return words if len(found) <= 12 and len(words) < 160 else f"{len(found)} names, such as {found[0]}"


def _prompts() -> str:
    used = {settings["prompts"] for table in TABLES if "prompts" in (settings := settings_of(table))}
    parts = []
    for name in sorted(used):
        prompts = PromptSet.load(name)
        parts += [f"## Prompts of `{name}`\n", "| joint place | personal place | group | prompt | negative prompt |"]
        parts.append("|---|---|---|---|---|")
        first = len(prompts.public)
        groups = [*range(first), *prompts.group]
        for i, (text, negative) in enumerate(zip(prompts.joint, prompts.joint_negative, strict=True)):
            own = "public" if i < first else str(i - first)
            parts.append(f"| {i} | {own} | {groups[i]} | {text} | {negative} |")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
