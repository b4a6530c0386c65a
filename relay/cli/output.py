"""Output of commands: data to stdout, sentences for a person to stderr.

Text from a stranger never reaches a terminal raw. Control characters are escaped: a body could
otherwise move the cursor and repaint earlier lines. A line on stdout is written whole, or
:class:`OutputError` is raised; see ``streams.py``.
"""

from __future__ import annotations

import sys
import traceback
import unicodedata
from datetime import UTC, datetime
from typing import Final, TextIO

from relay.cli.exit_codes import Exit, LocalError, exit_of
from relay.cli.streams import Output
from relay.protocol import jws as jose
from relay.protocol.errors import ErrorCode, RelayError

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


def write(line: str) -> None:
    """Write a line of data.

    Raises:
        OutputError: stdout failed.
    """
    write_text(f"{line}\n")


def write_text(text: str) -> None:
    """Write lines of data.

    Raises:
        OutputError: stdout failed.
    """
    sys.stdout.write(text)
    sys.stdout.flush()


def write_json(value: object) -> None:
    """Write one line of JSON.

    Raises:
        OutputError: stdout failed.
    """
    _json(sys.stdout, value)


def say_json(value: object) -> None:
    """Write one line of JSON to stderr; drop it if stderr fails."""
    _json(sys.stderr, value)


def _json(stream: TextIO, value: object) -> None:
    line = jose.dumps(value)
    if stream.isatty():
        stream.write(f"{printable(line.decode())}\n")
        stream.flush()
    else:
        # JSON is UTF-8, whatever this stream's encoding is
        _bytes(stream, line + b"\n")


def write_body(body: bytes) -> None:
    """Write a body: raw to a pipe or a file, escaped to a terminal.

    Raises:
        OutputError: stdout failed.
    """
    if sys.stdout.isatty():
        write(printable(body.decode(errors="backslashreplace")))
    else:
        _bytes(sys.stdout, body + b"\n")


def _bytes(stream: TextIO, data: bytes) -> None:
    stream.flush()
    stream.buffer.write(data)
    stream.buffer.flush()


def sync() -> None:
    """Sync stdout and stderr to the disk if they are files.

    Raises:
        OutputError: the disk fails.
    """
    for raw in _raw():
        raw.sync()


def begin_line() -> None:
    """Begin a new line if stdout is a file that ends within one.

    Raises:
        OutputError: that could not be written.
    """
    for raw in _raw()[:1]:
        raw.begin_line()


def _raw() -> list[Output]:
    return [one.buffer for one in (sys.stdout, sys.stderr) if isinstance(one.buffer, Output)]


def printable(text: str) -> str:
    """Escape all that a terminal would interpret; JSON stays equal JSON."""
    return "".join(
        char
        if char in "\n\t" or unicodedata.category(char) not in _TERMINAL_OBEYS
        else _escaped(char)
        for char in text
    )


def _escaped(char: str) -> str:
    units = char.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def fail(exc: RelayError, *, as_json: bool, stored: str | None = None) -> None:
    """An expected failure: one sentence, or the one JSON shape, on stderr.

    Args:
        exc: the failure.
        as_json: the shape.
        stored: what is known of the envelope; by default what the failure says.
    """
    stored = stored or getattr(exc, "stored", None)
    if as_json:
        shape = {"error": exc.code, "detail": exc.detail, "retry_after": exc.retry_after}
        say_json({**shape, "stored": stored})
        return
    what = "" if isinstance(exc, LocalError) else f"{exc.code}: "
    say(f"relay: {what}{printable(exc.detail or 'no more is known')}")
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
        failure = LocalError(_reason(exc))
    else:
        if sys.flags.dev_mode:
            traceback.print_exception(exc)
        what = f"this is a bug: {type(exc).__name__}: {exc} ({_place(exc)})"
        failure = RelayError(ErrorCode.INTERNAL, what)
    fail(failure, as_json=as_json)
    return exit_of(failure)


def first_of(exc: Exception) -> Exception:
    """Return the first exception of a group."""
    while isinstance(exc, ExceptionGroup):
        exc = exc.exceptions[0]
    return exc


def _reason(exc: OSError) -> str:
    return f"{exc.filename}: {exc.strerror}" if exc.filename else f"{exc.strerror or exc}"


def _place(exc: Exception) -> str:
    last = traceback.extract_tb(exc.__traceback__)[-1]
    return f"{last.filename}, line {last.lineno}"


def clock_time(at: int) -> str:
    """Unix seconds for a person."""
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
