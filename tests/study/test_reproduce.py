from __future__ import annotations

import subprocess
import sys

import nbformat
import pytest

from hybridlib.paths import ROOT
from hybridlib.study import reproduce
from hybridlib.study.parameters import STUDIES, SamplingParameters


class Nothing(SamplingParameters):
    notebook = "00_nothing"


def notebook(*sources):
    cells = [nbformat.v4.new_markdown_cell("# A title"), nbformat.v4.new_code_cell("profile = 'x'")]
    cells[1].metadata["tags"] = ["parameters"]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    return nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one notebook that fails and one that works."""
    for name, source in (("01_bad", "1 / 0"), ("02_good", "print(profile)")):
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        (tmp_path / "params" / "toy").mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook(source), tmp_path / "notebooks" / f"{name}.ipynb")
        (tmp_path / "params" / "toy" / f"{name}.yaml").write_text("profile: toy")
        monkeypatch.setitem(STUDIES, name, Nothing)
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    monkeypatch.setattr(reproduce, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(reproduce, "PARAMETERS", tmp_path / "params")
    monkeypatch.setattr(reproduce, "OUTPUTS", tmp_path / "outputs")
    return tmp_path


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["reproduce", *arguments])
    return reproduce.main()


@pytest.mark.filterwarnings("ignore")
def test_a_failing_notebook_is_named_and_the_others_run(project, monkeypatch, capsys):
    assert run(monkeypatch, "--profile", "toy") == 1
    told = capsys.readouterr()
    assert "failed: 01_bad: ZeroDivisionError: division by zero" in told.err
    assert "FAILED: ZeroDivisionError: division by zero [toy/01_bad/traceback.txt]" in told.out
    assert "Traceback" not in told.out + told.err
    pages = project / "outputs" / "toy"
    assert "toy" in (pages / "02_good.html").read_text()
    index = (pages / "index.html").read_text()
    assert "A title" in index
    assert "failed: ZeroDivisionError" in index
    assert (pages / "02_good" / "executed.ipynb").is_file()
    assert (pages / "01_bad" / "failed.ipynb").is_file()
    assert not (pages / "01_bad" / "executed.ipynb").exists()
    trace = (pages / "01_bad" / "traceback.txt").read_text()
    assert trace.rstrip().endswith("ZeroDivisionError: division by zero")
    assert "\x1b" not in trace


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--profile", "nothing"), "no profile 'nothing' in params/; there are toy"),
        (("--profile", "toi"), "no profile 'toi' in params/; did you mean 'toy'; there are toy"),
        (("--profile", "toy", "--notebooks", "02_god"), "no notebook '02_god'; did you mean '02_good'; there are"),
        (("--profile", "toy", "--notebooks", "07"), "no notebook '07'; there are 01_bad, 02_good"),
    ],
)
def test_unknown_profile_or_notebook(project, monkeypatch, capsys, arguments, message):
    assert run(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_profile_runs_what_belongs_to_it(project, monkeypatch, capsys):
    (project / "params" / "toy" / "01_bad.yaml").unlink()
    assert [task.name for task in reproduce.collect("toy", [])] == ["02_good"]
    assert run(monkeypatch, "--profile", "toy", "--notebooks", "01") == 2
    assert "01_bad does not belong to the profile 'toy'" in capsys.readouterr().err


def test_what_is_missing_is_said_before_anything_runs(project, monkeypatch, capsys):
    (project / "params" / "toy" / "02_good.yaml").write_text("model: mini-nothing")
    monkeypatch.setattr(reproduce, "run", lambda *a: pytest.fail("ran a notebook"))
    assert run(monkeypatch, "--profile", "toy") == 2
    assert capsys.readouterr().err.count("no miniature model 'mini-nothing'") == 1


def test_a_bad_parameter_stops_everything_before_it_starts(project, monkeypatch, capsys):
    (project / "params" / "toy" / "02_good.yaml").write_text("batch_size: 0")
    monkeypatch.setattr(reproduce, "run", lambda *a: pytest.fail("ran a notebook"))
    assert run(monkeypatch, "--profile", "toy") == 2
    assert "02_good.yaml: batch_size = 0" in capsys.readouterr().err


def test_progress_bars_are_left_out_of_pages():
    executed = notebook("pass")
    bar = nbformat.v4.new_output("stream", name="stderr", text="generate:  50%|#####     | 1/2")
    warning = nbformat.v4.new_output("stream", name="stderr", text="UserWarning: look")
    blank = nbformat.v4.new_output("stream", name="stderr", text="\x1b[A\n")
    executed.cells[-1].outputs = [bar, warning, blank]
    assert reproduce.without_progress(executed).cells[-1].outputs == [warning]


def test_committed_notebooks_ran_top_to_bottom():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1)), path.name


def test_import_is_light():
    code = (
        "import sys, hybridlib; heavy = {'torch', 'pandas', 'diffusers', 'matplotlib'} & set(sys.modules); print(heavy)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "set()"
