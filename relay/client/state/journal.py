"""The state file of one agent: its outbox, its outcomes, and the envelopes that it was shown.

Entry point: :meth:`Journal.open`. Invariants (GUARANTEES.md S3, R2, R3): an envelope is in the
outbox before it is on the wire. It leaves the outbox when its sender has the result, or in the
commit that saves its outcome. An eid is recorded before its message is delivered to the program,
and as settled before the relay learns of it. Eids are deleted a day after the envelope expired,
when no relay may deliver it any more. Rows of outbox and outcomes are never deleted by age.

::

    sent:      add_outgoing ──▶ outbox ──remove_outgoing──▶ deleted
                                   └──save_outcome──▶ outcomes ──delete_outcome──▶ deleted
    delivered: record_delivered ──▶ eids ──record_settled──▶ is_done ──a day after expiry──▶ deleted
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
from relay.client.state import migration_log, peers, schema
from relay.client.state.database import Database, statement
from relay.protocol import jws as jose
from relay.protocol.envelope import SignedEnvelope
from relay.protocol.ids import Did, Eid, Epoch, MessageId

SWEEP_S: Final = 3600.0
MAX_EIDS: Final = 1_000_000
"""About 200 MB. Above it those that expire first are deleted; their relay still knows them."""
_SWEEP_SHARE: Final = 100
_FOUND: Final = "found at "
"""Prefix of an origin in the name of a fact."""


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """A saved outcome.

    Args:
        place: its position among the outcomes.
        envelope: the envelope; its wire bytes are not saved with a receipt.
        at: when the outcome was saved, Unix seconds.
        code: the code of the error, or None: ``answer`` is a receipt.
        answer: JSON: the fields of :class:`Sent`, or those of the error.
    """

    place: int
    envelope: SignedEnvelope
    at: int
    code: str | None
    answer: str


@dataclass(frozen=True, slots=True)
class SeenEnvelope:
    """An envelope that was delivered to the program before.

    Args:
        is_done: the program has acked or refused it.
        refuse_code: its refusal, which no relay has confirmed; None: an ack, or a refusal whose
            sender has its bounce.
    """

    is_done: bool
    refuse_code: str | None


@dataclass(frozen=True, slots=True)
class SavedState:
    """Pins, epochs, own record, and relays found at the origin of another one."""

    relays: dict[str, Did]
    epochs: dict[Did, Epoch]
    record: str | None
    found: dict[str, str]


class Journal:
    """One agent's state file; its methods take effect in the order of the calls."""

    def __init__(self, database: Database) -> None:
        self.peers = peers.PeerStore(database)
        self.migration = migration_log.load(database)
        self._database = database
        self._swept_at = clock.monotonic()
        self._database.run_logged(_sweep)

    @classmethod
    def open(cls, path: Path, did: Did | None = None) -> Journal:
        """Open or create the file; blocks.

        Args:
            path: the file.
            did: its owner; a file of another agent is refused. None: any owner.

        Raises:
            AgentError: ``corrupt`` or ``internal``.
        """
        return cls(Database.open(path, partial(schema.prepare, did)))

    def close(self) -> None:
        """Write what was asked for, then close; blocks."""
        self._database.close()

    # ------------------------------------------------------------ relays and record

    def load(self) -> SavedState:
        """Read pins, epochs and record; blocks."""
        return self._database.run(_load).result()

    def pin_relay(self, origin: str, relay: Did) -> Future[None]:
        """Save the relay that proved itself at an origin."""
        return self._database.run_logged(
            statement("REPLACE INTO relays VALUES (?, ?)", origin, relay)
        )

    def accept_relay(self, origin: str, relay: Did) -> asyncio.Future[None]:
        """Save another relay at an origin, which the agent's user has accepted."""
        return self._database.call(partial(_accept_relay, origin, relay))

    def save_found_relay(self, origin: str, relay: str) -> Future[None]:
        """Save the relay that was found at an origin instead of the pinned one."""
        return self._put_fact(f"{_FOUND}{origin}", relay)

    def save_epoch(self, relay: Did, epoch: Epoch) -> Future[None]:
        """Save the epoch of the inbox at a relay."""
        return self._database.run_logged(
            statement("REPLACE INTO epochs VALUES (?, ?)", relay, epoch)
        )

    def save_record(self, record: str) -> Future[None]:
        """Save the newest own record."""
        return self._put_fact("record", record)

    def _put_fact(self, name: str, value: str) -> Future[None]:
        return self._database.run_logged(statement("REPLACE INTO facts VALUES (?, ?)", name, value))

    # ------------------------------------------------------------ sent

    def add_outgoing(self, envelope: SignedEnvelope) -> asyncio.Future[None]:
        """Add an envelope to the outbox; it may be submitted once this is done."""
        return self._database.call(
            statement(
                "INSERT INTO outbox (eid, id, recipient, expires_at, wire) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT DO NOTHING",
                *(envelope.eid, envelope.id, envelope.to, envelope.expires_at, envelope.wire),
            )
        )

    def withdraw_outgoing(self, eid: Eid) -> asyncio.Future[None]:
        """Remove an envelope that was not submitted."""
        return self._database.call(statement("DELETE FROM outbox WHERE eid = ?", eid))

    def remove_outgoing(self, eid: Eid) -> asyncio.Future[None]:
        """Remove an envelope whose sender has the result, and the outcome of an earlier try."""
        return self._database.call(partial(_remove_outgoing, eid))

    def save_outcome(
        self, envelope: SignedEnvelope, answer: Sent | AgentError
    ) -> asyncio.Future[None]:
        """Move an envelope from the outbox to the outcomes, in one commit.

        A saved receipt stays: no later error makes it untrue.
        """
        return self._database.call(partial(_save_outcome, envelope, answer))

    def outgoing(self) -> asyncio.Future[list[SignedEnvelope]]:
        """Read the outbox, in the order in which it was filled."""
        return self._database.call(_outgoing)

    def next_outcome(self, after: int) -> asyncio.Future[OutcomeRow | None]:
        """Read the first outcome behind a position."""
        return self._database.call(partial(_next_outcome, after))

    def delete_outcome(self, place: int) -> asyncio.Future[int]:
        """Delete an outcome that the program has processed; return 0 if it was not there."""
        return self._database.call(partial(_delete_outcome, place))

    def count_outcomes(self) -> asyncio.Future[int]:
        """Count the saved outcomes."""
        return self._database.call(_count_outcomes)

    # ------------------------------------------------------------ delivered

    def record_delivered(
        self, items: Iterable[tuple[Eid, int]]
    ) -> asyncio.Future[dict[Eid, SeenEnvelope]]:
        """Record envelopes (eid, expiry) before they are shown; return those recorded before."""
        if clock.monotonic() - self._swept_at > SWEEP_S:
            self._swept_at = clock.monotonic()
            self._database.run_logged(_sweep)
        return self._database.call(partial(_record_delivered, list(items)))

    def record_settled(
        self, eid: Eid, expires_at: int, refuse_code: str | None
    ) -> asyncio.Future[None]:
        """Record the program's ack or refusal; once this is done it is never shown again."""
        return self._database.call(
            statement(
                "INSERT INTO eids (eid, expires_at, is_done, refuse_code) VALUES (?, ?, 1, ?) "
                "ON CONFLICT (eid) DO UPDATE SET is_done = 1, refuse_code = excluded.refuse_code",
                *(eid, expires_at, refuse_code),
            )
        )

    def clear_refusal(self, eid: Eid) -> asyncio.Future[None]:
        """Record that a relay has made a refusal durable: a further delivery is acked."""
        return self._database.call(
            statement("UPDATE eids SET refuse_code = NULL WHERE eid = ?", eid)
        )

    def count_attempt(self, eid: Eid) -> asyncio.Future[int]:
        """Count a failure of the handler on an envelope; return the number of failures so far."""
        return self._database.call(partial(_count_attempt, eid))


