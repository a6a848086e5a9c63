"""data/results/README.md describes every column of every table, and says what the tables hold today."""

from __future__ import annotations

import importlib.util
import re

import pytest

from hybridlib.paths import RESULTS, ROOT

SPEC = importlib.util.spec_from_file_location("describe_tables", ROOT / "docs" / "tables.py")
tables = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tables)
TEXT = (RESULTS / "README.md").read_text(encoding="utf-8")


def test_the_description_is_what_the_tables_give():
    assert tables.description() == TEXT, "run python docs/tables.py"


@pytest.mark.parametrize("path", tables.paths(), ids=lambda path: path.name)
def test_every_column_is_described(path):
    section = TEXT.split(f"## {path.name}\n", 1)[1].split("\n## ", 1)[0]
    described = re.findall(r"^\| `([\w ]+)` \| [^|]* \| [^|]+ \| [^|]{4,} \|$", section, re.MULTILINE)
    assert described == list(tables.read(path).columns)


def test_a_column_that_nobody_described_is_an_error():
    with pytest.raises(KeyError, match="02_alignment: the column 'novelty' is not described"):
        tables.meaning("02_alignment", "novelty")
