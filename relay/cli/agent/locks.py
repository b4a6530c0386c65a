"""Which command on this machine does what with one agent's state: locks that die with their holder.

Rules of the file: a definite "no" may be told only where nobody else submits the same bytes. So who
takes up the outbox waits until no ``relay send`` has an envelope under way; where one has for too
long, that one can see it, and tells no "no".

::

    SENDING     shared: my envelope is under way            alone: I read what lies in the outbox
    RESENDING   shared: I submit what may be somebody's     alone: nobody does
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
"""A command that is just ending is no agent."""


class Place(IntEnum):
    """A byte of the lock file."""

    SENDING = 0
    RESENDING = 1
    LISTENING = 2


@dataclass(frozen=True, slots=True)
class Claims:
    """Locks of this process on one agent; made by :func:`opened`.

    Args:
        descriptor: of the lock file.
        has_agent: another program had the state open before, as far as that was asked.
    """

    descriptor: int
    has_agent: bool = False

    def share(self, place: Place) -> bool:
        """Hold it together with others; False: somebody has it alone."""
        return self._lock(fcntl.LOCK_SH, place)

    def alone(self, place: Place) -> bool:
        """Hold it alone; False: somebody has it."""
        return self._lock(fcntl.LOCK_EX, place)

    def let_go(self, place: Place) -> None:
        """Hold it no more."""
        fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, place)

    def _lock(self, kind: int, place: Place) -> bool:
        try:
            # byte ranges, not flock: from alone to shared in one step
            fcntl.lockf(self.descriptor, kind | fcntl.LOCK_NB, 1, place)
        except BlockingIOError:
            return False
        except PermissionError:
            # what some systems say instead
            return False
        return True


@contextmanager
def opened(state: Path, *, look: bool = False) -> Iterator[Claims]:
    """The locks beside a state file; all are let go at the end of the block.

    Args:
        state: the file; not yet open in this process.
        look: see whether another program has it open.
    """
    has_agent = look and _is_open(state)
    state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(state.with_name(f"{state.name}.lock"), os.O_RDWR | os.O_CREAT, MODE)
    try:
        yield Claims(descriptor, has_agent)
    finally:
        os.close(descriptor)


def _is_open(state: Path) -> bool:
    """Whether any program has this state open: SQLite's own locks know, and die with their holder.

    Whoever has a database in WAL mode open shares a lock on it, busy or not.
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
        # no state at all: who opens it says so
        return False
    return False


async def wait_for(attempt: Callable[[], bool], seconds: float) -> bool:
    """Attempt it until it holds, or for so long."""
    until = clock.monotonic() + seconds
    while not attempt():
        if clock.monotonic() >= until:
            return False
        await asyncio.sleep(LOOK_S)
    return True
