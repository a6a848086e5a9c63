"""Tables of full runs that ship with the project, to stand beside a thinned run.

`python -m hybridlib.study.results --profile miniature-full` takes over the tables of a finished profile.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Literal

import pandas as pd

from ..files import read_json, read_table, write_atomically, write_table
from ..paths import OUTPUTS, RESULTS
from .runner import SCHEDULE_COLUMNS
from .spent import SPENT

# study -> its table in outputs/<profile>/, and the columns worth keeping
TABLES = {
    "02_alignment": (
        "sim_sweep/alignment",
        ["common_step", "public_scale", "personal", "seed", "npi", "clip", *SCHEDULE_COLUMNS],
    ),
    "03_fidelity": (
        "sim_sweep/fidelity",
        ["common_step", "public_scale", "personal", "seed", "npi", "brisque", *SCHEDULE_COLUMNS],
    ),
    "05_image_quality": (
        "05_image_quality/scores",
        ["variant", "public", "personal", "common_step", "seed", "similarity", "clip", *SCHEDULE_COLUMNS],
    ),
    "05_factorial": (
        "05_image_quality/factorial/scores",
        [
            "public",
            "personal",
            "common_step",
            "seed",
            "public_scale",
            "personal_scale",
            "npi",
            "clip",
            *SCHEDULE_COLUMNS,
        ],
    ),
    "05_schedules": (
        "05_image_quality/schedules/scores",
        ["schedule", "variant", "public", "personal", "common_step", "seed", "similarity", "clip", *SCHEDULE_COLUMNS],
    ),
    "05_anchored": (
        "05_image_quality/anchored/scores",
        ["variant", "public", "personal", "common_step", "seed", "similarity", "clip", "brisque", *SCHEDULE_COLUMNS],
    ),
    "07_ratios": (
        "07_compression_surface/ratios",
        ["prompt_index", "seed", "run", "step", "ratio", "psnr", "ssim", *SCHEDULE_COLUMNS],
    ),
    "07_rates": (
        "07_compression_surface/rates",
        ["prompt_index", "seed", "run", "step", "bits", "ssim", *SCHEDULE_COLUMNS],
    ),
    "07_links": (
        "07_compression_surface/links",
        [
            "run",
            "step",
            "family",
            "codec",
            "message_bytes",
            "bits_per_value",
            "latent_mse",
            "psnr",
            "ssim",
            *SCHEDULE_COLUMNS,
        ],
    ),
    "08_curves": ("08_lad_ts/curves", ["method", "seed", "episode", "delay_s"]),
    "08_leaderboard": (
        "08_lad_ts/leaderboard",
        ["load", "policy", "trained", "seed", "episode", "mean_s", "p50_s", "p95_s", "p99_s"],
    ),
    "08_sweeps": ("08_lad_ts/sweeps", ["axis", "value", "load", "policy", "trained", "seed", "episode", "mean_s"]),
    "08_quirks": ("08_lad_ts/quirks", ["switch", "seed", "episode", "delay_s"]),
    "09_hybrid_sd": (
        "09_hybrid_sd/scores",
        [
            *("method", "split", "large_steps", "common_step", "personal", "seed"),
            *("correct", "attributes", "clip", "rmse", "ssim", "cloud_macs", "edge_macs", "macs", "share"),
            *SCHEDULE_COLUMNS,
        ],
    ),
    "09_lcm": (
        "09_hybrid_sd/scores",
        [
            *("method", "split", "large_steps", "common_step", "personal", "seed"),
            *("correct", "attributes", "clip", "cloud_macs", "edge_macs", "macs", "share"),
            *SCHEDULE_COLUMNS,
        ],
    ),
    "09_mixtures": (
        "09_hybrid_sd/mixtures",
        [
            *("common_step", "split", "codec", "step", "personal", "seed", "correct", "attributes", "clip"),
            *("message_bytes", "cloud_macs", "edge_macs"),
        ],
    ),
    "11_immiscible": (
        "11_immiscible/results",
        ["model", "start", "arm", "seed", "measure", "steps", "value"],
    ),
    "11_pairs": (
        "11_immiscible/pairs",
        [
            *("arm", "mean_cosine", "distance_reduction", "noise_std", "class_shift"),
            *(f"r{i}" for i in range(1, 9)),
            *("mean z", "std z", "mean z in a class", "std z in a class", "chi2"),
        ],
    ),
    "11_dimensions": (
        "11_immiscible/dimensions",
        [
            *("side", "dimension", "rows", "top variance share"),
            *("mean_cosine", "distance_reduction", "top correlation"),
        ],
    ),
    "11_costs": (
        "11_immiscible/costs",
        ["arm", "model", "side", "batch", "seconds", "step seconds", "share"],
    ),
    "13_pairs": (
        "13_planned_trees/pairs/scores",
        ["variant", "public", "personal", "common_step", "seed", "similarity", "clip", *SCHEDULE_COLUMNS],
    ),
    "13_planned_trees": (
        "13_planned_trees/scores",
        [
            *("kind", "list", "method", "setting", "prompt", "seed", "nfe_share", "common_step"),
            *("clip", "correct", "retained", "quality", "low", "high", "added", "worst", "product"),
            *SCHEDULE_COLUMNS,
        ],
    ),
    "13_steps": (
        "13_planned_trees/steps/scores",
        ["personal", "seed", "clip", *SCHEDULE_COLUMNS[:2]],
    ),
    "13_savings": (
        "13_planned_trees/savings",
        ["kind", "prompts", "nfe", "nfe_share", "quality", "encoding_s", "planning_s"],
    ),
}

PROFILES = {"09_lcm": "miniature-lcm"}  # of tables that another profile makes than the one taken over


def load(study: str) -> pd.DataFrame:
    """The shipped table of a study's full run on the miniature models; `attrs` name its profile and metrics.

    Raises:
        ValueError: if there is none.
    """
    return read_table(RESULTS / f"{study}.parquet")


def model_of(study: str) -> str:
    """Identity of the model whose images a shipped table is about."""
    return str(read_json(RESULTS / f"{study}.json")["model"])


def choose(study: str, own: pd.DataFrame, source: Literal["shipped", "own"], profile: str) -> pd.DataFrame:
    """The table that figures are drawn from: this run's `own`, or the shipped one; `attrs["profile"]` says whose."""
    if source == "shipped":
        return load(study)
    table = own.copy()
    table.attrs["profile"] = profile
    return table


