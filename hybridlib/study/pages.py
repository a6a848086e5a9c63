"""Pages of executed notebooks, and the index that shows what they found: nbconvert with a small template (`page/`).

Everything on them is read from the executed notebooks: the first sentence of a conclusion is the finding, the cell
tagged `best-figure` draws the picture beside it, and verdicts are counted in the tables under "Published vs measured".
"""

from __future__ import annotations

import ast
import copy
import datetime
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..files import write_atomically
from .pieces import PIECES

EXECUTED, FAILED = "executed.ipynb", "failed.ipynb"  # in the folder of a study
BEST_FIGURE, PARAMETERS, INJECTED = "best-figure", "parameters", "injected-parameters"  # tags of cells
VERDICTS = ("holds", "does not hold", "cannot be told")
COMPARISON = "Published vs measured"  # the section
TABLES = (".parquet", ".xlsx", ".csv")


class Study(NamedTuple):
    """An executed notebook, as far as it came."""

    name: str
    notebook: Any
    failed: bool

    @property
    def title(self) -> str:
        """The first heading."""
        return next((text for level, text in headings(self.notebook) if level == 1), self.name)

    @property
    def model(self) -> str:
        """The model that it ran, "" where none did."""
        return str(assigned(self.notebook).get("model", ""))

    @property
    def error(self) -> str:
        """What stopped it, in one line; "" if nothing did."""
        found = (o for c in self.notebook.cells for o in c.get("outputs", ()) if o.output_type == "error")
        first = next((f"{o.ename}: {o.evalue}".splitlines()[0] for o in found), "it stopped before its end")
        return first if self.failed else ""


def write(folder: Path) -> Path:
    """A page for every study in `folder`, and `index.html`, which is returned."""
    studies = list(read(folder))
    for number, study in enumerate(studies):
        around = [("All studies", "index.html")]
        if number:
            around.append((f"← {studies[number - 1].title}", f"{studies[number - 1].name}.html"))
        if number + 1 < len(studies):
            around.append((f"{studies[number + 1].title} →", f"{studies[number + 1].name}.html"))
        contents = [(text, anchor(text)) for level, text in headings(study.notebook) if level == 2]
        page = render(merged(study.notebook), study.title, neighbours=around, contents=contents)
        write_atomically(folder / f"{study.name}.html", page.encode())
    page = render(index(studies, folder), f"hybridlib, profile {folder.name}")
    write_atomically(folder / "index.html", page.encode())
    return folder / "index.html"


def read(folder: Path) -> Iterator[Study]:
    """The studies that ran in a folder of outputs, by name; one that failed last is shown as far as it came."""
    import nbformat

    for place in sorted(p for p in folder.iterdir() if p.is_dir()):
        for name in (FAILED, EXECUTED):
            if (place / name).is_file():
                yield Study(place.name, nbformat.read(place / name, as_version=4), name == FAILED)
                break


def render(notebook: Any, title: str, **resources: Any) -> str:
    """A notebook as one HTML file that needs no network."""
    notebook.metadata["title"] = title
    page, _ = _exporter().from_notebook_node(notebook, resources=resources)
    return page


@cache
def _exporter() -> Any:
    from nbconvert import HTMLExporter

    return HTMLExporter(
        template_name="page",
        extra_template_basedirs=[str(Path(__file__).parent)],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )


# --- what a notebook says


def headings(notebook: Any) -> list[tuple[int, str]]:
    """Level and text of every heading."""
    texts = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    return [(len(marks), text.strip()) for marks, text in re.findall(r"^(#+)\s+(.+)$", texts, re.MULTILINE)]


def anchor(heading: str) -> str:
    """The id that nbconvert gives to a heading."""
    return heading.replace(" ", "-")


def finding(notebook: Any) -> str:
    """The first sentence of the conclusion, in Markdown, after what is printed bold like a heading; "" if none.

    A conclusion that the notebook computes is what the cell after it prints.
    """
    places = [i for i, c in enumerate(notebook.cells) if c.cell_type == "markdown" and "## Conclusion" in c.source]
    if not places:
        return ""
    text = notebook.cells[places[-1]].source.partition("## Conclusion")[2]
    following = notebook.cells[places[-1] + 1 : places[-1] + 2]
    printed = "".join(o.text for c in following for o in c.get("outputs", ()) if o.get("name") == "stdout")
    return first_sentence(re.sub(r"^\*\*[^*]+\*\*\s*", "", (printed or text).strip()))


def first_sentence(text: str) -> str:
    """Of a paragraph in Markdown, without the mark of a list."""
    text = re.sub(r"^[-*] ", "", text).split("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=[.?!])\s+(?=[A-Z*])", text)[0]


def best_figure(notebook: Any) -> str:
    """PNG (base64) of the cell tagged `best-figure`, else the first one; "" if there is none."""
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    tagged = [c for c in cells if BEST_FIGURE in c.metadata.get("tags", ())]
    pictures = (o.data["image/png"] for c in (*tagged, *cells) for o in c.outputs if "image/png" in o.get("data", {}))
    return str(next(pictures, ""))


def compared(notebook: Any) -> tuple[Counter[str], Counter[bool]]:
    """Verdicts on published claims, and published counts that agree or do not, in the tables of the comparison.

    Where two tables test the same claims, the later one counts: it is the one of the full run.
    """
    verdicts: dict[str, str] = {}
    agree: Counter[bool] = Counter()
    for text in _tables_of(notebook, COMPARISON):
        rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in re.findall(r"<tr.*?</tr>", text, re.S)]
        verdicts |= {row[1]: row[-1] for row in rows if row and row[-1] in VERDICTS}
        agree.update(row[-1] == "True" for row in rows if row and row[-1] in ("True", "False"))
    return Counter(verdicts.values()), agree


