"""Lists of prompts for planned trees: alike, mixed, unrelated, of any length, in the words of the scenes."""

from __future__ import annotations

from random import Random

from ..names import require_known
from .scenes import COLOURS, GROUNDS, LIGHTS, RELATIONS, SHAPES, SIZES

KINDS = ("alike", "mixed", "unrelated")
PER_THEME = 24  # prompts that vary one theme, at most

Theme = tuple[tuple[str, ...], str, str]  # shapes, relation, ground


def prompt_list(kind: str, number: int, seed: int) -> tuple[str, ...]:
    """Different detailed captions, drawn from a seed.

    "alike": variations of a theme, which is the shapes, how they stand and the ground; sizes, colours and light vary.
    Lists longer than `PER_THEME` have several themes. "mixed": half of the list is alike, the rest unrelated.
    "unrelated": every prompt has a theme of its own.

    Raises:
        ValueError: if there is no such kind, or `number` is not at least 1 and at most 10,000.
    """
    require_known("kind of list", kind, KINDS)
    if not 1 <= number <= 10_000:
        raise ValueError(f"number must lie in 1..10000, got {number}")
    rng = Random(f"{kind} {seed}")
    alike = {"alike": number, "mixed": (number + 1) // 2, "unrelated": 0}[kind]
    found: dict[str, None] = {}
    while len(found) < number:
        left = alike - len(found)
        theme, variations = _theme(rng), max(1, min(PER_THEME, left))
        for _ in range(4 * variations):
            if variations and (text := _caption(rng, theme)) not in found:
                found[text], variations = None, variations - 1
    return tuple(found)


def _theme(rng: Random) -> Theme:
    shapes = tuple(rng.choices(list(SHAPES), k=rng.choice((1, 2))))
    return shapes, rng.choice(RELATIONS), rng.choice(list(GROUNDS))


def _caption(rng: Random, theme: Theme) -> str:
    shapes, relation, ground = theme
    objects = [f"a {rng.choice(list(SIZES))} {rng.choice(list(COLOURS))} {shape}" for shape in shapes]
    return f"{f' {relation} '.join(objects)} on {ground} at {rng.choice(list(LIGHTS))}"
