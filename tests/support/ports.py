"""Ports that no other test, worker or program on this machine gets.

A port is taken from below the range that the kernel hands out by itself. So no other program gets
it by ``bind`` to port 0, or by connecting, while its server is down. Test processes share a
directory of lock files: a port belongs to the process that holds its lock, until that process ends.
At first nobody listens on a port.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import socket
import tempfile
from pathlib import Path

COUNT = 12_000
FIRST_EPHEMERAL = 32_768
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOCKS = Path(tempfile.gettempdir()) / f"did-relay-test-ports-{os.getuid()}"
_tried = itertools.count(os.getpid() * 101)
_held: list[int] = []


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port of ``host`` that only this process uses until it ends."""
    low = _lowest_of_the_kernel()
    _LOCKS.mkdir(mode=0o700, exist_ok=True)
    for tried in itertools.islice(_tried, COUNT):
        port = low - 1 - tried % min(COUNT, low - 2_000)
        if _lock(port) and _is_free(host, port):
            return port
    raise AssertionError(f"all {COUNT} ports below {low} are in use")


def _lowest_of_the_kernel() -> int:
    low = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else FIRST_EPHEMERAL
    return low if low > 2 * 2_000 else FIRST_EPHEMERAL


def _lock(port: int) -> bool:
    file = os.open(_LOCKS / str(port), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return False
    _held.append(file)
    return True


def _is_free(host: str, port: int) -> bool:
    """Return False if a program that is no test listens on the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise
            return False
    return True
