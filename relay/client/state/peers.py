"""Tables of the state file about other agents: records, handles, and custody of sent envelopes.

Invariants: a handle is pinned once, and only the agent's user changes a pin. Custody is deleted a
day after the envelope expired, when no relay may report its end any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from dataclasses import dataclass
from functools import partial
from typing import Final

from relay import clock
from relay.client.state.database import Database, statement
from relay.protocol import endpoint_record
from relay.protocol.errors import RelayError
from relay.protocol.ids import Did, Eid, MessageId

RETENTION_AFTER_EXPIRY_S: Final = 24 * 3600
MAX_RECORDS: Final = 10_000
"""About 10 MB. Above it the record that was found first is deleted; a relay finds it again."""


@dataclass(frozen=True, slots=True)
class CustodyRecord:
    """One envelope that this agent sent, and the relays that hold it.

    Args:
        eid: of the envelope.
        id: the sender's own id.
        to: its recipient.
        expires_at: Unix seconds.
        chain: the relay that issued the first receipt, and those that it was forwarded to.
    """

    eid: Eid
    id: MessageId
    to: Did
    expires_at: int
    chain: tuple[Did, ...]


_CUSTODY: Final = "SELECT eid, id, recipient, relays, expires_at FROM holdings"


class PeerStore:
    """The tables about other agents; its methods take effect in the order of the calls."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save_record(self, did: Did, record: str) -> None:
        """Save another agent's record, unless a newer one is saved."""
        self._database.run_logged(partial(_save_record, did, record))

    def record(self, did: Did) -> asyncio.Future[str | None]:
        """Read the saved record of another agent."""
        return self._database.call(partial(_record, did))

    def pin_handle(self, handle: str, did: Did) -> asyncio.Future[Did]:
        """Pin a handle to a DID unless it is pinned; return its pin."""
        return self._database.call(partial(_pin_handle, handle, did))

    def accept_handle(self, handle: str, did: Did) -> asyncio.Future[None]:
        """Pin a handle to another DID, which the agent's user has accepted."""
        return self._database.call(statement("REPLACE INTO handles VALUES (?, ?)", handle, did))

    def handle(self, handle: str) -> asyncio.Future[Did | None]:
        """Read the pin of a handle."""
        return self._database.call(partial(_handle, handle))

    def save_custody(self, custody: CustodyRecord) -> asyncio.Future[None]:
        """Save the relays that hold an envelope."""
        chain = " ".join(custody.chain)
        row = (custody.eid, custody.id, custody.to, chain, custody.expires_at)
        return self._database.call(statement("REPLACE INTO holdings VALUES (?, ?, ?, ?, ?)", *row))

    def custody(self, eid: Eid) -> asyncio.Future[CustodyRecord | None]:
        """Read the relays that hold an envelope."""
        return self._database.call(partial(_custody, "eid", eid))

    def custody_by_id(self, message_id: MessageId) -> asyncio.Future[CustodyRecord | None]:
        """Read the relays that hold an envelope, by the sender's own id."""
        return self._database.call(partial(_custody, "id", message_id))


# ---------------------------------------------------------------- in the thread


def sweep(connection: sqlite3.Connection) -> None:
    """Delete what is of no use any more."""
    before = int(clock.now()) - RETENTION_AFTER_EXPIRY_S
    connection.execute("DELETE FROM holdings WHERE expires_at < ?", (before,))
    [count] = connection.execute("SELECT count(*) FROM found").fetchone()
    if count > MAX_RECORDS:
        connection.execute(
            "DELETE FROM found WHERE did IN (SELECT did FROM found ORDER BY at LIMIT ?)",
            (count - MAX_RECORDS,),
        )


def _save_record(did: Did, record: str, connection: sqlite3.Connection) -> None:
    saved = _record(did, connection)
    if saved is not None:
        # a damaged one is replaced by the new one
        with contextlib.suppress(RelayError):
            record = endpoint_record.merge(
                endpoint_record.parse(saved), endpoint_record.parse(record), clock.now()
            ).jws.compact
    connection.execute("REPLACE INTO found VALUES (?, ?, ?)", (did, record, int(clock.now())))


def _record(did: Did, connection: sqlite3.Connection) -> str | None:
    row = connection.execute("SELECT record FROM found WHERE did = ?", (did,)).fetchone()
    return row[0] if row else None


def _pin_handle(handle: str, did: Did, connection: sqlite3.Connection) -> Did:
    connection.execute("INSERT INTO handles VALUES (?, ?) ON CONFLICT DO NOTHING", (handle, did))
    return _handle(handle, connection) or did


def _handle(handle: str, connection: sqlite3.Connection) -> Did | None:
    row = connection.execute("SELECT did FROM handles WHERE handle = ?", (handle,)).fetchone()
    return Did(row[0]) if row else None


def _custody(column: str, value: str, connection: sqlite3.Connection) -> CustodyRecord | None:
    row = connection.execute(f"{_CUSTODY} WHERE {column} = ?", (value,)).fetchone()
    if row is None:
        return None
    eid, id_, to, relays, expires_at = row
    chain = tuple(map(Did, relays.split()))
    return CustodyRecord(Eid(eid), MessageId(id_), Did(to), expires_at, chain)
