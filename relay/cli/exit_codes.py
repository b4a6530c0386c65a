"""Exit codes of every command: one table, shown by ``relay --help`` and never renumbered."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from relay.protocol.errors import ErrorCode, RelayError, StateError, UnavailableError


class Exit(IntEnum):
    """The exit codes."""

    OK = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    UNAVAILABLE = 4
    UNKNOWN = 5
    SUPERSEDED = 6
    WAITING = 7
    LOCKED = 8
    INTERRUPTED = 130


MEANING: Final[dict[Exit, str]] = {
    Exit.OK: "done",
    Exit.FAILED: "something here: a file, a setting, an output that was cut off, a bug",
    Exit.USAGE: "wrong arguments",
    Exit.REFUSED: "a relay or a rule says no; the same again will not help",
    Exit.UNAVAILABLE: "no relay, or not now; nothing was stored, try again",
    Exit.UNKNOWN: "the outcome is not known; it may be stored",
    Exit.SUPERSEDED: "another session took this agent's inbox",
    Exit.WAITING: "it is stored, and not acked yet",
    Exit.LOCKED: "the key is encrypted, and its passphrase is missing or wrong",
    Exit.INTERRUPTED: "interrupted",
}
"""The meaning of each, for ``--help``."""


class LocalError(StateError):
    """A local failure, for example of a key file or a passphrase.

    Args:
        detail: one plain sentence.
        ends: the exit code.
    """

    def __init__(self, detail: str, ends: Exit = Exit.FAILED) -> None:
        super().__init__(ErrorCode.WRONG_STATE, detail)
        self.ends = ends


def exit_of(exc: RelayError) -> Exit:
    """Return the exit code of an error."""
    if isinstance(exc, LocalError):
        return exc.ends
    if getattr(exc, "stored", None) == "unknown":
        return Exit.UNKNOWN
    if exc.code is ErrorCode.SUPERSEDED:
        return Exit.SUPERSEDED
    if exc.code is ErrorCode.MIGRATING:
        return Exit.UNAVAILABLE
    if exc.code in {ErrorCode.INTERNAL, ErrorCode.CORRUPT}:
        # corrupt: of the state file
        return Exit.FAILED
    return Exit.UNAVAILABLE if isinstance(exc, UnavailableError) else Exit.REFUSED
