from __future__ import annotations

import subprocess
import sys

import nbformat
import pytest

from hybridlib.__main__ import main
from hybridlib.paths import NOTEBOOKS
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
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(reproduce, "PARAMETERS", tmp_path / "params")
    monkeypatch.setattr(reproduce, "OUTPUTS", tmp_path / "outputs")
    return tmp_path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_a_failing_notebook_is_named_and_the_others_run(project, capsys):
    assert main(["reproduce", "toy"]) == 1
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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_notebooks_run_side_by_side_but_a_reader_waits_for_its_writer(project, capsys):
    made = "outputs/toy/03_writer/made.txt"
    writes = f"import time, pathlib; time.sleep(3); pathlib.Path({made!r}).write_text('text')"
    nbformat.write(notebook(writes), project / "03_writer.ipynb")
    reader = notebook("print(open(source).read())")
    reader.cells[1].source += "\nsource = ''"
    nbformat.write(reader, project / "04_reader.ipynb")
    (project / "own").mkdir()
    (project / "own" / "03_writer.yaml").write_text("profile: toy")
    (project / "own" / "04_reader.yaml").write_text(f"profile: toy\nsource: {made}")
    (project / "own" / "02_good.yaml").write_text("profile: toy")
    wanted = ["--notebooks", "02", "03_writer.ipynb", "04_reader.ipynb", "--workers", "3"]
    assert main(["reproduce", "own", *wanted]) == 0
    told = capsys.readouterr().out
    assert told.index("03_writer ...") < told.index("[1/3] 02_good done")  # side by side
    assert told.index("03_writer done") < told.index("04_reader ...")
    assert main(["reproduce", "own", *wanted[:-1], "0"]) == 2
    assert "workers must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing",), "no profile 'nothing' in params/; there are toy"),
        (("toi",), "no profile 'toi' in params/; did you mean 'toy'; there are toy"),
        (("toy", "--notebooks", "02_god"), "no notebook '02_god'; did you mean '02_good'; there are"),
        (("toy", "--notebooks", "07"), "no notebook '07'; there are 01_bad, 02_good"),
    ],
)
def test_unknown_profile_or_notebook(project, capsys, arguments, message):
    assert main(["reproduce", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_profile_runs_what_belongs_to_it(project, capsys):
    (project / "params" / "toy" / "01_bad.yaml").unlink()
    assert [task.name for task in reproduce.collect("toy", [])] == ["02_good"]
    assert main(["reproduce", "toy", "--notebooks", "01"]) == 2
    assert "01_bad does not belong to the profile 'toy'" in capsys.readouterr().err


def test_what_is_missing_is_said_before_anything_runs(project, monkeypatch, capsys):
    (project / "params" / "toy" / "02_good.yaml").write_text("profile: toy\nmodel: mini-nothing")
    monkeypatch.setattr(reproduce, "run", lambda *a: pytest.fail("ran a notebook"))
    assert main(["reproduce", "toy"]) == 2
    assert capsys.readouterr().err.count("no miniature model 'mini-nothing'") == 1


def test_a_bad_parameter_stops_everything_before_it_starts(project, monkeypatch, capsys):
    (project / "params" / "toy" / "02_good.yaml").write_text("batch_size: 0")
    monkeypatch.setattr(reproduce, "run", lambda *a: pytest.fail("ran a notebook"))
    assert main(["reproduce", "toy"]) == 2
    assert "02_good.yaml: batch_size = 0" in capsys.readouterr().err


def test_the_profile_names_one_folder_of_outputs(project, capsys):
    (project / "params" / "toy" / "02_good.yaml").write_text("profile: other")
    assert main(["reproduce", "toy"]) == 2
    assert "the parameter files name several profiles: other, toy" in capsys.readouterr().err


def own_study(folder, values):
    """Somebody's own notebook, whose name no shipped study has, with its parameter file."""
    nbformat.write(notebook("print(profile)"), folder / "20_own.ipynb")
    (folder / "20_own.yaml").write_text(values)
    return folder / "20_own.ipynb"


def test_own_notebooks_and_files_are_given_by_their_paths(project):
    own = str(own_study(project, "profile: mine"))
    by_file = reproduce.collect(str(project / "20_own.yaml"), [own])
    by_folder = reproduce.collect(str(project), [own])
    assert by_file == by_folder
    assert (by_file[0].name, by_file[0].checked.profile) == ("20_own", "mine")
    shipped = reproduce.collect(str(project / "params" / "toy"))
    assert [task.notebook for task in shipped] == [task.notebook for task in reproduce.collect("toy")]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ("profle: x", "20_own.yaml: profle is no parameter; did you mean 'profile'; known: profile"),
        ("[1]", "expected a mapping of parameter names"),
        ("profile: ../x", "20_own.yaml: profile = '../x'"),
    ],
)
def test_an_own_study_is_checked_against_its_own_cell(project, capsys, values, sentence):
    own = str(own_study(project, values))
    assert main(["reproduce", str(project / "20_own.yaml"), "--notebooks", own]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["params/toy/02_good.yaml"], "is one parameter file: name the one notebook"),
        (["outputs"], "no profile 'outputs'"),
        (["notebooks"], "holds no parameter file of a shipped notebook"),
        (["toy", "--notebooks", "gone.ipynb"], "no notebook gone.ipynb: there is no such file"),
    ],
)
def test_paths_that_cannot_be_run(project, capsys, arguments, sentence):
    assert main(["reproduce", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_progress_bars_are_left_out_of_pages():
    executed = notebook("pass")
    bar = nbformat.v4.new_output("stream", name="stderr", text="generate:  50%|#####     | 1/2")
    warning = nbformat.v4.new_output("stream", name="stderr", text="UserWarning: look")
    blank = nbformat.v4.new_output("stream", name="stderr", text="\x1b[A\n")
    executed.cells[-1].outputs = [bar, warning, blank]
    assert reproduce.without_progress(executed).cells[-1].outputs == [warning]


def test_committed_notebooks_ran_top_to_bottom():
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1)), path.name


def test_import_is_light():
    code = (
        "import sys, hybridlib; heavy = {'torch', 'pandas', 'diffusers', 'matplotlib'} & set(sys.modules); print(heavy)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "set()"
