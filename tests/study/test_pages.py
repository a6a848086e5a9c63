from __future__ import annotations

import re
from html.parser import HTMLParser

import nbformat
import pytest

from hybridlib.paths import NOTEBOOKS
from hybridlib.study import pages
from hybridlib.study.parameters import STUDIES
from hybridlib.study.pieces import PIECES

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
OTHER = PNG.replace("NgAWjR9", "NgAWjR8")
SEEDS = "seeds: list[int] = [{}]  # of the noise"
CLAIMS = "<table><tr><th></th><th>claim</th><th>verdict</th></tr>{}</table>"


def code(source, *outputs, tags=()):
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)})
    cell.outputs = [nbformat.v4.new_output("display_data", data=data) for data in outputs]
    return cell


def claims(*verdicts):
    rows = (f"<tr><th>{i}</th><td>claim {i}</td><td>{verdict}</td></tr>" for i, verdict in enumerate(verdicts))
    return {"text/html": CLAIMS.format("".join(rows))}


def study(title="01 · One", model="mini-sd3", conclusion="It works. And more."):
    text = nbformat.v4.new_markdown_cell
    cells = [
        text(f"# {title}\n\n**Question.** Why?"),
        code(
            'model: str = "mini-sd3"  # which\nseeds: list[int] = [1]  # of the noise\nscale = 2.0', tags=["parameters"]
        ),
        code(f'# Parameters\nmodel = "{model}"\nseeds = [1, 2]\n', tags=["injected-parameters"]),
        code("draw()", {"image/png": OTHER}),
        code("best()", {"image/png": PNG}, tags=["best-figure"]),
        text("## Published vs measured"),
        code("own", claims("holds", "holds", "cannot be told")),
        code("full", claims("holds", "does not hold", "cannot be told")),
        code("counts", {"text/html": "<table><tr><th>a</th><td>1</td><td>True</td></tr></table>"}),
        text(f"## Conclusion\n\n{conclusion}"),
    ]
    return nbformat.v4.new_notebook(cells=cells)


def put(folder, name, notebook, failed=False):
    (folder / name).mkdir(parents=True)
    nbformat.write(notebook, folder / name / (pages.FAILED if failed else pages.EXECUTED))


class Seen(HTMLParser):
    """Ids, links, what is loaded, and metadata of a page."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loaded, self.metas = set(), [], [], {}
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        if tag == "a" and "href" in attrs:
            self.links.append(attrs["href"])
        if tag == "meta":
            self.metas[attrs.get("name")] = attrs.get("content")
        self.loaded += [attrs[key] for key in ("src", "data") if key in attrs]
        if tag == "link":
            self.loaded.append(attrs["href"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs") / "mine"
    put(folder, "01_one", study())
    put(folder, "02_two", study("02 · Two", conclusion="**Bold words.** A finding. More."))
    broken = study("03 · Three")
    broken.cells[3].outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="no\nmore", traceback=[])]
    put(folder, "03_three", broken, failed=True)
    for place in (".hidden", PIECES):
        (folder / "01_one" / place).mkdir()
        (folder / "01_one" / place / "secret.parquet").touch()
    for table in ("01_one/scores.parquet", "02_two/sheet.xlsx"):
        (folder / table).touch()
    pages.write(folder)
    return folder


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere(folder):
    seen = {path.name: Seen(path) for path in folder.glob("*.html")}
    assert sorted(seen) == ["01_one.html", "02_two.html", "03_three.html", "index.html"]
    for name, page in seen.items():
        assert all(source.startswith("data:") for source in page.loaded), name
        assert page.metas["viewport"].startswith("width=device-width")
        assert 'media="(prefers-color-scheme: dark)"' in page.text
        assert "<script" not in page.text
        for link in page.links:
            file, _, place = link.partition("#")
            assert (folder / file).is_file() if file else True, link
            assert not place or place in seen[file or name].ids, link


def test_the_index_says_what_was_found(folder):
    index = Seen(folder / "index.html")
    for text in ("It works.", "A finding.", "failed: ValueError: no", "Miniature models.", "profile mine"):
        assert text in index.text
    assert "And more" not in index.text
    assert "Bold words" not in index.text
    assert index.loaded.count(f"data:image/png;base64,{PNG}") == 3  # tagged, though not the first
    assert re.search(r"commit <code>[0-9a-f]{10}|an installed package", index.text)
    assert {"01_one/scores.parquet", "02_two/sheet.xlsx"} <= set(index.links)
    assert "secret" not in index.text


def test_neighbours_titles_contents_and_folded_code(folder):
    page = Seen(folder / "02_two.html")
    assert "<title>02 · Two</title>" in page.text
    assert {"index.html", "01_one.html", "03_three.html", "#Conclusion", "#Published-vs-measured"} <= set(page.links)
    assert page.text.count('<details class="code">') == 6  # code cells, without papermill's
    assert "01_one.html" not in Seen(folder / "03_three.html").links


def test_verdicts_are_those_of_the_last_table_of_the_same_claims():
    verdicts, agree = pages.compared(study())
    assert verdicts == {"holds": 1, "does not hold": 1, "cannot be told": 1}
    assert agree == {True: 1}
    outside = study()
    outside.cells[5].source = "## Something else"
    assert pages.compared(outside) == ({}, {})


def test_parameters_stand_in_one_cell(folder):
    notebook = pages.merged(study(model="other"))
    tagged = [c.source for c in notebook.cells if {"parameters", "injected-parameters"} & {*c.metadata.get("tags", ())}]
    assert tagged == [f'model: str = "other"  # which\n{SEEDS.format("1, 2")}\nscale = 2.0']


@pytest.mark.parametrize(
    ("declared", "injected", "expected"),
    [
        ("a = 1\nb = 2", "b = 3", "a = 1\nb = 3"),
        ("a = [\n    1,\n    2,\n]  # two\nb = 1", "a = [3]\nb = 4", "a = [3]  # two\nb = 4"),
        ('é = "ü"  # ö', 'é = "ä"', 'é = "ä"  # ö'),
        ("a = 1", "c = 5", "a = 1\nc = 5"),
        ("a: int\nb = 1", "b = 2", "a: int\nb = 2"),
    ],
)
def test_values_replace_values(declared, injected, expected):
    assert pages.with_values(declared, injected) == expected
    exec(pages.with_values(declared, injected), {})


def test_the_banner_names_a_large_model(tmp_path):
    put(tmp_path, "01_one", study(model="stabilityai/sd3"))
    assert "Figures and tables are of stabilityai/sd3." in pages.write(tmp_path).read_text()


def test_a_computed_conclusion_is_what_the_next_cell_prints():
    notebook = study(conclusion="The sentences below are computed.")
    cell = nbformat.v4.new_code_cell("print(...)")
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="It holds. More.\n")]
    notebook.cells.append(cell)
    assert pages.finding(notebook) == "It holds."


@pytest.mark.parametrize("name", [name for name in STUDIES if (NOTEBOOKS / f"{name}.ipynb").is_file()])
def test_committed_notebooks_name_a_finding_and_a_figure(name):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    tagged = [c for c in notebook.cells if pages.BEST_FIGURE in c.metadata.get("tags", ())]
    assert len(tagged) == 1
    assert any("image/png" in output.get("data", {}) for output in tagged[0].outputs)
    assert 30 < len(pages.finding(notebook)) < 300
    assert pages.finding(notebook).endswith(".")
