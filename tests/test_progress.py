from __future__ import annotations

import io
import sys

import pytest
from tqdm import tqdm

from hybridlib import progress
from hybridlib.progress import LOG, LoggedBar, bar, quiet_libraries


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.delenv(LOG, raising=False)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_a_log_gets_a_line_now_and_then():
    log, clock = io.StringIO(), Clock()
    made = LoggedBar(total=100, desc="denoise", unit="NFE", file=log, disable=False)
    made._time = clock
    made.start_t = made.last_print_t = clock.now
    for _ in range(100):
        clock.now += 1
        made.update()
    made.close()
    made.close()
    lines = log.getvalue().splitlines()
    assert [int(line.split(":")[1].split("%")[0]) for line in lines] == [30, 60, 90, 100]
    assert all(line.startswith("denoise: ") for line in lines)
    assert not {"\r", "\x1b"} & set(log.getvalue())


def test_what_is_over_soon_leaves_no_line():
    log = io.StringIO()
    for _ in LoggedBar(range(1000), file=log, disable=False):
        pass
    assert log.getvalue() == ""


def test_each_place_gets_its_kind_of_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert type(bar([1])) is tqdm
    monkeypatch.setenv(LOG, "1")
    assert type(bar([1])) is LoggedBar
    monkeypatch.delenv(LOG)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert type(bar([1])) is LoggedBar
    monkeypatch.setattr(progress, "_in_notebook", lambda: True)
    from tqdm.auto import tqdm as widget

    assert type(bar([1])) is widget  # which is a widget where there is a kernel, as here there is none


def test_silence(monkeypatch):
    assert bar([1], show=False).disable
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert bar([1]).disable
    monkeypatch.setenv(LOG, "1")
    assert bar([1]).disable


def test_libraries_are_quiet_for_a_while():
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    diffusers_logging.disable_progress_bar()
    try:
        with quiet_libraries():
            assert not any(library.is_progress_bar_enabled() for library in libraries)
        assert [library.is_progress_bar_enabled() for library in libraries] == [False, True]
    finally:
        diffusers_logging.enable_progress_bar()
