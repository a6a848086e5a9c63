"""The code of every guide runs as printed: all blocks of a page in order, in one namespace, in an empty folder."""

from __future__ import annotations

import re
import sys
import types
import warnings

import pytest
from factories import random_sd3

from hybridlib.codecs import RowCodec
from hybridlib.paths import ROOT

GUIDES = sorted(p for p in (ROOT / "docs" / "guides").glob("*.md") if p.stem != "index")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture
def _as_a_user_finds_it(tmp_path, monkeypatch, request):
    """An empty folder; for the guide on SD3, the folder that it asks for, with a random model of that architecture."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(RowCodec, "_registry", dict(RowCodec._registry))  # a guide's codec is gone afterwards
    if request.node.callspec.id == "real-sd3":
        random_sd3(with_t5=True).save_pretrained("stable-diffusion-3-medium-diffusers")


@pytest.mark.usefixtures("_as_a_user_finds_it")
@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_guide_runs(guide, monkeypatch):
    text = guide.read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert blocks
    module = types.ModuleType(f"guide_{guide.stem.replace('-', '_')}")  # dataclasses look their module up
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with warnings.catch_warnings():
        if guide.stem == "real-sd3":  # the random stand-in knows few words, SD3 does not warn
            warnings.filterwarnings("ignore", message="the model does not know", category=UserWarning)
        for block in blocks:
            line = text[: block.start(1)].count("\n")
            exec(compile("\n" * line + block[1], str(guide), "exec"), module.__dict__)


def test_every_guide_is_listed():
    index = (ROOT / "docs" / "guides" / "index.md").read_text(encoding="utf-8")
    assert sorted(re.search(r":maxdepth: 1\n\n(.*?)```", index, re.DOTALL)[1].split()) == [p.stem for p in GUIDES]
