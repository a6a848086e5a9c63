"""The site: every link leads somewhere, nothing comes from the network, every public name is in the reference."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from hybridlib.paths import NOTEBOOKS, ROOT

LOADING = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("link", "href")}
NETWORKS = ("cdn", "unpkg", "jsdelivr", "googleapis", "gstatic", "url(http", "url(//", "importscripts(")


class Page(HTMLParser):
    """Ids, links and what is loaded of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[tuple[str, str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id" or (tag == "a" and name == "name"):
                self.ids.add(value)
            elif name in {"href", "src", "data"} and value:
                self.targets.append((tag, name, value))


def broken_links(site: Path) -> list[str]:
    """Links and sources of pages that lead to no file of the site, or to no place on its page."""
    pages = {path: Page(path) for path in site.rglob("*.html")}
    wrong = []
    for path, page in pages.items():
        for tag, _, value in page.targets:
            url = urlsplit(value)
            if url.scheme in {"http", "https", "mailto", "data", "javascript"} and (tag == "a" or url.scheme == "data"):
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            known = pages.get(target)
            if url.scheme or url.netloc or url.path.startswith("/") or not target.is_file():
                wrong.append(f"{path.relative_to(site)}: {value}")
            elif url.fragment and known and unquote(url.fragment) not in known.ids:
                wrong.append(f"{path.relative_to(site)}: no place {value}")
    return wrong


def loaded_from_network(site: Path) -> list[str]:
    """What a browser would fetch from elsewhere when it shows a page."""
    wrong = []
    for path in site.rglob("*.html"):
        for tag, name, value in Page(path).targets:
            if (tag, name) in LOADING and (urlsplit(value).netloc or value.startswith("//")):
                wrong.append(f"{path.relative_to(site)}: <{tag} {name}={value}>")
    for path in (*site.rglob("*.css"), *site.rglob("*.js")):
        text = path.read_text(encoding="utf-8").lower()
        wrong += [f"{path.relative_to(site)}: {word}" for word in NETWORKS if word in text]
    return wrong


def public_names() -> set[str]:
    """Public functions, classes and methods of the package, as their full names."""
    names = set()
    for path in (ROOT / "hybridlib").rglob("*.py"):
        if path.stem.startswith("_"):
            continue
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                names.add(f"{module}.{node.name}")
                methods = node.body if isinstance(node, ast.ClassDef) else []
                names |= {
                    f"{module}.{node.name}.{m.name}"
                    for m in methods
                    if isinstance(m, ast.FunctionDef) and m.name[0] != "_" and ast.get_docstring(m)
                }
    return names


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for package in ("sphinx", "furo", "myst_nb", "sphinx_design", "sphinx_copybutton"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; make test-slow and make site install the extra `site`")
    output = tmp_path_factory.mktemp("site") / "site"
    subprocess.run(
        [sys.executable, str(ROOT / "docs" / "site" / "build.py"), "--strict", "--output", str(output)], check=True
    )
    return output


def test_checks_find_what_they_look_for(tmp_path):
    (tmp_path / "a.html").write_text(
        '<p id="here"></p><a href="#here">x</a><a href="#gone">x</a><a href="b.html">x</a><a href="https://x.org">x</a>'
        '<a href="/root.html">x</a><img src="https://x.org/a.png"><script src="//x.org/a.js"></script>'
    )
    (tmp_path / "a.css").write_text("@font-face { src: url(https://x.org/a.woff) }")
    assert [line.split(": ", 1)[1] for line in broken_links(tmp_path)] == [
        "no place #gone",
        "b.html",
        "/root.html",
        "https://x.org/a.png",
        "//x.org/a.js",
    ]
    assert len(loaded_from_network(tmp_path)) == 3


@pytest.mark.slow
def test_site_is_whole_and_stands_alone(site):
    assert broken_links(site) == []
    assert loaded_from_network(site) == []
    assert sum(p.stat().st_size for p in site.rglob("*") if p.is_file()) < 40e6
    assert "hiqm" in (site / "searchindex.js").read_text(encoding="utf-8")
    for notebook in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"):
        assert (site / "notebooks" / f"{notebook.stem}.html").is_file()
    for guide in (ROOT / "docs" / "guides").glob("*.md"):
        assert (site / "guides" / f"{guide.stem}.html").is_file()


@pytest.mark.slow
def test_reference_holds_every_public_name(site):
    described = set().union(*(Page(path).ids for path in (site / "reference").glob("*.html")))
    assert sorted(public_names() - described) == []
