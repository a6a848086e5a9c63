"""How many steps may be shared: the planner's question, answered from the tables that ship."""

from __future__ import annotations

from typing import NamedTuple

QUALITY = "CLIP alignment, as a share of what nothing shared gives (1)"
PUBLIC_SCALE, PERSONAL_SCALE = 2.0, 7.0  # of the images that the surface was fitted to


class Answer(NamedTuple):
    """A plan, its interval and its price."""

    similarity: float
    shift: float
    common_step: int  # safe
    estimate: int  # where the expected mean itself still keeps the floor
    quality: float  # expected mean at `common_step`
    low: float
    high: float
    nfe: int
    one_at_a_time: int


def plan(similarity: float, quality_floor: float, steps: int, shift: float | None, users: int) -> Answer:
    """The latest common step that keeps the floor, on a flow-matching Euler schedule.

    Args:
        similarity: of public and personal prompt, within the range that was measured.
        quality_floor: share of the unshared alignment that must be kept, in (0, 1].
        shift: of the schedule; that of mini-sd3 where None.
        users: how many share.

    Raises:
        ValueError: one sentence, if a number lies outside its range.
    """
    from ..denoising.trajectory import Trajectory
    from ..denoising.tree import Tree
    from ..hybrid import hiqm, planning
    from ..hybrid.schedules import Schedule
    from ..study import results

    if not 0 < quality_floor <= 1:
        raise ValueError(f"quality floor must lie above 0 and at most at 1 (nothing lost), got {quality_floor:g}")
    if not 1 <= steps <= 1000:
        raise ValueError(f"steps must lie in 1..1000, got {steps}")
    if shift is not None and not 0 < shift <= 100:
        raise ValueError(f"shift must lie above 0 and at most at 100, got {shift:g}")
    if users < 1:
        raise ValueError(f"users must be at least 1, got {users}")
    scores = results.load("05_anchored")
    shift = float(scores["shift"].iloc[0]) if shift is None else shift
    sigmas = Schedule.parse(f"{steps}/{shift}/euler").noise_levels()
    shared, alone = (hiqm.cube(scores, variant) for variant in ("wSIM", "woSIM"))
    surface = planning.fit_surface(shared.retained(alone))
    found = surface.max_common_step(similarity, quality_floor, sigmas)
    expected = surface.predict(sigmas[found.common_step], similarity)
    paths = [
        Trajectory.hybrid(
            "public",
            f"personal {user}",
            found.common_step,
            1,
            PUBLIC_SCALE,
            PERSONAL_SCALE,
            num_inference_steps=steps,
        )
        for user in range(users)
    ]
    cost = Tree(paths).cost
    return Answer(
        similarity,
        shift,
        found.common_step,
        found.estimate,
        float(expected.mean),
        float(expected.low),
        float(expected.high),
        cost.tree,
        cost.one_at_a_time,
    )


def similarity_of(public: str, personal: str) -> float:
    """Cosine of two prompts, as the table measured it (all-MiniLM-L6-v2)."""
    from ..metrics.similarity import SentenceSimilarity
    from ..progress import quiet_libraries

    with quiet_libraries():
        return float(SentenceSimilarity.load("all-MiniLM-L6-v2", device="cpu").matrix([public, personal])[0, 1])


def print_plan(answer: Answer, quality_floor: float, steps: int, users: int) -> None:
    """The answer in sentences."""
    a = answer
    print(f"similarity {a.similarity:.2f}, {steps} Euler steps, shift {a.shift:g}, quality floor {quality_floor:g}")
    print(
        f"common step {a.common_step}: the mean quality is expected at {a.quality:.2f} ({a.low:.2f} to {a.high:.2f}, "
        "each bound right with 90 % confidence)"
    )
    print(f"the expected mean alone would keep the floor up to common step {a.estimate}, which fails half of the time")
    saved = 1 - a.nfe / a.one_at_a_time
    print(f"{users} users: {a.nfe} NFE, {a.one_at_a_time} one at a time ({saved:.0%} saved)")
    print(
        f"Quality is {QUALITY}. It rests on 35,280 pairs of images of mini-sd3 (data/results/05_anchored, public scale "
        f"{PUBLIC_SCALE:g}, personal scale {PERSONAL_SCALE:g}) and is a mean over prompts: single pairs scatter widely."
    )
