"""What the disk or the server process said, turned into a named error with what to do about it.

Rules: every sentence says what is wrong, then what an operator does; nothing here does I/O.
A full disk is ``storage_full``, everything else that keeps the store away ``storage_unavailable``.
"""

from __future__ import annotations

import errno
import re
import shlex
import signal
from typing import TYPE_CHECKING, Final

from relay.protocol.errors import (
    ErrorCode,
    UnavailableError,
)

if TYPE_CHECKING:
    from pathlib import Path

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The errnos of a disk, or of our share of it, that is full."""

_FULL: Final = "the disk is full; free some space: the relay keeps trying and comes back by itself"
_DAMAGED: Final = (
    "its append-only file is damaged and was left untouched; copy {directory} away first, then "
    "restore a backup, or cut off everything from the damage on with: {repair}"
)
_DAMAGED_FILE: Final = re.compile(r"reading the append only file ([\w.-]+\.aof)")
_ADVICE: Final = {
    errno.EACCES: "give the relay's user access to it, or name another directory",
    errno.EPERM: "give the relay's user access to it, or name another directory",
    errno.EROFS: "it is on a read-only file system; name a directory on a writable one",
    errno.ENOLCK: "its file system cannot lock files; use a local disk",
    errno.EOPNOTSUPP: "its file system cannot lock files; use a local disk",
    errno.ENOTDIR: "a part of this path is a file; name a directory",
}

# The first needle found in the server's last words wins; both Redis and Valkey say these.
_LAST_WORDS: Final = (
    ("No space left on device", ErrorCode.STORAGE_FULL, _FULL),
    ("Short write while writing to the AOF file", ErrorCode.STORAGE_FULL, _FULL),
    ("Disk quota exceeded", ErrorCode.STORAGE_FULL, _FULL),
    (
        "reading the append only file",
        ErrorCode.STORAGE_UNAVAILABLE,
        _DAMAGED,
    ),
    (
        "Can't handle RDB format version",
        ErrorCode.STORAGE_UNAVAILABLE,
        "its files were written by a newer server than {binary}; use the server that wrote them",
    ),
    (
        "Wrong signature trying to load DB",
        ErrorCode.STORAGE_UNAVAILABLE,
        "its base file is damaged, or a newer server than {binary} wrote it; use that or a backup",
    ),
    (
        "FATAL CONFIG FILE ERROR",
        ErrorCode.STORAGE_UNAVAILABLE,
        "the server refuses a setting; {binary} must be Redis 7.0 or later, or Valkey",
    ),
    (
        "cannot run",
        ErrorCode.STORAGE_UNAVAILABLE,
        "{binary} cannot be run on this machine; install valkey or redis-server and try again",
    ),
    (
        "loading shared libraries",
        ErrorCode.STORAGE_UNAVAILABLE,
        "{binary} does not fit this machine; install valkey or redis-server and try again",
    ),
    (
        "Permission denied",
        ErrorCode.STORAGE_UNAVAILABLE,
        "give the relay's user read and write access to everything in {directory}",
    ),
    (
        "Read-only file system",
        ErrorCode.STORAGE_UNAVAILABLE,
        "{directory} is on a read-only file system; make it writable or name another directory",
    ),
)


def storage_error(exc: OSError, path: Path) -> UnavailableError:
    """Name what the operating system said about ``path``."""
    if exc.errno in NO_ROOM:
        return UnavailableError(ErrorCode.STORAGE_FULL, f"{path}: {_FULL}")
    advice = _ADVICE.get(exc.errno or 0, "the operating system refuses it")
    said = exc.strerror or str(exc)
    return UnavailableError(ErrorCode.STORAGE_UNAVAILABLE, f"{path}: {said}; {advice}")


def exit_text(status: int) -> str:
    """Say how a process ended; ``status`` is negative for a signal, as in ``subprocess``."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


def server_died(
    status: int, last_words: str, *, disk_is_full: bool, directory: Path, binary: Path
) -> UnavailableError:
    """Name why a server ended, from its exit status and the last lines of its log.

    On a full disk those lines may be missing: the log has no room either.
    """
    head = f"the embedded store in {directory} ended with {exit_text(status)}"
    if status == -signal.SIGKILL:  # it had no chance to say anything; its last lines are idle talk
        detail = f"{head}: an operator, or the kernel for want of memory (see dmesg), killed it"
        return UnavailableError(ErrorCode.STORAGE_UNAVAILABLE, detail)
    code, advice = ErrorCode.STORAGE_UNAVAILABLE, ""
    if disk_is_full:
        code, advice = ErrorCode.STORAGE_FULL, f": {_FULL}"
    for needle, found, sentence in _LAST_WORDS:
        if needle in last_words:
            repair = _repair(last_words, directory, binary)
            told = sentence.format(directory=directory, binary=binary, repair=repair)
            code, advice = found, f": {told}"
            break
    said = f"\nits last words ({directory / 'store.log'}):\n{last_words}" if last_words else ""
    return UnavailableError(code, head + advice + said)


def _repair(last_words: str, directory: Path, binary: Path) -> str:
    # Every server binary is its own checker when it is called by that name. Given the manifest
    # instead of the one damaged file, that of Valkey 9.1 takes its own base file for damage.
    named = _DAMAGED_FILE.search(last_words)
    file = directory / "appendonlydir" / (named[1] if named else "")
    checker = "redis-check-aof" if "redis" in binary.name else "valkey-check-aof"
    inner = shlex.join(["exec", "-a", checker, str(binary), "--fix", str(file)])
    return shlex.join(["bash", "-c", inner])
