"""The house: imports run downwards only, wings stand apart, nothing runs in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import hybridlib

PACKAGE = Path(hybridlib.__file__).parent
GROUND = {"paths", "files", "trust", "noise", "intervals", "runs", "fits", "prompts", "progress", "names"}
FLOORS = [GROUND, {"codecs"}, {"denoising"}, {"metrics"}, {"study"}]
FLOORS += [
    {"hybrid", "compression", "splits", "scheduling", "training"},
    {"figures"},
    {"miniature", "explorer"},
    {"commands"},
    {"__main__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def imports():
    """Module -> modules of the package that it imports, those inside functions and for type checkers too."""
    files = {_name(path): path for path in PACKAGE.rglob("*.py")}
    return {
        name: {target for node in ast.walk(ast.parse(path.read_text())) for target in _targets(node, path, files)}
        for name, path in files.items()
    }


def _name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _targets(node, path, files):
    if isinstance(node, ast.Import):
        assert not any(alias.name.split(".")[0] == "hybridlib" for alias in node.names), f"{path}: import relatively"
    if not isinstance(node, ast.ImportFrom) or not node.level:
        return
    package = path.relative_to(PACKAGE).parts[:-1]
    base = ".".join([*package[: len(package) - node.level + 1], *(node.module or "").split(".")]).strip(".")
    for alias in node.names:
        inner = f"{base}.{alias.name}".strip(".")
        yield inner if inner in files else base


def test_every_room_has_a_floor():
    rooms = {name.split(".")[0] for name in imports()} - {""}
    assert rooms == set(FLOOR)


def test_imports_run_downwards_and_wings_stand_apart():
    wrong = []
    for name, targets in imports().items():
        room = name.split(".")[0]
        for other in {target.split(".")[0] for target in targets} - {room, ""}:
            same_floor_is_fine = room in GROUND and other in GROUND
            if FLOOR[other] > FLOOR[room] or (FLOOR[other] == FLOOR[room] and not same_floor_is_fine):
                wrong.append(f"{name} imports {other}")
    assert not wrong


def test_no_circles():
    # An __init__ that lists its own room is imported with the room, so it is no stop on a path between modules.
    graph = imports()
    packages = {name for name in graph if (PACKAGE / name.replace(".", "/")).is_dir()}
    own_room = {
        name: {t for t in targets if t not in packages or not name.startswith(t)} for name, targets in graph.items()
    }
    assert list(TopologicalSorter(own_room).static_order())


def test_import_is_light():
    heavy = ["torch", "pandas", "numpy", "diffusers", "scipy", "matplotlib"]
    code = f"import sys, hybridlib; print([m for m in {heavy} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"
