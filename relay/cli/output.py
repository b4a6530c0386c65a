"""What commands write: data to stdout, words for a person to stderr, and nothing else anywhere.

Rules of the file: what came from a stranger never reaches a terminal raw: control characters are
written out, since a body could otherwise move the cursor and repaint what was said before.
"""

from __future__ import annotations

import sys
import unicodedata
from datetime import UTC, datetime

from relay.core import jws as jose
from relay.core.errors import RelayError


def say(words: str) -> None:
    """A sentence for a person."""
    sys.stderr.write(f"{words}\n")
    sys.stderr.flush()


def write(line: str) -> None:
    """A line of data."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def write_json(value: object) -> None:
    """One line of JSON."""
    write(jose.dumps(value).decode())


def say_json(value: object) -> None:
    """One line of JSON that is not the data asked for."""
    say(jose.dumps(value).decode())


def write_body(body: bytes) -> None:
    """A body: as it is into a pipe or a file, made harmless for a terminal."""
    if sys.stdout.isatty():
        write(printable(body.decode(errors="backslashreplace")))
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(body + b"\n")
    sys.stdout.buffer.flush()


def printable(text: str) -> str:
    """The text without anything that a terminal would obey."""
    return "".join(
        char
        if char in "\n\t" or unicodedata.category(char) not in {"Cc", "Cf"}
        else f"\\u{ord(char):04x}"
        for char in text
    )


def fail(exc: RelayError, *, as_json: bool) -> None:
    """An expected failure: one sentence, or the one JSON shape, on stderr."""
    stored = getattr(exc, "stored", None)
    if as_json:
        shape = {"error": exc.code, "detail": exc.detail, "retry_after": exc.retry_after}
        say_json({**shape, "stored": stored})
        return
    say(f"relay: {exc.code}: {exc.detail or 'no more is known'}")
    if stored == "unknown":
        say("It may be stored all the same: sending it again as a new envelope could double it.")
    elif exc.retry_after is not None:
        say(f"Try again in {exc.retry_after} s.")


def clock_time(at: int) -> str:
    """Unix seconds for a person."""
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
