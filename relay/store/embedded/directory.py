"""The directory of an embedded store: whose it is, who holds it, and what lies in it.

::

    relay.lock          held by the relay that owns the directory; says its pid; not inherited
    server.lock         held by the server process itself: the relay opens and locks it, the server
                        inherits it, the relay closes its copy. Free = that server is really gone
    store.sock          the server's socket, 0600
    store.sock.path     where the socket is instead, if this directory's path is too long for one
    store.log, .1       what the server says; rotated when a server starts
    appendonlydir/      the data

Rules: nothing is written before ``relay.lock`` is held; a directory that may be somebody else's is
refused, never taken over; both locks are flocks, so no kill -9 leaves one behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from relay.files import sync_directory
from relay.protocol.errors import (
    ErrorCode,
    UnavailableError,
)
from relay.store.faults import storage_error

MAX_SOCKET_BYTES: Final = 100
"""A socket's path may have 103 (macOS) or 107 (Linux) bytes."""
MAX_LOG_BYTES: Final = 1 << 20
_FULL_BYTES: Final = 64 << 10
_TAIL_BYTES: Final = 2048
_TAIL_LINES: Final = 12
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


class DirectoryInUseError(UnavailableError):
    """Another relay is running on this directory."""


class StoreDirectory:
    """One data directory; all methods are quick and none waits."""

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))
        self.server_lock = self.path / "server.lock"
        self._relay_lock = self.path / "relay.lock"
        self._log = self.path / "store.log"
        self._socket_path = self.path / "store.sock.path"
        self._held: int | None = None

    def claim(self) -> None:
        """Make the directory if it is not there and hold it against every other relay.

        Raises:
            DirectoryInUseError: another relay holds it.
            UnavailableError: it cannot be used; the detail says why.
        """
        try:
            self._make()
            self._close_to_others()
            self._held = self._lock_against_relays()
        except OSError as exc:
            raise storage_error(exc, self.path) from exc

    def release(self) -> None:
        """Let go of the directory; harmless if it is not held."""
        if self._held is None:
            return
        self._remove_remote_socket()
        os.close(self._held)
        self._held = None

    def try_server_lock(self) -> int | None:
        """Lock ``server.lock``: its file descriptor, or None while a server holds it.

        Raises:
            UnavailableError: the file cannot be opened or locked.
        """
        try:
            return _flock(self.server_lock)
        except OSError as exc:
            raise storage_error(exc, self.server_lock) from exc

    def socket(self) -> Path:
        """Where the server's socket is to be: here, or in a private directory with a short path.

        Raises:
            UnavailableError: there is no place for it.
        """
        try:
            return self._socket()
        except OSError as exc:
            raise storage_error(exc, self.path) from exc

    def open_log(self) -> tuple[int, int]:
        """Rotate the log if it is long; returns its file descriptor and where new lines begin.

        Raises:
            UnavailableError: the file cannot be opened.
        """
        try:
            with contextlib.suppress(FileNotFoundError):
                if self._log.stat().st_size > MAX_LOG_BYTES:
                    self._log.replace(self._log.with_name("store.log.1"))
            log = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            return log, os.fstat(log).st_size
        except OSError as exc:
            raise storage_error(exc, self._log) from exc

    def last_words(self, since: int) -> str:
        """The last lines that the server logged behind offset ``since``."""
        try:
            with self._log.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(since, end - _TAIL_BYTES))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(line for line in lines[-_TAIL_LINES:] if line.strip())

    def is_full(self) -> bool:
        """Whether the disk has no room left for even a small write."""
        try:
            found = os.statvfs(self.path)
        except OSError:
            return False
        return found.f_bavail * found.f_frsize < _FULL_BYTES

    def remove_leftovers(self) -> None:
        """Delete half-written rewrites of servers that were killed; only while none runs.

        No server ever does this itself, and each such file can be as large as all live data.
        """
        for left in self.path.glob("temp-*"):
            with contextlib.suppress(OSError):
                left.unlink()

    def sync(self) -> None:
        """Make the directory's entries durable: a server syncs its files, not their parents.

        Raises:
            UnavailableError: the disk refuses.
        """
        try:
            sync_directory(self.path)
        except OSError as exc:
            raise storage_error(exc, self.path) from exc
        with contextlib.suppress(OSError):  # it may not be ours to read, and then is not new
            sync_directory(self.path.parent)

    def _make(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.mkdir(mode=0o700, exist_ok=True)

    def _close_to_others(self) -> None:
        # Whoever can write here can replace the data, so the mode becomes 0700. But `--data /tmp`
        # or somebody's home must not be closed to its other users: only what is plainly ours is.
        mode = self.path.stat().st_mode
        if not mode & _OTHERS:
            return
        if not self._relay_lock.exists() and any(self.path.iterdir()):
            raise UnavailableError(
                ErrorCode.STORAGE_UNAVAILABLE,
                f"{self.path} is open to other users (mode {stat.S_IMODE(mode):04o}), not empty "
                "and not a relay's directory; name a new directory, for example "
                f"{self.path / 'relay'}",
            )
        self.path.chmod(0o700)

    def _lock_against_relays(self) -> int:
        fd = _flock(self._relay_lock)
        if fd is None:
            pid = _read(self._relay_lock) or "unknown"
            raise DirectoryInUseError(
                ErrorCode.STORAGE_UNAVAILABLE,
                f"{self.path} is in use by another relay (pid {pid}); stop that one first, or "
                "name another directory",
            )
        with contextlib.suppress(OSError):  # only for the sentence above; the disk may be full
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()}\n".encode())
        return fd

    def _socket(self) -> Path:
        natural = self.path / "store.sock"
        if len(os.fsencode(natural)) <= MAX_SOCKET_BYTES:
            return natural
        remembered = self._remote_socket()
        if remembered is not None:
            with contextlib.suppress(OSError):  # a cleaner of old files took it: same URL again
                remembered.parent.mkdir(mode=0o700)
            if _is_private(remembered.parent):
                return remembered
        # Not a name that can be guessed: in a shared directory somebody else could make it first.
        remote = Path(tempfile.mkdtemp(prefix="relay-")) / "store.sock"
        if len(os.fsencode(remote)) > MAX_SOCKET_BYTES:
            remote.parent.rmdir()
            raise UnavailableError(
                ErrorCode.STORAGE_UNAVAILABLE,
                f"the paths of {self.path} and of the temporary directory {remote.parent.parent} "
                f"are both too long for a unix socket ({MAX_SOCKET_BYTES} bytes); "
                "name a directory with a shorter path",
            )
        self._socket_path.write_bytes(os.fsencode(remote))
        return remote

    def _remote_socket(self) -> Path | None:
        text = _read(self._socket_path)
        return Path(text) if text else None

    def _remove_remote_socket(self) -> None:
        remote = self._remote_socket()
        if remote is not None and _is_private(remote.parent):
            with contextlib.suppress(OSError):
                remote.unlink(missing_ok=True)
                remote.parent.rmdir()
        with contextlib.suppress(OSError):
            self._socket_path.unlink(missing_ok=True)


def _flock(path: Path) -> int | None:
    # os.open never inherits to children: a server that held relay.lock would lock out the next.
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError:
        os.close(fd)
        raise
    return fd


def _read(path: Path) -> str:
    try:
        return os.fsdecode(path.read_bytes()).strip()
    except OSError:
        return ""


def _is_private(path: Path) -> bool:
    """Whether ``path`` is a directory, no link, that only we can enter."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & _OTHERS
    )
