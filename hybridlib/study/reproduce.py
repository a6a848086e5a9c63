"""Run notebooks headless, each with its parameter file, and turn them into web pages (`pages`)."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ..files import locked, read_yaml, replacing, write_atomically
from ..names import closest, require_known
from ..paths import NOTEBOOKS, OUTPUTS, PARAMETERS
from ..progress import LOG
from . import pages
from .parameters import STUDIES, OwnParameters, Parameters

TRACEBACK = "traceback.txt"  # beside the failed notebook


class Task(NamedTuple):
    """A notebook, its parameter file and what that says."""

    notebook: Path
    parameters: Path
    checked: Parameters
    changes: Mapping[str, Any] = MappingProxyType({})  # parameters that the file does not say

    @property
    def name(self) -> str:
        """Such as 01_figures."""
        return self.notebook.stem


class Result(NamedTuple):
    """How a notebook went."""

    name: str
    seconds: float
    error: str = ""
    traced: bool = False  # whether there is a traceback


def reproduce(tasks: Sequence[Task], workers: int = 1) -> int:
    """Run all notebooks and write their pages; a failed one does not keep the others from running.

    Args:
        workers: notebooks that run at once, each with its share of the processor's threads. On a processor alone that
            pays: two threads make the miniatures hardly quicker than one.

    Returns:
        Exit status: 0 if all ran, else 1.

    Raises:
        ValueError: if workers is below 1.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    folder = OUTPUTS / tasks[0].checked.profile
    workers = min(workers, len(tasks))
    os.environ[LOG] = "1"  # nobody sits in front of the kernels
    if workers > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    elif _on_ray(tasks):
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # then there is a worker for each core
    failed = []
    for number, result in enumerate(_results(tasks, folder, workers), start=1):
        trace = f" [{(folder / result.name / TRACEBACK).relative_to(folder.parent)}]" if result.traced else ""
        status = f"FAILED: {result.error}{trace}" if result.error else "done"
        print(f"[{number}/{len(tasks)}] {result.name} {status} ({result.seconds:.0f} s)", flush=True)
        failed += [result] if result.error else []
    try:
        print(f"pages: {pages.write(folder)}")
    except OSError as failure:
        failed.append(Result("pages", 0.0, str(failure)))
    for result in failed:
        print(f"failed: {result.name}: {result.error}", file=sys.stderr)
    return 1 if failed else 0


def default_workers(tasks: Sequence[Task] = ()) -> int:
    """One notebook for each core, at most four; one alone where they would share a GPU's memory or Ray's workers."""
    import torch

    return 1 if torch.cuda.is_available() or _on_ray(tasks) else min(4, os.cpu_count() or 1)


def on_cluster(tasks: Sequence[Task], cluster: str) -> list[Task]:
    """The same tasks, their images made there, whatever their parameter files say.

    Raises:
        ValueError: if none of them makes images by trajectories.
    """
    changed = [
        task._replace(checked=task.checked.model_copy(update={"cluster": cluster}), changes={"cluster": cluster})
        if hasattr(task.checked, "cluster")
        else task
        for task in tasks
    ]
    if cluster != "local" and not any(task.changes for task in changed):
        raise ValueError(
            f"cluster = {cluster!r}: none of {', '.join(task.name for task in tasks)} makes images in shards"
        )
    return changed


def _on_ray(tasks: Sequence[Task]) -> bool:
    return any(getattr(task.checked, "cluster", "local") == "ray" for task in tasks)


def _results(tasks: Sequence[Task], folder: Path, workers: int) -> Iterator[Result]:
    """Run tasks: one worker in their order, several those first whose outputs others read, then from the last on.

    Most of the long studies are among the last, and the short ones fill up the end.
    """
    if workers == 1:
        for task in tasks:
            print(f"{task.name} ...", flush=True)
            yield run(task.notebook, task.parameters, folder, task.changes)
        return
    read = [task for task in tasks if any(_reads(other, task) for other in tasks)]
    waiting = [*read, *(task for task in reversed(tasks) if task not in read)]
    running = dict[Future[Result], Task]()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        while waiting or running:
            unfinished = [*waiting, *running.values()]
            for task in [t for t in waiting if not any(_reads(t, other) for other in unfinished)]:
                if len(running) < workers:
                    print(f"{task.name} ...", flush=True)
                    waiting.remove(task)
                    future = pool.submit(run, task.notebook, task.parameters, folder, dict(task.changes))
                    running[future] = task
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                del running[future]
                yield future.result()


def _reads(task: Task, other: Task) -> bool:
    """Whether a parameter of the task names a file of the other's outputs."""
    written = f"{other.checked.profile}/{other.name}/"
    return any(isinstance(value, str) and written in value for value in task.checked.model_dump().values())


