from __future__ import annotations

import numpy as np
import pytest

from hybridlib.miniature.scenes import COLOURS, SHAPES
from hybridlib.miniature.tokens import MAX_TOKENS, build_tokenizer
from hybridlib.prompts import PromptSet, pair_table, pairs_by_bin, public_candidates


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


def test_lists_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="needs one negative for each of 2 personal prompts, got 3"):
        PromptSet(("a",), ("b", "c"), ("x", "y", "z"), (0, 0))
    with pytest.raises(ValueError, match="group 1 is no public prompt; there are 1"):
        PromptSet(("a",), ("b", "c"), ("x", "y"), (0, 1))


TOY = PromptSet(("a", "b"), ("a1", "a2", "b1"), ("", "n", ""), (0, 0, 1))


def toy_similarity():
    matrix = np.arange(25.0).reshape(5, 5) / 25
    matrix = (matrix + matrix.T) / 2
    np.fill_diagonal(matrix, 1.0)
    return matrix


def test_joint_prompts_put_public_ones_first():
    assert TOY.joint == ("a", "b", "a1", "a2", "b1")
    assert TOY.joint_negative == ("", "", "", "n", "")
    assert TOY.boundaries == [2, 4]


def test_candidates_are_ranked_by_similarity_to_the_rest_of_their_group():
    matrix = toy_similarity()
    table = public_candidates(TOY, matrix)
    first = table[table["group"] == 0].set_index("prompt")
    assert set(first.index) == {0, 2, 3}
    assert first.loc[0, "mean"] == pytest.approx((matrix[0, 2] + matrix[0, 3]) / 2)
    assert first.loc[2, "least"] == pytest.approx(matrix[2, 3])  # never compared with itself
    assert table.groupby("group")["mean"].apply(lambda x: x.is_monotonic_decreasing).all()


def test_pairs_are_ordered_and_never_of_one_prompt():
    pairs = pair_table(TOY, toy_similarity())
    assert len(pairs) == 20
    assert (pairs["public"] != pairs["personal"]).all()
    kinds = pairs.set_index(["public", "personal"])["kind"]
    assert kinds[0, 3] == "same group"
    assert kinds[4, 3] == "different groups"
    table = pairs_by_bin(pairs)
    assert table["measured"].sum() == 20
    assert table.loc[[0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], "published"].tolist() == [32, 94, 90, 86, 114, 40, 6]
