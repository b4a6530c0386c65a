"""What an agent keeps of others in its state file: records, handles, and who holds what it sent.

Rules of the file: as in :mod:`relay.client.state.journal`, whose file it shares. A handle is
pinned once,
and changed by the agent's user alone; who holds an envelope is forgotten a day after that expired,
since no relay may tell of its end any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from dataclasses import dataclass
from functools import partial
from typing import Final

from relay import clock
from relay.client.state.database import Disk
from relay.protocol import endpoint_record
from relay.protocol.errors import RelayError
from relay.protocol.ids import (
    Did,
    Eid,
    MessageId,
)

KEPT_AFTER_EXPIRY_S: Final = 24 * 3600
MOST_RECORDS: Final = 10_000
"""Some 10 MB. Over it the record that was found first is forgotten; a relay finds it again."""

TABLES: Final = (
    (
        "CREATE TABLE IF NOT EXISTS found (did TEXT PRIMARY KEY, record TEXT NOT NULL, "
        "at INTEGER NOT NULL) WITHOUT ROWID"
    ),
    "CREATE TABLE IF NOT EXISTS handles (handle TEXT PRIMARY KEY, did TEXT NOT NULL) WITHOUT ROWID",
    (
        "CREATE TABLE IF NOT EXISTS holdings (eid TEXT PRIMARY KEY, id TEXT NOT NULL, "
        "recipient TEXT NOT NULL, relays TEXT NOT NULL, expires_at INTEGER NOT NULL) WITHOUT ROWID"
    ),
    "CREATE INDEX IF NOT EXISTS holdings_by_id ON holdings (id)",
)
_HOLDING: Final = "SELECT eid, id, recipient, relays, expires_at FROM holdings"


@dataclass(frozen=True, slots=True)
class Holding:
    """One envelope that this agent sent, and who holds it.

    Args:
        eid: which envelope.
        id: the sender's own id.
        to: its recipient.
        expires_at: Unix seconds.
        relays: who gave a receipt, the first one first; then whom that one names.
    """

    eid: Eid
    id: MessageId
    to: Did
    expires_at: int
    relays: tuple[Did, ...]


class Knowledge:
    """The tables about others; every method is noted in the order of the calls."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def keep_record(self, did: Did, record: str) -> None:
        """Note a record that was found of another agent; an older one than is noted is not."""
        self._disk.note(partial(_keep_record, did, record))

    def record_of(self, did: Did) -> asyncio.Future[str | None]:
        """The record that was found of another agent."""
        return asyncio.wrap_future(self._disk.do(partial(_record_of, did)))

    def pin_handle(self, handle: str, did: Did) -> asyncio.Future[Did]:
        """Note whose a handle is, if nothing is noted; gives what is noted then."""
        return asyncio.wrap_future(self._disk.do(partial(_pin_handle, handle, did)))

    def accept_handle(self, handle: str, did: Did) -> asyncio.Future[None]:
        """Note whose a handle is from now on, by the word of the agent's user."""
        return asyncio.wrap_future(self._disk.do(partial(_accept_handle, handle, did)))

    def handle(self, handle: str) -> asyncio.Future[Did | None]:
        """Whose a handle is, as it is noted."""
        return asyncio.wrap_future(self._disk.do(partial(_handle, handle)))

    def keep_holding(self, holding: Holding) -> asyncio.Future[None]:
        """Note who holds an envelope."""
        return asyncio.wrap_future(self._disk.do(partial(_keep_holding, holding)))

    def holding(self, eid: Eid) -> asyncio.Future[Holding | None]:
        """Who holds an envelope."""
        return asyncio.wrap_future(self._disk.do(partial(_holding, "eid", eid)))

    def holding_by_id(self, message_id: MessageId) -> asyncio.Future[Holding | None]:
        """Who holds an envelope, by the sender's own id."""
        return asyncio.wrap_future(self._disk.do(partial(_holding, "id", message_id)))


# ---------------------------------------------------------------- in the thread


def sweep(database: sqlite3.Connection) -> None:
    """Forget what is of no use any more."""
    before = int(clock.now()) - KEPT_AFTER_EXPIRY_S
    database.execute("DELETE FROM holdings WHERE expires_at < ?", (before,))
    [count] = database.execute("SELECT count(*) FROM found").fetchone()
    if count > MOST_RECORDS:
        database.execute(
            "DELETE FROM found WHERE did IN (SELECT did FROM found ORDER BY at LIMIT ?)",
            (count - MOST_RECORDS,),
        )


def _keep_record(did: Did, record: str, database: sqlite3.Connection) -> None:
    noted = _record_of(did, database)
    if noted is not None:
        # what is noted may be damaged: then the new one takes its place
        with contextlib.suppress(RelayError):
            held = endpoint_record.parse(noted)
            record = endpoint_record.merge(
                held, endpoint_record.parse(record), clock.now()
            ).jws.compact
    database.execute("REPLACE INTO found VALUES (?, ?, ?)", (did, record, int(clock.now())))


def _record_of(did: Did, database: sqlite3.Connection) -> str | None:
    row = database.execute("SELECT record FROM found WHERE did = ?", (did,)).fetchone()
    return row[0] if row else None


def _pin_handle(handle: str, did: Did, database: sqlite3.Connection) -> Did:
    database.execute("INSERT INTO handles VALUES (?, ?) ON CONFLICT DO NOTHING", (handle, did))
    return _handle(handle, database) or did


def _accept_handle(handle: str, did: Did, database: sqlite3.Connection) -> None:
    database.execute("REPLACE INTO handles VALUES (?, ?)", (handle, did))


def _handle(handle: str, database: sqlite3.Connection) -> Did | None:
    row = database.execute("SELECT did FROM handles WHERE handle = ?", (handle,)).fetchone()
    return Did(row[0]) if row else None


def _keep_holding(holding: Holding, database: sqlite3.Connection) -> None:
    relays = " ".join(holding.relays)
    row = (holding.eid, holding.id, holding.to, relays, holding.expires_at)
    database.execute("REPLACE INTO holdings VALUES (?, ?, ?, ?, ?)", row)


def _holding(column: str, value: str, database: sqlite3.Connection) -> Holding | None:
    row = database.execute(f"{_HOLDING} WHERE {column} = ?", (value,)).fetchone()
    if row is None:
        return None
    eid, id_, to, relays, expires_at = row
    return Holding(Eid(eid), MessageId(id_), Did(to), expires_at, tuple(map(Did, relays.split())))
