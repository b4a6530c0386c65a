"""Become a program that ends with its parent, as the store's server: ``PARENT_PID BINARY …``.

Rules: its text is run in a fresh interpreter (``python -I -S -c``), never imported by the relay;
standard library only. It exists because the same three steps between fork and exec of a process
that has threads (``preexec_fn``) can deadlock in the child, and because they cost a copy of a large
relay's page tables at the very moment when the store is down.

::

    prctl(PDEATHSIG) ──▶ is that still my parent? ──no──▶ exit: nobody will need this program
                                     └──yes──▶ exec: same pid, same process group, same open lock
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
CANNOT_RUN = 126


def end_with(parent: int) -> bool:
    """Get SIGTERM when ``parent`` dies; False: it is dead, so the signal will never come."""
    # SIGTERM, not SIGKILL: a server closes its files and removes its socket.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    return os.getppid() == parent


def main(arguments: list[str]) -> int:
    """Replace this process by the program; returns an exit status only if that is not possible."""
    parent, binary, *_ = arguments
    if not end_with(int(parent)):
        return 0
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored_by_python, signal.SIG_DFL)
    try:
        os.execv(binary, arguments[1:])  # noqa: S606  the operator's own binary, no shell
    except OSError as exc:
        sys.stderr.write(f"cannot run {binary}: {exc.strerror}\n")
        return CANNOT_RUN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
