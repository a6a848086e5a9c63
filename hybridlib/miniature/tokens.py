"""The small vocabulary of the scene captions, as a real byte-pair CLIP tokenizer."""

from __future__ import annotations

import json

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from .scenes import COLOURS, GROUNDS, LIGHTS, RELATIONS, SHAPES, SIZES

MAX_TOKENS = 16  # the longest caption: two objects with every attribute, start and end


def words() -> list[str]:
    """Every word that a caption can hold."""
    tables = (SHAPES, COLOURS, SIZES, GROUNDS, LIGHTS)
    return ["a", "an", "on", "at", *(w for r in RELATIONS for w in r.split()), *(w for t in tables for w in t)]


def build_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """One token for each caption word; other text falls back to bytes, as in CLIP."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, end_of_word_suffix="</w>")
    bpe.train_from_iterator(words(), trainer)
    learned = sorted(bpe.get_vocab().items(), key=lambda item: item[1])
    pieces = dict.fromkeys([*alphabet, *(letter + "</w>" for letter in alphabet), *(piece for piece, _ in learned)])
    vocabulary = {piece: index for index, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad_token, model_max_length=MAX_TOKENS)
