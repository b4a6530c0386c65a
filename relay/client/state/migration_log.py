"""The latest migration of an agent in its state file: order, stage, inventory and report.

Entry point: :class:`MigrationLog`. Invariants: a stage is saved before its request is sent. So a
life after a crash continues with the same order and the same record, byte for byte. Nothing is
deleted at the end of a migration: its order's seq must not be used again.

::

    PREPARING ──▶ FREEZING ──▶ DIGEST ──▶ PUBLISHING ──▶ COPYING ──▶ DONE
        │             └───────────┴─── cancelled ──▶ CANCELLING ──┐
        └── the target refuses ───────────────────────────────────┴──▶ DROPPED

Example: an agent orders a move (PREPARING), the target gets ready, and FREEZING is saved. If the
process dies now, the next one reads FREEZING and asks the source to freeze under the same order.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import partial
from typing import Any, Final, Self

from relay.client.errors import make_error
from relay.client.state.database import Database, statement
from relay.protocol import jws as jose
from relay.protocol import migration_order
from relay.protocol.endpoint_record import Home
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import Did, Eid, Seq
from relay.protocol.migration_order import MigrationOrder
from relay.protocol.migration_statement import MigrationCounters
from relay.protocol.types import DedupKey, WaitingEnvelope

_STATE: Final = "move"
_REPORT: Final = "moved"
"""Names of facts."""


class MigrationStage(StrEnum):
    """The step that is under way; it is saved before the step begins."""

    PREPARING = "preparing"
    FREEZING = "freezing"
    DIGEST = "digest"
    PUBLISHING = "publishing"
    COPYING = "copying"
    DONE = "done"
    CANCELLING = "cancelling"
    DROPPED = "dropped"


_OVER: Final = frozenset({MigrationStage.DONE, MigrationStage.DROPPED})
_UNPUBLISHED: Final = frozenset({
    MigrationStage.PREPARING, MigrationStage.FREEZING,
    MigrationStage.DIGEST, MigrationStage.PUBLISHING,
})  # fmt: skip

_STATE_KEYS: Final = {
    "delivery_stopped_at": "left_at",
    "delivery_resumed_at": "arrived_at",
    "source_frozen": "is_held",
    "inventory_saved": "is_listed",
    "source_abandoned": "without_source",
    "source_statement": "source_said",
    "target_statement": "target_said",
}
_REPORT_KEYS: Final = {
    "initial": "was",
    "new_at_target": "kept",
    "duplicates": "dups",
    "inventory_count": "listed",
    "discrepancies": "complaints",
    "downtime_s": "without_delivery_s",
    "source_statement": "source_said",
    "target_statement": "target_said",
}
"""From a field to its key in JSON, where they differ: in state files and in ``--json`` output."""


@dataclass(frozen=True, slots=True)
class MigrationState:
    """A migration, as the state file holds it.

    Args:
        order: the signed order; it contains the record that will be published.
        stage: the step that is under way.
        began_at: Unix seconds.
        delivery_stopped_at: when the source stopped delivering; 0: not yet.
        delivery_resumed_at: when the target could deliver; 0: not yet.
        source_frozen: the source may have stopped delivering, under this order or the last one.
        inventory_saved: the inventory of the source is in the file.
        source_abandoned: the migration continues without the source.
        source_statement: the last signed statement of the source.
        target_statement: the last signed statement of the target.
    """

    order: str
    stage: MigrationStage
    began_at: float
    delivery_stopped_at: float = 0.0
    delivery_resumed_at: float = 0.0
    source_frozen: bool = False
    inventory_saved: bool = False
    source_abandoned: bool = False
    source_statement: str | None = None
    target_statement: str | None = None

    @property
    def parsed_order(self) -> MigrationOrder:
        """The order, parsed."""
        return migration_order.parse(self.order)

    @property
    def is_over(self) -> bool:
        """True if nothing is left to do."""
        return self.stage in _OVER

    @property
    def locks_record(self) -> bool:
        """True if the agent may sign and publish no record but the order's own."""
        return self.stage in _UNPUBLISHED

    @property
    def pauses_source(self) -> bool:
        """True if the agent must not have a session at the source."""
        return self.locks_record and self.source_frozen

    @property
    def downtime_s(self) -> float:
        """Seconds from the end of delivery at the source to its beginning at the target."""
        if not self.delivery_stopped_at:
            return 0.0
        return max(0.0, self.delivery_resumed_at - self.delivery_stopped_at)

    @property
    def handoffs(self) -> frozenset[str]:
        """Ids under which the source may hand over: the order's, or that of its record."""
        order = self.parsed_order
        return frozenset({order.id, order.record.version.handoff_id})

    def encode(self) -> str:
        """Return the state as JSON."""
        return _encode(asdict(self), _STATE_KEYS)

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read what :meth:`encode` returned.

        Raises:
            ValueError: it is something else.
        """
        values = _decode(text, _STATE_KEYS)
        state = cls(**{**values, "stage": MigrationStage(values["stage"])})
        migration_order.parse(state.order)
        return state


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """The result of a migration.

    Args:
        id: of the hand-off.
        source: the former home.
        target: the new home.
        initial: envelopes that waited when the source stopped delivering.
        late: envelopes that the source has accepted since.
        moved: envelopes that the target took over, by its signed receipts.
        acked: by the agent, at the source; only if the agent came back there.
        expired: ended so, with a bounce.
        refused: the target will never take them; ended with a bounce.
        corrupt: damaged at the source; ended with a bounce.
        waiting: still at the source, which continues to hand over. None: the source does not say.
        new_at_target: envelopes that the target received and did not have.
        duplicates: envelopes that the target received and had already.
        digest: b64url SHA-256 over the sorted eids of the source's inventory; None: not known.
        inventory_count: length of that inventory.
        missing: eids of the inventory that are neither at the target nor ended.
        discrepancies: contradictions, a sentence each; () = there is none.
        seconds: from the order to this report.
        downtime_s: from the end of delivery at the source to its beginning at the target.
        source_statement: the source's signed statement
            (:func:`relay.protocol.migration_statement.verify`).
        target_statement: the target's.
    """

    id: str
    source: Home
    target: Home
    initial: int = 0
    late: int = 0
    moved: int = 0
    acked: int = 0
    expired: int = 0
    refused: int = 0
    corrupt: int = 0
    waiting: int | None = None
    new_at_target: int = 0
    duplicates: int = 0
    digest: str | None = None
    inventory_count: int = 0
    missing: tuple[Eid, ...] = ()
    discrepancies: tuple[str, ...] = ()
    seconds: float = 0.0
    downtime_s: float = 0.0
    source_statement: str | None = None
    target_statement: str | None = None

    @property
    def is_complete(self) -> bool:
        """True if every envelope is at the target or has ended, and all statements agree."""
        return self.waiting == 0 and not self.missing and not self.discrepancies

    def with_counts(
        self, source: MigrationCounters | None, target: MigrationCounters | None
    ) -> Self:
        """Return the report with the counts that the two relays state."""
        counts = source or MigrationCounters()
        report = replace(
            self,
            initial=counts.was,
            late=counts.late,
            moved=counts.moved,
            acked=counts.acked,
            expired=counts.expired,
            refused=counts.refused,
            corrupt=counts.corrupt,
            waiting=None if source is None else source.waiting,
        )
        if target is None:
            return report
        return replace(report, new_at_target=target.kept, duplicates=target.dups)

    def to_json(self) -> dict[str, Any]:
        """Return the report under the keys of ``relay migrate --json``."""
        return _renamed(asdict(self), _REPORT_KEYS)

    def encode(self) -> str:
        """Return the report as JSON."""
        return jose.dumps(self.to_json()).decode()

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read what :meth:`encode` returned."""
        values = _decode(text, _REPORT_KEYS)
        lists = {name: tuple(values[name]) for name in ("missing", "discrepancies")}
        homes = {name: Home(**values[name]) for name in ("source", "target")}
        return cls(**{**values, **lists, **homes})


