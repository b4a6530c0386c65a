"""Run work so that one failure does not harm the rest.

:class:`isolated` keeps an error of one item, peer, listener or step inside a block: it logs and
counts the error, and the loop goes on. :func:`side_by_side` runs several coroutines and leaves none
of them running.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Protocol, TypeVar

from relay import log, metrics
from relay.protocol.errors import RelayError

T = TypeVar("T")


class Spawn(Protocol):
    """Starts work in the background; it ends with the node."""

    def __call__(self, work: Coroutine[Any, Any, None]) -> object:
        """Start it."""
        ...


class isolated:  # noqa: N801  a context manager, written like those of contextlib
    """Log and count what the block raises, and go on after it.

    A :class:`RelayError` counts as a failure of the loop ``where``, any other exception as a
    defect. A cancellation that nobody requested counts as a defect, too: a task or future that the
    block awaited was cancelled. A cancellation of the task that runs the block passes.

    Args:
        where: the loop or the callers that go on; a short fixed word, for a metric's label.
        but: errors that pass, since they concern everything that the loop serves.
    """

    def __init__(self, where: str, *, but: tuple[type[RelayError], ...] = ()) -> None:
        self._where = where
        self._but = but

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None
    ) -> bool:
        """End the block; return True if the error stays here."""
        if isinstance(exc, self._but):
            return False
        if isinstance(exc, RelayError):
            metrics.LOOP_FAILURES.labels(self._where).inc()
            log.loop_failed(self._where, exc.code)
            return True
        if isinstance(exc, Exception) or (
            isinstance(exc, asyncio.CancelledError) and not _is_cancelled()
        ):
            metrics.INTERNAL.inc()
            log.internal_error(self._where)
            return True
        return False


async def guarded(
    where: str, part: Awaitable[object], *, but: tuple[type[RelayError], ...] = ()
) -> None:
    """Await work about one peer or inbox; arguments as for :class:`isolated`."""
    with isolated(where, but=but):
        await part


def _is_cancelled() -> bool:
    """Return True if somebody has requested the end of the current task."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return False
    return task is not None and task.cancelling() > 0


async def side_by_side(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all of them, whatever becomes of one; return the results in the order of the works.

    It returns or raises when all have ended. A cancellation ends them all.

    Raises:
        Exception: the exception of the first work in order that failed, unchanged.
    """
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(_outcome(work)) for work in works]
    outcomes = [task.result() for task in running]
    for _, failure in outcomes:
        if failure is not None:
            raise failure
    return [result for results, _ in outcomes for result in results]


async def _outcome(work: Coroutine[Any, Any, T]) -> tuple[list[T], Exception | None]:
    """Return the result or the failure: a raised failure would end the others of a group."""
    try:
        return [await work], None
    except Exception as exc:  # noqa: BLE001  raised when all have ended
        return [], exc
