"""Inboxes of the store in memory, made of :class:`relay.reference.inbox.Inbox`.

A method awaits nothing, so it is one atomic step and there is nothing to roll back.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from relay.directory.ports import (
    RecordRow,
)
from relay.forwarding.ports import (
    DueOutbox,
)
from relay.inbox.model.store_contract import BOUNCE_GRACE_S, REFUSALS
from relay.inbox.model.types import (
    KNOWN_BY,
    Accepted,
    AckRequest,
    AckResult,
    InboxRole,
    LiveSession,
    OpenedSession,
    Page,
    PendingBounce,
    RememberedId,
    RulesNow,
    RulesPatch,
)
from relay.inbox.ports import (
    BounceBatch,
    InboxHead,
    OpenRequest,
    OwnerPage,
)
from relay.protocol.envelope import StoredEnvelope
from relay.protocol.errors import (
    ErrorCode,
    Refusal,
)
from relay.protocol.ids import (
    AgentKey,
    Eid,
    Fence,
    NodeId,
    Seq,
)
from relay.protocol.receipts import MAX_BOUNCED, Durability
from relay.protocol.types import (
    DedupKey,
    Reason,
    Window,
)
from relay.reference.forwarding import Outboxes
from relay.reference.inbox import (
    Inbox,
)
from relay.reference.memory_records import MemoryRecords
from relay.reference.memory_state import MemoryState, new_epoch


class MemoryInboxes:
    """Inboxes and their sessions; see :class:`relay.inbox.ports.InboxStore`.

    Args:
        state: the inboxes.
        records: where agents live.
        bounces: learns what ended without an ack.
        outboxes: what waits for each peer.
    """

    durability: Durability = "memory"
    promised: Durability = "memory"

    def __init__(
        self,
        state: MemoryState,
        records: MemoryRecords,
        bounces: MemoryBounces,
        outboxes: Outboxes,
    ) -> None:
        self._state = state
        self._records = records
        self._bounces = bounces
        self._outboxes = outboxes
        self.full: str | None = None
        """The reason why new envelopes are refused; None: they are not."""

    async def append(self, items: Sequence[StoredEnvelope]) -> list[Accepted | Refusal]:
        """Store a batch, each item judged alone."""
        return [self._accept(item) for item in items]

    def _accept(self, item: StoredEnvelope) -> Accepted | Refusal:
        found = self._state.inboxes.get(item.inbox)
        row = self._records.rows.get(item.inbox)
        is_elsewhere = row is not None and not row.names_us
        if found is None and not (is_elsewhere and item.peer is not None):
            return self._elsewhere(row, found)
        inbox = found or Inbox(item.inbox, new_epoch(), InboxRole.FORWARDING)
        is_new = inbox.dedupe.find(item.hour, item.dedupe_key) is None
        if is_new and not inbox.home and item.peer is None:
            return self._elsewhere(row, inbox)
        if self.full is not None:
            # what was answered before is answered so again: nothing is kept anew
            known = inbox.answer(item._replace(via=None))
            return known or Refusal(ErrorCode.STORAGE_FULL, self.full)
        result = inbox.accept(
            item, self._state.limits, self._state.now(), clock_ok=self._state.clock_ok,
            outboxes=self._outboxes, make_room=self._state.make_room,
        )  # fmt: skip
        if isinstance(result, Accepted):
            self._state.inboxes[item.inbox] = inbox
        return self._elsewhere(row, inbox) if _is_moved(result) else result

    def _elsewhere(self, row: RecordRow | None, inbox: Inbox | None) -> Refusal:
        if inbox is not None and (row is None or row.names_us):
            # its agent is coming home, and a step of the hand-off says so in a moment
            return REFUSALS["migrating"]
        if row is None or row.names_us:
            return REFUSALS["unknown_inbox"]
        return Refusal(ErrorCode.MOVED, "the recipient's home is elsewhere", record=row.compact)

    async def open(self, request: OpenRequest) -> OpenedSession | Refusal:
        """Open a session, and the inbox if it may be made."""
        inbox = self._state.inboxes.get(request.inbox)
        if request.forwards:
            if inbox is None or inbox.home:
                return Refusal(ErrorCode.UNKNOWN_INBOX, "this agent has no outbox here")
            return inbox.open_session(request.node, request.window, until=request.until)
        refusal = self._locked_out(request, inbox)
        if refusal is not None:
            return refusal
        if inbox is None:
            inbox = self._state.inboxes[request.inbox] = Inbox(request.inbox, new_epoch())
            if request.inbox in self._records.former:
                # another home may have shown what comes, and has not said what
                inbox.doubt(self._state.now())
        return inbox.open_session(request.node, request.window, until=request.until)

    def _locked_out(self, request: OpenRequest, inbox: Inbox | None) -> Refusal | None:
        if inbox is not None and inbox.held:
            return REFUSALS["migrating"]
        row = self._records.rows.get(request.inbox)
        if row is not None and not row.names_us:
            return Refusal(ErrorCode.UNKNOWN_INBOX, "the newest record names other homes")
        if inbox is None and not request.create:
            return Refusal(ErrorCode.UNKNOWN_INBOX, "there is no such inbox here")
        if inbox is not None and not inbox.home:
            return REFUSALS["migrating"]
        return None

    async def close(self, inbox: AgentKey, fence: Fence, delivered_upto: Seq) -> bool:
        """End a session cleanly."""
        found = self._state.inboxes.get(inbox)
        return found is not None and found.close_session(fence, delivered_upto, self._state.now())

    async def read(
        self, inbox: AgentKey, fence: Fence, after: Seq, window: Window
    ) -> Page | Refusal:
        """Read on, past what expires on the way."""
        found = self._state.inboxes.get(inbox)
        if found is None:
            return _lost()
        while True:
            page = found.read(
                fence, after, window, self._state.now(), clock_ok=self._state.clock_ok
            )
            if isinstance(page, Refusal):
                return self._heal(found, fence, page)
            if not page.expired:
                return page
            self._finalize(found, page.expired, Reason.EXPIRED)

    async def fetch(self, inbox: AgentKey, session: LiveSession, window: Window) -> Page | Refusal:
        """Read from the cursor and write down how far."""
        found = self._state.inboxes.get(inbox)
        if found is None:
            return _lost()
        while True:
            page = found.take(session, window, self._state.now(), clock_ok=self._state.clock_ok)
            if isinstance(page, Refusal):
                return self._heal(found, session.fence, page)
            self._finalize(found, page.expired, Reason.EXPIRED)
            # what was taken with it is marked from now on: handed over now, never read again
            if page.items or not page.expired:
                return replace(page, expired=())

    def _heal(self, inbox: Inbox, fence: Fence, refusal: Refusal) -> Refusal:
        # a reader from before a reset is told the same, and there is nothing left to heal
        if refusal.code is ErrorCode.INBOX_RESET and fence == inbox.fence:
            inbox.reset(new_epoch(), int(self._state.now()) + BOUNCE_GRACE_S)
        return refusal

    async def ack(self, requests: Sequence[AckRequest]) -> list[AckResult | Refusal]:
        """Delete what was processed."""
        return [self._ack(request) for request in requests]

    def _ack(self, request: AckRequest) -> AckResult | Refusal:
        inbox = self._state.inboxes.get(request.inbox)
        if inbox is None:
            return _lost()
        step = inbox.take_ack if request.taken else inbox.ack
        done = step(request.ack, self._state.now())
        if isinstance(done, Refusal):
            return done
        acked, intents = done
        self._bounces.intend(intents)
        return acked

    async def finalize(self, inbox: AgentKey, seqs: Sequence[Seq], reason: Reason) -> None:
        """End entries that were never handed to the live session."""
        found = self._state.inboxes.get(inbox)
        if found is not None:
            self._finalize(found, seqs, reason)

    def _finalize(self, inbox: Inbox, seqs: Iterable[Seq], reason: Reason) -> None:
        self._bounces.intend(
            inbox.conclude(seqs, reason, self._state.now(), clock_ok=self._state.clock_ok)
        )

    async def status(
        self, inbox: AgentKey, questions: Sequence[DedupKey]
    ) -> list[RememberedId | None]:
        """What became of ids; of the eid, its first :data:`KNOWN_BY` characters."""
        found = self._state.inboxes.get(inbox)
        if found is None:
            return [None] * len(questions)
        return [
            answer._replace(eid=Eid(answer.eid[:KNOWN_BY])) if answer else None
            for answer in found.status(questions)
        ]

    async def heads(self, inboxes: Sequence[AgentKey]) -> list[InboxHead | None]:
        """Fence, epoch and head of many inboxes."""
        found = [self._state.inboxes.get(key) for key in inboxes]
        return [
            InboxHead(one.fence, one.epoch, one.last, not one.home or one.held) if one else None
            for one in found
        ]

    async def owners(self, after: str, limit: int) -> OwnerPage:
        """List owners of inboxes here."""
        place = int(after or 0)
        owners = list(itertools.islice(self._state.inboxes, place, place + limit))
        return OwnerPage(
            owners, str(place + limit) if len(self._state.inboxes) > place + limit else ""
        )


class MemoryRules:
    """Rules and contacts; see :class:`relay.inbox.ports.RuleStore`."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state

    async def change(self, inbox: AgentKey, fence: Fence, patch: RulesPatch) -> RulesNow | Refusal:
        """Change the rules of an inbox, by its session, or just read them."""
        found = self._state.inboxes.get(inbox)
        return _lost() if found is None else found.change_rules(fence, patch, self._state.limits)

    async def add_contacts(self, pairs: Sequence[tuple[AgentKey, AgentKey]]) -> list[bool]:
        """Note whom agents have written to."""
        for inbox, other in pairs:
            found = self._state.inboxes.get(inbox)
            if found is not None:
                found.rules.add_contacts(other, self._state.limits, self._state.now())
        return [inbox in self._state.inboxes for inbox, _ in pairs]


