"""`share`: from a list of prompts to the cheapest tree that keeps the quality asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ...denoising.trajectory import check_type
from ...intervals import Array
from ...names import require_known
from ..planning import QualitySurface, noise_levels_of
from ..schedules import Schedule
from . import optimise
from .groups import KINDS, Conditioner, encoded, remembered
from .plan import Part, Path, SharingPlan, expected, grown
from .quality import LOW, forecast, shipped_steps, shipped_surface

MINI_SHIFT = 0.35  # of mini-sd3's noise schedule
ANY, STEPS_SCALE = "any", 7.0  # as few steps as the floor allows; guidance scale at which they were measured
UNITS = {optimise.LARGEST_COMPLETE: 512, 200: 256, 2000: 64}  # prompts up to -> units of loss in the optimiser
FEWEST_UNITS = 32


def share(
    prompts: Sequence[str],
    quality_floor: float = 0.95,
    *,
    budget: int | None = None,
    level: float = 0.9,
    each: bool = False,
    conditioning: str = "blend",
    public_prompts: Sequence[str] = (),
    public_guidance_scale: float = 2.0,
    guidance_scale: float = 7.0,
    num_inference_steps: int | Mapping[int, float] | str = 28,
    shift: float | None = None,
    sigmas: ArrayLike | None = None,
    surface: QualitySurface | None = None,
    similarity: Any = None,
) -> SharingPlan:
    """The cheapest tree in which these prompts share denoising steps and keep `quality_floor`.

    Quality is what the surface was fitted to, by default CLIP alignment on mini-sd3, as a share of what nothing shared
    gives. The promise of a mean is that of the surface: it is for lists of as many prompts as were fitted, and the mean
    of a short list scatters more. Prompts that are less alike than any pair the surface knows share nothing; how
    several nodes on one way add up is told in `quality`.

    Fewer steps save work, too, often more than sharing. Given what each number of steps keeps when nothing is shared,
    the plan may have fewer, and the floor is for both losses together.

    Up to 7 different prompts no tree of any shape is cheaper, among those whose groups run under their closest
    conditioning (`groups.Conditioner`). Longer lists get the best tree over one dendrogram. See `optimise` for both.

    Args:
        prompts: at least one, none empty; repeated ones are drawn once.
        quality_floor: share to keep, in (0, 1]; not used where there is a budget.
        budget: NFE for one seed. The plan then keeps the highest floor that these can buy.
        level: confidence of the promise, in [.5, 1). At .5 the expected quality keeps the floor, at .9 its lower end.
        each: whether every single prompt keeps the floor with this confidence, instead of the mean over the list.
        conditioning: what a group shares: "blend", the mean of its prompts' embeddings; "prompt", the one of them that
            is closest to the others; "public", a written one. Blends kept more than prompts in study 13.
        public_prompts: written ones, for "public".
        public_guidance_scale: of shared steps.
        guidance_scale: of a prompt's own steps.
        num_inference_steps: updates; or numbers of updates to choose from, each with the quality that it keeps when
            nothing is shared, in (0, 1] (`quality.kept_by_steps` measures it); or "any", 28 or fewer as they were
            measured on mini-sd3. What nothing shared takes is then told for the longest. What fewer steps keep counts
            at its lower end, in the expected quality, too.
        shift: of the noise schedule, by default mini-sd3's.
        sigmas: flow-matching noise levels before each update (a last 0 is ignored), instead of the two above.
        surface: of retained quality, from `planning.fit_surface`; by default that of mini-sd3 at these scales.
        similarity: what compares prompts: an object with `vectors(texts)` or such a function; by default MiniLM, which
            the shipped surface was fitted with.

    Raises:
        TypeError: if prompts are no list of texts.
        ValueError: one sentence, if an argument lies outside its range, or the budget is below what any plan takes.
    """
    options: dict[str, Any] = {"shift": shift, "level": level, "each": each, "surface": surface}
    options |= {"public_guidance_scale": public_guidance_scale, "guidance_scale": guidance_scale}
    options |= {"conditioning": conditioning, "public_prompts": public_prompts}
    check_floor(quality_floor)
    if isinstance(num_inference_steps, str):
        measured = shift is None and sigmas is None and surface is None and guidance_scale == STEPS_SCALE
        num_inference_steps = _measured_steps(num_inference_steps, prompts, level, each, measured)
    if isinstance(num_inference_steps, Mapping):
        if sigmas is not None:
            raise ValueError("sigmas are of one schedule; give num_inference_steps one number with them")
        return _shortest(prompts, quality_floor, budget, num_inference_steps, similarity, options)
    options |= {"num_inference_steps": num_inference_steps, "sigmas": sigmas, "similarity": similarity}
    asked = ask(prompts, **options)
    plan = asked.plan(_optimised(asked, 1 - quality_floor, budget))
    slack = 1 - quality_floor if budget is None else 1 - float(plan.quality[LOW].mean())
    star = sum(root.nfe for root in grown(one_public(asked.conditioner, slack, asked.scales)))
    return replace(plan, one_public_nfe=star)


def _measured_steps(name: str, prompts: Sequence[str], level: float, each: bool, known: bool) -> Mapping[int, float]:
    if name != ANY:
        raise ValueError(f"num_inference_steps must be a number, or {ANY!r}, got {name!r}")
    if not known:
        raise ValueError(
            f"num_inference_steps={ANY!r} is known for mini-sd3 on its own noise schedule at guidance_scale "
            f"{STEPS_SCALE:g}; for another model, schedule or scale say what each number of steps keeps"
        )
    check_numbers(level)
    return shipped_steps(len(set(checked(prompts))), level, each)


def _shortest(
    prompts: Sequence[str],
    quality_floor: float,
    budget: int | None,
    kept: Mapping[int, float],
    similarity: Any,
    options: dict[str, Any],
) -> SharingPlan:
    """The best plan over numbers of steps: the cheapest, or of those within a budget the one that keeps most."""
    if not kept or not all(0 < share_of <= 1 for share_of in kept.values()):
        raise ValueError(f"num_inference_steps must say what each number of steps keeps, in (0, 1], got {dict(kept)}")
    known = remembered([*checked(prompts), *options["public_prompts"]], similarity)
    plans = []
    for steps, share_of in kept.items():
        slack = share_of - quality_floor if budget is None else 0.0  # a budget takes the place of the floor
        if slack < 0:
            continue
        try:
            plan = share(prompts, 1 - slack, budget=budget, num_inference_steps=steps, similarity=known, **options)
        except optimise.OverBudget:
            continue
        plans.append(replace(plan, quality=plan.quality - (1 - share_of), longest=max(kept)))
    if not plans:
        best = max(kept.values())
        raise ValueError(
            f"num_inference_steps must hold a number that keeps {quality_floor:g}, the best keeps {best:g}"
            if budget is None
            else f"budget must pay for the cheapest tree of one of {sorted(kept)} steps, got {budget}"
        )
    if budget is None:
        return min(plans, key=lambda plan: plan.nfe)
    return max(plans, key=lambda plan: float(plan.quality[LOW].mean()))


class Asked(NamedTuple):
    """Prompts and all that plans for them rest on."""

    prompts: tuple[str, ...]  # as given
    conditioner: Conditioner
    vectors: dict[str, Array]
    sigmas: Array
    scales: tuple[float, float]  # of shared and of own steps
    model: str

    def plan(self, paths: Sequence[Path]) -> SharingPlan:
        """What these ways cost and what the forecast expects of them."""
        view = self.conditioner.forecast
        quality = expected(paths, self.conditioner.texts, self.vectors, view)
        return SharingPlan(self.prompts, tuple(paths), self.sigmas, quality, view.each, model=self.model)


def ask(
    prompts: Sequence[str],
    *,
    level: float = 0.9,
    each: bool = False,
    conditioning: str = "blend",
    public_prompts: Sequence[str] = (),
    public_guidance_scale: float = 2.0,
    guidance_scale: float = 7.0,
    num_inference_steps: int = 28,
    shift: float | None = None,
    sigmas: ArrayLike | None = None,
    surface: QualitySurface | None = None,
    similarity: Any = None,
) -> Asked:
    """Check what `share` is given, and compare the prompts; see there."""
    given = checked(prompts)
    scales = public_guidance_scale, guidance_scale
    check_numbers(level, *scales)
    require_known("conditioning", conditioning, KINDS)
    if conditioning == "public" or public_prompts:
        public_prompts = checked(public_prompts, "public_prompts")
    levels = schedule(num_inference_steps, shift, sigmas)
    surface = surface or shipped_surface(*scales)
    view = forecast(surface, levels, level, each, same_scale=public_guidance_scale == guidance_scale)
    texts = tuple(dict.fromkeys(given))
    everything = tuple(dict.fromkeys([*texts, *public_prompts]))
    vectors = dict(zip(everything, encoded(everything, similarity), strict=True))
    own, public = (np.array([vectors[text] for text in chosen]) for chosen in (texts, public_prompts))
    conditioner = Conditioner(texts, own, view, conditioning, tuple(public_prompts), public)
    return Asked(given, conditioner, vectors, levels, (float(scales[0]), float(scales[1])), surface.model)


def one_public(conditioner: Conditioner, slack: float, scales: tuple[float, float]) -> tuple[Path, ...]:
    """Ways with one node for all, until the latest step that `slack` pays for: hybrid inference as published."""
    members = np.arange(len(conditioner.texts))
    steps = conditioner.forecast.steps
    stop = 0
    if len(members) > 1 and (charge := conditioner.charge(members, steps - 1)) is not None:
        stop = int(np.flatnonzero(charge[0] <= slack + 1e-12).max())
    shared = (Part(conditioner.of(members)[0], stop, scales[0]),) if stop else ()
    return tuple((*shared, Part((text,), steps, scales[1])) for text in conditioner.texts)


def _optimised(asked: Asked, slack: float, budget: int | None) -> tuple[Path, ...]:
    conditioner, scales = asked.conditioner, asked.scales
    number, steps = len(conditioner.texts), conditioner.forecast.steps
    nfe = Part(("",), steps, scales[0]).nfe, Part(("",), steps, scales[1]).nfe
    small = number <= optimise.LARGEST_COMPLETE
    groups = optimise.every_group(number) if small else optimise.dendrogram(conditioner.vectors)
    units = next((units for most, units in UNITS.items() if number <= most), FEWEST_UNITS)

    def best(slack: float) -> optimise.Chosen:
        latest = min(conditioner.latest(slack), steps - 1)
        charges = [conditioner.charge(members, latest) for members in groups.members]
        return optimise.cheapest(groups, charges, steps, nfe, slack, units, budget)

    chosen = best(slack if budget is None else 1.0)
    if budget is not None and 0 < chosen.slack < 1:  # again in finer units
        chosen = best(chosen.slack)
    used = {group for path in chosen.paths for group, _ in path}
    texts = {group: conditioner.of(groups.members[group])[0] for group in used}
    return tuple(
        (*(Part(texts[group], stop, scales[0]) for group, stop in path), Part((text,), steps, scales[1]))
        for path, text in zip(chosen.paths, conditioner.texts, strict=True)
    )


# --- what is refused


def checked(prompts: Sequence[str], name: str = "prompts") -> tuple[str, ...]:
    """The prompts as a tuple, or one sentence on what is wrong with them."""
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise TypeError(f"{name} must be a list of texts, got {prompts!r}")
    if not prompts:
        raise ValueError(f"{name} must hold at least one prompt, got none")
    for number, prompt in enumerate(prompts):
        check_type(f"{name}[{number}]", prompt, str, "text")
        if not prompt.strip():
            raise ValueError(f"{name}[{number}] must not be empty, got {prompt!r}")
    return tuple(prompts)


def check_floor(quality_floor: float) -> None:
    """Raise ValueError unless the floor lies in (0, 1]."""
    if not 0 < quality_floor <= 1:
        raise ValueError(f"quality_floor must lie above 0 and at most at 1 (nothing lost), got {quality_floor}")


def check_numbers(level: float, *scales: float) -> None:
    """Raise ValueError unless confidence and guidance scales lie in their ranges."""
    if not 0.5 <= level < 1:
        raise ValueError(f"level must lie between .5 and 1, got {level}")
    if wrong := [scale for scale in scales if not (np.isfinite(scale) and scale >= 0)]:
        raise ValueError(f"guidance scales must be finite and not negative, got {wrong[0]}")


def schedule(num_inference_steps: int, shift: float | None, sigmas: ArrayLike | None) -> Array:
    """Noise levels before each update."""
    if sigmas is not None:
        return noise_levels_of(sigmas)
    if not 1 <= num_inference_steps <= 1000:
        raise ValueError(f"num_inference_steps must lie in 1..1000, got {num_inference_steps}")
    shift = MINI_SHIFT if shift is None else shift
    if not 0 < shift <= 100:
        raise ValueError(f"shift must lie above 0 and at most at 100, got {shift}")
    return Schedule(num_inference_steps, shift, "euler").noise_levels()
