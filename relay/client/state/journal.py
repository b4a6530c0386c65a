"""What an agent must not forget when it crashes: what it sent, and what became of what it got.

Rules of the file: an envelope is in the outbox before it is on the wire, and leaves it only when
its sender was told what became of it, or in the commit that notes its outcome; an eid is noted
before its message is shown, and as done before the relay is told. Eids are forgotten a day after
they expired, when no relay may hand them over any more; outbox and outcomes never by themselves.

::

    sent:      keep ──▶ OUTBOX ──told──▶ gone
                           └──conclude──▶ OUTCOME ──forget──▶ gone
    delivered: take ──▶ HANDED ──finish──▶ DONE ──a day after expiry──▶ forgotten
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

from relay import clock
from relay.client.errors import AgentError
from relay.client.message import Sent
from relay.client.migration import log
from relay.client.state import peers
from relay.client.state.database import Disk
from relay.client.state.peers import Knowledge
from relay.protocol import jws as jose
from relay.protocol.envelope import SignedEnvelope
from relay.protocol.ids import (
    Did,
    Eid,
    Epoch,
    MessageId,
)

VERSION: Final = 1
KEPT_AFTER_EXPIRY_S: Final = 24 * 3600
SWEEP_S: Final = 3600.0
MOST_EIDS: Final = 1_000_000
"""Some 200 MB. Over it those that expire first are forgotten; their relay still knows them."""
_SHARE: Final = 100
_FOUND: Final = "found at "
"""Before an origin, the name of a fact."""

_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS relays (origin TEXT PRIMARY KEY, did TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS epochs (relay TEXT PRIMARY KEY, epoch TEXT NOT NULL) WITHOUT ROWID",
    (
        "CREATE TABLE IF NOT EXISTS outbox (place INTEGER PRIMARY KEY AUTOINCREMENT, "
        "eid TEXT NOT NULL UNIQUE, id TEXT NOT NULL, recipient TEXT NOT NULL, "
        "expires_at INTEGER NOT NULL, wire BLOB NOT NULL)"
    ),
    (
        "CREATE TABLE IF NOT EXISTS eids (eid TEXT PRIMARY KEY, expires_at INTEGER NOT NULL, "
        "is_done INTEGER NOT NULL DEFAULT 0, refuse_code TEXT, "
        "failures INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID"
    ),
    "CREATE INDEX IF NOT EXISTS eids_by_expiry ON eids (expires_at)",
    (
        "CREATE TABLE IF NOT EXISTS outcomes (place INTEGER PRIMARY KEY AUTOINCREMENT, "
        "eid TEXT NOT NULL UNIQUE, id TEXT NOT NULL, recipient TEXT NOT NULL, "
        "expires_at INTEGER NOT NULL, wire BLOB NOT NULL, "
        "at INTEGER NOT NULL, code TEXT, answer TEXT NOT NULL)"
    ),
)
_TAKE: Final = "INSERT INTO eids (eid, expires_at) VALUES (?, ?) ON CONFLICT DO NOTHING"
_KNOWN: Final = "SELECT is_done, refuse_code FROM eids WHERE eid = ?"
_FINISH: Final = (
    "INSERT INTO eids (eid, expires_at, is_done, refuse_code) VALUES (?, ?, 1, ?) "
    "ON CONFLICT (eid) DO UPDATE SET is_done = 1, refuse_code = excluded.refuse_code"
)
_KEEP: Final = (
    "INSERT INTO outbox (eid, id, recipient, expires_at, wire) VALUES (?, ?, ?, ?, ?) "
    "ON CONFLICT DO NOTHING"
)
_CONCLUDE: Final = (
    "INSERT INTO outcomes (eid, id, recipient, expires_at, wire, at, code, answer) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_NEXT_OUTCOME: Final = (
    "SELECT place, eid, id, recipient, expires_at, wire, at, code, answer FROM outcomes "
    "WHERE place > ? ORDER BY place LIMIT 1"
)


@dataclass(frozen=True, slots=True)
class Ended:
    """An outcome as it lies in the file.

    Args:
        place: its order among the outcomes.
        envelope: what was sent; with a receipt its wire bytes are not kept.
        at: when it was noted, Unix seconds.
        code: the error's, or None: ``answer`` is a receipt.
        answer: JSON: the members of :class:`Sent`, or those of the error.
    """

    place: int
    envelope: SignedEnvelope
    at: int
    code: str | None
    answer: str


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of an envelope that was handed over before.

    Args:
        is_done: the program has answered it.
        refuse_code: its answer was this refusal, which no relay is known to have heard; None: an
            ack, or a refusal whose sender is told.
    """

    is_done: bool
    refuse_code: str | None


