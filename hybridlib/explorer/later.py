"""Work put off until the messages that wait in the kernel are read, so that a dragged slider is followed, not replayed.

Each new change cancels what is still pending of the one before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence


class Later:
    """Runs a list of jobs one after the other in the kernel's event loop, the first `delay_s` from now.

    Without a running loop, as in a plain script, they run at once.
    """

    def __init__(self, delay_s: float = 0.03) -> None:
        self.delay_s = delay_s
        self._pending: asyncio.TimerHandle | None = None

    def do(self, jobs: Sequence[Callable[[], None]]) -> None:
        """Replace whatever is pending by these jobs."""
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            for job in jobs:
                job()
            return
        self._pending = loop.call_later(self.delay_s, self._next, loop, list(jobs))

    def _next(self, loop: asyncio.AbstractEventLoop, jobs: list[Callable[[], None]]) -> None:
        jobs.pop(0)()
        self._pending = loop.call_later(self.delay_s, self._next, loop, jobs) if jobs else None