@dataclass(slots=True)
class MigrationLog:
    """The latest migration of one agent, in memory and in its file.

    Args:
        database: the file; None: the log ends with this process.
        state: the latest migration.
        report: its result, once it is over.
    """

    database: Database | None = None
    state: MigrationState | None = None
    report: MigrationReport | None = None
    _inventory: list[WaitingEnvelope] = field(default_factory=list)

    @property
    def pending(self) -> MigrationState | None:
        """The migration that is under way."""
        return self.state if self.state is not None and not self.state.is_over else None

    @property
    def locks_record(self) -> bool:
        """True if the agent may sign and publish no record but the order's own."""
        return self.state is not None and self.state.locks_record

    @property
    def order_seq(self) -> int:
        """The seq of the latest order; 0 without one."""
        return self.state.parsed_order.seq if self.state is not None else 0

    @property
    def record_seq(self) -> int:
        """The seq of the record in the latest order, which may never be published."""
        return self.state.parsed_order.record.seq if self.state is not None else 0

    def is_paused_at(self, relay: Did | None, url: str) -> bool:
        """Return True if the agent must have no session at a relay now.

        Args:
            relay: its DID; None: not known yet.
            url: its origin.
        """
        if self.pending is None or not self.pending.pauses_source:
            return False
        source = self.pending.parsed_order.source
        return relay == source.did or (relay is None and url == source.url)

    def ensure_record_unlocked(self) -> None:
        """Refuse to sign another record while one waits to be published.

        Raises:
            MigratingError: a migration locks the record.
        """
        if self.locks_record:
            detail = "this agent changes relays just now: finish that (relay migrate) or cancel it"
            raise make_error(ErrorCode.MIGRATING, detail)

    async def save(self, state: MigrationState) -> None:
        """Save a migration; a new order deletes the inventory and the report of the last one.

        Raises:
            AgentError: the file cannot be written.
        """
        is_new = self.state is None or self.state.order != state.order
        if self.database is not None:
            await self.database.call(partial(_save, state.encode(), is_new))
        if is_new:
            self._inventory, self.report = [], None
        self.state = state

    async def save_report(self, report: MigrationReport) -> None:
        """Save the result.

        Raises:
            AgentError: the file cannot be written.
        """
        if self.database is not None:
            await self.database.call(
                statement("REPLACE INTO facts VALUES (?, ?)", _REPORT, report.encode())
            )
        self.report = report

    async def save_inventory(self, items: Sequence[WaitingEnvelope]) -> None:
        """Save all that waited at the source; it replaces the saved inventory.

        Raises:
            AgentError: the file cannot be written.
        """
        if self.database is not None:
            await self.database.call(partial(_save_inventory, list(items)))
        else:
            self._inventory = list(items)

    async def inventory(self) -> list[WaitingEnvelope]:
        """Read all that waited at the source, in the order of its seqs.

        Raises:
            AgentError: the file cannot be read.
        """
        if self.database is not None:
            return await self.database.call(_load_inventory)
        return list(self._inventory)


