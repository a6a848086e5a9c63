from __future__ import annotations

import numpy as np
import pytest

from hybridlib.miniature.correctness import scenes_of
from hybridlib.miniature.lists import KINDS, PER_THEME, prompt_list


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [1, 7, 60])
def test_lists_are_captions_that_the_judge_can_check(kind, number):
    prompts = prompt_list(kind, number, seed=3)
    assert len(set(prompts)) == number
    assert len(scenes_of(prompts)) == number
    assert prompts == prompt_list(kind, number, seed=3)
    assert number == 1 or prompts != prompt_list(kind, number, seed=4)


def test_alike_prompts_have_one_theme_and_mixed_ones_a_half():
    def themes(kind):
        scenes = scenes_of(prompt_list(kind, PER_THEME, seed=0))
        return [tuple(row) for row in np.stack([*scenes.shape.T, scenes.relation, scenes.ground], axis=1).tolist()]

    assert len(set(themes("alike"))) == 1
    mixed = themes("mixed")
    assert len(set(mixed[: PER_THEME // 2])) == 1
    assert len(set(mixed)) > PER_THEME // 4
    assert len(set(themes("unrelated"))) > PER_THEME // 2


def test_bad_lists_are_one_sentence():
    with pytest.raises(ValueError, match="no kind of list 'alik'; did you mean 'alike'"):
        prompt_list("alik", 3, 0)
    with pytest.raises(ValueError, match=r"number must lie in 1..10000, got 0"):
        prompt_list("alike", 0, 0)
