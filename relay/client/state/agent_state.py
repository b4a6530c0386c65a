"""What an agent remembers between connections, and between starts where a file is given.

Rules of the file: a relay's DID is pinned to its origin at first contact and never changed by what
a relay says, only by the agent's user (:mod:`relay.client.directory.accept`); a record's seq
never goes
back. Reading is from memory, writing goes to the journal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from relay.client.errors import AgentError, WrongRelayError, typed
from relay.client.migration.log import MoveLog
from relay.client.state import takeover
from relay.client.state.journal import Journal
from relay.protocol import endpoint_record
from relay.protocol.did import parse_did
from relay.protocol.errors import (
    ErrorCode,
    RelayError,
)
from relay.protocol.ids import (
    Did,
    Epoch,
)

_ADVICE: Final = (
    ". Ask its operator whether the relay has a new key; only if so, accept it, which keeps your "
    "state: relay accept "
)
_pinned: Final[dict[str, Did]] = {}
"""First contacts of this process, for agents without a file."""


@dataclass(slots=True)
class State:
    """Pins, the newest own record, and the epoch last seen at each relay.

    Args:
        journal: the file, or None: it lives as long as this process.
        relays: who is expected at an origin.
        found: who was found at an origin instead, and shown to the user; "": several.
        moves: how far the agent is where it changes relays.
    """

    journal: Journal | None = None
    relays: dict[str, Did] = field(default_factory=dict)
    epochs: dict[Did, Epoch] = field(default_factory=dict)
    record: str | None = None
    moves: MoveLog = field(default_factory=MoveLog)
    found: dict[str, str] = field(default_factory=dict)

    def relay_at(self, origin: str) -> Did | None:
        """The relay that is expected at an origin; None on first contact."""
        return self.relays.get(origin)

    def pin(self, origin: str, relay: Did) -> None:
        """Remember who proved itself there."""
        if self.relays.get(origin) != relay:
            self.relays[origin] = relay
            if self.journal is not None:
                self.journal.pin(origin, relay)

    async def accept(self, origin: str, relay: Did) -> None:
        """The agent's user says who is at an origin from now on; returns when it is noted.

        Raises:
            AgentError: the file cannot be written.
        """
        if self.journal is not None:
            await self.journal.accept(origin, relay)
        self.relays[origin] = relay
        self.found.pop(origin, None)

    def other_relay(self, origin: str, found: Did, expected: Did | None = None) -> WrongRelayError:
        """The error where another relay answers than the one that is expected; noted, too.

        Args:
            origin: where.
            found: who is there, as it says itself.
            expected: who should be; None: who is pinned.
        """
        detail = f"expected {expected or self.relays.get(origin)} at {origin}, found {found}"
        try:
            parse_did(found)
        except ValueError:
            # what is no DID must not be shown in a command that a person may copy
            return WrongRelayError(ErrorCode.WRONG_RELAY, detail)
        if self.found.setdefault(origin, found) != found:
            self.found[origin] = ""
        if self.journal is not None:
            self.journal.note_found(origin, self.found[origin])
        failure = WrongRelayError(ErrorCode.WRONG_RELAY, f"{detail}{_ADVICE}{origin} {found}")
        failure.found = found
        return failure

    def explained(self, exc: AgentError, origin: str, expected: Did | None) -> AgentError:
        """An error of a login; where another relay was found, with what its user can do."""
        if not isinstance(exc, WrongRelayError) or exc.found is None:
            return exc
        return self.other_relay(origin, exc.found, expected)

    def see_epoch(self, relay: Did, epoch: Epoch) -> Epoch | None:
        """Remember the inbox's epoch at a relay; gives the one before if it was another."""
        before = self.epochs.get(relay)
        if before == epoch:
            return None
        self.epochs[relay] = epoch
        if self.journal is not None:
            self.journal.see_epoch(relay, epoch)
        return before

    @property
    def record_seq(self) -> int:
        """The highest seq that this agent's record is known to have."""
        return endpoint_record.parse(self.record).seq if self.record else 0

    def keep_record(self, compact: str) -> None:
        """Remember the newest of the own records."""
        if (
            self.record is None
            or endpoint_record.parse(compact).version > endpoint_record.parse(self.record).version
        ):
            self.record = compact
            if self.journal is not None:
                self.journal.keep_record(compact)

    async def noted(self) -> None:
        """Wait until the newest own record is in the file: only then may a relay see it.

        Else a life after a crash could sign another one of the same seq.

        Raises:
            AgentError: the file cannot be written.
        """
        if self.journal is not None and self.record is not None:
            await asyncio.wrap_future(self.journal.keep_record(self.record))

    def close(self) -> None:
        """Wait until all is noted, and close the file; blocks."""
        if self.journal is not None:
            self.journal.close()


def in_memory() -> State:
    """State that lives as long as this process; its pins are shared by all agents in it."""
    return State(relays=_pinned)


def load(path: Path, did: Did | None = None) -> State:
    """Open a state file; one that is not there yet is made; blocks. To be closed.

    One of the first form, JSON, is taken over, and kept beside as ``.old``.

    Args:
        path: the file.
        did: whose it is.

    Raises:
        AgentError: ``corrupt``: it is there, but cannot be understood or is another agent's;
            ``internal``: no access to it.
    """
    takeover.take_over(path, did)
    journal = Journal.open(path, did)
    kept = journal.remembered()
    try:
        if kept.record is not None:
            endpoint_record.parse(kept.record)
    except (RelayError, TypeError) as exc:
        # TypeError: SQLite keeps any type in any column
        journal.close()
        detail = f"the record in {path} cannot be read ({exc}); move the file away to begin anew"
        raise typed(ErrorCode.CORRUPT, detail) from exc
    return State(journal, kept.relays, kept.epochs, kept.record, journal.moves, kept.found)


@contextmanager
def opened(path: Path, did: Did) -> Iterator[State]:
    """As :func:`load`, closed at the end of the block."""
    state = load(path, did)
    try:
        yield state
    finally:
        state.close()