class MemoryExpiry:
    """Sweeps; see :class:`relay.inbox.ports.ExpiryStore`."""

    def __init__(self, state: MemoryState, bounces: MemoryBounces) -> None:
        self._state = state
        self._bounces = bounces

    async def sweep(self, node: NodeId, live_nodes: Collection[NodeId]) -> int:
        """End what expired, but nothing in flight."""
        if not self._state.clock_ok:
            return 0
        before = sum(len(inbox.live) for inbox in self._state.inboxes.values())
        for inbox in self._state.inboxes.values():
            self._bounces.intend(inbox.sweep(self._state.now(), {*live_nodes, node}))
        return before - sum(len(inbox.live) for inbox in self._state.inboxes.values())


@dataclass(slots=True)
class _SenderBounces:
    """Intents of one sender: those that wait, and the batch that is being delivered."""

    waiting: list[PendingBounce] = field(default_factory=list)
    frozen: BounceBatch | None = None


class MemoryBounces:
    """Bounces in frozen batches; see :class:`relay.inbox.ports.BounceStore`.

    Args:
        state: the clock.
    """

    def __init__(self, state: MemoryState) -> None:
        self._state = state
        self._senders: dict[AgentKey, _SenderBounces] = {}

    def intend(self, intents: Iterable[PendingBounce]) -> None:
        """Write down that senders are to be told."""
        for intent in intents:
            self._senders.setdefault(intent.sender, _SenderBounces()).waiting.append(intent)

    async def claim(self) -> list[BounceBatch]:
        """Batches that are due; one taken before and not finished comes again as it was."""
        batches = (self._batch(sender, bounces) for sender, bounces in self._senders.items())
        return [batch for batch in batches if batch is not None]

    def _batch(self, sender: AgentKey, bounces: _SenderBounces) -> BounceBatch | None:
        if bounces.frozen is None:
            now = self._state.now()
            bounces.waiting.sort(key=lambda intent: intent.due_at)
            due = [intent for intent in bounces.waiting if intent.due_at <= now][:MAX_BOUNCED]
            if due:
                bounces.waiting = bounces.waiting[len(due) :]
                text = "|".join([sender, str(int(now)), *(intent.eid for intent in due)])
                token = hashlib.sha256(text.encode()).digest()[:20]
                bounces.frozen = BounceBatch(sender, token, int(now), tuple(due))
        return bounces.frozen

    async def finalize(self, batch: BounceBatch) -> None:
        """Forget a batch that was delivered."""
        bounces = self._senders.get(batch.sender)
        if bounces is None or bounces.frozen is None or bounces.frozen.token != batch.token:
            return
        bounces.frozen = None
        if not bounces.waiting:
            del self._senders[batch.sender]


