"""Stdout and stderr of this process: a write is whole, or it fails.

This module replaces Python's own streams, whatever ``PYTHONUNBUFFERED`` is. Those drop the rest
of a short write, or fail within a line if a pipe is full and non-blocking. A failed write to
stdout raises. A failed write to stderr is dropped: a full disk under a log must not stop the work.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import select
import stat
import sys
from typing import TYPE_CHECKING, TextIO, cast

from relay.cli.exit_codes import LocalError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


class OutputError(LocalError):
    """A write to stdout or stderr failed."""


class Output(io.RawIOBase):
    """A stream over a descriptor that writes all or raises :class:`OutputError`.

    Args:
        descriptor: None if it was closed before this process began.
        name: of the stream, for errors.
        may_drop: drop data that cannot be written, except in :meth:`put`.
    """

    def __init__(self, descriptor: int | None, name: str, *, may_drop: bool = False) -> None:
        super().__init__()
        self.name = name
        self._descriptor = descriptor
        self._may_drop = may_drop

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the descriptor, unless it was closed before this process began."""
        if self._descriptor is None:
            raise io.UnsupportedOperation("it is closed")
        return self._descriptor

    def isatty(self) -> bool:
        """Return True if it is a terminal."""
        return self._descriptor is not None and os.isatty(self._descriptor)

    def write(self, data: Buffer, /) -> int:
        """Write or drop all of it, and return its size in bytes."""
        try:
            self.put(data)
        except OutputError:
            if not self._may_drop:
                raise
        return memoryview(data).nbytes

    def put(self, data: Buffer) -> None:
        """Write all of it; block while a pipe is full."""
        left = memoryview(data).cast("B")
        try:
            while left:
                left = left[self._write_some(left) :]
        except OSError as exc:
            raise self._error(exc) from exc

    def _write_some(self, data: memoryview) -> int:
        try:
            written = os.write(self.fileno(), data)
        except BlockingIOError:
            # another process made this pipe non-blocking
            ready = select.poll()
            ready.register(self.fileno(), select.POLLOUT)
            ready.poll()
            return 0
        if written == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return written

    def sync(self) -> None:
        """Sync to the disk if this is a file."""
        try:
            if self._is_file():
                os.fsync(self.fileno())
        except OSError as exc:
            raise self._error(exc) from exc

    def begin_line(self) -> None:
        """Begin a new line if a file ends within one: an earlier process was killed."""
        if self._is_file() and self._last_byte() not in {b"", b"\n"}:
            self.put(b"\n")

    def _is_file(self) -> bool:
        return self._descriptor is not None and stat.S_ISREG(os.fstat(self._descriptor).st_mode)

    def _last_byte(self) -> bytes:
        """Return the last byte; empty at the start, or if it cannot be read."""
        file = self.fileno()
        try:
            # open it again: this descriptor may be write-only
            reading = os.open(f"/dev/fd/{file}", os.O_RDONLY)
        except OSError:
            return b""
        try:
            is_appended_to = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_APPEND
            size = os.fstat(file).st_size
            end = size if is_appended_to else os.lseek(file, 0, os.SEEK_CUR)
            return os.pread(reading, 1, end - 1) if end else b""
        finally:
            os.close(reading)

    def _error(self, exc: OSError) -> OutputError:
        return OutputError(f"{self.name}: {exc.strerror or exc}")


def install() -> None:
    """Replace the streams of this process, unless a caller has replaced them already."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # otherwise the next file or socket gets this number, and our output
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _wrapped(sys.__stdout__, "stdout")
    if sys.stderr is sys.__stderr__:
        sys.stderr = _wrapped(sys.__stderr__, "stderr", may_drop=True)


def _wrapped(stream: TextIO | None, name: str, *, may_drop: bool = False) -> TextIO:
    encoding = "utf-8" if stream is None else stream.encoding
    raw = Output(None if stream is None else stream.fileno(), name, may_drop=may_drop)
    # characters that a terminal cannot show are escaped
    return io.TextIOWrapper(
        cast("io.BytesIO", raw), encoding, "backslashreplace", newline="\n", write_through=True
    )
