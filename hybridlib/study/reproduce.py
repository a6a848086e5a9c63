"""Run the numbered notebooks of a profile headless and turn them into web pages.

`python -m hybridlib.study.reproduce --profile miniature --notebooks 01`
"""

from __future__ import annotations

import argparse
import html
import os
import re
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from ..paths import NOTEBOOKS, OUTPUTS, PARAMETERS, ROOT
from ..progress import LOG
from . import preflight
from .parameters import STUDIES, Parameters, closest

TRACEBACK = "traceback.txt"  # beside the failed notebook


class Task(NamedTuple):
    """A notebook, its parameter file and what that says."""

    notebook: Path
    parameters: Path
    checked: Parameters

    @property
    def name(self) -> str:
        """Such as 01_figures."""
        return self.notebook.stem


class Result(NamedTuple):
    """How a notebook went, for the index page."""

    name: str
    title: str
    seconds: float
    error: str = ""
    thumbnail: str = ""  # base64 PNG


def main() -> int:
    """Exit status: 0 if all notebooks ran, 1 if one failed, 2 if something was refused or missing before any ran."""
    parser = argparse.ArgumentParser(
        prog="python -m hybridlib.study.reproduce", description="Run the notebooks of a profile and write web pages."
    )
    parser.add_argument("--profile", default="miniature", help="a folder of params/ (default: miniature)")
    parser.add_argument("--notebooks", nargs="*", default=[], help="numbers or names, all by default, such as 01")
    parser.add_argument("--on-cpu", action="store_true", help="run studies of large images without a GPU all the same")
    arguments = parser.parse_args()
    try:
        tasks = collect(arguments.profile, arguments.notebooks)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if missing := preflight.missing({task.name: task.checked for task in tasks}, arguments.on_cpu):
        for sentence in missing:
            print(f"error: {sentence}", file=sys.stderr)
        return 2
    folder = OUTPUTS / arguments.profile
    os.environ[LOG] = "1"  # nobody sits in front of the kernels
    results = []
    for number, task in enumerate(tasks, start=1):
        print(f"[{number}/{len(tasks)}] {task.name}", flush=True)
        results.append(run(task, folder))
        trace = (folder / task.name / TRACEBACK).relative_to(folder.parent)
        status = f"FAILED: {results[-1].error} [{trace}]" if results[-1].error else "done"
        print(f"[{number}/{len(tasks)}] {task.name} {status} ({results[-1].seconds:.0f} s)", flush=True)
    write_index(results, folder, arguments.profile)
    print(f"pages: {folder / 'index.html'}")
    failed = [result for result in results if result.error]
    for result in failed:
        print(f"failed: {result.name}: {result.error}", file=sys.stderr)
    return 1 if failed else 0


