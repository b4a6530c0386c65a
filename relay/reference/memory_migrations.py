"""Migrations of the store in memory: :mod:`relay.reference.handoff` says what a step does."""

from __future__ import annotations

from dataclasses import replace

from relay.directory.ports import (
    RecordRow,
)
from relay.inbox.model.store_contract import max_imported_ids
from relay.inbox.model.types import MaybeSeenIds
from relay.migration.ports import (
    MigrationChange,
    MigrationRow,
)
from relay.protocol.endpoint_record import RecordVersion
from relay.protocol.ids import (
    AgentKey,
    Seq,
)
from relay.protocol.types import (
    MovedRules,
    WaitingEnvelope,
)
from relay.reference import handoff as inbox_handoff
from relay.reference.inbox import Inbox
from relay.reference.memory_records import MemoryRecords
from relay.reference.memory_state import MemoryState, new_epoch


class MemoryMigrations:
    """State of migrations; see :class:`relay.migration.ports.MigrationStore`.

    Args:
        state: the inboxes.
        records: the records that steps depend on.
    """

    def __init__(self, state: MemoryState, records: MemoryRecords) -> None:
        self._state = state
        self._records = records

    # ------------------------------------------------------------ steps

    async def load(self, inbox: AgentKey) -> MigrationRow:
        """All that a step is judged by."""
        return self._row(inbox)

    def _row(self, inbox: AgentKey) -> MigrationRow:
        box = self._state.inboxes.get(inbox)
        row = MigrationRow(
            record=self._records.rows.get(inbox),
            former=self._records.former.get(inbox),
            evidence=self._records.fork_proofs.get(inbox),
        )
        if box is None:
            return row
        return replace(
            row,
            text=box.move.text,
            role=box.holding,
            has_left=box.away.left_fence > 0,
            counters=inbox_handoff.tally(box),
        )

    async def change(
        self, inbox: AgentKey, expected: MigrationRow, change: MigrationChange
    ) -> bool:
        """Take a step, if nobody else took one meanwhile and no newer record came."""
        now = self._row(inbox)
        if expected.text != now.text or _version(expected.record) != _version(now.record):
            return False
        box = self._state.inboxes.get(inbox)
        if box is None:
            box = self._state.inboxes[inbox] = Inbox(inbox, new_epoch(), change.role)
        is_other = change.ends_session or box.holding is not change.role
        is_news = is_other or (change.has_work and not box.move.has_work)
        inbox_handoff.hold(box, change.role, ends_session=change.ends_session)
        if change.marks_present:
            inbox_handoff.mark_present(box)
        inbox_handoff.learn_floor(box, change.dedup_horizon)
        spare = self._state.dedupe_total - sum(
            len(one.dedupe) for one in self._state.inboxes.values()
        )
        max_ids = min(max_imported_ids(self._state.limits), len(box.dedupe) + spare)
        ids = len(box.dedupe)
        inbox_handoff.learn_doubts(box, change.maybe_seen, max_ids)
        self._state.max_ids += len(box.dedupe) - ids
        if change.is_new:
            inbox_handoff.begin_tally(box)
        box.move.text, box.move.is_open = change.text, change.is_open
        inbox_handoff.plan(box, self._state.now(), has_work=change.has_work, is_news=is_news)
        return True

    # ------------------------------------------------------------ questions

    async def list_open(self) -> list[tuple[AgentKey, str]]:
        """All that are open, with their texts."""
        return [
            (key, box.move.text) for key, box in self._state.inboxes.items() if box.move.is_open
        ]

    async def waiting(self, inbox: AgentKey, after: Seq, limit: int) -> list[WaitingEnvelope]:
        """What waits behind ``after``, in seq order."""
        box = self._state.inboxes.get(inbox)
        return inbox_handoff.waiting(box, after, limit) if box else []

    async def maybe_seen_ids(self, inbox: AgentKey, after: str, limit: int) -> MaybeSeenIds:
        """Ids that its agent may have seen; ``after`` is the last one that was given."""
        box = self._state.inboxes.get(inbox)
        if box is None:
            return MaybeSeenIds(b"", "", -1)
        later = [one for one in inbox_handoff.doubts(box) if not after or one.hex() < after]
        found = later[:limit]
        last = found[-1].hex() if len(later) > limit else ""
        return MaybeSeenIds(b"".join(found), last, inbox_handoff.floor(box))

    async def known(self, inbox: AgentKey) -> MovedRules:
        """Whom the agent takes envelopes from."""
        box = self._state.inboxes.get(inbox)
        return box.rules.known() if box else MovedRules()

    async def add_known(self, inbox: AgentKey, known: MovedRules) -> None:
        """Add whom the agent took envelopes from elsewhere."""
        box = self._state.inboxes.get(inbox)
        if box is not None:
            box.rules.learn(known, self._state.limits, self._state.now())


def _version(row: RecordRow | None) -> RecordVersion | None:
    return row.version if row else None
