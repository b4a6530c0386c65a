"""The journal of an agent that is to be killed: an append-only file of what it does and sees.

One line is one ``write``, so ``kill -9`` loses at most the line that was being written. Whoever
reads the file next finds all others. There is no fsync: the machine goes on. A line proves more or
less, depending on whether it was written before or after the SDK's call:

========== ================================= ===================================================
line       written                           it proves
========== ================================= ===================================================
meant      before ``submit``                 no envelope can arrive that no line names
receipt    after ``submit`` returned         the envelope must be delivered
left       after the outcome was unknown     the SDK goes on by itself: it must be delivered
withdrawn  after an error that says ``no``   it must never be delivered
void       after the relay knew nothing of   the agent died before the SDK had promised anything:
           it and the outbox was empty       another one is sent in its place
shown      before the handler's work         the next time it must be marked
answering  before ``ack`` or ``refuse``      without this line the agent has not answered: after a
                                             kill it must come again
ended      after that returned               it must never be shown again
========== ================================= ===================================================

An agent may die between two lines; then the weaker one holds. An envelope that was shown without a
line comes again with a mark that nobody can explain. One that was answered without the line
``ended`` may come again or not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Note = list[Any]


class NoteWriter:
    """Writes notes; a line that an earlier life left torn is ended first."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._file = os.open(path, flags, 0o600)
        before = path.read_bytes()
        if before and not before.endswith(b"\n"):
            os.write(self._file, b"\n")

    def __call__(self, *words: object) -> None:
        """Write one note; it survives kill -9 when this returns."""
        line = json.dumps(words).encode() + b"\n"
        assert os.write(self._file, line) == len(line)


class NoteReader:
    """Reads notes as they are written; the reader keeps up, the writer never waits."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def __iter__(self) -> Iterator[Note]:
        """Whole notes that were not read yet."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                fresh = file.read()
        except FileNotFoundError:
            return
        lines, _, _ = fresh.rpartition(b"\n")
        if not lines:
            return
        # counted first: who reads while a note is being entered must not get it a second time
        self._read += len(lines) + 1
        for line in lines.split(b"\n"):
            note = _parse(line)
            if note is not None:
                yield note


def _parse(line: bytes) -> Note | None:
    try:
        note: Note = json.loads(line)
    except ValueError:
        return None  # torn by a kill: it was never written
    return note
