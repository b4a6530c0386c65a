"""Locks on one agent's state between commands on this machine; they die with their holder.

A command may report a definite refusal only if no other command submits the same bytes. So a
command that resumes the outbox waits until no ``relay send`` is submitting. If that takes too
long, the other command sees it and reports an unknown outcome.

::

    SENDING     shared: I submit my envelope                exclusive: I read the outbox
    RESENDING   shared: I submit others' envelopes          exclusive: nobody does
    LISTENING   shared: this agent's inbox is mine
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from relay import clock

MODE: Final = 0o600
LOOK_S: Final = 0.05
BRIEFLY_S: Final = 0.3
"""A command that is just ending is not a running agent."""


class Lock(IntEnum):
    """One lock: a byte of the lock file."""

    SENDING = 0
    RESENDING = 1
    LISTENING = 2


@dataclass(frozen=True, slots=True)
class AgentLocks:
    """The locks of this process on one agent; made by :func:`opened`.

    Args:
        descriptor: of the lock file.
        has_agent: another program had the state open before, if :func:`opened` looked.
    """

    descriptor: int
    has_agent: bool = False

    def shared(self, lock: Lock) -> bool:
        """Acquire it together with others; False: another process holds it exclusively."""
        return self._lock(fcntl.LOCK_SH, lock)

    def exclusive(self, lock: Lock) -> bool:
        """Acquire it exclusively; False: another process holds it."""
        return self._lock(fcntl.LOCK_EX, lock)

    def release(self, lock: Lock) -> None:
        """Release it."""
        fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, lock)

    def is_listening(self) -> bool:
        """Return True if an agent has the inbox: ``relay listen`` or a program with the SDK."""
        if self.has_agent or not self.exclusive(Lock.LISTENING):
            return True
        self.release(Lock.LISTENING)
        return False

    def _lock(self, kind: int, lock: Lock) -> bool:
        try:
            # byte ranges, not flock: they change from exclusive to shared in one step
            fcntl.lockf(self.descriptor, kind | fcntl.LOCK_NB, 1, lock)
        except (BlockingIOError, PermissionError):
            # which of them depends on the system
            return False
        return True


@contextmanager
def opened(state: Path, *, look: bool = False) -> Iterator[AgentLocks]:
    """Open the locks beside a state file; release all at the end of the block.

    With ``look`` check whether another program has the state open; this process must not yet.
    """
    has_agent = look and _is_open(state)
    state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(state.with_name(f"{state.name}.lock"), os.O_RDWR | os.O_CREAT, MODE)
    try:
        yield AgentLocks(descriptor, has_agent)
    finally:
        os.close(descriptor)


def _is_open(state: Path) -> bool:
    """Return True if any program has this state open, by SQLite's own locks.

    A program with a database in WAL mode open shares a lock on it, busy or idle.
    """
    try:
        uri = f"{state.absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(uri, timeout=BRIEFLY_S, uri=True)) as database:
            database.isolation_level = None
            database.execute("PRAGMA locking_mode=EXCLUSIVE")
            database.execute("BEGIN EXCLUSIVE")
            database.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return state.exists()
    except sqlite3.DatabaseError:
        # not a state file: opening it raises the error
        return False
    return False


async def wait_for(attempt: Callable[[], bool], seconds: float) -> bool:
    """Retry until ``attempt`` succeeds, or for ``seconds``."""
    until = clock.monotonic() + seconds
    while not attempt():
        if clock.monotonic() >= until:
            return False
        await asyncio.sleep(LOOK_S)
    return True
