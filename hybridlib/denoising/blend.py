"""Blends: the mean of several prompts, which steers a segment as one prompt does."""

from __future__ import annotations

import math
import reprlib
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_WEIGHT = 1e100


@dataclass(frozen=True)
class Blend:
    """A weighted mean of what the text encoders make of several prompts.

    Every tensor that a network is told of a text is averaged: token embeddings, place by place in the sentence, and
    pooled ones. Such means steer the inner nodes of the tree in "Reusing Computation" (arXiv 2508.21032), there with
    equal weights. A blend is kept in one form, whatever the order it was given in: prompts are sorted, each occurs
    once with its weights added, and weights sum to 1; so equal means are equal values. The mean of one prompt is that
    prompt and no blend: `Blend.of` returns the text itself.

    Args:
        prompts: two different ones or more.
        weights: one for each prompt, above 0; all equal by default.

    Raises:
        TypeError: if prompts are no tuple of text or weights no tuple of numbers.
        ValueError: if fewer than two prompts differ, or weights are of another number, not finite or not above 0.
    """

    prompts: tuple[str, ...]
    weights: tuple[float, ...] = None  # type: ignore[assignment]  # never None once it is made

    def __post_init__(self) -> None:
        shares = _shares(self.prompts, self.weights)
        if len(shares) < 2:
            raise ValueError(
                f"a blend must have two different prompts or more, got {reprlib.repr(self.prompts)}; Blend.of takes one"
            )
        object.__setattr__(self, "prompts", tuple(shares))
        object.__setattr__(self, "weights", tuple(shares.values()))

    def __str__(self) -> str:
        """A short label for drawings: the weights are told where they differ."""
        texts = [repr(textwrap.shorten(prompt, 32, placeholder=" …")) for prompt in self.prompts]
        if max(self.weights) - min(self.weights) > 1e-9:
            texts = [f"{weight:.2g} {text}" for weight, text in zip(self.weights, texts, strict=True)]
        shown = texts if len(texts) <= 3 else [*texts[:2], f"{len(texts) - 2} more"]
        return f"mean of {', '.join(shown)}"

    @staticmethod
    def of(prompts: Iterable[str], weights: Iterable[float] | None = None) -> Prompt:
        """The mean of these prompts: a blend, or the prompt itself where all of them are the same.

        Raises:
            TypeError, ValueError: as the class does; one prompt is enough here.
        """
        if isinstance(prompts, str) or not isinstance(prompts, Iterable):
            raise TypeError(f"prompts must be a list of texts, got {reprlib.repr(prompts)}")
        prompts, given = tuple(prompts), None if weights is None else tuple(weights)
        shares = _shares(prompts, given)
        return next(iter(shares)) if len(shares) == 1 else Blend(prompts, given)  # type: ignore[arg-type]

    def as_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them."""
        return {"prompts": list(self.prompts), "weights": list(self.weights)}

    @staticmethod
    def from_json(values: Any) -> Blend:
        """Inverse of `as_json`.

        Raises:
            TypeError, ValueError: if `as_json` cannot have made these values.
        """
        told = values if isinstance(values, dict) and len(values) == 2 else {}
        prompts, weights = told.get("prompts"), told.get("weights")
        if not isinstance(prompts, list) or not isinstance(weights, list):
            raise ValueError(f"a blend must have lists of prompts and weights, got {reprlib.repr(values)}")
        return Blend(tuple(prompts), tuple(weights))


Prompt: TypeAlias = str | Blend  # what steers a segment


def texts_of(prompt: Prompt) -> tuple[str, ...]:
    """The prompts that have to be encoded for this one."""
    return prompt.prompts if isinstance(prompt, Blend) else (prompt,)


def mean_embeddings(blend: Blend, encoded: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The mean of what a network is told of each prompt of a blend, in float32 at least, each tensor of its own kind.

    Args:
        encoded: for each prompt in turn its tensors, each (1, ...).

    Raises:
        ValueError: if a tensor differs in shape from prompt to prompt or is a mask or a count: of these there is no
            mean.
    """
    import torch

    sums: list[Tensor] = []
    first: tuple[Tensor, ...] = ()
    for prompt, weight, parts in zip(blend.prompts, blend.weights, encoded, strict=True):
        first = first or parts
        shapes, wanted = ([tuple(part.shape) for part in tensors] for tensors in (parts, first))
        if shapes != wanted:
            raise ValueError(
                f"prompts of a blend must have embeddings of the same shapes: those of {reprlib.repr(prompt)} are "
                f"{shapes}, those of {reprlib.repr(blend.prompts[0])} {wanted}"
            )
        if odd := [part.dtype for part in parts if not part.is_floating_point()]:
            raise ValueError(f"only embeddings can be blended, and this model is told a text by a tensor of {odd[0]}")
        terms = [weight * part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts]
        sums = [total + term for total, term in zip(sums, terms, strict=True)] if sums else terms
    return tuple(total.to(part.dtype) for total, part in zip(sums, first, strict=True))


def _shares(prompts: tuple[str, ...], weights: tuple[float, ...] | None) -> dict[str, float]:
    """Weight of each different prompt, sorted; they sum to 1."""
    if not isinstance(prompts, tuple) or not all(isinstance(prompt, str) for prompt in prompts):
        raise TypeError(f"prompts must be a tuple of texts, got {reprlib.repr(prompts)}")
    if not prompts:
        raise ValueError("prompts must hold at least one text, got none")
    weights = (1.0,) * len(prompts) if weights is None else weights
    if not isinstance(weights, tuple) or not all(isinstance(weight, Real) for weight in weights):
        raise TypeError(f"weights must be a tuple of numbers, got {reprlib.repr(weights)}")
    if len(weights) != len(prompts):
        raise ValueError(f"weights must be one for each of {len(prompts)} prompts, got {len(weights)}")
    if wrong := [weight for weight in weights if not 0 < weight <= LARGEST_WEIGHT]:  # NaN is none of these either
        raise ValueError(f"weights must be finite and above 0, got {wrong[0]}")
    given: dict[str, list[float]] = {prompt: [] for prompt in sorted(prompts)}
    for prompt, weight in zip(prompts, weights, strict=True):
        given[prompt].append(float(weight))
    total = math.fsum(weights)
    if abs(total - 1) <= 1e-12:  # so that weights that were divided once stay to the last bit
        total = 1.0
    shares = {prompt: math.fsum(parts) / total for prompt, parts in given.items()}
    if not all(shares.values()):
        raise ValueError(f"weights must not vanish beside each other, got {reprlib.repr(weights)}")
    return shares
