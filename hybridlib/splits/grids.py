"""Who denoises when: the published splits between a large and a small denoiser, as tables of trajectories.

A split is written as published, "a,b": the large denoiser makes a updates, the small one b. Hybrid SD lets the large
one go first (arXiv 2408.06646), T-Stitch the small one (arXiv 2402.14167), and EC-Diff thins the large one's updates
(arXiv 2507.11980). All rows of a table have the same prompts and seeds, so that splits are compared pair by pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product

import pandas as pd

from ..denoising.thinning import Thinning
from ..denoising.trajectory import Segment, Trajectory

LARGE, SMALL = "", "small"  # names of the denoisers: the pipeline's own, and the one beside it
PUBLISHED = {  # model family -> splits that its publication shows
    "sd": ("0,25", "5,20", "10,15", "15,10", "20,5", "25,0"),
    "sdxl": ("0,25", "10,15", "15,10", "25,0"),
    "lcm": ("0,8", "4,4", "8,0"),
}
PUBLISHED_THINNED = {  # EC-Diff: pair -> warm-up, skipped steps, alpha, updates of the cloud; of 50 steps
    "SD1.4 and BK-SDM-Tiny": "7,2,0.3,37",
    "SDXL and SSD-1B": "6,5,0.2,36",
    "CogVideoX 5B and 2B": "10,3,0.2,38",
}
PROMPTS_A_SHARD = 8  # of one seed, whose images are made together: small models are quick only in batches
LARGE_FIRST, SMALL_FIRST, THINNED, MASK = "large first", "small first", "thinned", "mask"


@dataclass(frozen=True)
class Division:
    """A way to divide the updates of a schedule between the large and the small denoiser.

    `parts` are denoisers with their numbers of updates, in running order; where there is a `thinning`, it is of the
    large one's part.
    """

    method: str  # one of LARGE_FIRST, SMALL_FIRST, THINNED, MASK
    label: str  # as the split is written: "10,15", "7,2,0.3,37", "LSSL"
    parts: tuple[tuple[str, int], ...]
    thinning: Thinning | None = None

    @property
    def large_steps(self) -> int:
        """Updates of the large denoiser, extrapolated ones too."""
        return self._updates(LARGE)

    @property
    def small_steps(self) -> int:
        """Updates of the small denoiser."""
        return self._updates(SMALL)

    @property
    def large_evaluated(self) -> int:
        """Updates for which the large denoiser is asked."""
        return self.large_steps if self.thinning is None else self.thinning.evaluated(self.large_steps)

    @property
    def handoff(self) -> int:
        """Updates before the first change of denoiser; all of them where there is none."""
        return self.parts[0][1]

    @property
    def handoffs(self) -> int:
        """How often the denoiser changes."""
        return len(self.parts) - 1

    @property
    def name(self) -> str:
        """Method and label."""
        return f"{self.method} {self.label}"

    def trajectory(self, prompt: str, seed: int, guidance_scale: float = 7.0, negative_prompt: str = "") -> Trajectory:
        """One prompt from noise to image; one global guidance scale, as published."""
        segments, begin = [], 0
        for denoiser, number in self.parts:
            segment = Segment(
                prompt,
                begin,
                begin + number,
                guidance_scale,
                negative_prompt,
                denoiser=denoiser,
                thinning=self.thinning if denoiser == LARGE else None,
            )
            segments.append(segment)
            begin += number
        return Trajectory(seed, tuple(segments))

    def _updates(self, denoiser: str) -> int:
        return sum(number for name, number in self.parts if name == denoiser)


def large_first(split: str, num_inference_steps: int = 25) -> Division:
    """Hybrid SD's order: "10,15" lets the large denoiser make the 10 noisiest updates.

    Raises:
        ValueError: unless the split is two whole numbers that sum to the steps.
    """
    large, small = _numbers(split, num_inference_steps)
    return Division(LARGE_FIRST, split, _without_empty((LARGE, large), (SMALL, small)))


def small_first(split: str, num_inference_steps: int = 25) -> Division:
    """T-Stitch's order at the same cost: "10,15" is 15 updates of the small denoiser, then 10 of the large one.

    Raises:
        ValueError: unless the split is two whole numbers that sum to the steps.
    """
    large, small = _numbers(split, num_inference_steps)
    return Division(SMALL_FIRST, split, _without_empty((SMALL, small), (LARGE, large)))


def masked(mask: str, num_inference_steps: int = 25) -> Division:
    """Any order: a letter for each update, L for the large denoiser and S for the small one.

    Raises:
        ValueError: unless there is an L or S for each step.
    """
    if len(mask) != num_inference_steps or set(mask) - set("LS"):
        raise ValueError(f"a mask must be {num_inference_steps} letters, each L or S, got {mask!r} ({len(mask)})")
    parts = tuple((LARGE if letter == "L" else SMALL, len(list(run))) for letter, run in groupby(mask))
    return Division(MASK, mask, parts)


def thinned(setting: str, num_inference_steps: int = 25) -> Division:
    """EC-Diff: "p,k,alpha,s" lets the large denoiser make s updates of which, after p, only each (k+1)th is evaluated.

    Raises:
        ValueError: unless there are four numbers that `Thinning` takes, with p <= s <= the steps.
    """
    words = setting.split(",")
    try:
        warm_up, skip, alpha, stop = int(words[0]), int(words[1]), float(words[2]), int(words[3])
        if len(words) != 4:
            raise ValueError
    except (ValueError, IndexError):
        raise ValueError(f"a thinned split must be 'p,k,alpha,s', such as '7,2,0.3,37', got {setting!r}") from None
    if not warm_up <= stop <= num_inference_steps:
        raise ValueError(
            f"a thinned split needs p <= s <= num_inference_steps={num_inference_steps}, got p={warm_up}, s={stop}"
        )
    parts = _without_empty((LARGE, stop), (SMALL, num_inference_steps - stop))
    return Division(THINNED, setting, parts, Thinning(warm_up, skip, alpha))


def divisions(
    splits: Sequence[str],
    num_inference_steps: int = 25,
    small_first_splits: Sequence[str] = (),
    thinned_splits: Sequence[str] = (),
    masks: Sequence[str] = (),
) -> list[Division]:
    """All of a study, checked before anything runs. Where only one denoiser runs, the order makes no difference: it
    counts as large first.

    Raises:
        ValueError: if one is wrong, or occurs twice.
    """
    steps = num_inference_steps
    made = [large_first(split, steps) for split in splits]
    made += [small_first(split, steps) for split in small_first_splits]
    made += [thinned(setting, steps) for setting in thinned_splits]
    made += [masked(mask, steps) for mask in masks]
    if idle := [d for d in made if d.method in (SMALL_FIRST, MASK) and not d.handoffs]:
        raise ValueError(f"{idle[0].name} has one denoiser alone: list it among the splits that go large first")
    seen: set[object] = set()
    for division in made:
        if (key := (division.parts, division.thinning)) in seen:
            raise ValueError(f"{division.name} occurs twice")
        seen.add(key)
    return made


def grid(
    prompts: Mapping[int, str], seeds: Sequence[int], chosen: Sequence[Division], guidance_scale: float = 7.0
) -> pd.DataFrame:
    """A row for every division, prompt and seed.

    Args:
        prompts: by their place in the prompt set.

    Returns:
        Columns path, method, split, large_steps (updates of the large denoiser), common_step (updates before the first
        handoff), personal (place of the prompt), prompt, seed, shard, trajectory.
    """
    rows = []
    for division, (number, (index, prompt)), seed in product(chosen, enumerate(prompts.items()), seeds):
        folder = f"{division.method} {division.label}".replace(" ", "_")
        rows.append(
            {
                "path": f"{folder}/prompt{index}_seed{seed}.png",
                "method": division.method,
                "split": division.label,
                "large_steps": division.large_steps,
                "common_step": division.handoff,
                "personal": index,
                "prompt": prompt,
                "seed": seed,
                "shard": f"{seed} {number // PROMPTS_A_SHARD}",
                "trajectory": division.trajectory(prompt, seed, guidance_scale),
            }
        )
    return pd.DataFrame(rows)


def _numbers(split: str, num_inference_steps: int) -> tuple[int, int]:
    words = split.split(",")
    if len(words) != 2 or not all(word.strip().isdecimal() for word in words):
        raise ValueError(f"a split must be two whole numbers, such as '10,15', got {split!r}")
    large, small = (int(word) for word in words)
    if large + small != num_inference_steps:
        raise ValueError(
            f"a split must sum to num_inference_steps={num_inference_steps}, got {split!r}, which makes {large + small}"
        )
    return large, small


def _without_empty(*parts: tuple[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(part for part in parts if part[1])
