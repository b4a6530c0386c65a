"""A SQLite file and the one thread that uses it; transactions run in batches, one commit each.

Entry point: :meth:`Database.open`. Invariants: no SQL runs on the event loop. Transactions run in
the order of the calls. A future is done after the commit, which is an fsync of SQLite's log. A
transaction that raises fails alone: the others of its batch are committed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, TypeVar

from relay.client._util import log_failure
from relay.client.errors import AgentError, bug_of, closed, make_error
from relay.files import set_mode
from relay.protocol.errors import ErrorCode

T = TypeVar("T")
Transaction = Callable[[sqlite3.Connection], T]

MODE: Final = 0o600
MAX_BATCH: Final = 512
BUSY_TIMEOUT_S: Final = 5.0
"""Another process of the same agent may write: ``relay send`` beside ``relay listen``."""

_HEADER: Final = b"SQLite format 3\0"
_Job = tuple[Transaction[Any], Future[Any]]


class Database:
    """One SQLite file and its thread; made by :meth:`open`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        # a daemon: a program that forgets to close can end all the same
        self._thread = threading.Thread(target=self._serve, name=f"journal {path}", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, path: Path, prepare: Transaction[None]) -> Database:
        """Open or create the file, readable by its owner only; blocks.

        Args:
            path: the file; SQLite creates ``-wal`` and ``-shm`` files beside it.
            prepare: creates the tables, in the first commit.

        Raises:
            AgentError: ``corrupt``: the file is no journal; ``internal``: no access to it.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite creates its log with the mode of the file
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, MODE)
            with open(descriptor, "rb") as file:  # noqa: PTH123  a Path cannot open a descriptor
                set_mode(descriptor, MODE)
                header = file.read(len(_HEADER))
            # only the thread uses the connection that is made here
            connection = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as exc:
            raise make_error(ErrorCode.INTERNAL, f"cannot open {path}: {_reason(exc)}") from exc
        try:
            if header not in {b"", _HEADER}:
                # SQLite itself takes any short file for an empty one, and overwrites it
                raise ValueError("not a journal")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            _commit(connection, [prepare])
        except sqlite3.OperationalError as exc:
            connection.close()
            raise make_error(ErrorCode.INTERNAL, f"cannot open {path}: {exc}") from exc
        except (sqlite3.Error, ValueError) as exc:
            connection.close()
            detail = f"{path} cannot be read ({exc}); move it away to begin anew"
            raise make_error(ErrorCode.CORRUPT, detail) from exc
        return cls(path, connection)

    def run(self, transaction: Transaction[T]) -> Future[T]:
        """Run a transaction in the next commit; the future is done when that is durable.

        The future fails with an AgentError: ``internal`` if the file cannot be written, or a
        :class:`ClosedError` after :meth:`close`. Cancelling it does not undo the transaction.
        """
        future: Future[T] = Future()
        with self._closing:
            if self._closed:
                future.set_exception(closed(f"{self.path} is closed"))
            else:
                self._jobs.put((transaction, future))
        return future

    def call(self, transaction: Transaction[T]) -> asyncio.Future[T]:
        """Run a transaction, as :meth:`run`, for a caller on the event loop."""
        return asyncio.wrap_future(self.run(transaction))

    def run_logged(self, transaction: Transaction[T]) -> Future[T]:
        """Run a transaction that no caller needs to wait for; log its failure."""
        future = self.run(transaction)
        future.add_done_callback(log_failure("the state file was not written"))
        return future

    def close(self) -> None:
        """Run what was asked for, then close; blocks. A second call changes nothing."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
        self._thread.join()

    # ------------------------------------------------------------ in the thread

    def _serve(self) -> None:
        try:
            while (first := self._jobs.get()) is not None:
                batch, is_last = self._next_batch(first)
                self._run_batch(batch)
                if is_last:
                    return
        finally:
            self._connection.close()

    def _next_batch(self, first: _Job) -> tuple[list[_Job], bool]:
        """Collect what arrived during the last commit; True: the database is to be closed."""
        batch = [first]
        with contextlib.suppress(queue.Empty):
            while len(batch) < MAX_BATCH:
                job = self._jobs.get_nowait()
                if job is None:
                    return batch, True
                batch.append(job)
        return batch, False

    def _run_batch(self, batch: list[_Job]) -> None:
        try:
            results = _commit(self._connection, [transaction for transaction, _ in batch])
        except (sqlite3.OperationalError, OSError) as exc:
            # the file failed, so every transaction fails
            self._fail(batch, exc)
            return
        except Exception as exc:  # noqa: BLE001  one transaction failed: the others run without it
            if len(batch) == 1:
                self._fail(batch, exc)
                return
            for job in batch:
                self._run_batch([job])
            return
        for (_, future), result in zip(batch, results, strict=True):
            if future.set_running_or_notify_cancel():
                future.set_result(result)

    def _fail(self, batch: list[_Job], exc: Exception) -> None:
        for _, future in batch:
            if future.set_running_or_notify_cancel():
                future.set_exception(self._failure(exc))

    def _failure(self, exc: Exception) -> AgentError:
        if isinstance(exc, (sqlite3.Error, OSError)):
            failure = make_error(ErrorCode.INTERNAL, f"cannot write {self.path}: {_reason(exc)}")
        else:
            failure = bug_of(exc, f"a transaction in {self.path}")
        failure.__cause__ = exc
        return failure


def statement(sql: str, *values: object) -> Transaction[None]:
    """Return a transaction that executes one statement."""

    def execute(connection: sqlite3.Connection) -> None:
        connection.execute(sql, values)

    return execute


def _commit(connection: sqlite3.Connection, transactions: list[Transaction[Any]]) -> list[Any]:
    # IMMEDIATE: a transaction that begins by reading could fail halfway for another process
    connection.execute("BEGIN IMMEDIATE")
    try:
        results = [transaction(connection) for transaction in transactions]
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return results


def _reason(exc: Exception) -> str:
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
