"""The small vocabulary of the scene captions, as a real byte-pair CLIP tokenizer."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from .scenes import COLOURS, GROUNDS, LIGHTS, RELATIONS, SHAPES, SIZES

MAX_TOKENS = 16  # the longest caption: two objects with every attribute, start and end


def words() -> list[str]:
    """Every word that a caption can hold."""
    tables = (SHAPES, COLOURS, SIZES, GROUNDS, LIGHTS)
    return ["a", "an", "on", "at", *(w for r in RELATIONS for w in r.split()), *(w for t in tables for w in t)]


def build_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """One token for each caption word; other text falls back to bytes, as in CLIP. The same ids on every run."""
    alphabet = sorted(ByteLevel.alphabet())
    merges = _merges(words())
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {piece: index for index, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad_token, model_max_length=MAX_TOKENS)


def _merges(vocabulary: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges until every word is one piece.

    The tokenizers library breaks ties between equally frequent pairs differently on every run; here the alphabet
    decides, since a resumed training needs the ids that it started with.
    """
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in vocabulary]
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for pieces in spelled for pair in pairwise(pieces)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for pieces in spelled:
            for i in range(len(pieces) - 2, -1, -1):
                if tuple(pieces[i : i + 2]) == best:
                    pieces[i : i + 2] = ["".join(best)]
    return merges