def _tables_of(notebook: Any, section: str) -> Iterator[str]:
    inside = False
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (found := re.findall(r"^##\s+(.+)$", cell.source, re.MULTILINE)):
            inside = found[-1].strip() == section
        elif inside and cell.cell_type == "code":
            yield from (o.data["text/html"] for o in cell.outputs if "text/html" in o.get("data", {}))


def merged(notebook: Any) -> Any:
    """A copy in which the cell of parameters holds the values of this run, and papermill's own cell is gone."""
    notebook = copy.deepcopy(notebook)
    injected, own = _tagged(notebook, INJECTED), _tagged(notebook, PARAMETERS)
    if injected is not None and own is not None:
        own.source = with_values(own.source, injected.source)
        notebook.cells.remove(injected)
    return notebook


def with_values(declared: str, injected: str) -> str:
    """The code of a parameters cell with the values that another one assigns; comments and types stay."""
    values = {name: ast.get_source_segment(injected, value) for name, value in _assignments(injected)}
    lines = declared.splitlines()
    for name, value in reversed(_assignments(declared)):
        if (new := values.pop(name, None)) is not None:
            assert value.end_lineno is not None
            first, last = lines[value.lineno - 1], lines[value.end_lineno - 1]
            # Columns of the parser count bytes.
            start, stop = first.encode()[: value.col_offset].decode(), last.encode()[value.end_col_offset :].decode()
            lines[value.lineno - 1 : value.end_lineno] = [start + new + stop]
    return "\n".join([*lines, *(f"{name} = {value}" for name, value in values.items())])


def declared(notebook: Any) -> list[str]:
    """The parameters that the cell tagged `parameters` assigns; none where no cell is."""
    cell = _tagged(notebook, PARAMETERS)
    return [] if cell is None else [name for name, _ in _assignments(cell.source)]


def assigned(notebook: Any) -> dict[str, Any]:
    """Names and values of the parameters as they ran."""
    cells = [_tagged(notebook, tag) for tag in (PARAMETERS, INJECTED)]
    pairs = [pair for cell in cells if cell is not None for pair in _assignments(cell.source)]
    return {name: value.value for name, value in pairs if isinstance(value, ast.Constant)}


def _assignments(code: str) -> list[tuple[str, ast.expr]]:
    found = []
    for node in ast.parse(code).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.expr):
            found.append((target.id, value))
    return found


def _tagged(notebook: Any, tag: str) -> Any:
    return next((c for c in notebook.cells if tag in c.metadata.get("tags", ())), None)


# --- the index, a notebook of Markdown cells


def index(studies: Sequence[Study], folder: Path) -> Any:
    """What every study found, with its picture; published vs measured; the tables."""
    from nbformat import v4

    cells = [v4.new_markdown_cell(f"# hybridlib, profile {folder.name}\n\n{_made()}")]
    cells.append(_cell(_banner(studies), "banner"))
    cells += [_cell(_card(study), "card") for study in studies]
    cells.append(_cell(_comparison(studies), "wide"))
    cells += [_cell(text, "wide") for text in [_tables(folder)] if text]
    return v4.new_notebook(cells=cells)


def _cell(text: str, tag: str) -> Any:
    from nbformat import v4

    return v4.new_markdown_cell(text, metadata={"tags": [tag]})


def _made() -> str:
    from .origin import git_revision

    revision, _, changes = git_revision().partition("+")
    commit = f"commit `{revision[:10]}`" if revision != "unknown" else "an installed package"
    return f"{datetime.date.today():%d %B %Y}, {commit}{' with changes' if changes else ''}"


def _banner(studies: Sequence[Study]) -> str:
    large = sorted({study.model for study in studies if study.model and not study.model.startswith("mini-")})
    if large:
        return (
            f"**Figures and tables are of {', '.join(large)}.** The sentences in the text were written for the "
            "miniature models."
        )
    return (
        "**Miniature models.** All numbers are measured on small models that ship with the project. They show how a "
        "method behaves, not how good SD3 is."
    )


def _card(study: Study) -> str:
    picture = best_figure(study.notebook)
    parts = [f"## [{study.title}]({study.name}.html)"]
    if picture:
        parts.append(f"![{study.title}](data:image/png;base64,{picture.replace(chr(10), '')})")
    parts.append(f"**failed: {study.error}**" if study.failed else finding(study.notebook))
    return "\n\n".join(parts)


def _comparison(studies: Sequence[Study]) -> str:
    lines = [f"## {COMPARISON}", "", f"| study | {' | '.join(VERDICTS)} | counts that agree |", "|---|--:|--:|--:|--:|"]
    for study in studies:
        verdicts, agree = compared(study.notebook)
        told = [str(verdicts[verdict]) if verdicts else "" for verdict in VERDICTS]
        counts = f"{agree[True]} of {agree.total()}" if agree else ""
        place = f"{study.name}.html#{anchor(COMPARISON)}"
        lines.append(f"| [{study.title}]({place}) | {' | '.join(told)} | {counts} |")
    note = (
        "Published claims, each tested with an interval: one *holds* if the interval lies wholly on its side. Counts "
        "are denoising steps of whole published grids. Where a study has none of either, numbers stand side by side."
    )
    return "\n".join([*lines, "", note])


def _tables(folder: Path) -> str:
    files = [p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.suffix in TABLES]
    shown = [f for f in files if not any(part.startswith(".") or part == PIECES for part in f.parts)]
    links = (f"- [{f.as_posix()}]({f.as_posix()})" for f in shown)
    return "\n".join(["## Tables", "", *links]) if shown else ""
