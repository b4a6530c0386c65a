"""Facts that an agent remembers between connections and, with a file, between starts.

Entry points: :func:`load`, :func:`opened`, :func:`in_memory`. Invariants: an origin is pinned to
the first relay that proves itself there. Only the agent's user changes a pin
(:mod:`relay.client.accept`). The version of the own record never decreases. Reads come
from memory; writes go to the journal.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from relay.client._util import in_thread
from relay.client.errors import AgentError, WrongRelayError, make_error
from relay.client.state.journal import Journal
from relay.client.state.migration_log import MigrationLog
from relay.protocol import endpoint_record
from relay.protocol.did import parse_did
from relay.protocol.endpoint_record import EndpointRecord
from relay.protocol.errors import ErrorCode, RelayError
from relay.protocol.ids import Did, Epoch

_ADVICE: Final = (
    ". Ask its operator whether the relay has a new key; only if so, accept it, which keeps your "
    "state: relay accept "
)
_pinned: Final[dict[str, Did]] = {}
"""First contacts of this process, for agents without a file."""


@dataclass(slots=True)
class AgentState:
    """Pins, the newest own record, the last epoch of the inbox at each relay, the migration.

    Args:
        journal: the file, or None: the state ends with this process.
        relays: the relay that is expected at an origin.
        epochs: of the inbox at each relay.
        record: the newest own record, signed.
        migration: the latest migration.
        found: the relay that was found at an origin instead; "": several.
    """

    journal: Journal | None = None
    relays: dict[str, Did] = field(default_factory=dict)
    epochs: dict[Did, Epoch] = field(default_factory=dict)
    record: str | None = None
    migration: MigrationLog = field(default_factory=MigrationLog)
    found: dict[str, str] = field(default_factory=dict)

    def relay_at(self, origin: str) -> Did | None:
        """Return the relay that is expected at an origin; None on first contact."""
        return self.relays.get(origin)

    def pin(self, origin: str, relay: Did) -> None:
        """Remember the relay that proved itself at an origin."""
        if self.relays.get(origin) != relay:
            self.relays[origin] = relay
            if self.journal is not None:
                self.journal.pin_relay(origin, relay)

    async def accept(self, origin: str, relay: Did) -> None:
        """Pin an origin to another relay, which the agent's user has accepted.

        Raises:
            AgentError: the file cannot be written.
        """
        if self.journal is not None:
            await self.journal.accept_relay(origin, relay)
        self.relays[origin] = relay
        self.found.pop(origin, None)

    def wrong_relay(self, origin: str, found: Did, expected: Did | None = None) -> WrongRelayError:
        """Record that another relay answers at an origin, and return the error that says so.

        Args:
            origin: of the expected relay.
            found: the DID that the relay there claims.
            expected: the relay that should be there; None: the pinned one.
        """
        detail = f"expected {expected or self.relays.get(origin)} at {origin}, found {found}"
        try:
            parse_did(found)
        except ValueError:
            # text that is no DID must not appear in a command that a person may copy
            return WrongRelayError(ErrorCode.WRONG_RELAY, detail)
        if self.found.setdefault(origin, found) != found:
            self.found[origin] = ""
        if self.journal is not None:
            self.journal.save_found_relay(origin, self.found[origin])
        failure = WrongRelayError(ErrorCode.WRONG_RELAY, f"{detail}{_ADVICE}{origin} {found}")
        failure.found = found
        return failure

    def explain(self, exc: AgentError, origin: str, expected: Did | None) -> AgentError:
        """Return the error of a login; add the action for the user if another relay was found."""
        if not isinstance(exc, WrongRelayError) or exc.found is None:
            return exc
        return self.wrong_relay(origin, exc.found, expected)

    def see_epoch(self, relay: Did, epoch: Epoch) -> Epoch | None:
        """Remember the epoch of the inbox at a relay; return the previous one if it differs."""
        before = self.epochs.get(relay)
        if before == epoch:
            return None
        self.epochs[relay] = epoch
        if self.journal is not None:
            self.journal.save_epoch(relay, epoch)
        return before

    @property
    def newest_record(self) -> EndpointRecord | None:
        """The newest known own record, parsed."""
        return endpoint_record.parse(self.record) if self.record else None

    @property
    def record_seq(self) -> int:
        """The seq of the newest own record; 0 without one."""
        newest = self.newest_record
        return newest.seq if newest is not None else 0

    def keep_record(self, compact: str) -> None:
        """Remember an own record unless a newer one is known."""
        newest = self.newest_record
        if newest is None or endpoint_record.parse(compact).version > newest.version:
            self.record = compact
            if self.journal is not None:
                self.journal.save_record(compact)

    async def flush_record(self) -> None:
        """Wait until the newest own record is in the file: only then may a relay see it.

        Otherwise a life after a crash could sign another record of the same seq.

        Raises:
            AgentError: the file cannot be written.
        """
        if self.journal is not None and self.record is not None:
            await asyncio.wrap_future(self.journal.save_record(self.record))

    def close(self) -> None:
        """Wait until everything is written, and close the file; blocks."""
        if self.journal is not None:
            self.journal.close()


def in_memory() -> AgentState:
    """Return a state that ends with this process; all agents in it share its pins."""
    return AgentState(relays=_pinned)


def load(path: Path, did: Did | None = None) -> AgentState:
    """Open a state file, or create it; blocks. The caller closes it.

    Args:
        path: the file.
        did: its owner; None: any.

    Raises:
        AgentError: ``corrupt``: it cannot be read or belongs to another agent; ``internal``: no
            access to it.
    """
    journal = Journal.open(path, did)
    saved = journal.load()
    try:
        if saved.record is not None:
            endpoint_record.parse(saved.record)
    except (RelayError, TypeError) as exc:
        # TypeError: SQLite keeps any type in any column
        journal.close()
        detail = f"the record in {path} cannot be read ({exc}); move the file away to begin anew"
        raise make_error(ErrorCode.CORRUPT, detail) from exc
    return AgentState(
        journal, saved.relays, saved.epochs, saved.record, journal.migration, saved.found
    )


@contextmanager
def opened(path: Path, did: Did) -> Iterator[AgentState]:
    """Open a state file as :func:`load` does, and close it at the end of the block."""
    state = load(path, did)
    try:
        yield state
    finally:
        state.close()


@asynccontextmanager
async def opened_async(path: Path | None, did: Did) -> AsyncIterator[AgentState]:
    """Open a state as :func:`opened` does, in a thread: both ends access the disk.

    Args:
        path: the file; None: in memory.
        did: its owner.
    """
    if path is None:
        yield in_memory()
        return
    state = await asyncio.wrap_future(in_thread(partial(load, path, did)))
    try:
        yield state
    finally:
        # everything must be written, also when the program is cancelled
        await asyncio.shield(asyncio.wrap_future(in_thread(state.close, must_end=True)))