def load(database: Database) -> MigrationLog:
    """Read the log of a file; blocks.

    Raises:
        AgentError: ``corrupt``: it cannot be parsed.
    """
    try:
        state, report = database.run(_load).result()
        return MigrationLog(
            database,
            MigrationState.decode(state) if state else None,
            MigrationReport.decode(report) if report else None,
        )
    except (ValueError, TypeError, KeyError) as exc:
        raise make_error(ErrorCode.CORRUPT, f"the migration in {database.path}: {exc}") from exc


def _renamed(values: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    return {keys.get(name, name): value for name, value in values.items()}


def _encode(values: Mapping[str, Any], keys: Mapping[str, str]) -> str:
    return jose.dumps(_renamed(values, keys)).decode()


def _decode(text: str, keys: Mapping[str, str]) -> dict[str, Any]:
    return _renamed(jose.loads_own(text.encode()), {key: name for name, key in keys.items()})


# ---------------------------------------------------------------- in the thread


def _load(connection: sqlite3.Connection) -> tuple[str | None, str | None]:
    query = "SELECT name, value FROM facts WHERE name IN (?, ?)"
    facts = dict(connection.execute(query, (_STATE, _REPORT)))
    return facts.get(_STATE), facts.get(_REPORT)


def _save(state: str, is_new: bool, connection: sqlite3.Connection) -> None:  # noqa: FBT001  by partial
    connection.execute("REPLACE INTO facts VALUES (?, ?)", (_STATE, state))
    if is_new:
        connection.execute("DELETE FROM waited")
        connection.execute("DELETE FROM facts WHERE name = ?", (_REPORT,))


def _save_inventory(items: list[WaitingEnvelope], connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM waited")
    rows = [
        (one.eid, one.seq, one.dedup_key.hour, one.dedup_key.dedupe_key, one.size, one.expires_at)
        for one in items
    ]
    connection.executemany("REPLACE INTO waited VALUES (?, ?, ?, ?, ?, ?)", rows)


def _load_inventory(connection: sqlite3.Connection) -> list[WaitingEnvelope]:
    query = "SELECT eid, seq, hour, key, size, expires_at FROM waited ORDER BY seq"
    return [
        WaitingEnvelope(Seq(seq), Eid(eid), DedupKey(key, hour), size, expires_at)
        for eid, seq, hour, key, size, expires_at in connection.execute(query)
    ]