def collect(profile: str, wanted: list[str]) -> list[Task]:
    """The notebooks to run, with their parameter files already checked.

    Raises:
        ValueError: one sentence, if the profile or a notebook is unknown or a parameter is wrong.
    """
    folder = PARAMETERS / profile
    if not folder.is_dir():
        known = ", ".join(sorted(p.name for p in folder.parent.iterdir() if p.is_dir()))
        guess = closest(profile, known.split(", "))
        raise ValueError(f"no profile {profile!r} in params/{guess}; there are {known}")
    notebooks = sorted(n for n in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb") if n.stem in STUDIES)
    for word in wanted:
        if not any(n.stem == word or n.stem.split("_")[0] == word for n in notebooks):
            guess = closest(word, [n.stem for n in notebooks])
            raise ValueError(f"no notebook {word!r}{guess}; there are {', '.join(n.stem for n in notebooks)}")
    belongs = [n for n in notebooks if (folder / f"{n.stem}.yaml").is_file()]
    chosen = [n for n in notebooks if n.stem in wanted or n.stem.split("_")[0] in wanted] or belongs
    if strange := [n.stem for n in chosen if n not in belongs]:
        raise ValueError(f"{strange[0]} does not belong to the profile {profile!r}: it has no parameters there")
    files = [folder / f"{n.stem}.yaml" for n in chosen]
    return [Task(n, file, STUDIES[n.stem].from_yaml(file)) for n, file in zip(chosen, files, strict=True)]


def run(task: Task, folder: Path) -> Result:
    """Execute one notebook with papermill; on success put the executed notebook and its page in place."""
    import nbformat
    import papermill
    import yaml
    from papermill.exceptions import PapermillExecutionError

    target = folder / task.name
    target.mkdir(parents=True, exist_ok=True)
    running, began, error, trace = target / "running.ipynb", time.perf_counter(), "", ""
    try:
        papermill.execute_notebook(
            task.notebook,
            running,
            parameters=yaml.safe_load(task.parameters.read_text(encoding="utf-8")) or {},
            kernel_name="python3",
            cwd=ROOT,
            progress_bar=sys.stderr.isatty(),
            stderr_file=sys.stderr,  # the progress bars of long cells
        )
    except PapermillExecutionError as failure:
        error = f"{failure.ename}: {_first_line(failure.evalue)}"
        trace = "\n".join(failure.traceback)
    except Exception as failure:  # a dead kernel must not keep the other notebooks from running
        error = f"{type(failure).__name__}: {_first_line(str(failure))}"
        trace = traceback.format_exc()
    if error:
        (target / TRACEBACK).write_text(_without_colours(trace), encoding="utf-8")
    seconds = time.perf_counter() - began
    title, thumbnail = task.name, ""
    if running.is_file():
        executed = without_progress(nbformat.read(running, as_version=4))
        title, thumbnail = describe(executed, task.name)
        write_page(executed, folder / f"{task.name}.html")
        nbformat.write(executed, running)
        running.replace(target / ("failed.ipynb" if error else "executed.ipynb"))
    return Result(task.name, title, seconds, error, thumbnail)


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "")


def _without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def without_progress(notebook: Any) -> Any:
    """The notebook without the progress bars that long cells wrote to stderr."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" or not _is_bar(o["text"])]
    return notebook


def _is_bar(text: str) -> bool:
    return "%|" in text or not text.replace("\x1b[A", "").strip()  # nested bars leave cursor movements behind


def describe(notebook: Any, default: str) -> tuple[str, str]:
    """First heading and first picture (base64 PNG) of an executed notebook."""
    headings = (re.match(r"#\s+(.+)", c.source) for c in notebook.cells if c.cell_type == "markdown")
    title = next((match.group(1) for match in headings if match), default)
    outputs = (o for c in notebook.cells if c.cell_type == "code" for o in c.outputs)
    pictures = (o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {}))
    return title, next(pictures, "")


def write_page(notebook: Any, path: Path) -> None:
    """An executed notebook as one HTML file."""
    from nbconvert import HTMLExporter

    page, _ = HTMLExporter().from_notebook_node(notebook)
    path.write_text(page, encoding="utf-8")


def write_index(results: list[Result], folder: Path, profile: str) -> None:
    """The page that links all others, with a thumbnail each."""
    cards = []
    for r in results:
        picture = f'<img src="data:image/png;base64,{r.thumbnail}" alt="">' if r.thumbnail else ""
        status = f'<p class="bad">failed: {html.escape(r.error)}</p>' if r.error else f"<p>{r.seconds:.0f} s</p>"
        cards.append(f'<a class="card" href="{r.name}.html">{picture}<h2>{html.escape(r.title)}</h2>{status}</a>')
    page = _INDEX.format(profile=html.escape(profile), cards="\n".join(cards))
    (folder / "index.html").write_text(page, encoding="utf-8")


_INDEX = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>hybridlib: {profile}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #22262b; max-width: 1080px; margin: 3rem auto; padding: 0 1rem }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 1.2rem }}
.card {{ color: inherit; text-decoration: none; border: 1px solid #d9dde1; border-radius: 8px; padding: 1rem }}
.card:hover {{ border-color: #3b76af }}
.card img {{ width: 100%; max-height: 190px; object-fit: contain }}
.card h2 {{ font-size: 1.05rem; margin: .6rem 0 0 }} .card p {{ margin: .2rem 0 0; color: #6a727b }}
.card .bad {{ color: #b3261e }}
</style></head>
<body><h1>hybridlib, profile {profile}</h1><main>
{cards}
</main></body></html>
"""


if __name__ == "__main__":
    sys.exit(main())