# ---------------------------------------------------------------- in the thread


def _accept_relay(origin: str, relay: Did, connection: sqlite3.Connection) -> None:
    connection.execute("REPLACE INTO relays VALUES (?, ?)", (origin, relay))
    connection.execute("DELETE FROM facts WHERE name = ?", (f"{_FOUND}{origin}",))


def _load(connection: sqlite3.Connection) -> SavedState:
    facts = dict(connection.execute("SELECT name, value FROM facts"))
    return SavedState(
        relays=dict(connection.execute("SELECT origin, did FROM relays")),
        epochs=dict(connection.execute("SELECT relay, epoch FROM epochs")),
        record=facts.get("record"),
        found={
            name.removeprefix(_FOUND): value
            for name, value in facts.items()
            if name.startswith(_FOUND)
        },
    )


def _outgoing(connection: sqlite3.Connection) -> list[SignedEnvelope]:
    query = "SELECT eid, id, recipient, expires_at, wire FROM outbox ORDER BY place"
    return [
        SignedEnvelope(Eid(eid), MessageId(id_), Did(to), expires_at, wire)
        for eid, id_, to, expires_at, wire in connection.execute(query)
    ]


def _remove_outgoing(eid: Eid, connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM outbox WHERE eid = ?", (eid,))
    connection.execute("DELETE FROM outcomes WHERE eid = ?", (eid,))


def _save_outcome(
    envelope: SignedEnvelope, answer: Sent | AgentError, connection: sqlite3.Connection
) -> None:
    eid = envelope.eid
    connection.execute("DELETE FROM outbox WHERE eid = ?", (eid,))
    connection.execute("DELETE FROM outcomes WHERE eid = ? AND code IS NOT NULL", (eid,))
    if isinstance(answer, Sent):
        code, wire, fields = None, b"", asdict(answer)
    else:
        names = ("detail", "retry_after", "stored", "record")
        code, wire = str(answer.code), envelope.wire
        fields = {name: getattr(answer, name) for name in names}
    connection.execute(
        "INSERT INTO outcomes (eid, id, recipient, expires_at, wire, at, code, answer) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (
            *(eid, envelope.id, envelope.to, envelope.expires_at, wire),
            *(int(clock.now()), code, jose.dumps(fields).decode()),
        ),
    )