@dataclass(frozen=True, slots=True)
class Remembered:
    """What lies in a journal when it is opened."""

    relays: dict[str, Did]
    epochs: dict[Did, Epoch]
    record: str | None
    found: dict[str, str]


class Journal:
    """One agent's memory in one file; every method is noted in the order of the calls."""

    def __init__(self, disk: Disk) -> None:
        self.knowledge = Knowledge(disk)
        self.moves = log.load(disk)
        self._disk = disk
        self._swept_at = clock.monotonic()
        self._disk.note(_sweep)

    @classmethod
    def open(cls, path: Path, did: Did | None = None) -> Journal:
        """Open or make the file; blocks.

        Args:
            path: the file.
            did: whose it is; that of another agent is refused. None: whoever's it is.

        Raises:
            AgentError: ``corrupt`` or ``internal``.
        """
        return cls(Disk.open(path, partial(_prepare, did)))

    def close(self) -> None:
        """Note what was asked for, then close; blocks."""
        self._disk.close()

    # ------------------------------------------------------------ relays and record

    def remembered(self) -> Remembered:
        """Pins, epochs and record; blocks."""
        return self._disk.do(_remembered).result()

    def pin(self, origin: str, relay: Did) -> Future[None]:
        """Note who proved itself at an origin."""
        return self._disk.note(partial(_run, "REPLACE INTO relays VALUES (?, ?)", (origin, relay)))

    def accept(self, origin: str, relay: Did) -> asyncio.Future[None]:
        """Note who is at an origin from now on, by the word of the agent's user."""
        return asyncio.wrap_future(self._disk.do(partial(_accept, origin, relay)))

    def note_found(self, origin: str, relay: str) -> Future[None]:
        """Note who was found at an origin instead of who is pinned there."""
        row = (f"{_FOUND}{origin}", relay)
        return self._disk.note(partial(_run, "REPLACE INTO facts VALUES (?, ?)", row))

    def see_epoch(self, relay: Did, epoch: Epoch) -> Future[None]:
        """Note the inbox's epoch at a relay."""
        return self._disk.note(partial(_run, "REPLACE INTO epochs VALUES (?, ?)", (relay, epoch)))

    def keep_record(self, record: str) -> Future[None]:
        """Note the newest of the own records."""
        return self._disk.note(partial(_run, "REPLACE INTO facts VALUES ('record', ?)", (record,)))

    # ------------------------------------------------------------ sent

    def keep(self, envelope: SignedEnvelope) -> asyncio.Future[None]:
        """Put an envelope into the outbox; it may be submitted when this is done."""
        row = (envelope.eid, envelope.id, envelope.to, envelope.expires_at, envelope.wire)
        return asyncio.wrap_future(self._disk.do(partial(_run, _KEEP, row)))

    def drop(self, eid: Eid) -> asyncio.Future[None]:
        """Take out one that was not submitted after all."""
        work = partial(_run, "DELETE FROM outbox WHERE eid = ?", (eid,))
        return asyncio.wrap_future(self._disk.do(work))

    def tell(self, eid: Eid) -> asyncio.Future[None]:
        """Take out one whose sender is told, and what an earlier try of it had come to."""
        return asyncio.wrap_future(self._disk.do(partial(_tell, eid)))

    def conclude(self, envelope: SignedEnvelope, answer: Sent | AgentError) -> asyncio.Future[None]:
        """Take out one whose sender cannot be told now, and note its outcome, in one commit.

        A receipt that is noted stays: no later error makes it untrue.
        """
        return asyncio.wrap_future(self._disk.do(partial(_conclude, envelope, answer)))

    def unanswered(self) -> asyncio.Future[list[SignedEnvelope]]:
        """The outbox, in the order in which it was filled."""
        return asyncio.wrap_future(self._disk.do(_unanswered))

    def next_outcome(self, after: int) -> asyncio.Future[Ended | None]:
        """The first outcome behind a place."""
        return asyncio.wrap_future(self._disk.do(partial(_next_outcome, after)))

    def forget_outcome(self, place: int) -> asyncio.Future[int]:
        """The program has made use of it; gives how many there were of it, 1 or 0."""
        return asyncio.wrap_future(self._disk.do(partial(_forget_outcome, place)))

    def count_outcomes(self) -> asyncio.Future[int]:
        """How many outcomes nobody has taken."""
        return asyncio.wrap_future(self._disk.do(_count_outcomes))

    # ------------------------------------------------------------ delivered

    def take(self, items: Iterable[tuple[Eid, int]]) -> asyncio.Future[dict[Eid, Known]]:
        """Note that envelopes (eid, expiry) are about to be shown; gives those noted before."""
        self._sweep_if_due()
        return asyncio.wrap_future(self._disk.do(partial(_take, list(items))))

    def finish(self, eid: Eid, expires_at: int, refuse_code: str | None) -> asyncio.Future[None]:
        """Note the program's answer; it is never shown again once this is done."""
        work = partial(_run, _FINISH, (eid, expires_at, refuse_code))
        return asyncio.wrap_future(self._disk.do(work))

    def told(self, eid: Eid) -> asyncio.Future[None]:
        """Note that a relay has made a refusal durable: should it come again, it is acked."""
        work = partial(_run, "UPDATE eids SET refuse_code = NULL WHERE eid = ?", (eid,))
        return asyncio.wrap_future(self._disk.do(work))

    def fail(self, eid: Eid) -> asyncio.Future[int]:
        """Note that a handler failed on one that was taken; gives how often so far."""
        return asyncio.wrap_future(self._disk.do(partial(_fail, eid)))

    def _sweep_if_due(self) -> None:
        if clock.monotonic() - self._swept_at > SWEEP_S:
            self._swept_at = clock.monotonic()
            self._disk.note(_sweep)


