"""Refuse submits before the disk is full: with ``appendfsync always`` a full disk ends the server.

::

                 free < floor                    free < floor / 2
      OK ─────────────────▶ REFUSE_SUBMITS ─────────────────────────▶ BALLAST_RELEASED
      ▲                         │                                          │
      └── free ≥ 1¼ floor ──────┘                                          │
      └── free ≥ 1¼ floor + ballast, which is allocated again ─────────────┘

Rules: :func:`decide` decides and touches nothing; :class:`DiskGuard` looks and carries out. Only
submits are refused: acks, expiry and handoffs write little, and what is below the floor is theirs.
The ballast is real disk that nobody but the relay can have taken: when other programs eat the rest,
deleting it is what lets agents still ack. The gap between refusing and accepting keeps a disk that
hovers at the floor from flapping, and an ack that frees a page from reopening the door.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from relay.clock import monotonic
from relay.protocol.errors import (
    ErrorCode,
    Refusal,
)
from relay.store.faults import NO_ROOM, storage_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_BALLAST_BYTES: Final = 64 << 20
MAX_BALLAST_SHARE: Final = 100
"""At most one part in so many of the whole disk."""
BALLAST: Final = "ballast"
_PAGE: Final = 4096
_RETRY_S: Final = 5.0
"""Where a quota, not the disk, has no room for the ballast: how often that is tried."""


class DiskState(StrEnum):
    """What the disk allows."""

    OK = "ok"
    REFUSE_SUBMITS = "refuse_submits"
    BALLAST_RELEASED = "ballast_released"


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """Bytes that this process may still write, and bytes of the whole disk."""

    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class DiskRules:
    """Where the lines are drawn, in bytes."""

    floor_bytes: int
    ballast_bytes: int

    @property
    def reserve_bytes(self) -> int:
        """Below this the ballast goes."""
        return self.floor_bytes // 2

    @property
    def reopen_bytes(self) -> int:
        """From here on submits are taken again."""
        return self.floor_bytes + self.floor_bytes // 4


def decide(state: DiskState, free_bytes: int, rules: DiskRules) -> DiskState:
    """The next state, from the present one and the free bytes (the ballast does not count)."""
    if state is DiskState.BALLAST_RELEASED:
        enough = free_bytes >= rules.reopen_bytes + rules.ballast_bytes
        return DiskState.OK if enough else state
    if free_bytes < rules.reserve_bytes:
        return DiskState.BALLAST_RELEASED
    line = rules.floor_bytes if state is DiskState.OK else rules.reopen_bytes
    return DiskState.OK if free_bytes >= line else DiskState.REFUSE_SUBMITS


def ballast_size(wanted_bytes: int, total_bytes: int) -> int:
    """``wanted_bytes``, but at most 64 MiB and 1 % of the disk, in whole pages."""
    size = min(wanted_bytes, MAX_BALLAST_BYTES, total_bytes // MAX_BALLAST_SHARE)
    return size // _PAGE * _PAGE


def disk_space(directory: Path) -> DiskSpace:
    """Ask the file system (a few µs).

    Raises:
        OSError: it does not say.
    """
    found = os.statvfs(directory)
    return DiskSpace(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)


class DiskGuard:
    """Watches the disk of a data directory; cheap enough to be asked before every commit.

    Call :meth:`check` once before the store starts, too: on a full disk it makes the room that the
    server needs to come up.

    Args:
        directory: the store's data directory; it exists.
        floor_bytes: free bytes below which submits are refused. It must exceed what can be written
            between two checks, and should hold one rewrite of all live data.
        ballast_bytes: wanted size of the ballast (:func:`ballast_size` limits it).
        probe: how free space is found out.
    """

    def __init__(
        self,
        directory: Path,
        *,
        floor_bytes: int,
        ballast_bytes: int,
        probe: Callable[[Path], DiskSpace] = disk_space,
    ) -> None:
        self._directory = directory
        self._ballast = directory / BALLAST
        self._floor_bytes = floor_bytes
        self._wanted_bytes = ballast_bytes
        self._probe = probe
        self._rules: DiskRules | None = None
        self._free_bytes = 0
        self._retry_at = 0.0
        self._state = DiskState.OK

    @property
    def state(self) -> DiskState:
        """What the last :meth:`check` found."""
        return self._state

    @property
    def free_bytes(self) -> int:
        """Free bytes at the last :meth:`check`."""
        return self._free_bytes

    @property
    def spare_bytes(self) -> int:
        """What a rewrite may take (``EmbeddedStore.compact``) with the reserve left untouched."""
        reserve = self._rules.reserve_bytes if self._rules else self._floor_bytes
        return max(0, self._free_bytes - reserve)

    @property
    def summary(self) -> str:
        """How full it is, for the operator."""
        floor = self._floor_bytes >> 20
        return (
            f"{self._free_bytes >> 20} MiB are free on the disk of {self._directory}, the floor is "
            f"{floor} MiB: new envelopes are refused until {floor + floor // 4} MiB are free"
        )

    @property
    def refusal(self) -> Refusal | None:
        """The answer to a submit now; None = the disk has nothing against it."""
        if self._state is DiskState.OK:
            return None
        return Refusal(ErrorCode.STORAGE_FULL, "the disk of this relay is nearly full", 30)

    def check(self) -> DiskState:
        """Look at the disk, release or allocate the ballast, and say what is allowed.

        Raises:
            UnavailableError: the directory cannot be looked at, or the ballast not be deleted.
        """
        try:
            space = self._probe(self._directory)
            rules = self._rules or self._first_look(space)
            self._free_bytes = space.free_bytes
            self._state = self._carry_out(decide(self._state, space.free_bytes, rules), rules)
        except OSError as exc:
            raise storage_error(exc, self._directory) from exc
        return self._state

    def _first_look(self, space: DiskSpace) -> DiskRules:
        rules = DiskRules(self._floor_bytes, ballast_size(self._wanted_bytes, space.total_bytes))
        if not self._is_whole(rules.ballast_bytes):
            self._ballast.unlink(missing_ok=True)
            self._state = DiskState.BALLAST_RELEASED
        self._rules = rules
        return rules

    def _is_whole(self, size: int) -> bool:
        try:
            found = self._ballast.stat()
        except FileNotFoundError:
            return size == 0
        # A backup or a copy makes it sparse: the right length, and no room behind it.
        return found.st_size == size and found.st_blocks * 512 >= size

    def _carry_out(self, wanted: DiskState, rules: DiskRules) -> DiskState:
        if wanted is self._state:
            return wanted
        if wanted is DiskState.BALLAST_RELEASED:
            self._ballast.unlink(missing_ok=True)
        elif self._state is DiskState.BALLAST_RELEASED and not self._allocate(rules.ballast_bytes):
            return self._state
        return wanted

    def _allocate(self, size: int) -> bool:
        if size == 0:
            return True
        if monotonic() < self._retry_at:
            return False
        # Not truncate: only allocated blocks are room that nobody else can take.
        fd = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as exc:
            with contextlib.suppress(OSError):
                self._ballast.unlink()
            if exc.errno not in NO_ROOM:
                raise
            self._retry_at = monotonic() + _RETRY_S
            return False
        else:
            return True
        finally:
            os.close(fd)
