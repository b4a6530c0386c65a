"""Task groups that leave their task, and what their block raises, as they found it; threads."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")


def in_thread(work: Callable[[], T], *, must_end: bool = False) -> Future[T]:
    """Do what blocks in a thread of its own: asyncio's default executor is the program's, and busy.

    Args:
        work: what blocks.
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
    """``asyncio.TaskGroup``, but the failure of a child leaves no request to cancel behind.

    Until Python 3.13 a group whose child fails while the block is being left cancels its own task
    and never takes that back. In Python 3.11.2, which is Debian 12's, the next ``asyncio.timeout``
    that expires in that task then ends it: cancelled, without a word to anybody.

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
    """Do ``work`` as long as the block lasts; what the block raises comes out as it is."""
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
