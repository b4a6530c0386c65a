"""Stdout and stderr of this process: a write is whole, or it fails.

Rules of the file: Python's own streams are replaced, whatever ``PYTHONUNBUFFERED`` says. Theirs
drop the rest of a short write, or fail in mid-line where a pipe is full and non-blocking. What
cannot be written to stdout raises. What cannot be written to stderr is dropped, since it is said
about something that was done: a full disk under a log must not stop what is logged.
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
    """Stdout or stderr did not take all of what was to be written."""


class Output(io.RawIOBase):
    """A descriptor that is written to whole.

    Args:
        descriptor: where to; None: it was closed before this process began.
        name: of the stream, for errors.
        may_drop: drop what cannot be written, except in :meth:`put`.
    """

    def __init__(self, descriptor: int | None, name: str, *, may_drop: bool = False) -> None:
        super().__init__()
        self.name = name
        self._descriptor = descriptor
        self._may_drop = may_drop

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The descriptor.

        Raises:
            UnsupportedOperation: it was closed before this process began.
        """
        if self._descriptor is None:
            raise io.UnsupportedOperation("it is closed")
        return self._descriptor

    def isatty(self) -> bool:
        """Whether a person sees it."""
        return self._descriptor is not None and os.isatty(self._descriptor)

    def write(self, data: Buffer, /) -> int:
        """Write all of it; gives its size in bytes.

        Raises:
            OutputError: not all of it could be written, and it may not be dropped.
        """
        try:
            self.put(data)
        except OutputError:
            if not self._may_drop:
                raise
        return memoryview(data).nbytes

    def put(self, data: Buffer) -> None:
        """Write all of it. Waits as long as a pipe is full.

        Raises:
            OutputError: not all of it could be written.
        """
        left = memoryview(data).cast("B")
        try:
            while left:
                left = left[self._write_some(left) :]
        except OSError as exc:
            raise self._failed(exc) from exc

    def _write_some(self, data: memoryview) -> int:
        try:
            written = os.write(self.fileno(), data)
        except BlockingIOError:
            # somebody made this pipe non-blocking, perhaps for a use of their own
            ready = select.poll()
            ready.register(self.fileno(), select.POLLOUT)
            ready.poll()
            return 0
        if written == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return written

    def sync(self) -> None:
        """Put what was written on the disk, where this is a file.

        Raises:
            OutputError: the disk fails.
        """
        if not self._is_file():
            return
        try:
            os.fsync(self.fileno())
        except OSError as exc:
            raise self._failed(exc) from exc

    def begin_line(self) -> None:
        """Begin a line where a file ends in the midst of one: an earlier process was cut off.

        Raises:
            OutputError: that could not be written.
        """
        if self._is_file() and self._last_byte() not in {b"", b"\n"}:
            self.put(b"\n")

    def _is_file(self) -> bool:
        return self._descriptor is not None and stat.S_ISREG(os.fstat(self._descriptor).st_mode)

    def _last_byte(self) -> bytes:
        """The byte before the next one; empty at the start, or where it cannot be read."""
        file = self.fileno()
        try:
            # opened again: this descriptor may be for writing alone
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

    def _failed(self, exc: OSError) -> OutputError:
        return OutputError(f"{self.name}: {exc.strerror or exc}")


def install() -> None:
    """Replace the streams of this process, unless a program that runs inside has done so."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # else the next file or socket would get this number, and what is printed
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _wrapped(sys.__stdout__, "stdout", may_drop=False)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _wrapped(sys.__stderr__, "stderr", may_drop=True)


def _wrapped(stream: TextIO | None, name: str, *, may_drop: bool) -> TextIO:
    descriptor = None if stream is None else stream.fileno()
    encoding = "utf-8" if stream is None else stream.encoding
    raw = Output(descriptor, name, may_drop=may_drop)
    # whatever a terminal cannot show is written out; a raw stream is as good as a buffered one here
    return io.TextIOWrapper(
        cast("io.BytesIO", raw), encoding, "backslashreplace", newline="\n", write_through=True
    )
