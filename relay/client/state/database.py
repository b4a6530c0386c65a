"""A thread that owns one SQLite file: what is asked of it is done in batches, each one commit.

Rules of the file: no SQL of a caller runs on the event loop; jobs are done in the order in which
they were given; a future is done only after the commit, which is an fsync of the log. A job that
fails, whatever it raises, fails alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, TypeVar

from relay.client.errors import AgentError, bug_of, closed, typed
from relay.files import set_mode
from relay.protocol.errors import ErrorCode

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

MODE: Final = 0o600
MOST_IN_A_COMMIT: Final = 512
BUSY_S: Final = 5.0
"""Another process of the same agent may be writing: ``relay send`` beside ``relay listen``."""

_HEAD: Final = b"SQLite format 3\0"
_log: Final = logging.getLogger("relay.client")

_Job = tuple[Work[Any], Future[Any]]


class Disk:
    """One SQLite file and the thread that alone touches it; made by :meth:`open`."""

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self.path = path
        self._database = database
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        # a program that forgets to close must be able to end all the same
        self._thread = threading.Thread(target=self._run, name=f"journal {path}", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, path: Path, prepare: Work[None]) -> Disk:
        """Open or make the file, for its owner's eyes only; blocks.

        Args:
            path: the file; two more of its name, ``-wal`` and ``-shm``, lie beside it.
            prepare: makes the tables, in the first commit.

        Raises:
            AgentError: ``corrupt``: it is there, but is no journal; ``internal``: no access to it.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite gives its log the mode of the file
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, MODE)
            with open(descriptor, "rb") as file:  # noqa: PTH123  a Path cannot open a descriptor
                set_mode(descriptor, MODE)
                head = file.read(len(_HEAD))
            # the connection is made here and used in the thread alone from then on
            database = sqlite3.connect(
                path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as exc:
            raise typed(ErrorCode.INTERNAL, f"cannot open {path}: {_reason(exc)}") from exc
        try:
            if head not in {b"", _HEAD}:
                # SQLite itself takes a short file of anything for an empty one, and overwrites it
                raise ValueError("not a journal")
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            _commit(database, [prepare])
        except sqlite3.OperationalError as exc:
            database.close()
            raise typed(ErrorCode.INTERNAL, f"cannot open {path}: {exc}") from exc
        except (sqlite3.Error, ValueError) as exc:
            database.close()
            detail = f"{path} cannot be read ({exc}); move it away to begin anew"
            raise typed(ErrorCode.CORRUPT, detail) from exc
        return cls(path, database)

    def do(self, work: Work[T]) -> Future[T]:
        """Do ``work`` in the next commit; done when that is durable.

        The future fails with an AgentError: ``internal`` where the file cannot be written, a
        :class:`ClosedError` after :meth:`close`. Cancelling it does not undo the work.
        """
        future: Future[T] = Future()
        with self._closing:
            if self._closed:
                future.set_exception(closed(f"{self.path} is closed"))
            else:
                self._jobs.put((work, future))
        return future

    def note(self, work: Work[T]) -> Future[T]:
        """As :meth:`do`, for what nobody need wait for: a failure is logged, too."""
        noting = self.do(work)
        noting.add_done_callback(_log_failure)
        return noting

    def close(self) -> None:
        """Do what was asked for, then close; blocks. Closing again changes nothing."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
        self._thread.join()

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            while (first := self._jobs.get()) is not None:
                batch, goes_on = self._batch(first)
                self._do(batch)
                if not goes_on:
                    return
        finally:
            self._database.close()

    def _batch(self, first: _Job) -> tuple[list[_Job], bool]:
        """All that came while the last commit was under way; False: it is the last batch."""
        batch = [first]
        with contextlib.suppress(queue.Empty):
            while len(batch) < MOST_IN_A_COMMIT:
                job = self._jobs.get_nowait()
                if job is None:
                    return batch, False
                batch.append(job)
        return batch, True

    def _do(self, batch: list[_Job]) -> None:
        try:
            results = _commit(self._database, [work for work, _ in batch])
        except (sqlite3.OperationalError, OSError) as exc:
            # of the file, so of all of them
            self._failed(batch, exc)
            return
        except Exception as exc:  # noqa: BLE001  of one of them: the others are done without it
            if len(batch) == 1:
                self._failed(batch, exc)
                return
            for job in batch:
                self._do([job])
            return
        for (_, future), result in zip(batch, results, strict=True):
            if future.set_running_or_notify_cancel():
                future.set_result(result)

    def _failed(self, batch: list[_Job], exc: Exception) -> None:
        for _, future in batch:
            if future.set_running_or_notify_cancel():
                future.set_exception(self._failure(exc))

    def _failure(self, exc: Exception) -> AgentError:
        if isinstance(exc, (sqlite3.Error, OSError)):
            failure = typed(ErrorCode.INTERNAL, f"cannot write {self.path}: {_reason(exc)}")
        else:
            failure = bug_of(exc, f"what was to be noted in {self.path}")
        failure.__cause__ = exc
        return failure


def _commit(database: sqlite3.Connection, works: list[Work[Any]]) -> list[Any]:
    # at once for writing: to begin by reading could fail in the middle for another process
    database.execute("BEGIN IMMEDIATE")
    try:
        results = [work(database) for work in works]
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
    return results


def _log_failure(noting: Future[Any]) -> None:
    failure = None if noting.cancelled() else noting.exception()
    if failure is not None:
        _log.warning("it could not be noted: %s", failure)


def _reason(exc: Exception) -> str:
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
