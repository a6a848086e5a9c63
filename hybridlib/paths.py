"""Where things lie: in a clone of the project, or beside the installed package and the current folder."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
IS_CLONE = (_PACKAGE.parent / "pyproject.toml").is_file()
ROOT = _PACKAGE.parent if IS_CLONE else _PACKAGE  # a wheel holds data, notebooks and params inside the package
MODELS = ROOT / "data" / "models"
PROMPTS = ROOT / "data" / "prompts"
PUBLISHED = ROOT / "data" / "published"
RESULTS = ROOT / "data" / "results"
NOTEBOOKS = ROOT / "notebooks"
PARAMETERS = ROOT / "params"
OUTPUTS = (ROOT if IS_CLONE else Path.cwd()) / "outputs"
