"""Work put off until the messages that wait in the kernel are read, so that a dragged slider is followed, not replayed.

Each new change drops what is still to be done for the one before. All work runs in the thread that made the `Later`:
JupyterLab hands messages of widgets to several threads of the kernel, and a picture that one of them began earlier must
not overwrite what another has drawn since.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

Job = Callable[[], None]


class Later:
    """Runs a list of jobs one after the other in the event loop it was made in, the first `delay_s` from now.

    Made without a running loop, as in a plain script, it runs them at once.
    """

    def __init__(self, delay_s: float = 0.03) -> None:
        self.delay_s = delay_s
        self._newest: list[Job] = []
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None

    def do(self, jobs: Sequence[Job]) -> None:
        """Replace whatever is pending by these jobs; from any thread."""
        self._newest = newest = list(jobs)  # another thread may have replaced the attribute by the next line
        if self._loop is None:
            for job in jobs:
                job()
        else:
            self._loop.call_soon_threadsafe(self._soon, newest)

    def _soon(self, jobs: list[Job]) -> None:
        assert self._loop is not None
        self._loop.call_later(self.delay_s, self._next, jobs)

    def _next(self, jobs: list[Job]) -> None:
        if jobs is not self._newest or not jobs:
            return
        jobs.pop(0)()
        self._soon(jobs)