def _next_outcome(after: int, connection: sqlite3.Connection) -> OutcomeRow | None:
    row = connection.execute(
        "SELECT place, eid, id, recipient, expires_at, wire, at, code, answer FROM outcomes "
        "WHERE place > ? ORDER BY place LIMIT 1",
        (after,),
    ).fetchone()
    if row is None:
        return None
    place, eid, id_, to, expires_at, wire, at, code, answer = row
    envelope = SignedEnvelope(Eid(eid), MessageId(id_), Did(to), expires_at, wire)
    return OutcomeRow(place, envelope, at, code, answer)


def _delete_outcome(place: int, connection: sqlite3.Connection) -> int:
    return connection.execute("DELETE FROM outcomes WHERE place = ?", (place,)).rowcount


def _count_outcomes(connection: sqlite3.Connection) -> int:
    [count] = connection.execute("SELECT count(*) FROM outcomes").fetchone()
    return int(count)


def _record_delivered(
    items: list[tuple[Eid, int]], connection: sqlite3.Connection
) -> dict[Eid, SeenEnvelope]:
    seen: dict[Eid, SeenEnvelope] = {}
    for eid, expires_at in items:
        row = connection.execute(
            "SELECT is_done, refuse_code FROM eids WHERE eid = ?", (eid,)
        ).fetchone()
        if row is None:
            connection.execute(
                "INSERT INTO eids (eid, expires_at) VALUES (?, ?) ON CONFLICT DO NOTHING",
                (eid, expires_at),
            )
        else:
            seen[eid] = SeenEnvelope(bool(row[0]), row[1])
    return seen


def _count_attempt(eid: Eid, connection: sqlite3.Connection) -> int:
    connection.execute("UPDATE eids SET failures = failures + 1 WHERE eid = ?", (eid,))
    row = connection.execute("SELECT failures FROM eids WHERE eid = ?", (eid,)).fetchone()
    return int(row[0]) if row else 1


def _sweep(connection: sqlite3.Connection) -> None:
    peers.sweep(connection)
    before = int(clock.now()) - peers.RETENTION_AFTER_EXPIRY_S
    connection.execute("DELETE FROM eids WHERE expires_at < ?", (before,))
    [count] = connection.execute("SELECT count(*) FROM eids").fetchone()
    if count > MAX_EIDS:
        over = count - MAX_EIDS + MAX_EIDS // _SWEEP_SHARE
        connection.execute(
            "DELETE FROM eids WHERE eid IN (SELECT eid FROM eids ORDER BY expires_at LIMIT ?)",
            (over,),
        )
