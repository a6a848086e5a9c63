from __future__ import annotations

import pytest

from hybridlib.miniature.scenes import COLOURS, SHAPES
from hybridlib.miniature.tokens import MAX_TOKENS, build_tokenizer
from hybridlib.prompts import PromptSet


@pytest.mark.parametrize("name", ["miniature", "sd3-medium"])
def test_shipped_sets_have_the_published_structure(name):
    prompts = PromptSet.load(name)
    assert (len(prompts.public), len(prompts.personal), len(prompts.negative)) == (2, 20, 20)
    assert prompts.group == (0,) * 10 + (1,) * 10
    assert all(prompts.negative)
    assert prompts.public_of(12) == prompts.public[1]


def test_miniature_prompts_fit_the_tokenizer_word_for_word():
    prompts, tokenizer = PromptSet.load("miniature"), build_tokenizer()
    for text in [*prompts.public, *prompts.personal, *prompts.negative]:
        ids = tokenizer(text).input_ids
        assert len(ids) == len(text.split()) + 2 <= MAX_TOKENS


def test_miniature_negatives_contradict_their_prompts():
    prompts = PromptSet.load("miniature")
    for personal, negative in zip(prompts.personal, prompts.negative, strict=True):
        first, other = personal.split(), negative.split()
        assert next(w for w in first if w in SHAPES) == next(w for w in other if w in SHAPES)
        assert next(w for w in first if w in COLOURS) != next(w for w in other if w in COLOURS)
        assert first[1] != other[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("groups: [{public: '', personal: [{prompt: a}]}]", "public prompt 0 is empty"),
        ("groups: [{public: a, personal: [{prompt: b}, {prompt: b}]}]", "personal prompt 1 is a duplicate: 'b'"),
        ("groups: [{public: a, personal: [{prompt: b, negtive: c}]}]", "unknown key 'negtive'"),
        ("groups: [{public: a, personal: []}]", "at least one personal prompt"),
        ("prompts: [a]", "expected groups"),
    ],
)
def test_bad_prompt_files_are_named(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        PromptSet.load(str(path))
    assert "mine.yaml" in str(caught.value)


def test_missing_prompt_set_names_the_known_ones():
    with pytest.raises(ValueError, match="no prompt set 'nothing'.*miniature, sd3-medium"):
        PromptSet.load("nothing")
