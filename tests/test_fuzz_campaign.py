"""A small fuzz campaign finds nothing, and finds what readers without our checks let pass."""

from __future__ import annotations

import importlib.util
import sys

import pandas as pd
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from hybridlib.codecs import Message, parse
from hybridlib.paths import ROOT
from hybridlib.prompts import PromptSet
from hybridlib.study.parameters import STUDIES


@pytest.fixture(scope="module")
def fuzz():
    path = ROOT / "benchmarks" / "campaigns" / "fuzz.py"
    spec = importlib.util.spec_from_file_location("fuzz", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_small_campaign_finds_nothing(fuzz):
    for name, outcome in fuzz.campaign(fuzz.kinds(), 1200, 1).items():
        assert fuzz.bad(outcome) == 0, (name, outcome.examples)
        assert outcome.ends["refused"] > 0, name  # both ends are met, or the campaign would say nothing
        assert outcome.ends["right"] > 0, name


def message_without_checks(file):
    message = Message.open(file.read_bytes())
    return parse(message.specification)._unpack(message)[None]


def parameters_without_checks(file):
    return STUDIES["01_figures"](**yaml.safe_load(file.read_text()))


def prompts_without_checks(file):
    groups = yaml.safe_load(file.read_text())["groups"]
    pairs = [(str(pair["prompt"]), str(pair.get("negative", ""))) for group in groups for pair in group["personal"]]
    group = tuple(i for i, entry in enumerate(groups) for _ in entry["personal"])
    return PromptSet(tuple(str(g["public"]) for g in groups), *map(tuple, zip(*pairs, strict=True)), group)


def name_without_checks(file):
    from hybridlib.study.parameters import base

    path = base.OUTPUTS / "images" / file.read_text()
    sys.audit("os.mkdir", str(path), 0o777, -1)  # as if it were made
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "read", "ends"),
    [
        ("messages", message_without_checks, {"foreign"}),
        ("states", load_file, {"foreign"}),
        ("01_figures", parameters_without_checks, {"foreign"}),
        ("prompt sets", prompts_without_checks, {"foreign", "wrong"}),
        ("image names", name_without_checks, {"outside", "wrong"}),
        ("tables", lambda file: pd.read_parquet(file), {"foreign"}),
        ("pictures", lambda file: Image.open(file).convert("RGB"), {"foreign", "wrong"}),
    ],
)
def test_a_campaign_finds_what_readers_without_checks_let_pass(fuzz, name, read, ends):
    kind = next(kind for kind in fuzz.kinds() if kind.name == name)._replace(read=read)
    outcome = fuzz.campaign([kind], 150, 1)[name]
    assert ends <= set(outcome.examples)
