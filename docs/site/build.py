"""Build the site: stage pages and notebooks, draw the main figures from the committed tables, run Sphinx.

`python docs/site/build.py` writes outputs/site/, which needs no server and no network.
"""

from __future__ import annotations

import argparse
import base64
import copy
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import nbformat

from hybridlib.figures import use_house_style
from hybridlib.paths import NOTEBOOKS, OUTPUTS, RESULTS, ROOT
from hybridlib.study import pages

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOCS = ROOT / "docs"
THUMBNAIL_WIDTH = 720  # pixels
WIDE = 1.8  # width by height from which a figure scrolls on a phone
README = re.sub(r"\s+", " ", (ROOT / "README.md").read_text(encoding="utf-8"))


def main() -> int:
    """Exit status of Sphinx."""
    parser = argparse.ArgumentParser(prog="python docs/site/build.py", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=OUTPUTS / "site", help="default: outputs/site")
    parser.add_argument("--strict", action="store_true", help="fail on the first warning of Sphinx, as the tests do")
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    staged = output.with_name(output.name + "-pages")
    shutil.rmtree(staged, ignore_errors=True)
    shutil.rmtree(output, ignore_errors=True)
    stage(staged)
    strict = ["-W", "--keep-going"] if arguments.strict else []
    command = [sys.executable, "-m", "sphinx", *strict, "-q", "-b", "html", "-d", str(staged / ".doctrees")]
    status = subprocess.run([*command, str(staged), str(output)]).returncode
    shutil.rmtree(staged)
    if not status:
        print(f"site: {output / 'index.html'}")
    return status


