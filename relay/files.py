"""What writing a file durably, and for its owner alone, needs; how many files may be open.

Rules of the file: Linux and macOS have all of it. Where a system lacks a part (Windows), an agent
works without it; only what cannot be safe without a lock is refused.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import IO, Final

OTHERS: Final = 0o077
NOT_WAITING: Final = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
"""To open what may be no file: a pipe of that name would keep its reader waiting for ever."""
_NONE_LEFT: Final = frozenset({errno.EMFILE, errno.ENFILE})


def sync_directory(directory: Path) -> None:
    """Make names durable: a file that was made, renamed or removed in a directory.

    Raises:
        OSError: no directory, or the disk fails.
    """
    if not hasattr(os, "O_DIRECTORY"):
        # such a system does not open directories
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_mode(descriptor: int, mode: int) -> None:
    """Set who may read an open file, where the system knows such a thing.

    Raises:
        OSError: the file belongs to somebody else.
    """
    if hasattr(os, "fchmod"):
        os.fchmod(descriptor, mode)


def others_may_read(descriptor: int) -> bool:
    """Whether the mode of an open file lets others in, where the system knows such a thing."""
    return hasattr(os, "geteuid") and bool(os.fstat(descriptor).st_mode & OTHERS)


def is_root() -> bool:
    """Whether this process acts for the superuser."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def lock(file: IO[bytes], *, wait: bool) -> None:
    """Be the only process that has locked this file, until it is closed.

    Raises:
        BlockingIOError: another one has, and ``wait`` is off.
        OSError: this system has no such locks.
    """
    try:
        import fcntl  # noqa: PLC0415  not on every system that an agent runs on
    except ImportError as exc:
        raise OSError(errno.ENOSYS, "it needs a file lock, as Linux and macOS have") from exc
    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def allow_files(wanted: int) -> int:
    """Let this process open ``wanted`` files at once, as far as its hard limit allows.

    Returns:
        How many it may open now.
    """
    import resource  # noqa: PLC0415  not on every system that an agent runs on

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


def is_file_left() -> bool:
    """Whether this process can open one more file: a socket is one, too."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as exc:
        if exc.errno in _NONE_LEFT:
            return False
        raise
    return True