# ---------------------------------------------------------------- in the thread


def _run(statement: str, values: tuple[object, ...], database: sqlite3.Connection) -> None:
    database.execute(statement, values)


def _accept(origin: str, relay: Did, database: sqlite3.Connection) -> None:
    database.execute("REPLACE INTO relays VALUES (?, ?)", (origin, relay))
    database.execute("DELETE FROM facts WHERE name = ?", (f"{_FOUND}{origin}",))


def _prepare(did: Did | None, database: sqlite3.Connection) -> None:
    # a file of an earlier version of this program gets what it lacks, and no earlier one minds
    for table in (*_TABLES, *peers.TABLES, *log.TABLES):
        database.execute(table)
    facts = dict(database.execute("SELECT name, value FROM facts"))
    if facts.setdefault("v", str(VERSION)) != str(VERSION):
        raise ValueError(f"it has version {facts['v']}")
    if did is not None and facts.setdefault("did", did) != did:
        raise ValueError(f"it belongs to {facts['did']}")
    database.executemany("REPLACE INTO facts VALUES (?, ?)", facts.items())


def _remembered(database: sqlite3.Connection) -> Remembered:
    record = database.execute("SELECT value FROM facts WHERE name = 'record'").fetchone()
    return Remembered(
        relays=dict(database.execute("SELECT origin, did FROM relays")),
        epochs=dict(database.execute("SELECT relay, epoch FROM epochs")),
        record=record[0] if record else None,
        found={
            name.removeprefix(_FOUND): value
            for name, value in database.execute("SELECT name, value FROM facts")
            if name.startswith(_FOUND)
        },
    )


