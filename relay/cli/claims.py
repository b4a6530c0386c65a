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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from relay import clock

MODE: Final = 0o600
LOOK_S: Final = 0.05


class Place(IntEnum):
    """A byte of the lock file."""

    SENDING = 0
    RESENDING = 1
    LISTENING = 2


@dataclass(frozen=True, slots=True)
class Claims:
    """Locks of this process on one agent; made by :func:`opened`."""

    descriptor: int

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
def opened(state: Path) -> Iterator[Claims]:
    """The locks beside a state file; all are let go at the end of the block."""
    state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(state.with_name(f"{state.name}.lock"), os.O_RDWR | os.O_CREAT, MODE)
    try:
        yield Claims(descriptor)
    finally:
        os.close(descriptor)


async def wait_for(attempt: Callable[[], bool], seconds: float) -> bool:
    """Attempt it until it holds, or for so long."""
    until = clock.monotonic() + seconds
    while not attempt():
        if clock.monotonic() >= until:
            return False
        await asyncio.sleep(LOOK_S)
    return True