def stage(folder: Path) -> None:
    """Everything that Sphinx reads: hand-written pages, guides, notebooks, and what is generated here."""
    shutil.copytree(DOCS / "site", folder, ignore=shutil.ignore_patterns("build.py", "__pycache__"))
    shutil.copytree(DOCS / "guides", folder / "guides")
    for picture in (*DOCS.glob("*.svg"), *DOCS.glob("*.jpg")):
        shutil.copy(picture, folder)
    pages_of_docs = [DOCS / f"{name}.md" for name in ("architecture", "performance", "reliability")]
    for page in (*pages_of_docs, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        text = page.read_text(encoding="utf-8").replace("docs/house.svg", "house.svg")
        text = text.replace("[README](../README.md#measured)", "README")
        (folder / page.name.lower()).write_text(text, encoding="utf-8")
    tables = (RESULTS / "README.md").read_text(encoding="utf-8")
    (folder / "tables.md").write_text(tables, encoding="utf-8")
    (folder / "notebooks").mkdir()
    (folder / "figures").mkdir()
    use_house_style()
    for name, draw in FIGURES.items():
        draw().savefig(folder / "figures" / f"{name}.png", dpi=150)
    studies = list(read_studies(folder))
    (folder / "gallery.md").write_text(gallery(studies), encoding="utf-8")
    index = folder / "index.md"
    index.write_text(with_sentences(index.read_text(encoding="utf-8")), encoding="utf-8")
    write_reference(folder / "reference")


# --- the main results, drawn from the tables in data/results


def _collapse() -> Figure:
    import numpy as np

    from hybridlib import figures
    from hybridlib.hybrid import schedules
    from hybridlib.study import results

    curves = schedules.curves_beside(results.load("05_schedules"))
    return figures.collapse(curves, reference="SD3, published", resolution_gap=2 * np.log(128 / 8))


def _gain() -> Figure:
    from hybridlib import figures, intervals
    from hybridlib.study import results

    gain = intervals.paired_changes(
        results.load("05_anchored"), "clip", "variant", "woSIM", "wSIM", by=["common_step"]
    ).assign(line="a low public scale (SIM)")
    labels = {"common_step": "common step", "mean": "change in CLIP alignment", "line": ""}
    return figures.interval_lines(gain, "common_step", "line", labels=labels, palette=["#2a7f62"])


def _rates() -> Figure:
    from hybridlib import figures
    from hybridlib.compression import rates
    from hybridlib.study import results

    links = results.load("07_links")
    raw, shown = rates.raw_bytes(links), links[links["step"].isin([2, 14, 26])]
    return figures.rate_distortion(shown, "psnr", "PSNR of the final image (dB)", raw)


def _front() -> Figure:
    from hybridlib import figures
    from hybridlib.scheduling.study import price
    from hybridlib.study import results

    return figures.front(price.summary(results.load("08_front")), price.summary(results.load("08_horizons")))


FIGURES: dict[str, Callable[[], Figure]] = {"collapse": _collapse, "gain": _gain, "rates": _rates, "front": _front}


# --- studies


class StudyPage(NamedTuple):
    """A committed notebook as the gallery shows it."""

    name: str
    title: str
    question: str = ""
    answer: str = ""
    has_picture: bool = False


def read_studies(folder: Path) -> Iterator[StudyPage]:
    """Stage every committed notebook and its thumbnail; yield what the gallery says of it.

    Raises:
        ValueError: if a notebook has no title.
    """
    for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        title = re.match(r"#\s+(.+)", notebook.cells[0].source)
        if title is None:
            raise ValueError(f"{path.name}: the first cell must begin with a heading")
        folded = copy.deepcopy(notebook)
        for cell in folded.cells:
            cell.metadata["tags"] = ["hide-input"]  # a reader opens what is wanted
            if any(map(_is_wide, cell.get("outputs", ()))):
                cell.metadata["mystnb"] = {"image": {"classes": "wide-figure"}}
        nbformat.write(folded, folder / "notebooks" / path.name)
        question = re.search(r"\*\*Question\.\*\*\s*(.+)", notebook.cells[0].source)
        if question is None:  # a notebook to play with, such as the explorer, is no study
            yield StudyPage(path.stem, title[1])
            continue
        if picture := pages.best_figure(notebook):
            _thumbnail(base64.b64decode(picture), folder / "figures" / f"{path.stem}.png")
        yield StudyPage(path.stem, title[1], question[1], pages.finding(notebook), bool(picture))


def _is_wide(output: nbformat.NotebookNode) -> bool:
    """Whether an output is a picture that a phone could not show whole and readable."""
    from PIL import Image

    png = output.get("data", {}).get("image/png")
    if png is None:
        return False
    width, height = Image.open(io.BytesIO(base64.b64decode(png))).size
    return width / height > WIDE


def _thumbnail(png: bytes, path: Path) -> None:
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.thumbnail((THUMBNAIL_WIDTH, THUMBNAIL_WIDTH))
    picture.save(path, optimize=True)


def gallery(studies: list[StudyPage]) -> str:
    """The page of all studies: picture, question, answer."""
    cards = []
    for study in (study for study in studies if study.question):
        picture = f":img-top: figures/{study.name}.png\n:img-alt: {study.title}\n" if study.has_picture else ""
        answer = f"**Answer.** {study.answer}\n" if study.answer else ""
        card = f"::::{{grid-item-card}} {study.title}\n:link: notebooks/{study.name}\n:link-type: doc\n{picture}\n"
        cards.append(f"{card}{study.question}\n\n{answer}::::\n")
    pages = "\n".join(f"{study.title} <notebooks/{study.name}>" for study in studies)
    return (
        "# Studies\n\nEach study is a notebook that asks one question. What was published stands beside what is "
        "measured. "
        "Numbers are measured on miniature models: they show how a method behaves, not how good SD3 is.\n\n"
        f":::::{{grid}} 1 1 2 2\n:gutter: 3\n\n{''.join(cards)}:::::\n\n```{{toctree}}\n:hidden:\n\n{pages}\n```\n"
    )


def with_sentences(page: str) -> str:
    """The page with each `{readme: beginning}` replaced by the README's sentence that begins so.

    The README's numbers are recomputed by tests, so the site's are, too.
    """

    def sentence(match: re.Match[str]) -> str:
        at = README.find(match[1])
        if at < 0:
            raise ValueError(f"the README has no sentence that begins {match[1]!r}")
        return pages.first_sentence(README[at:].split(" | ")[0])

    return re.sub(r"\{readme: ([^}]+)\}", sentence, page)


# --- the reference


ROOMS = {
    "denoising": "Trajectories, the denoising tree, and the pipelines that walk it.",
    "codecs": "Latents as real bytes.",
    "metrics": "One number an image.",
    "hybrid": "Hybrid inference: grids, HIQM curves and surfaces, planning.",
    "compression": "Latent compression: grids, rates, surfaces.",
    "splits": "Large and small denoisers share a generation: grids, costs, quality, mixtures.",
    "scheduling.system": "The edge system: servers, tasks, slots, bounds.",
    "scheduling.rules": "Schedulers that do not learn by trial, and our own.",
    "scheduling.learners": "LAD-TS, D2SAC, SAC and DQN.",
    "scheduling.study": "Study 08: trainings, statistics, claims, prices.",
    "study": "Parameters, resumable runs, shipped tables, pages.",
    "figures": "The house style and the recurring plots.",
    "training": "One loop, noise assignment, pruning and distillation.",
    "explorer": "What notebook 00 touches.",
    "miniature": "Scenes, and the recipes that train the shipped models.",
    "commands": "What the console command does.",
}


def modules_of(room: str) -> list[str]:
    """Public modules below a room, its subpackages' included."""
    folder = ROOT / "hybridlib" / Path(*room.split("."))
    files = sorted(p for p in folder.rglob("*.py") if not p.stem.startswith("_"))
    return [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in files]


def write_reference(folder: Path) -> None:
    """A page for every room, a section for every module, all of it from docstrings."""
    folder.mkdir()
    ground = sorted(f"hybridlib.{p.stem}" for p in (ROOT / "hybridlib").glob("[a-z]*.py"))
    pages = {"ground": ("What all rooms stand on: files, noise, prompts, intervals, fits.", ground)}
    pages |= {room: (sentence, modules_of(room)) for room, sentence in ROOMS.items()}
    for room, (sentence, modules) in pages.items():
        sections = []
        for module in modules:
            title = module.removeprefix("hybridlib.").removeprefix(f"{room}.")
            sections.append(f"{title}\n{'-' * len(title)}\n\n.. automodule:: {module}\n   :members:\n")
        text = f"{room}\n{'=' * len(room)}\n\n{sentence}\n\n" + "\n".join(sections)
        (folder / f"{room}.rst").write_text(text, encoding="utf-8")
    rows = "\n".join(f"| [`{room}`]({room}.rst) | {sentence} |" for room, (sentence, _) in pages.items())
    names = "\n".join(pages)
    (folder / "index.md").write_text(
        "# Reference\n\nEvery public class and function with its signature and docstring, a page for each room of the "
        f"package.\n\n| room | what |\n|---|---|\n{rows}\n\n```{{toctree}}\n:hidden:\n\n{names}\n```\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    sys.exit(main())