def _unanswered(database: sqlite3.Connection) -> list[SignedEnvelope]:
    rows = database.execute(
        "SELECT eid, id, recipient, expires_at, wire FROM outbox ORDER BY place"
    )
    return [
        SignedEnvelope(Eid(eid), MessageId(id_), Did(to), expires_at, wire)
        for eid, id_, to, expires_at, wire in rows
    ]


def _tell(eid: Eid, database: sqlite3.Connection) -> None:
    database.execute("DELETE FROM outbox WHERE eid = ?", (eid,))
    database.execute("DELETE FROM outcomes WHERE eid = ?", (eid,))


def _conclude(
    envelope: SignedEnvelope, answer: Sent | AgentError, database: sqlite3.Connection
) -> None:
    eid = envelope.eid
    database.execute("DELETE FROM outbox WHERE eid = ?", (eid,))
    database.execute("DELETE FROM outcomes WHERE eid = ? AND code IS NOT NULL", (eid,))
    is_receipt = isinstance(answer, Sent)
    code = None if isinstance(answer, Sent) else str(answer.code)
    wire = b"" if is_receipt else envelope.wire
    told = jose.dumps(_members(answer)).decode()
    row = (eid, envelope.id, envelope.to, envelope.expires_at, wire, int(clock.now()), code, told)
    database.execute(_CONCLUDE, row)


def _members(answer: Sent | AgentError) -> dict[str, object]:
    if isinstance(answer, Sent):
        return asdict(answer)
    names = ("detail", "retry_after", "stored", "record")
    return {name: getattr(answer, name) for name in names}


def _next_outcome(after: int, database: sqlite3.Connection) -> Ended | None:
    row = database.execute(_NEXT_OUTCOME, (after,)).fetchone()
    if row is None:
        return None
    place, eid, id_, to, expires_at, wire, at, code, answer = row
    envelope = SignedEnvelope(Eid(eid), MessageId(id_), Did(to), expires_at, wire)
    return Ended(place, envelope, at, code, answer)


def _forget_outcome(place: int, database: sqlite3.Connection) -> int:
    return database.execute("DELETE FROM outcomes WHERE place = ?", (place,)).rowcount


def _count_outcomes(database: sqlite3.Connection) -> int:
    [count] = database.execute("SELECT count(*) FROM outcomes").fetchone()
    return int(count)


def _take(items: list[tuple[Eid, int]], database: sqlite3.Connection) -> dict[Eid, Known]:
    known: dict[Eid, Known] = {}
    for eid, expires_at in items:
        row = database.execute(_KNOWN, (eid,)).fetchone()
        if row is None:
            database.execute(_TAKE, (eid, expires_at))
        else:
            known[eid] = Known(bool(row[0]), row[1])
    return known


def _fail(eid: Eid, database: sqlite3.Connection) -> int:
    database.execute("UPDATE eids SET failures = failures + 1 WHERE eid = ?", (eid,))
    row = database.execute("SELECT failures FROM eids WHERE eid = ?", (eid,)).fetchone()
    return int(row[0]) if row else 1


def _sweep(database: sqlite3.Connection) -> None:
    peers.sweep(database)
    before = int(clock.now()) - KEPT_AFTER_EXPIRY_S
    database.execute("DELETE FROM eids WHERE expires_at < ?", (before,))
    [count] = database.execute("SELECT count(*) FROM eids").fetchone()
    if count > MOST_EIDS:
        over = count - MOST_EIDS + MOST_EIDS // _SHARE
        database.execute(
            "DELETE FROM eids WHERE eid IN (SELECT eid FROM eids ORDER BY expires_at LIMIT ?)",
            (over,),
        )
