"""What the shipped models' folders record of how they were made, as study 10 shows it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..paths import MODELS
from ..training import pruning

if TYPE_CHECKING:
    import pandas as pd

STUDENTS = ("mini-sd", "mini-sd-small", "mini-lcm", "mini-lcm-small")


def curves(*names: str) -> tuple[dict[str, dict[str, list[float]]], dict[str, int]]:
    """Loss curves by term and numbers of steps, each by model and part."""
    terms: dict[str, dict[str, list[float]]] = {}
    steps: dict[str, int] = {}
    for name in names:
        for part, run in json.loads((MODELS / name / "training.json").read_text()).items():
            terms[f"{name}: {part}"] = run.get("terms") or {"loss": run["losses"]}
            steps[f"{name}: {part}"] = run["recipe"]["steps"]
    return terms, steps


def quality(*names: str) -> pd.DataFrame:
    """What the cards of models say that they draw: a row for each model, a column for each measure."""
    import pandas as pd

    told = {name: json.loads((MODELS / name / "evaluation.json").read_text()) for name in names}
    return pd.DataFrame.from_dict(told, orient="index")


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
