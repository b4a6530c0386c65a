"""Write from a thread: a slow reader must not cost the session.

One thread runs all writes in order, so lines stay whole. It is a daemon: a full pipe cannot keep
an interrupted command from ending.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue


class Writer:
    """Run functions that write, in order."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], None], Future[None]]] = SimpleQueue()
        threading.Thread(target=self._run, name="writer", daemon=True).start()

    async def run(self, write: Callable[[], None]) -> None:
        """Run ``write`` after all earlier ones; raise what it raises.

        A cancelled call that has not begun is not run. One that has begun goes on.
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
            except Exception as exc:  # noqa: BLE001  the caller of run gets it
                done.set_exception(exc)
            else:
                done.set_result(None)
