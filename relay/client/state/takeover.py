"""Takes over a state file of the first form: one JSON object with pins, epochs and the record.

Rules of the file: until the journal that replaces it is complete on disk, it is only read; a copy
stays beside it as ``.old``, and no file of that name is ever overwritten. What is not of that form
is left to :class:`Journal`, which opens it or refuses it, untouched.

::

    JSON ──copy──▶ .old ──fill──▶ .new (a journal) ──rename──▶ in its place
      └── a crash anywhere before the rename: the JSON is still there, and it is done again ──┘
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from relay.client.errors import typed
from relay.client.state.database import MODE
from relay.client.state.journal import Journal
from relay.files import lock, sync_directory
from relay.protocol import endpoint_record
from relay.protocol import jws as jose
from relay.protocol.errors import (
    ErrorCode,
    RelayError,
)
from relay.protocol.ids import (
    Did,
    Epoch,
)

VERSION: Final = 1
MAX_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Old:
    """What a file of the first form says."""

    relays: dict[str, str]
    epochs: dict[str, str]
    record: str | None


def take_over(path: Path, did: Did | None) -> None:
    """Put a journal in the place of a state file of the first form, if it is one; blocks.

    Args:
        path: the file; it may be anything, or not be there.
        did: whose it is to be; None: it is not known.

    Raises:
        AgentError: ``corrupt``: its record is another agent's; ``internal``: no access to it.
    """
    try:
        file = path.open("rb")
    except OSError:
        # what opens the journal makes it, or says why it cannot
        return
    try:
        with file:
            if file.read(1) != b"{":
                return
            # two processes may open it at once: the second finds the journal of the first
            lock(file, wait=True)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.seek(0)
                _replace(path, did, file.read(MAX_BYTES + 1))
    except OSError as exc:
        raise typed(ErrorCode.INTERNAL, f"cannot take over {path}: {exc.strerror}") from exc


def _replace(path: Path, did: Did | None, data: bytes) -> None:
    # a log beside it would be of some other journal, and would be read into the new one
    old = None if _beside(path, "-wal").exists() else _parse(data)
    if old is None:
        return
    if old.record is not None and did not in {None, endpoint_record.parse(old.record).did}:
        owner = endpoint_record.parse(old.record).did
        detail = f"{path} cannot be read (it belongs to {owner}); move it away to begin anew"
        raise typed(ErrorCode.CORRUPT, detail)
    _copy(path, data)
    new = _beside(path, ".new")
    for left in (new, _beside(new, "-wal"), _beside(new, "-shm")):
        left.unlink(missing_ok=True)
    _fill(new, did, old)
    new.replace(path)
    sync_directory(path.parent)


def _parse(data: bytes) -> _Old | None:
    """Read the first form; None: it is something else."""
    if len(data) > MAX_BYTES:
        return None
    try:
        value = jose.loads(data)
        members = jose.Members(value)
        members.integer("v", least=VERSION, most=VERSION)
        members.object("relays")
        members.object("epochs")
        record = members.optional_text("record", most=endpoint_record.MAX_BYTES)
        if record is not None:
            endpoint_record.parse(record)
    except (ValueError, RelayError):
        return None
    old = _Old(value["relays"], value["epochs"], record)
    is_text = all(isinstance(item, str) for item in (*old.relays.values(), *old.epochs.values()))
    return old if is_text else None


def _copy(path: Path, data: bytes) -> None:
    kept = _beside(path, ".old")
    if kept.exists():
        if kept.read_bytes() != data:
            detail = f"cannot take over {path}: {kept} is in the way; move it away"
            raise typed(ErrorCode.INTERNAL, detail)
        return
    half = _beside(path, ".old.new")
    descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, MODE)
    with open(descriptor, "wb") as file:  # noqa: PTH123  a Path cannot open a descriptor
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    half.replace(kept)
    sync_directory(path.parent)


def _fill(path: Path, did: Did | None, old: _Old) -> None:
    journal = Journal.open(path, did)
    try:
        notes = [journal.pin(origin, Did(relay)) for origin, relay in old.relays.items()]
        notes += [journal.see_epoch(Did(one), Epoch(epoch)) for one, epoch in old.epochs.items()]
        notes += [journal.keep_record(old.record)] if old.record is not None else []
        for note in notes:
            note.result()
    finally:
        journal.close()
    if _beside(path, "-wal").exists():
        # closing moves the log into the file and removes it: else the file is not complete
        raise typed(ErrorCode.INTERNAL, f"cannot write {path}: its log is left")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
