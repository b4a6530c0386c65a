"""Writing while the event loop goes on: a reader that is slow must not cost a session.

Rules of the file: one thread writes, one thing after the other, so lines stay whole. The thread is
a daemon: a pipe that nobody reads keeps no interrupted command from ending.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue


class Writer:
    """Runs functions that write, in order."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], None], Future[None]]] = SimpleQueue()
        threading.Thread(target=self._run, name="writer", daemon=True).start()

    async def run(self, write: Callable[[], None]) -> None:
        """Run ``write`` after all that were given before; raises what it raises.

        Cancelled before its turn it is not run. Cancelled later it goes on, unobserved.
        """
        done: Future[None] = Future()
        self._jobs.put((write, done))
        await asyncio.wrap_future(done)

    def _run(self) -> None:
        while True:
            write, done = self._jobs.get()
            if not done.set_running_or_notify_cancel():
                continue
            try:
                write()
            except Exception as exc:  # noqa: BLE001  whoever waits for it gets it
                done.set_exception(exc)
            else:
                done.set_result(None)