def take_over(profile: str, study: str) -> Path:
    """Copy the wanted columns of a finished study to `data/results`, its provenance beside it.

    Raises:
        ValueError: if the study has not run under this profile.
    """
    profile = PROFILES.get(study, profile)
    name, columns = TABLES[study]
    source = OUTPUTS / profile / f"{name}.parquet"
    table = read_table(source, tuple(columns))[columns]
    table.attrs["profile"] = profile
    whole = table.select_dtypes("int64")
    table = table.astype(dict.fromkeys(whole.columns[whole.abs().max() < 2**15], "int16"))
    write_table(table, RESULTS / f"{study}.parquet")
    for suffix in (".json", SPENT):
        beside = source.with_name(source.stem + suffix)
        if suffix == ".json" or beside.is_file():
            write_atomically(RESULTS / f"{study}{suffix}", beside.read_bytes())
    return RESULTS / f"{study}.parquet"


def main() -> int:
    """Exit status 0, or 1 if a study's table is missing."""
    parser = argparse.ArgumentParser(prog="python -m hybridlib.study.results", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="miniature-full", help="a finished profile (default: miniature-full)")
    parser.add_argument("--studies", nargs="*", default=list(TABLES), choices=list(TABLES), help="all by default")
    arguments = parser.parse_args()
    try:
        for study in arguments.studies:
            print(f"wrote {take_over(arguments.profile, study)}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
