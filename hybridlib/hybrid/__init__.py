"""Hybrid inference: shared public steps, personal endings, and the quality that remains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .sharing.planner import share

__all__ = ["share"]


def __getattr__(name: str) -> Any:
    """Load `share` when it is first asked for: it brings pandas and scipy."""
    if name != "share":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .sharing.planner import share

    return share
