"""Helpers that every part of the SDK shares: back-off, signals, bounded maps, tasks and threads."""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from relay import clock
from relay.protocol.backoff import doubling_pause_s

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")

_log = logging.getLogger("relay.client")


@dataclass(slots=True)
class Backoff:
    """The pauses between tries: exponential, with full jitter.

    Args:
        first_s: the longest first pause.
        max_s: the longest pause of all.
        failures: tries that failed in a row.
    """

    first_s: float
    max_s: float
    failures: int = 0

    def next_s(self) -> float:
        """Count a failure, and return the seconds to wait after it."""
        longest = doubling_pause_s(self.failures, self.first_s, self.max_s)
        self.failures += 1
        return longest * clock.random_fraction()

    def reset(self) -> None:
        """Begin again with the first pause: a try has succeeded."""
        self.failures = 0


class Signal:
    """Wakes all tasks that wait at the time; unlike an event that is cleared, no task misses it.

    A task that first looks takes :meth:`upcoming` before it looks, and waits for that afterwards.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Wake everyone who waits."""
        event, self._event = self._event, asyncio.Event()
        event.set()

    def upcoming(self) -> asyncio.Event:
        """Return the event that the next :meth:`notify` sets."""
        return self._event

    async def wait(self) -> None:
        """Wait for the next :meth:`notify`."""
        await self._event.wait()


class BoundedDict(OrderedDict[K, V]):
    """A dict that forgets the entry that was written longest ago once it has too many.

    Args:
        max_size: how many entries it holds.
        on_evict: called with an entry that was forgotten.
    """

    def __init__(self, max_size: int, on_evict: Callable[[K, V], object] | None = None) -> None:
        super().__init__()
        self._max_size = max_size
        self._on_evict = on_evict

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        while len(self) > self._max_size:
            oldest = self.popitem(last=False)
            if self._on_evict is not None:
                self._on_evict(*oldest)


async def wait_for_event(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait for ``event``, at most so long (None: for ever); return whether it was set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


def failure_of(future: asyncio.Future[Any] | Future[Any]) -> BaseException | None:
    """Return the exception of a future that is done; None: a result, or it was cancelled."""
    return None if future.cancelled() else future.exception()


def log_failure(what: str) -> Callable[[asyncio.Future[Any] | Future[Any]], None]:
    """Return a callback for a future that nobody awaits: it logs the failure, after ``what``."""

    def log(future: asyncio.Future[Any] | Future[Any]) -> None:
        failure = failure_of(future)
        if failure is not None:
            _log.warning("%s: %s", what, failure)

    return log


def in_thread(work: Callable[[], T], *, must_end: bool = False) -> Future[T]:
    """Run blocking ``work`` in a thread of its own.

    asyncio's default executor belongs to the program, which may keep it busy.

    Args:
        work: blocks.
        must_end: the end of the program waits for it.

    Raises:
        OSError: there can be no more threads.
    """
    future: Future[T] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except Exception as exc:  # noqa: BLE001
            # raised where it is waited for
            future.set_exception(exc)

    thread = threading.Thread(target=run, name="relay", daemon=not must_end)
    try:
        thread.start()
    except RuntimeError as exc:
        raise OSError(errno.EAGAIN, "no more threads") from exc
    return future


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """Open an ``asyncio.TaskGroup`` that leaves no request to cancel behind when a child fails.

    Until Python 3.13, a group whose child fails while the block is left cancels its own task, and
    never takes that back. In Python 3.11.2, which is Debian 12's, the next
    ``asyncio.timeout`` that expires in that task then cancels the task, without any error.

    Raises:
        BaseExceptionGroup: as the group of asyncio does.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except BaseExceptionGroup:
        if task is not None and task.cancelling() > before:
            task.uncancel()
        raise


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run ``work`` as long as the block lasts; an exception of the block comes out as it is."""
    failure: BaseException | None = None
    async with task_group() as tasks:
        working = tasks.create_task(work)
        try:
            yield
        except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001
            # raised again below: from here it would come out wrapped in an exception group
            failure = exc
        finally:
            working.cancel()
    if failure is not None:
        raise failure
