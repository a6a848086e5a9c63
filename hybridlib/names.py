"""Names that people type: which ones there are, and which one was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(word: str, known: Iterable[str]) -> str:
    """Returns "; did you mean 'x'", where one of the known words is nearly this one, else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}" if near else ""


def require_known(kind: str, word: str, known: Iterable[str]) -> str:
    """The word itself.

    Args:
        kind: what it names, such as "metric".

    Raises:
        ValueError: one sentence with what there is, if the word is not known.
    """
    known = list(known)
    if word not in known:
        raise ValueError(f"no {kind} {word!r}{closest(word, known)}; there are {', '.join(known)}")
    return word
