"""Output of commands: data to stdout, sentences for a person to stderr.

Text from a stranger never reaches a terminal raw. Control characters are escaped: a body could
otherwise move the cursor and repaint earlier lines. A line on stdout is written whole, or
:class:`OutputError` is raised; see ``streams.py``. All that writes to stdout may raise it.
"""

from __future__ import annotations

import sys
import traceback
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from relay import clock
from relay.cli.exit_codes import Exit, LocalError, exit_of
from relay.cli.streams import Output
from relay.protocol import jws as jose
from relay.protocol.errors import ErrorCode, RelayError

BAR: Final = 24
_TERMINAL_OBEYS: Final = frozenset({"Cc", "Cf"})
"""Unicode categories: control and format characters."""


def say(words: str) -> None:
    """Write a sentence for a person; drop it if stderr fails."""
    sys.stderr.write(f"{words}\n")
    sys.stderr.flush()


def notify(words: str) -> None:
    """Write a sentence for a person that must not be dropped: an ack follows.

    Raises:
        OutputError: stderr failed.
    """
    raw = sys.stderr.buffer
    if isinstance(raw, Output):
        raw.put(f"{words}\n".encode(sys.stderr.encoding, "backslashreplace"))
    else:
        say(words)


def write(line: str, end: str = "\n") -> None:
    """Write a line of data."""
    sys.stdout.write(f"{line}{end}")
    sys.stdout.flush()


def write_rows(rows: Iterable[tuple[str, str]], width: int) -> None:
    """Write a line for each name and its words; the names are padded to ``width``."""
    for name, words in rows:
        write(f"{name:<{width}}  {printable(words)}")


def write_json(value: object, stream: TextIO | None = None) -> None:
    """Write one line of JSON, to stdout by default; stderr drops it if it fails."""
    stream = stream or sys.stdout
    line = jose.dumps(value)
    if stream.isatty():
        stream.write(f"{printable(line.decode())}\n")
        stream.flush()
    else:
        # JSON is UTF-8, whatever this stream's encoding is
        _write_bytes(stream, line + b"\n")


def members_of(value: object, names: str) -> dict[str, Any]:
    """Return the named attributes of ``value`` as members of JSON, in this order."""
    return {name: getattr(value, name) for name in names.split()}


def show(members: object, *lines: str, as_json: bool) -> None:
    """Write a result: as one line of JSON, or as lines for a person."""
    if as_json:
        write_json(members)
    else:
        for line in lines:
            write(line)


def write_body(body: bytes) -> None:
    """Write a body: raw to a pipe or a file, escaped to a terminal."""
    if sys.stdout.isatty():
        write(printable(body.decode(errors="backslashreplace")))
    else:
        _write_bytes(sys.stdout, body + b"\n")


def _write_bytes(stream: TextIO, data: bytes) -> None:
    stream.flush()
    stream.buffer.write(data)
    stream.buffer.flush()


def sync() -> None:
    """Sync stdout and stderr to the disk if they are files."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream.buffer, Output):
            stream.buffer.sync()


def begin_line() -> None:
    """Begin a new line if stdout is a file that ends within one."""
    if isinstance(sys.stdout.buffer, Output):
        sys.stdout.buffer.begin_line()


def printable(text: str) -> str:
    """Escape all that a terminal would interpret; JSON stays equal JSON."""
    return "".join(
        _escaped(char)
        if char not in "\n\t" and unicodedata.category(char) in _TERMINAL_OBEYS
        else char
        for char in text
    )


def _escaped(char: str) -> str:
    units = char.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def fail(exc: RelayError, *, as_json: bool, stored: str | None = None) -> None:
    """Report an expected failure on stderr: one sentence, or the one JSON shape.

    ``stored`` tells what is known of the envelope; by default what the failure says.
    """
    stored = stored or getattr(exc, "stored", None)
    if as_json:
        shape = {"error": exc.code, "detail": exc.detail, "retry_after": exc.retry_after}
        write_json({**shape, "stored": stored}, sys.stderr)
        return
    code = "" if isinstance(exc, LocalError) else f"{exc.code}: "
    say(f"relay: {code}{printable(exc.detail or 'no more is known')}")
    if stored == "unknown":
        say("It may be stored all the same: sending it again as a new envelope could double it.")
    elif exc.retry_after is not None:
        say(f"Try again in {exc.retry_after} s.")


def end_with(exc: Exception, *, as_json: bool) -> Exit:
    """Report the exception that ended a command, and return the exit code.

    In Python's development mode (``python -X dev -m relay``) a bug prints its traceback.
    """
    exc = first_of(exc)
    if isinstance(exc, RelayError):
        failure = exc
    elif isinstance(exc, OSError):
        reason = f"{exc.strerror or exc}"
        failure = LocalError(f"{exc.filename}: {exc.strerror}" if exc.filename else reason)
    else:
        if sys.flags.dev_mode:
            traceback.print_exception(exc)
        last = traceback.extract_tb(exc.__traceback__)[-1]
        place = f"{last.filename}, line {last.lineno}"
        detail = f"this is a bug: {type(exc).__name__}: {exc} ({place})"
        failure = RelayError(ErrorCode.INTERNAL, detail)
    fail(failure, as_json=as_json)
    return exit_of(failure)


def first_of(exc: Exception) -> Exception:
    """Return the first exception of a group."""
    while isinstance(exc, ExceptionGroup):
        exc = exc.exceptions[0]
    return exc


def clock_time(at: int) -> str:
    """Return Unix seconds as a local time for a person."""
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


@dataclass(slots=True)
class Progress:
    """Progress of a command that waits: one changing line on a terminal, else sentences.

    Args:
        quiet: print nothing.
    """

    quiet: bool
    _began: float = field(default_factory=clock.monotonic)
    _last: str = ""
    _on_terminal: bool = field(
        default_factory=lambda: sys.stderr.isatty()  # noqa: PLW0108  of now, not of the import
    )

    def tell(self, words: str) -> None:
        """Show the current step, a sentence without full stop; a repetition updates the time."""
        if self.quiet:
            return
        if self._on_terminal:
            seconds = clock.monotonic() - self._began
            self._replace_line(f"{printable(words)} ({seconds:.0f} s)")
        elif words != self._last:
            say(f"{printable(words)}.")
        self._last = words

    def count(self, words: str, done: int, total: int) -> None:
        """Show the step with a bar on a terminal; elsewhere print the words once."""
        if self._on_terminal:
            filled = BAR * done // max(total, 1)
            words = f"{words} [{'#' * filled}{'.' * (BAR - filled)}] {done:,} of {total:,}"
        self.tell(words)

    def end(self) -> None:
        """Clear the line."""
        if self._on_terminal and self._last:
            self._replace_line("")
        self._last = ""

    def _replace_line(self, words: str) -> None:
        sys.stderr.write(f"\r\x1b[K{words}")
        sys.stderr.flush()