def collect(profile: str, wanted: Sequence[str] = ()) -> list[Task]:
    """The notebooks to run, with their parameter files already checked.

    Args:
        profile: a folder of `params/` by its name, any other folder of parameter files, or one parameter file.
        wanted: numbers or names of shipped notebooks, or paths of your own; all that have parameters, by default.
            A notebook finds its parameters in the file of its own name, or in the one file that was given.

    Raises:
        ValueError: one sentence, if the profile or a notebook is unknown, a parameter is wrong, or the files disagree
            about the profile, which names the folder of the outputs.
    """
    source = _source(profile)
    shipped = {n.stem: n for n in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")) if n.stem in STUDIES}
    notebooks = [_notebook(word, shipped) for word in wanted]
    if source.is_file():
        if len(notebooks) != 1:
            raise ValueError(f"{source} is one parameter file: name the one notebook that it belongs to")
        tasks = [_task(notebooks[0], source)]
    else:
        belongs = {name: n for name, n in shipped.items() if (source / f"{name}.yaml").is_file()}
        for n in notebooks:
            if not (source / f"{n.stem}.yaml").is_file():
                raise ValueError(f"{n.stem} does not belong to the profile {profile!r}: it has no parameters there")
        chosen = sorted(notebooks, key=lambda n: n.stem) or list(belongs.values())
        if not chosen:
            raise ValueError(f"{source} holds no parameter file of a shipped notebook, such as 01_figures.yaml")
        tasks = [_task(n, source / f"{n.stem}.yaml") for n in chosen]
    if len(profiles := {task.checked.profile for task in tasks}) > 1:
        raise ValueError(f"{source}: the parameter files name several profiles: {', '.join(sorted(profiles))}")
    return tasks


def _source(profile: str) -> Path:
    shipped = PARAMETERS / profile
    if shipped.is_dir() and profile not in ("", "."):
        return shipped
    if (own := Path(profile)).exists():
        return own
    known = sorted(p.name for p in PARAMETERS.iterdir() if p.is_dir())
    raise ValueError(
        f"no profile {profile!r} in params/{closest(profile, known)}; there are {', '.join(known)}, and no file or "
        "folder of that name is here"
    )


def _notebook(word: str, shipped: dict[str, Path]) -> Path:
    if word.endswith(".ipynb"):
        if not Path(word).is_file():
            raise ValueError(f"no notebook {word}: there is no such file")
        return Path(word)
    numbers = {name.split("_")[0]: name for name in shipped}
    return shipped[require_known("notebook", numbers.get(word, word), shipped)]


def _task(notebook: Path, parameters: Path) -> Task:
    if notebook.stem in STUDIES:
        return Task(notebook, parameters, STUDIES[notebook.stem].from_yaml(parameters))
    import nbformat

    own = OwnParameters.from_yaml(parameters)
    if not (known := pages.declared(nbformat.read(notebook, as_version=4))):
        raise ValueError(f"{notebook}: tag the cell that assigns its parameters with `parameters`")
    own.check_names(known, parameters)
    return Task(notebook, parameters, own)


def run(notebook: Path, parameters: Path, folder: Path, changes: Mapping[str, Any] | None = None) -> Result:
    """Execute one notebook with papermill; on success put the executed notebook in place.

    That its folder is in use by another run or cannot be written is an error of the result, too, in one sentence.

    Args:
        changes: parameters beside those of the file, or instead of them.
    """
    began, target, traced = time.perf_counter(), folder / notebook.stem, False
    try:
        with locked(target / ".notebook.lock", wait=False):  # studies in it have locks of their own
            error = _executed(notebook, parameters, dict(changes or {}), target)
            traced = bool(error)
    except OSError as failure:
        error = str(failure)
    return Result(notebook.stem, time.perf_counter() - began, error, traced)


def _executed(notebook: Path, parameters: Path, changes: dict[str, Any], target: Path) -> str:
    """What went wrong, "" if nothing did."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    running, error, trace = target / "running.ipynb", "", ""
    try:
        papermill.execute_notebook(
            notebook,
            running,
            parameters=(read_yaml(parameters) or {}) | changes,
            kernel_name="python3",
            cwd=Path.cwd(),  # where the paths in a parameter file begin
            progress_bar=sys.stderr.isatty(),
            stderr_file=sys.stderr,  # the progress bars of long cells
            extra_arguments=["--log-level=ERROR"],  # the kernel warns that it talks in plain text; it does so at home
        )
    except PapermillExecutionError as failure:
        error = f"{failure.ename}: {_first_line(failure.evalue)}"
        trace = "\n".join(failure.traceback)
    except Exception as failure:  # a dead kernel must not keep the other notebooks from running
        error = f"{type(failure).__name__}: {_first_line(str(failure))}"
        trace = traceback.format_exc()
    if error:
        with contextlib.suppress(OSError, ValueError):  # where the disk is full, the error is all that can be told
            write_atomically(target / TRACEBACK, _without_colours(trace).encode())
            _keep(running, target / pages.FAILED)
        return error
    _keep(running, target / pages.EXECUTED)
    for stale in (pages.FAILED, TRACEBACK):
        (target / stale).unlink(missing_ok=True)
    return ""


def _keep(running: Path, target: Path) -> None:
    import nbformat

    if running.is_file():
        with replacing(target) as partial:
            nbformat.write(without_progress(nbformat.read(running, as_version=4)), partial)
        running.unlink()


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
