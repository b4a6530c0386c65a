"""Get the right to start a server in a directory, after any earlier server there is really gone.

Two servers over one append-only file destroy it, so the proof is ``server.lock``: it is held by the
server process itself (and by a rewrite child that it forked) and by nobody else, however they died.

::

    server.lock free ──▶ does a stranger answer on the socket? ──no──▶ ours
         │ held                                               └─yes──▶ refuse
         ▼
    SHUTDOWN over the socket ──0.5 s──▶ SIGTERM ──1.5 s──▶ SIGKILL ──2 s──▶ refuse, naming the pids

Rules: a signal goes only to a process that has this very ``server.lock`` open, and through a pidfd
opened before that check, so never to a stranger with a recycled pid. With ``appendfsync always``
even SIGKILL costs no acknowledged write.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from relay.protocol.errors import (
    ErrorCode,
    UnavailableError,
)
from relay.store.embedded.resp import ask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from relay.store.embedded.directory import StoreDirectory

Step = tuple[str, float]
"""What to do to whoever holds the lock, and the seconds to wait for it to be free then."""

ORPHAN: Final[tuple[Step, ...]] = (("SHUTDOWN", 0.5), ("SIGTERM", 1.5), ("SIGKILL", 2.0))
"""For a server whose relay is dead: it may still be closing its files."""
OFFSPRING: Final[tuple[Step, ...]] = (("SIGKILL", 2.0),)
"""For what a dead server of ours left: only its rewrite child, whose work nobody will use."""

_POLL_S: Final = 0.01
_ASK_S: Final = 0.4


async def succeed(directory: StoreDirectory, socket: Path, steps: tuple[Step, ...]) -> int:
    """Lock ``server.lock`` and return its file descriptor, which the caller closes.

    Raises:
        UnavailableError: something serves there that must not be ended, or cannot be.
    """
    lock = directory.try_server_lock()
    if lock is None:
        for what, patience_s in steps:
            await _tell(directory, socket, what)
            lock = await _lock_within(directory, patience_s)
            if lock is not None:
                break
        else:
            raise _still_held(directory)
    try:
        await _refuse_stranger(directory, socket)
    except BaseException:
        os.close(lock)
        raise
    return lock


async def _tell(directory: StoreDirectory, socket: Path, what: str) -> None:
    if what == "SHUTDOWN":
        await ask(socket, "SHUTDOWN", timeout_s=_ASK_S)
        return
    # In a thread: it reads the open files of every process, and sessions may be live.
    await asyncio.to_thread(_signal_holders, directory.server_lock, signal.Signals[what])


async def _lock_within(directory: StoreDirectory, patience_s: float) -> int | None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience_s
    while True:
        lock = directory.try_server_lock()
        if lock is not None or loop.time() >= deadline:
            return lock
        await asyncio.sleep(_POLL_S)


async def _refuse_stranger(directory: StoreDirectory, socket: Path) -> None:
    if await ask(socket, "PING", timeout_s=_ASK_S) is not None:
        raise UnavailableError(
            ErrorCode.STORAGE_UNAVAILABLE,
            f"a server that no relay started is serving {directory.path} on {socket}; stop it "
            "first, or let the relay use it with RELAY_REDIS_URL",
        )


def _still_held(directory: StoreDirectory) -> UnavailableError:
    pids = ", ".join(str(pid) for pid in holders(directory.server_lock)) or "unknown"
    return UnavailableError(
        ErrorCode.STORAGE_UNAVAILABLE,
        f"an earlier server of {directory.path} does not end (pid {pids}); end it by hand",
    )


def holders(lock: Path) -> Iterator[int]:
    """Processes other than this one that have ``lock`` open; none where /proc is not known."""
    if sys.platform == "linux":
        for process in Path("/proc").iterdir():
            pid = int(process.name) if process.name.isdigit() else os.getpid()
            if pid != os.getpid() and _has_open(pid, lock):
                yield pid


def _has_open(pid: int, path: Path) -> bool:
    try:
        with os.scandir(f"/proc/{pid}/fd") as found:
            return any(_links_to(entry, path) for entry in found)
    except OSError:  # it ended, or is another user's and so not ours
        return False


def _links_to(entry: os.DirEntry[str], path: Path) -> bool:
    opened = Path(entry.path)
    try:  # the name first: stat of some stranger's file on a dead network disk could hang
        return opened.readlink() == path and opened.samefile(path)
    except OSError:
        return False


def _signal_holders(lock: Path, sig: signal.Signals) -> None:
    if sys.platform == "linux":
        for pid in holders(lock):
            _signal_holder(pid, lock, sig)


def _signal_holder(pid: int, lock: Path, sig: signal.Signals) -> None:
    if sys.platform != "linux":
        return
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:  # it has just ended
        return
    try:
        if _has_open(pid, lock):
            signal.pidfd_send_signal(pidfd, sig)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)
