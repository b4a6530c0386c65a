"""Write files durably and for their owner only; limit the number of open files.

Linux and macOS have all of it. On a system that lacks a part (Windows) an agent works without it;
only work that needs a lock is refused.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import IO, Final

OTHERS: Final = 0o077
NOT_WAITING: Final = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
"""Flags for opening a path that may be a pipe: without them the reader would wait for ever."""
_NONE_LEFT: Final = frozenset({errno.EMFILE, errno.ENFILE})


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable after a file was made, renamed or removed.

    Raises:
        OSError: no directory, or the disk fails.
    """
    if not hasattr(os, "O_DIRECTORY"):
        # this system does not open directories
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_mode(descriptor: int, mode: int) -> None:
    """Set the mode of an open file, if the system has modes.

    Raises:
        OSError: the file belongs to somebody else.
    """
    if hasattr(os, "fchmod"):
        os.fchmod(descriptor, mode)


def others_may_read(descriptor: int) -> bool:
    """Return True if others may read an open file; False on a system without modes."""
    return hasattr(os, "geteuid") and bool(os.fstat(descriptor).st_mode & OTHERS)


def is_root() -> bool:
    """Return True if this process runs as the superuser."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def lock(file: IO[bytes], *, wait: bool) -> None:
    """Lock a file for this process only, until the file is closed.

    Raises:
        BlockingIOError: another process has locked it, and ``wait`` is False.
        OSError: this system has no such locks.
    """
    try:
        import fcntl  # noqa: PLC0415  not on every system that an agent runs on
    except ImportError as exc:
        raise OSError(errno.ENOSYS, "it needs a file lock, as Linux and macOS have") from exc
    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def allow_files(wanted: int) -> int:
    """Raise the limit of open files to ``wanted``, as far as the hard limit allows.

    Returns:
        The limit now.
    """
    import resource  # noqa: PLC0415  not on every system that an agent runs on

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


def is_file_left() -> bool:
    """Return True if this process can open one more file; a socket counts, too."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as exc:
        if exc.errno in _NONE_LEFT:
            return False
        raise
    return True
