"""Other rules that say what prompts share, as plans, so that all are run and scored the same way.

Those of publications are written from what is published of them, papers and for 2508.21032 its public code, with these
choices of ours: prompts are compared by the vectors that the planner uses, averaged conditionings are means of the
model's text embeddings, and shared steps are guided as own steps are, since both publications know one guidance scale.
The quality that such a plan tells is what the planner's forecast expects; the rules themselves know none.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .optimise import distances
from .plan import Part, Path, SharingPlan
from .planner import Asked, check_floor, one_public


def alone(asked: Asked) -> SharingPlan:
    """Nothing shared: what users have today."""
    return asked.plan([_own(asked, text) for text in asked.conditioner.texts])


def fewer_steps(asked: Asked, shorter: Asked) -> SharingPlan:
    """Nothing shared and a shorter schedule: the honest rival of any plan of the same NFE.

    Args:
        shorter: the same prompts, asked for that schedule. Its quality is nan: no surface knows it.
    """
    plan = alone(shorter)
    return replace(plan, prompts=asked.prompts, quality=np.full_like(plan.quality, np.nan))


def public_prompt(asked: Asked, quality_floor: float) -> SharingPlan:
    """Hybrid inference as published with its quality model: one public prompt for all, one common step."""
    check_floor(quality_floor)
    return asked.plan(one_public(asked.conditioner, 1 - quality_floor, asked.scales))


def clustered(asked: Asked, tau: float = 1.0) -> SharingPlan:
    """Reusing Computation (Decatur et al. 2025, arXiv 2508.21032): a dendrogram cut ever lower as the noise falls.

    Ward linkage of cosine distances; at step k of T every cluster of height tau (1 - k / (T - 1)) runs under the mean
    of its members. Published with tau 1 as default, 40 steps, and embeddings of images that a prior makes of prompts;
    such a prior does not exist here.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    if not tau >= 0:
        raise ValueError(f"tau must not be negative, got {tau}")
    texts, steps = asked.conditioner.texts, asked.conditioner.forecast.steps
    if len(texts) == 1:
        return alone(asked)
    tree = linkage(distances(asked.conditioner.vectors), "ward")
    cuts = [fcluster(tree, height, "distance") for height in np.linspace(tau, 0, steps)[:-1]]
    groups = [{label: tuple(np.array(texts)[cut == label].tolist()) for label in set(cut)} for cut in cuts]
    ways = [[group[cut[i]] for cut, group in zip(cuts, groups, strict=True)] for i in range(len(texts))]
    return asked.plan([_merged(asked, way, text) for way, text in zip(ways, texts, strict=True)])


def semantic_groups(asked: Asked, threshold: float = 0.6, share: float = 0.4) -> SharingPlan:
    """SAGE's sampling (Zhao et al. 2025, arXiv 2509.15865): groups of like prompts share the first steps.

    All pairs of a group are at least `threshold` alike; a group runs under the mean of its members for the first
    `share` of the steps, then each prompt goes on alone. The sharing of 40 % is the paper's, the threshold is ours: the
    text at hand does not give it. SAGE also trains the model for this, which is not done here.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    if not 0 <= share < 1:
        raise ValueError(f"share must lie in [0, 1), got {share}")
    texts, steps = asked.conditioner.texts, asked.conditioner.forecast.steps
    shared = round(share * steps)
    if len(texts) == 1 or not shared:
        return alone(asked)
    label = fcluster(linkage(distances(asked.conditioner.vectors), "complete"), 1 - threshold, "distance")
    groups = [tuple(np.array(texts)[label == label[i]].tolist()) for i in range(len(texts))]
    return asked.plan([_merged(asked, [group] * shared, text) for group, text in zip(groups, texts, strict=True)])


def _own(asked: Asked, text: str) -> Path:
    return (Part((text,), asked.conditioner.forecast.steps, asked.scales[1]),)


def _merged(asked: Asked, way: list[tuple[str, ...]], text: str) -> Path:
    """A path from what steers each of the first steps; the prompt itself steers the rest."""
    scale = asked.scales[1]
    parts: list[Part] = []
    for step, group in enumerate(way):
        if parts and parts[-1].texts == group:
            parts.pop()
        parts.append(Part(group, step + 1, scale))
    if parts and parts[-1].texts == (text,):
        parts.pop()
    return (*parts, *_own(asked, text))
