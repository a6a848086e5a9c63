"""Notebook 00 in JupyterLab."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

from ..paths import IS_CLONE, NOTEBOOKS

NAME = "00_explorer.ipynb"


def explore(port: int = 8888, browser: bool = True) -> int:
    """Open the explorer; returns JupyterLab's exit status when it is closed.

    An installed package copies the notebook into the current folder, where it may be changed.

    Raises:
        ValueError: one sentence, if the port is in use or out of range.
    """
    if not 1 <= port <= 65535:
        raise ValueError(f"port must lie in 1..65535, got {port}")
    if in_use(port):
        raise ValueError(f"port {port} is in use; choose another one, such as --port {port + 1}")
    command = [sys.executable, "-m", "jupyterlab", str(notebook()), f"--port={port}", "--ServerApp.port_retries=0"]
    try:
        return subprocess.run([*command, *([] if browser else ["--no-browser"])]).returncode
    except KeyboardInterrupt:
        return 0


def notebook() -> Path:
    """Where the notebook can be opened and saved."""
    if IS_CLONE:
        return NOTEBOOKS / NAME
    own = Path.cwd() / NAME
    if not own.exists():
        shutil.copy(NOTEBOOKS / NAME, own)
    return own


def in_use(port: int) -> bool:
    """Whether something listens on this port of this machine."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
