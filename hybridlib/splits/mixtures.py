"""All ways to save at once: a start shared by several users, a handoff to the edge, and a codec between.

A mixture is a trajectory of the personal prompt: the public prompt for `common_step` updates, shared by the users of a
group, then the personal one; the large denoiser in the cloud for the first updates, the small one at the edge for the
rest; where the latents cross, a codec. Nothing but latents crosses, so the solver begins anew there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..denoising.trajectory import Trajectory
from ..denoising.tree import Tree
from ..files import write_table
from ..study import runner
from .costs import HALF
from .grids import LARGE, LARGE_FIRST, SMALL, Division, large_first

if TYPE_CHECKING:
    from ..codecs import Codec
    from ..denoising.denoisers import GuidedDenoiser
    from ..denoising.hybrid_call import HybridPipeline
    from ..metrics import Metric
    from ..prompts import PromptSet
    from ..study.parameters import SamplingParameters, Settings
    from ..study.runner import Models, Outcome

MIXTURE = ["common_step", "split", "codec"]
UNCODED = "fp16"


def grid(
    prompts: PromptSet,
    personal: Sequence[int],
    seeds: Sequence[int],
    common_steps: Sequence[int],
    splits: Sequence[str],
    codecs: Sequence[Codec],
    num_inference_steps: int = 25,
    public_guidance_scale: float = 2.0,
    guidance_scale: float = 7.0,
) -> pd.DataFrame:
    """A row for every mixture, personal prompt and seed; latents also cross uncoded.

    A start longer than the cloud's part would have to be shared between edges: such mixtures are left out. A codec
    stands only where latents are gone on with: final ones cross uncoded, and where the edge does everything none do.

    Returns:
        Columns path, common_step, split, codec (`UNCODED` where there is none), step (updates before the latents
        cross), personal, prompt, seed, shard, trajectory.
    """
    rows = []
    for common_step, split, codec in product(common_steps, splits, (None, *codecs)):
        division = large_first(split, num_inference_steps)
        if common_step > division.large_steps or (codec and not division.handoffs):
            continue
        name = UNCODED if codec is None else codec.specification
        folder = f"{common_step}_{split}_{name}".replace(":", "-").replace("/", "-")
        for index, seed in product(personal, seeds):
            trajectory = _trajectory(
                prompts, index, seed, common_step, division, codec, public_guidance_scale, guidance_scale
            )
            row = {"path": f"mixtures/{folder}/prompt{index}_seed{seed}.png", "common_step": common_step}
            row |= {"split": split, "codec": name, "step": division.large_steps, "personal": index}
            row |= {"prompt": prompts.personal[index], "seed": seed, "shard": f"{seed} {prompts.group[index]}"}
            rows.append(row | {"trajectory": trajectory})
    return pd.DataFrame(rows)


def _trajectory(
    prompts: PromptSet,
    index: int,
    seed: int,
    common_step: int,
    division: Division,
    codec: Codec | None,
    public_guidance_scale: float,
    guidance_scale: float,
) -> Trajectory:
    steps = division.large_steps + division.small_steps
    public, personal = prompts.public_of(index), prompts.personal[index]
    path = Trajectory.hybrid(
        public, personal, common_step, seed, public_guidance_scale, guidance_scale, num_inference_steps=steps
    ).with_denoisers(division.parts)
    return path if codec is None else path.with_codec(division.large_steps, codec)


def run(
    table: pd.DataFrame,
    pipeline: HybridPipeline,
    folder: Path,
    parameters: SamplingParameters,
    metrics: Sequence[Metric],
    codecs: Sequence[Codec],
    models: Models,
    denoisers: Mapping[str, GuidedDenoiser],
) -> tuple[pd.DataFrame, Outcome]:
    """Images, scores and costs of a grid; writes `mixtures.parquet`.

    Args:
        denoisers: by the names of `grids`.

    Returns:
        The scores with columns message_bytes, cloud_macs and edge_macs, each the same in all rows of a mixture.
    """
    sizes = message_bytes(pipeline, table, codecs, parameters.settings(), models)
    work = compute(table, denoisers, parameters.image_size)
    scores, outcome = runner.run(table, pipeline, folder, parameters, metrics, "mixtures", models)
    attrs = scores.attrs
    for costs in (sizes, work):
        scores = scores.merge(costs, on=MIXTURE, validate="many_to_one")
    scores.attrs = attrs
    write_table(scores, folder / "mixtures.parquet")
    return scores, outcome


def message_bytes(
    pipeline: HybridPipeline, table: pd.DataFrame, codecs: Iterable[Codec], settings: Settings, models: Models
) -> pd.DataFrame:
    """Bytes of the latents that cross, as messages of a codec or as 16-bit floats, measured on the table's first seed.

    Returns:
        One row per mixture: common_step, split, codec, message_bytes (0 where nothing crosses).
    """
    from ..denoising.sampler import sample

    first = table[(table["seed"] == table["seed"].iloc[0]) & (table["codec"] == UNCODED)]
    by_name = {codec.specification: codec for codec in codecs}
    kept = sorted(set(first["step"]) - {0})
    samples = sample(
        pipeline, list(first["trajectory"]), keep=kept, progress=False, **models._asdict(), **settings.sampling()
    )
    rows = []
    for (common_step, split), part in first.reset_index(drop=True).groupby(["common_step", "split"]):
        step, seed = int(part["step"].iloc[0]), int(part["seed"].iloc[0])
        if not step:
            rows.append((common_step, split, UNCODED, 0.0))
            continue
        latents = samples.latents(step)[list(part.index)].float().cpu()
        rows.append((common_step, split, UNCODED, float(HALF * latents[0].numel())))
        if step == part["trajectory"].iloc[0].stop:
            continue
        for name, codec in by_name.items():
            sizes = [len(message) for message in codec.encode(latents, [seed] * len(latents))]
            rows.append((common_step, split, name, float(np.mean(sizes))))
    return pd.DataFrame(rows, columns=[*MIXTURE, "message_bytes"])


def compute(table: pd.DataFrame, denoisers: Mapping[str, GuidedDenoiser], image_size: int) -> pd.DataFrame:
    """Multiply-adds of an image of each mixture, a shared start counted once for all who share it.

    Args:
        denoisers: by the names of `grids`.
        image_size: in pixels.

    Returns:
        One row per mixture: common_step, split, codec, cloud_macs, edge_macs.
    """
    from ..denoising.costs import work
    from ..denoising.families import nfe_of

    each = {name: work(denoisers[name], image_size, image_size).macs for name in (LARGE, SMALL)}
    rows = []
    for key, part in table.groupby(MIXTURE, sort=False):
        trees = [Tree(list(group["trajectory"]), nfe=nfe_of(denoisers)) for _, group in part.groupby("seed")]
        spent = {name: sum(tree.cost.of(name).tree for tree in trees) * each[name] / len(part) for name in each}
        rows.append((*key, spent[LARGE], spent[SMALL]))
    return pd.DataFrame(rows, columns=[*MIXTURE, "cloud_macs", "edge_macs"])


def summary(scores: pd.DataFrame, value: str) -> pd.DataFrame:
    """Each mixture with its quality, what it costs, and whether it is on a Pareto front.

    Args:
        scores: as `run` returns them, with a column `value`, higher being better.

    Returns:
        One row per mixture: common_step, split, codec, quality (mean), low, high (95 % over seeds), message_bytes,
        cloud_macs, edge_macs, front (not beaten in quality, edge compute and bytes), front_with_cloud (nor in cloud
        compute).
    """
    from ..runs import t_interval

    per_seed = scores.groupby([*MIXTURE, "seed"], sort=False)[value].mean()
    wide = per_seed.unstack("seed")
    found = [t_interval(row) for row in wide.to_numpy(float)]
    table = pd.DataFrame(found, index=wide.index, columns=["quality", "low", "high"]).reset_index()
    spent = scores.drop_duplicates(MIXTURE)[[*MIXTURE, "message_bytes", "cloud_macs", "edge_macs"]]
    table = table.merge(spent, on=MIXTURE, validate="one_to_one")
    costs = ["edge_macs", "message_bytes"]
    fronts = {"front": costs, "front_with_cloud": [*costs, "cloud_macs"]}
    return table.assign(**{name: undominated(table, "quality", axes) for name, axes in fronts.items()})


def memory_kept(scores: pd.DataFrame, mixed: pd.DataFrame, value: str) -> pd.DataFrame:
    """What it is worth that the solver remembers its last output where the denoiser changes.

    Args:
        scores: as `quality.run` returns them, under handoff "keep".
        mixed: as `run` returns them, where the solver begins anew; its uncoded mixtures without a shared start are the
            same generations otherwise.

    Returns:
        One row per split that both have: split, kept, anew, difference (kept less anew, seed by seed), low, high.
    """
    from ..runs import t_interval

    keys = ["split", "personal", "seed"]
    plain = mixed[(mixed["common_step"] == 0) & (mixed["codec"] == UNCODED)]
    first = scores[scores["method"] == LARGE_FIRST]
    both = first[[*keys, value]].merge(plain[[*keys, value]], on=keys, suffixes=("_kept", "_anew"))
    means = both.groupby(["split", "seed"], sort=False)[[f"{value}_kept", f"{value}_anew"]].mean()
    rows = []
    for split, part in means.groupby("split", sort=False):
        kept, anew = part[f"{value}_kept"], part[f"{value}_anew"]
        rows.append((split, kept.mean(), anew.mean(), *t_interval(kept - anew)))
    return pd.DataFrame(rows, columns=["split", "kept", "anew", "difference", "low", "high"])


def undominated(table: pd.DataFrame, value: str, costs: Sequence[str]) -> np.ndarray:
    """Which rows no other row beats: none is at least as good in everything and better in something. (rows,) bool."""
    points = np.column_stack([-table[value].to_numpy(float), *(table[cost].to_numpy(float) for cost in costs)])
    no_worse = (points[:, None] <= points[None]).all(-1)
    better = (points[:, None] < points[None]).any(-1)
    beaten = np.asarray((no_worse & better).any(axis=0))
    return np.logical_not(beaten)
