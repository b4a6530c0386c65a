"""Hand-offs of the store in memory: what they do is :mod:`relay.reference.handoff`.

Rules of the file: those of ``reference/memory_store.py``, of which it is a part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from relay.clock import entropy
from relay.directory.ports import (
    DirectoryLimits,
    RecordRow,
)
from relay.inbox.model.store_contract import max_imported_ids
from relay.inbox.model.types import (
    InboxLimits,
    MaybeSeenIds,
)
from relay.migration.ports import (
    MigrationChange,
    MigrationRow,
)
from relay.protocol.endpoint_record import RecordVersion
from relay.protocol.ids import (
    AgentKey,
    Epoch,
    Seq,
    Timestamp,
)
from relay.protocol.jws import b64encode
from relay.protocol.types import (
    MovedRules,
    WaitingEnvelope,
)
from relay.reference import handoff as inbox_handoff
from relay.reference.inbox import Inbox
from relay.reference.memory_mesh import MemoryDirectory


class MemoryHandoffs(MemoryDirectory):
    """Inboxes that change relays, and what a record means for an inbox.

    Args:
        limits: quotas of each inbox.
        now: the store's clock.
        dedupe_total: ids remembered over all inboxes.
        directory: how many records of others are kept.
    """

    def __init__(
        self,
        limits: InboxLimits,
        now: Callable[[], Timestamp],
        dedupe_total: int,
        directory: DirectoryLimits,
    ) -> None:
        MemoryDirectory.__init__(self, now, directory)
        self._limits = limits
        self._now = now
        self._dedupe_total = dedupe_total
        self._inboxes: dict[AgentKey, Inbox] = {}
        self._ids_at_most = 0

    # ------------------------------------------------------------ what a record means

    def has_inbox(self, owner: AgentKey) -> bool:
        """Whether an inbox of this agent is here."""
        return owner in self._inboxes

    def set_home(self, owner: AgentKey, *, home: bool) -> bool:
        """A newer record; whether that is news for an inbox here that changes relays, or may."""
        inbox = self._inboxes.get(owner)
        if inbox is None:
            return False
        is_news = bool(inbox.move.text) or inbox.home is not home
        if inbox.move.text:
            # a step of the hand-off decides what becomes of it
            inbox.call_mover(self._now())
        else:
            inbox.set_home(home=home, now=self._now())
        return is_news

    def is_forked(self, owner: AgentKey) -> bool:
        """Two records of one seq came; whether that concerns an inbox here."""
        inbox = self._inboxes.get(owner)
        if inbox is not None and inbox.move.text:
            inbox.call_mover(self._now())
        return inbox is not None

    # ------------------------------------------------------------ steps

    async def handoff(self, inbox: AgentKey) -> MigrationRow:
        """All that a step is judged by."""
        return self._row(inbox)

    def _row(self, inbox: AgentKey) -> MigrationRow:
        box = self._inboxes.get(inbox)
        row = MigrationRow(
            record=self._records.get(inbox),
            former=self._former.get(inbox),
            evidence=self._evidence.get(inbox),
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

    async def change_handoff(
        self, inbox: AgentKey, seen: MigrationRow, change: MigrationChange
    ) -> bool:
        """Take a step, if nobody else took one meanwhile and no newer record came."""
        now = self._row(inbox)
        if seen.text != now.text or _version(seen.record) != _version(now.record):
            return False
        box = self._inboxes.get(inbox)
        if box is None:
            box = self._inboxes[inbox] = Inbox(inbox, new_epoch(), change.role)
        is_other = change.ends_session or box.holding is not change.role
        is_news = is_other or (change.has_work and not box.move.has_work)
        inbox_handoff.hold(box, change.role, ends_session=change.ends_session)
        if change.marks_present:
            inbox_handoff.mark_present(box)
        inbox_handoff.learn_floor(box, change.dedup_horizon)
        spare = self._dedupe_total - sum(len(one.dedupe) for one in self._inboxes.values())
        most = min(max_imported_ids(self._limits), len(box.dedupe) + spare)
        ids = len(box.dedupe)
        inbox_handoff.learn_doubts(box, change.maybe_seen, most)
        self._ids_at_most += len(box.dedupe) - ids
        if change.is_new:
            inbox_handoff.begin_tally(box)
        box.move.text, box.move.is_open = change.text, change.is_open
        inbox_handoff.plan(box, self._now(), has_work=change.has_work, is_news=is_news)
        return True

    # ------------------------------------------------------------ questions

    async def handoffs(self) -> list[tuple[AgentKey, str]]:
        """All that are open, with their texts."""
        return [(key, box.move.text) for key, box in self._inboxes.items() if box.move.is_open]

    async def waiting(self, inbox: AgentKey, after: Seq, limit: int) -> list[WaitingEnvelope]:
        """What waits behind ``after``, in seq order."""
        box = self._inboxes.get(inbox)
        return inbox_handoff.waiting(box, after, limit) if box else []

    async def maybe_seen_ids(self, inbox: AgentKey, after: str, limit: int) -> MaybeSeenIds:
        """Ids that its agent may have seen; ``after`` is the last one that was given."""
        box = self._inboxes.get(inbox)
        if box is None:
            return MaybeSeenIds(b"", "", -1)
        later = [one for one in inbox_handoff.doubts(box) if not after or one.hex() < after]
        found = later[:limit]
        last = found[-1].hex() if len(later) > limit else ""
        return MaybeSeenIds(b"".join(found), last, inbox_handoff.floor(box))

    async def known(self, inbox: AgentKey) -> MovedRules:
        """Whom the agent takes envelopes from."""
        box = self._inboxes.get(inbox)
        return box.rules.known() if box else MovedRules()

    async def learn_known(self, inbox: AgentKey, known: MovedRules) -> None:
        """Add whom the agent took envelopes from elsewhere."""
        box = self._inboxes.get(inbox)
        if box is not None:
            box.rules.learn(known, self._limits, self._now())


def new_epoch() -> Epoch:
    """Names a history of an inbox."""
    return Epoch(b64encode(entropy(12)))


def _version(row: RecordRow | None) -> RecordVersion | None:
    return row.version if row else None
