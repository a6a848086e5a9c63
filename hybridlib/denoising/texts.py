"""Prompts, each encoded once; and those of whole trees and studies ahead, where a pipeline follows a memory plan.

The rows of a tree name all their prompts before it starts. So its text encoders work once, together, and need no place
on the device afterwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from .blend import Blend, Prompt, mean_embeddings, texts_of
from .identity import text_identity
from .tree import Tree

AHEAD = 1024  # texts that are encoded together before a study goes on; fewer than denoisers keep
TEXTS_KEPT = 2048  # in host memory, at the most, unless the text encoders are dropped
TEXTS_NEAR = 128  # copies on the device, at the most
Text = tuple[Prompt, bool]  # and whether it is a negative prompt
Encoded = tuple[Tensor, ...]  # what the network is told of it, each with a leading dimension of 1


class EncodesTexts(ABC):
    """The part of a denoiser that encodes texts, each once.

    They are kept by the denoiser itself, where they were encoded. Under a memory plan they are kept beside the
    pipeline and in host memory, for every denoiser of the same options, and only those of the rows that are being
    denoised are also on the device.
    """

    pipeline: Any
    clip_skip: int | None
    encodes_lists = False  # whether the pipeline can encode several texts together

    def __init__(self) -> None:
        self._own: dict[Text, Encoded] = {}
        self._near: dict[Text, Encoded] = {}

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the network is told of texts."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """And as what."""

    @abstractmethod
    def _encode(self, text: str | list[str], negative: bool) -> Encoded:
        """What the network is told of a text; or of several, in rows, if the pipeline can."""

    def has_encoded(self, text: Text) -> bool:
        """Whether a text is encoded already."""
        return text in self._embeds

    def encode_all(self, texts: Sequence[Text]) -> None:
        """Encode texts unless they are; evaluations then find them.

        Raises:
            ValueError: if the text encoders were dropped and a text is new.
        """
        kept = self._embeds
        missing = [text for text in dict.fromkeys(texts) if text not in kept]
        if not missing:
            return
        plan = getattr(self.pipeline, "memory_plan", None)
        if plan and len(kept) + len(missing) > TEXTS_KEPT and not plan.free_text_encoders:
            kept.clear()
            missing = list(dict.fromkeys(texts))
        plain = dict.fromkeys((word, negative) for prompt, negative in missing for word in texts_of(prompt))
        self._encode_plain([text for text in plain if text not in kept], kept, plan)
        for prompt, negative in missing:
            if isinstance(prompt, Blend):
                kept[prompt, negative] = mean_embeddings(prompt, (kept[word, negative] for word in prompt.prompts))

    def _encode_plain(self, texts: Sequence[tuple[str, bool]], kept: dict[Text, Encoded], plan: Any) -> None:
        if texts and getattr(self.pipeline, "text_encoders_freed", False):
            raise ValueError(f"the text encoders were dropped before {texts[0][0]!r} was encoded: load the model again")
        together = plan.text_batch_size if plan and self.encodes_lists else 1
        for negative in (True, False):
            words = [text for text, kind in texts if kind is negative]
            for first in range(0, len(words), together):
                batch = words[first : first + together]
                parts = self._encode(batch if len(batch) > 1 else batch[0], negative)
                for i, text in enumerate(batch):
                    rows = tuple(part[i : i + 1] for part in parts)
                    kept[text, negative] = tuple(map(_in_host_memory, rows)) if plan else rows

    def free_text_encoders(self) -> None:
        """Drop the text encoders of the pipeline for good: only texts that are encoded can be asked for from now on."""
        self.pipeline.dropped_text_identity = text_identity(self.pipeline)
        for name in [name for name in self.pipeline.components if name.startswith("text_encoder")]:
            setattr(self.pipeline, name, None)
        self.pipeline.text_encoders_freed = True

    @property
    def _embeds(self) -> dict[Text, Encoded]:
        shared = getattr(self.pipeline, "encoded_texts", None)
        options = (type(self).__name__, self.clip_skip, getattr(self, "max_sequence_length", None))
        return self._own if shared is None else shared.setdefault(options, {})

    def _encoded(self, texts: Sequence[Text]) -> Encoded:
        """What the network is told of these texts, in rows, where and as the network is."""
        self.encode_all(texts)
        kept, device = self._embeds, self.device
        rows = [kept[text] if kept is self._own else self._brought(text, kept, device) for text in texts]
        return tuple(torch.cat(parts).to(device, self.dtype) for parts in zip(*rows, strict=True))

    def _brought(self, text: Text, kept: dict[Text, Encoded], device: torch.device) -> Encoded:
        """What a text is encoded to, on the device: the next step asks for it again."""
        if device.type == "cpu":
            return kept[text]
        if text not in self._near:
            if len(self._near) >= TEXTS_NEAR:
                self._near.clear()
            self._near[text] = tuple(part.to(device, non_blocking=True) for part in kept[text])
        return self._near[text]


def _in_host_memory(part: Tensor) -> Tensor:
    """A copy of its own; pinned where it comes from a GPU, so that it goes back without waiting."""
    copy = part.to("cpu", copy=True)
    return copy.pin_memory() if part.device.type == "cuda" else copy


def follows_plan(denoisers: Mapping[str, Any]) -> bool:
    """Whether the pipeline of one of these follows a memory plan."""
    return any(getattr(getattr(d, "pipeline", None), "memory_plan", None) is not None for d in denoisers.values())


def encode_ahead(denoisers: Mapping[str, Any], trees: Sequence[Tree], begin: int = 0, whole: bool = False) -> None:
    """Encode the prompts of trees that are about to be walked, where the pipelines follow a memory plan.

    If those of `trees[begin]` are all known, nothing happens. Else those of the trees after it are encoded with them,
    `AHEAD` texts at the most.

    Args:
        denoisers: by the names that the trees use.
        whole: whether nothing will be asked for after these trees. Then, if the plan says so, all their texts are
            encoded and the text encoders are dropped.
    """
    dropped = []
    for name, denoiser in denoisers.items():
        plan = getattr(getattr(denoiser, "pipeline", None), "memory_plan", None)
        if plan is None:
            continue
        drop = whole and plan.free_text_encoders and not getattr(denoiser.pipeline, "text_encoders_freed", False)
        if drop or not all(denoiser.has_encoded(text) for text in _texts(trees[begin], name, denoiser)):
            later = (text for tree in islice(trees, begin, None) for text in _texts(tree, name, denoiser))
            denoiser.encode_all(list(later if drop else islice(dict.fromkeys(later), AHEAD)))
        dropped += [denoiser] * drop
    for denoiser in dropped:
        denoiser.free_text_encoders()


def _texts(tree: Tree, name: str, denoiser: Any) -> Iterator[Text]:
    for conditioning in dict.fromkeys(e.conditioning for level in tree.levels for e in level if e.denoiser == name):
        yield conditioning.prompt, False
        if denoiser.nfe(conditioning) == 2:
            yield conditioning.negative_prompt, True
