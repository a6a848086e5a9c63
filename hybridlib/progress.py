"""Progress bars that fit where they are read: a bar in a terminal, a widget in JupyterLab, lines in a log.

A log is whatever is neither: a file, a pipe, or a notebook run headless, for which `LOG` is set in the environment.
TQDM_DISABLE silences all of them.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

LOG = "HYBRIDLIB_PROGRESS_LOG"  # set by whoever runs notebooks with nobody in front of them
LINE_EVERY_S = 30.0


class LoggedBar(tqdm):
    """A bar whose state is printed as a line every half minute and at its end; a shorter one prints nothing."""

    disable: bool

    def __init__(self, *args: Any, **options: Any) -> None:
        every = options.pop("every_s", LINE_EVERY_S)
        slow = {"mininterval": every, "maxinterval": math.inf, "delay": every, "miniters": 1, "ascii": True}
        super().__init__(*args, **options | slow)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """One line where others rewrite theirs."""
        print(str(self) if msg is None else msg, file=self.fp, flush=True)

    def close(self) -> None:
        """The last line, if there was one before it; no cursor is moved."""
        if self.disable:
            return
        self.disable = True
        self._decr_instances(self)
        if self.last_print_t >= self.start_t + self.delay and self.last_print_n < self.n:
            self.display()


def bar(iterable: Iterable[Any] | None = None, *, show: bool = True, **options: Any) -> tqdm:
    """A tqdm bar of the kind that fits, with tqdm's own options.

    Args:
        show: False hides it. TQDM_DISABLE in the environment does, too.
    """
    if not show or "TQDM_DISABLE" in os.environ:
        options["disable"] = True
    return _kind()(iterable, **options)


def _kind() -> type[tqdm]:
    if LOG in os.environ:
        return LoggedBar
    if _in_notebook():
        from tqdm.auto import tqdm as widget

        return widget
    return tqdm if sys.stderr.isatty() else LoggedBar


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No loading bars of diffusers, transformers and huggingface_hub inside; then they are as before."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging  # which switches huggingface_hub's as well

    loud = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for library in loud:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in loud:
            library.enable_progress_bar()
