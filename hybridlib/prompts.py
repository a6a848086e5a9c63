"""Prompt sets: public prompts, the personal prompts that share them, and a negative for each personal one."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .files import read_yaml
from .names import closest
from .paths import PROMPTS, PUBLISHED
from .trust import InvalidInput, refusing, shown

LARGEST_CLOSED = 1024  # pieces; half of them are the bytes, and CLIP's own tokenizer has 49,408
SHORT_WORDS = ("a", "an", "on")  # words though they are single letters, or ends of others (cyan, noon)


@dataclass(frozen=True)
class PromptSet:
    """Public and personal prompts. Personal prompt i belongs to public prompt `group[i]` and has `negative[i]`.

    Raises:
        ValueError: naming the file (`source`) and the first empty or duplicate prompt, or lists that do not match.
    """

    public: tuple[str, ...]
    personal: tuple[str, ...]
    negative: tuple[str, ...]
    group: tuple[int, ...]
    source: str = "prompt set"

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for kind, prompts in (("public", self.public), ("personal", self.personal)):
            if not prompts:
                raise ValueError(f"{self.source}: needs at least one {kind} prompt")
            for index, prompt in enumerate(prompts):
                if not prompt.strip():
                    raise ValueError(f"{self.source}: {kind} prompt {index} is empty")
                if prompt in seen:
                    raise ValueError(f"{self.source}: {kind} prompt {index} is a duplicate: {prompt!r}")
                seen.add(prompt)
        for kind, entries in (("negative", self.negative), ("group", self.group)):
            if len(entries) != len(self.personal):
                raise ValueError(
                    f"{self.source}: needs one {kind} for each of {len(self.personal)} personal prompts, "
                    f"got {len(entries)}"
                )
        if outside := [g for g in self.group if not 0 <= g < len(self.public)]:
            raise ValueError(f"{self.source}: group {outside[0]} is no public prompt; there are {len(self.public)}")

    @property
    def joint(self) -> tuple[str, ...]:
        """Public, then personal prompts: one list in which every prompt can play both roles."""
        return self.public + self.personal

    @property
    def joint_negative(self) -> tuple[str, ...]:
        """The negative of each joint prompt; public prompts have none."""
        return ("",) * len(self.public) + self.negative

    @property
    def boundaries(self) -> list[int]:
        """Joint indices at which a new group of personal prompts begins."""
        return [len(self.public) + i for i, g in enumerate(self.group) if i == 0 or g != self.group[i - 1]]

    def public_of(self, personal: int) -> str:
        """The public prompt that personal prompt `personal` shares."""
        return self.public[self.group[personal]]

    @staticmethod
    def load(name: str) -> PromptSet:
        """Read a prompt set by its name in `data/prompts` or from the path of a YAML file.

        Raises:
            InvalidInput: if there is no such file, or it does not hold `groups` of `public` and `personal` prompts, all
                of them text.
        """
        path = prompt_file(name)
        public, personal, negative, group = list[str](), list[str](), list[str](), list[int]()
        with refusing():
            content = _entry(read_yaml(path), f"{path}: the file", "groups")
            for index, entry in enumerate(_listed(content["groups"], f"{path}: groups")):
                entry = _entry(entry, f"{path}: group {index}", "public", "personal")
                public.append(_text(entry["public"], f"{path}: public prompt {index}"))
                for pair in _listed(entry["personal"], f"{path}: personal of group {index}"):
                    where = f"{path}: personal prompt {len(personal)}"
                    pair = _entry(pair, where, "prompt", optional=("negative",))
                    personal.append(_text(pair["prompt"], where))
                    negative.append(_text(pair.get("negative", ""), f"{where}, its negative"))
                    group.append(index)
            return PromptSet(tuple(public), tuple(personal), tuple(negative), tuple(group), str(path))


def _entry(value: Any, where: str, *required: str, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """The mapping with these keys that `value` must be."""
    if not isinstance(value, dict) or set(required) - set(value):
        raise InvalidInput(f"{where}: expected {' and '.join(required)}, got {shown(value)}")
    if unknown := sorted(set(value) - {*required, *optional}):
        raise InvalidInput(f"{where}: unknown key {shown(unknown[0])}{closest(unknown[0], (*required, *optional))}")
    return value


def _listed(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidInput(f"{where}: expected a list, got {shown(value)}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"{where}: expected text, got {shown(value)}; YAML takes text for text between quotes")
    return value


def closed_vocabulary(tokenizer: Any) -> tuple[str, ...] | None:
    """The words of a byte-pair tokenizer too small for a language, such as that of mini-sd3; None of any other.

    Such a tokenizer spells its own words as one piece each, and every other text in pieces that no caption ever held,
    so that a model trained on captions draws nonsense.
    """
    if len(tokenizer) > LARGEST_CLOSED:
        return None
    ended = [piece.removesuffix("</w>") for piece in tokenizer.get_vocab() if piece.endswith("</w>")]
    whole = [piece for piece in ended if len(piece) > 1 and piece.isalpha() and piece.isascii()]
    ends = {piece for piece in whole if any(other != piece and other.endswith(piece) for other in whole)}
    return tuple(sorted({*whole} - ends | {word for word in SHORT_WORDS if word in ended}))


def foreign_words(tokenizer: Any, texts: Iterable[str]) -> list[str]:
    """The words in `texts` that are outside the closed vocabulary of a tokenizer; none if it has no such vocabulary."""
    if tokenizer is None or (known := closed_vocabulary(tokenizer)) is None:
        return []
    found = dict.fromkeys(word for text in texts for word in re.findall(r"[^\W\d_]+|\d|[^\w\s]+|_+", text.lower()))
    return [word for word in found if word not in known]


def warn_of_foreign_words(tokenizer: Any, texts: Iterable[str], stacklevel: int = 2) -> None:
    """Warn once of all words in `texts` that are outside the closed vocabulary of a tokenizer, if it has one."""
    if foreign := foreign_words(tokenizer, texts):
        warnings.warn(
            f"the model does not know {', '.join(map(repr, foreign))} and draws nonsense for it; its vocabulary is "
            f"{', '.join(closed_vocabulary(tokenizer) or ())} (hybridlib.miniature.tokens.words())",
            stacklevel=stacklevel,
        )


def prompt_file(name: str) -> Path:
    """The file of a prompt set, or an `InvalidInput` that names where it was looked for."""
    for path in (PROMPTS / f"{name}.yaml", Path(name)):
        with suppress(OSError):  # names too long for a file
            if path.is_file():
                return path
    known = ", ".join(sorted(p.stem for p in PROMPTS.glob("*.yaml")))
    raise InvalidInput(f"no prompt set {shown(name)}: not a file, and not one of {known}")


def public_candidates(prompts: PromptSet, similarity: np.ndarray) -> pd.DataFrame:
    """How well each prompt would serve its group as the shared, public one.

    Args:
        similarity: of the joint prompts, (public + personal, public + personal).

    Returns:
        One row per candidate, best first within its group: group, prompt (joint index), text, role, and the `mean`
        and `least` similarity to the group's other personal prompts.
    """
    public = len(prompts.public)
    rows = []
    for group in range(public):
        members = [public + i for i, g in enumerate(prompts.group) if g == group]
        for candidate in (group, *(members if len(members) > 1 else ())):
            others = similarity[candidate, [m for m in members if m != candidate]]
            role = "public" if candidate < public else "personal"
            rows.append((group, candidate, prompts.joint[candidate], role, others.mean(), others.min()))
    table = pd.DataFrame(rows, columns=["group", "prompt", "text", "role", "mean", "least"])
    return table.sort_values(["group", "mean"], ascending=[True, False], ignore_index=True)


def pair_table(prompts: PromptSet, similarity: np.ndarray) -> pd.DataFrame:
    """Ordered pairs of different joint prompts: public, personal, similarity, kind (of their groups and roles)."""
    first = len(prompts.public)
    group = [*range(first), *prompts.group]
    rows = []
    for public in range(len(prompts.joint)):
        for personal in range(len(prompts.joint)):
            if public != personal:
                kind = "same group" if group[public] == group[personal] else "different groups"
                rows.append((public, personal, float(similarity[public, personal]), kind))
    return pd.DataFrame(rows, columns=["public", "personal", "similarity", "kind"])


def pairs_by_bin(pairs: pd.DataFrame) -> pd.DataFrame:
    """Ordered pairs per similarity bin (one decimal), published and in `pairs`."""
    curves = pd.read_csv(PUBLISHED / "clip_by_similarity_unsmoothed.csv")
    published = curves[curves["similarity_bin"] < 1].groupby("similarity_bin")["n_ordered_pairs"].first()
    measured = pairs["similarity"].round(1).value_counts()
    table = pd.DataFrame({"published": published, "measured": measured}).fillna(0).astype(int).sort_index()
    return table.rename_axis("similarity")
