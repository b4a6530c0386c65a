"""How a node notices that the store went back in time (GUARANTEES.md §2, rollback).

Each partition has a generation (number and token) and counts its commits. A node remembers the
highest count it was told, in a small file too, and names both in every script call. A store that
knows less was rolled back or emptied: the partition gets a new generation, hence every inbox in it
a new epoch when it is next touched.

::

    store says        same token, commits >= known   ▶ as it should be
                      higher number                  ▶ another node renewed it: believe that one
                      anything else                  ▶ rolled back or emptied: renew
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from relay.core.ids import Partition

_RECORD: Final = 80
"""Bytes of one partition in the file: text, so that a person can read it."""
_FIELDS: Final = 4


@dataclass(frozen=True, slots=True)
class Generation:
    """What is known of one partition's lineage."""

    number: int
    token: str
    commits: int

    def is_continued_by(self, found: Generation) -> bool:
        """Whether ``found`` may be believed by someone who knows this."""
        if found.number > self.number:
            return True
        return found.token == self.token and found.commits >= self.commits


class RollbackFile:
    """The generations a node knows, kept over its restarts.

    A record is written before the answer to its commit leaves (a kill -9 loses nothing), and synced
    once a second (a power cut loses a second; the store itself lost nothing then).

    Args:
        path: the file, made with mode 0600 if it is not there; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path or Path()
        self._fd: int | None = None
        self._is_dirty = False
        if path is not None:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def read(self, partition: Partition) -> Generation | None:
        """What was known; None for nothing or a torn record: less known, nothing wrong."""
        if self._fd is None:
            return None
        fields = os.pread(self._fd, _RECORD, partition * _RECORD).split()
        if len(fields) != _FIELDS or fields[3] != _checksum(b" ".join(fields[:3])):
            return None
        return Generation(int(fields[0]), fields[1].decode(), int(fields[2]))

    def write(self, partition: Partition, known: Generation) -> None:
        """Write down what is known now.

        Raises:
            OSError: the disk refuses it.
        """
        if self._fd is None:
            return
        text = f"{known.number} {known.token} {known.commits}".encode()
        record = b"%b %b" % (text, _checksum(text))
        os.pwrite(self._fd, record.ljust(_RECORD - 1) + b"\n", partition * _RECORD)
        self._is_dirty = True

    def sync(self) -> None:
        """Force it to disk, if anything was written; blocks.

        Raises:
            OSError: the disk refuses it.
        """
        if self._fd is not None and self._is_dirty:
            self._is_dirty = False
            os.fsync(self._fd)

    def close(self) -> None:
        """Sync and close; may be repeated."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.fsync(fd)
            os.close(fd)


def _checksum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)
