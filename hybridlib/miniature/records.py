"""What the shipped models' folders record of how they were made, as study 10 shows it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..paths import MODELS
from ..training import pruning

if TYPE_CHECKING:
    import pandas as pd

STUDENTS = ("mini-sd", "mini-sd-small", "mini-lcm", "mini-lcm-small")


def missing(*names: str) -> str:
    """One sentence naming those that are not shipped here; empty if all are."""
    absent = [name for name in names if not (MODELS / name / "training.json").is_file()]
    commands = ", ".join(f"`hybridlib train {name}`" for name in absent)
    return f"Not here: {', '.join(absent)}; made by {commands}." if absent else ""


def curves(*names: str) -> tuple[dict[str, dict[str, list[float]]], dict[str, int]]:
    """Loss curves by term and numbers of steps, each by model and part, of those models that are here."""
    terms: dict[str, dict[str, list[float]]] = {}
    steps: dict[str, int] = {}
    for name in names:
        path = MODELS / name / "training.json"
        for part, run in json.loads(path.read_text()).items() if path.is_file() else ():
            terms[f"{name}: {part}"] = run.get("terms") or {"loss": run["losses"]}
            steps[f"{name}: {part}"] = run["recipe"]["steps"]
    return terms, steps


def quality(*names: str) -> pd.DataFrame:
    """What the cards of models say that they draw: a row for each model that is here, a column for each measure."""
    import pandas as pd

    files = {name: MODELS / name / "evaluation.json" for name in names}
    return pd.DataFrame.from_dict(
        {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}, orient="index"
    )


def unets() -> dict[str, Any]:
    """mini-sd's UNet, the same with BK-SDM-Tiny's blocks alone, and mini-sd-small's."""
    from ..denoising import models

    pipelines: list[Any] = [models.load(name, "cpu", "float32") for name in ("mini-sd", "mini-sd-small")]
    large, small = (pipeline.unet for pipeline in pipelines)
    return {"mini-sd": large, "mini-sd, blocks removed": pruning.remove_blocks(large, "tiny"), "mini-sd-small": small}


def significance() -> tuple[dict[str, float], dict[str, float]]:
    """Scores of the groups of mini-sd-small before they were pruned, and the share that each keeps."""
    from . import students

    scores = json.loads((MODELS / "mini-sd-small" / "scores.json").read_text())
    return scores, dict.fromkeys(scores, 1.0) | students.kept(scores)
