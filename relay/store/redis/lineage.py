"""How a node notices that the store went back in time (GUARANTEES.md §2, rollback).

Each partition has a generation (number and token) and counts its commits. A node remembers the
highest count it was told, in a small file too, and names both in every script call. A store that
knows less was rolled back or emptied: the partition gets a new generation, hence every inbox in it
a new epoch when it is next touched.

::

    store says        same token, commits >= known   ▶ as it should be
                      higher number                  ▶ another node renewed it: believe that one
                      anything else                  ▶ rolled back or emptied: renew

A whole data directory that is put back has both, an old store and an old file that agree. So each
record names the file that it was written into, by its inode: a file that was copied says what
another one knew, and is no witness. Its partitions are renewed, whether or not something was lost.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from relay.core.ids import Partition

_RECORD: Final = 80
"""Bytes of one partition in the file: text, so that a person can read it."""
_FIELDS: Final = 5
_OLD_FIELDS: Final = 4
"""Without the file's name: records of earlier versions."""
_GET_GENERATION: Final = 0x80087601
"""FS_IOC_GETVERSION of Linux: which use of an inode's number this is."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What is known of one partition's lineage."""

    number: int
    token: str
    commits: int

    def without_token(self) -> Generation:
        """The same, from a witness that cannot be believed: no store continues it."""
        return Generation(self.number, "", 0)

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
        self._name = b""
        self.is_copy = False
        """Whether a record was read that was written into another file."""
        if path is not None:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            self._name = _name(self._fd)

    def read(self, partition: Partition) -> Generation | None:
        """What was known; None for nothing or a torn record: less known, nothing wrong.

        What a copied file says comes without its token.
        """
        if self._fd is None:
            return None
        fields = os.pread(self._fd, _RECORD, partition * _RECORD).split()
        if len(fields) not in {_FIELDS, _OLD_FIELDS}:
            return None
        if fields[-1] != _checksum(b" ".join(fields[:-1])):
            return None
        known = Generation(int(fields[0]), fields[1].decode(), int(fields[2]))
        if len(fields) == _OLD_FIELDS or fields[3] == self._name:
            return known
        self.is_copy = True
        return known.without_token()

    def write(self, partition: Partition, known: Generation) -> None:
        """Write down what is known now.

        Raises:
            OSError: the disk refuses it.
        """
        if self._fd is None:
            return
        text = b"%d %b %d %b" % (known.number, known.token.encode(), known.commits, self._name)
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


def _name(fd: int) -> bytes:
    """What tells a file from every copy of it, and from what had its inode before."""
    try:
        found = fcntl.ioctl(fd, _GET_GENERATION, bytes(8))
    except OSError:
        found = b""  # a file system, or a kernel, that has none
    return b"%x.%x" % (os.fstat(fd).st_ino, int.from_bytes(found[:4], "little"))


def _checksum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)
