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
A copy written *into* the file keeps the file's inode. So a node goes over into a new file at each
start and stop: an older copy names a file that is gone, however it was written back.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from relay.files import sync_directory
from relay.protocol.ids import Partition

_RECORD: Final = 80
"""Bytes of one partition in the file: text, so that a person can read it."""
_FIELDS: Final = 5
_OLD_FIELDS: Final = 4
"""Without the file's name: records of earlier versions."""
_COPIED: Final = b"copied"
"""Stands for the name of a file that a record was copied from: no file has this name."""
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
        self._new = self.path.with_name(f"{self.path.name}.new") if path else self.path
        self._fd: int | None = None
        self._is_dirty = False
        self._name = b""
        self.is_copy = False
        """Whether a record was read that was written into another file."""
        if path is not None:
            old = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            self._name = _name(old)
            self._fd = self._replaced(old)

    def read(self, partition: Partition) -> Generation | None:
        """What was known; None for nothing or a torn record: less known, nothing wrong.

        What a copied file says comes without its token.
        """
        if self._fd is None:
            return None
        found = _parsed(os.pread(self._fd, _RECORD, partition * _RECORD))
        if found is None:
            return None
        known, name = found
        if name in {None, self._name}:
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
        os.pwrite(self._fd, _record(known, self._name), partition * _RECORD)
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
        if self._fd is None:
            return
        # without a generation the second new file often has the inode of the one before the first
        fd = self._fd if self._name.endswith(b".0") else self._replaced(self._fd)
        self._fd = None
        os.fsync(fd)
        os.close(fd)

    def _replaced(self, old: int) -> int:
        """Go over into a new file with the same records; gives what is in use then; blocks.

        A disk that takes no new file leaves the old one in use: a full node has to start, too.
        """
        text = os.pread(old, os.fstat(old).st_size, 0)
        if not text:
            return old
        try:
            self._new.unlink(missing_ok=True)
            new = os.open(self._new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:
            return old
        name = _name(new)
        try:
            os.pwrite(new, b"".join(self._renamed(text, name)), 0)
            os.fsync(new)
            self._new.rename(self.path)
        except OSError:
            os.close(new)
            return old
        self._name = name
        os.close(old)
        with contextlib.suppress(OSError):
            # after a power cut the old file would be there: less known, nothing wrong
            sync_directory(self.path.parent)
        return new

    def _renamed(self, text: bytes, name: bytes) -> Iterator[bytes]:
        """The records of this file, for the file of that name; torn ones as they are."""
        for start in range(0, len(text), _RECORD):
            record = text[start : start + _RECORD]
            found = _parsed(record)
            if found is not None:
                known, written_into = found
                is_own = written_into in {None, self._name}
                record = _record(known, name if is_own else _COPIED)
            yield record


def _parsed(record: bytes) -> tuple[Generation, bytes | None] | None:
    """What a record says, and the name of its file, None in an old one; None if it is torn."""
    *fields, checksum = record.split() or [b""]
    if len(fields) + 1 not in {_FIELDS, _OLD_FIELDS} or checksum != _checksum(b" ".join(fields)):
        return None
    known = Generation(int(fields[0]), fields[1].decode(), int(fields[2]))
    return known, fields[3] if len(fields) + 1 == _FIELDS else None


def _record(known: Generation, name: bytes) -> bytes:
    """One record as it is in the file."""
    text = b"%d %b %d %b" % (known.number, known.token.encode(), known.commits, name)
    return (b"%b %b" % (text, _checksum(text))).ljust(_RECORD - 1) + b"\n"


def _name(fd: int) -> bytes:
    """What tells a file from every copy of it, and from what had its inode before."""
    try:
        found = fcntl.ioctl(fd, _GET_GENERATION, bytes(8))
    except OSError:
        found = b""  # a file system, or a kernel, that has none
    return b"%x.%x" % (os.fstat(fd).st_ino, int.from_bytes(found[:4], "little"))


def _checksum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)
