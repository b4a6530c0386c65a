"""Fault isolation: an error of one item, peer, listener or turn is logged; the rest goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from types import TracebackType

from relay import log, metrics
from relay.protocol.errors import RelayError


class isolated:  # noqa: N801  a context manager, written like those of contextlib
    """Log and count what the block raises, and go on after it.

    A named error counts as a failed turn of the loop ``where``, anything else as a bug. So does a
    cancellation that nobody asked for: some task or future that the block awaited was cancelled.
    A cancellation of the task that runs the block goes through.

    Args:
        where: the loop or the callers that go on; a short fixed word, for a metric's label.
        but: named errors that go through, since they concern all that the loop serves.
    """

    def __init__(self, where: str, *, but: tuple[type[RelayError], ...] = ()) -> None:
        self._where = where
        self._but = but

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None
    ) -> bool:
        """End it; True: the error stays here."""
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
    """Await one part of a turn, about one peer or inbox; arguments as for :class:`isolated`."""
    with isolated(where, but=but):
        await part


def _is_cancelled() -> bool:
    """Whether somebody has asked for the end of the task that runs now."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return False
    return task is not None and task.cancelling() > 0
