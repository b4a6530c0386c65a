"""What writing a file durably needs beside the file; how many files a process may open."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import Final

_NONE_LEFT: Final = frozenset({errno.EMFILE, errno.ENFILE})


def sync_directory(directory: Path) -> None:
    """Make names durable: a file that was made, renamed or removed in a directory.

    Raises:
        OSError: no directory, or the disk fails.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def allow_files(wanted: int) -> int:
    """Let this process open ``wanted`` files at once, as far as its hard limit allows.

    Returns:
        How many it may open now.
    """
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