class MemoryOutboxes:
    """Inboxes that forward; see :class:`relay.forwarding.ports.OutboxStore`.

    Args:
        state: the inboxes.
        outboxes: what waits for each peer.
    """

    def __init__(self, state: MemoryState, outboxes: Outboxes) -> None:
        self._state = state
        self._outboxes = outboxes

    async def due(self, node: NodeId, *, limit: int, lease_s: float) -> list[DueOutbox]:
        """Return outboxes in which something waits and is due, each leased to ``node``."""
        del node
        now = self._state.now()
        due = [
            (box.away.due_at, key)
            for key, box in self._state.inboxes.items()
            if box.away.due_at is not None and box.away.due_at <= now
        ]
        found: list[DueOutbox] = []
        for _, key in sorted(due):
            box = self._state.inboxes[key]
            if len(found) < limit and box.lend(now, lease_s):
                found.append(DueOutbox(key, box.away.outbox.peer if box.away.outbox else None))
        return found

    async def defer(
        self,
        inbox: AgentKey,
        fence: Fence,
        wait_s: float,
        *,
        peer: AgentKey | None = None,
        closed: Refusal | None = None,
    ) -> bool:
        """Record how a forwarder leaves an inbox; return False if fenced off."""
        box = self._state.inboxes.get(inbox)
        outbox = None if peer is None else self._outboxes.of(peer)
        return box is not None and box.defer(fence, wait_s, self._state.now(), outbox, closed)

    async def totals(self) -> list[tuple[AgentKey, int, int]]:
        """Return (peer, envelopes, wire bytes) of all that waits for peers."""
        return self._outboxes.totals()


def _is_moved(result: Accepted | Refusal) -> bool:
    return isinstance(result, Refusal) and result.code is ErrorCode.MOVED


def _lost() -> Refusal:
    # a session that was opened, of an inbox that is gone: lost, which is not the same as empty
    return Refusal(ErrorCode.INBOX_RESET, "the store lost this inbox")
