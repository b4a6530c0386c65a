"""The store in this process's memory, made of :class:`relay.reference.inbox.Inbox`.

Rules of the file: a method runs without awaiting anything, so it is one atomic step and there is
nothing to roll back; what it promises ends with the process, hence durability ``memory``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Final

from relay import clock
from relay.directory.ports import (
    DirectoryLimits,
    RecordRow,
)
from relay.forwarding.ports import (
    DueOutbox,
)
from relay.health import Health
from relay.inbox.model.store_contract import REFUSALS
from relay.inbox.model.types import (
    KNOWN_BY,
    Accepted,
    AckRequest,
    AckResult,
    InboxLimits,
    InboxRole,
    LiveSession,
    OpenedSession,
    OutboxLimits,
    Page,
    RememberedId,
    RulesNow,
    RulesPatch,
)
from relay.inbox.ports import (
    BounceBatch,
    InboxesPage,
    InboxHead,
    OnWake,
    OpenRequest,
)
from relay.protocol.envelope import StoredEnvelope
from relay.protocol.errors import (
    ErrorCode,
    Refusal,
)
from relay.protocol.ids import (
    AgentKey,
    Did,
    Eid,
    Fence,
    NodeId,
    Seq,
    Timestamp,
)
from relay.protocol.receipts import Durability
from relay.protocol.types import (
    DedupKey,
    Reason,
    Window,
)
from relay.reference.forwarding import (
    Outboxes,
)
from relay.reference.inbox import (
    BOUNCE_GRACE_S,
    Inbox,
)
from relay.reference.memory_bounces import MemoryBounces
from relay.reference.memory_handoffs import (
    MemoryHandoffs,
    new_epoch,
)
from relay.reference.memory_mesh import MemoryPeers
from relay.reference.memory_outbox import MemoryOutboxes

DEDUPE_TOTAL: Final = 1_000_000
"""Ids remembered over all inboxes, unless the caller knows better (R3: 20 % of memory)."""


class MemoryStore(MemoryHandoffs, MemoryPeers):
    """All ports of a store, for one process.

    Args:
        limits: quotas of each inbox.
        now: the clock that expiry goes by.
        dedupe_total: ids remembered over all inboxes; above it, the inbox that remembers most
            forgets its oldest hour.
        directory: how many records of others are kept.
        outbox: bounds of what waits for one peer.
    """

    durability: Durability = "memory"
    promised: Durability = "memory"

    def __init__(
        self,
        limits: InboxLimits,
        now: Callable[[], Timestamp],
        *,
        dedupe_total: int = DEDUPE_TOTAL,
        directory: DirectoryLimits | None = None,
        outbox: OutboxLimits = OutboxLimits(),
    ) -> None:
        MemoryHandoffs.__init__(self, limits, now, dedupe_total, directory or DirectoryLimits())
        MemoryPeers.__init__(self)
        self._outboxes = MemoryOutboxes(self._inboxes, Outboxes(outbox), now)
        self._bounces = MemoryBounces(now)
        self._values: dict[bytes, tuple[bytes, float]] = {}
        self._nodes: dict[NodeId, float] = {}
        self.health = Health()
        self._clock_ok = True
        self._full: str | None = None

    # ------------------------------------------------------------ lifetime

    async def start(self, *, relay: Did, node: NodeId) -> None:
        """Nothing to connect to; one process is one relay."""

    async def run(self) -> None:
        """Nothing to keep going."""

    async def stop(self) -> None:
        """Nothing to close; the data stay until the object goes."""

    def trust_clock(self, *, ok: bool) -> None:
        """Whether anything may expire from now on."""
        self._clock_ok = ok

    def refuse_appends(self, reason: str | None) -> None:
        """Answer new envelopes with ``storage_full``; None takes them again."""
        self._full = reason

    def on_wake(self, callback: OnWake) -> None:
        """No other node, so no news from one."""

    def on_renewal(self, callback: Callable[[], None]) -> None:
        """It never goes back in time."""

    # ------------------------------------------------------------ inboxes

    async def append(self, items: Sequence[StoredEnvelope]) -> list[Accepted | Refusal]:
        """Store a batch, each item judged alone."""
        return [self._accept(item) for item in items]

    def _accept(self, item: StoredEnvelope) -> Accepted | Refusal:
        found = self._inboxes.get(item.inbox)
        row = self._records.get(item.inbox)
        is_elsewhere = row is not None and not row.names_us
        if found is None and not (is_elsewhere and item.peer is not None):
            return self._elsewhere(row, found)
        inbox = found or Inbox(item.inbox, new_epoch(), InboxRole.FORWARDING)
        is_new = inbox.dedupe.find(item.hour, item.dedupe_key) is None
        if is_new and not inbox.home and item.peer is None:
            return self._elsewhere(row, inbox)
        if self._full is not None:
            # what was answered before is answered so again: nothing is kept anew
            known = inbox.answer(item._replace(via=None))
            return known or Refusal(ErrorCode.STORAGE_FULL, self._full)
        result = inbox.accept(
            item, self._limits, self._now(), clock_ok=self._clock_ok,
            outboxes=self._outboxes.outboxes, make_room=self._make_room,
        )  # fmt: skip
        if isinstance(result, Accepted):
            self._inboxes[item.inbox] = inbox
        return self._elsewhere(row, inbox) if _is_moved(result) else result

    def _elsewhere(self, row: RecordRow | None, inbox: Inbox | None) -> Refusal:
        if inbox is not None and (row is None or row.names_us):
            # its agent is coming home, and a step of the hand-off says so in a moment
            return REFUSALS["migrating"]
        if row is None or row.names_us:
            return REFUSALS["unknown_inbox"]
        return Refusal(ErrorCode.MOVED, "the recipient's home is elsewhere", record=row.compact)

    def _make_room(self, is_stranger: bool) -> bool:  # noqa: FBT001  a fact, no switch
        """Keep within the budget of all inboxes together (R3); strangers fill three quarters."""
        most = self._dedupe_total * 3 // 4 if is_stranger else self._dedupe_total
        if self._ids_at_most < most:
            self._ids_at_most += 1
            return True
        sizes = {key: len(inbox.dedupe) for key, inbox in self._inboxes.items()}
        while sum(sizes.values()) >= most:
            able = [key for key in sizes if self._inboxes[key].dedupe.can_shed()]
            if not able:
                return False
            largest = max(able, key=lambda key: (sizes[key], key))
            sizes[largest] -= self._inboxes[largest].dedupe.shed()
        self._ids_at_most = sum(sizes.values()) + 1
        return True

    async def change_rules(
        self, inbox: AgentKey, fence: Fence, patch: RulesPatch
    ) -> RulesNow | Refusal:
        """Change the rules of an inbox, by its session, or just read them."""
        found = self._inboxes.get(inbox)
        return _lost() if found is None else found.change_rules(fence, patch, self._limits)

    async def add_contacts(self, pairs: Sequence[tuple[AgentKey, AgentKey]]) -> list[bool]:
        """Note whom agents have written to."""
        for inbox, other in pairs:
            found = self._inboxes.get(inbox)
            if found is not None:
                found.rules.add_contacts(other, self._limits, self._now())
        return [inbox in self._inboxes for inbox, _ in pairs]

    async def open(self, request: OpenRequest) -> OpenedSession | Refusal:
        """Open a session, and the inbox if it may be made."""
        inbox = self._inboxes.get(request.inbox)
        if request.forwards:
            if inbox is None or inbox.home:
                return Refusal(ErrorCode.UNKNOWN_INBOX, "this agent has no outbox here")
            return inbox.open_session(request.node, request.window, until=request.until)
        no = self._locked_out(request, inbox)
        if no is not None:
            return no
        if inbox is None:
            inbox = self._inboxes[request.inbox] = Inbox(request.inbox, new_epoch())
            if request.inbox in self._former:
                # another home may have shown what comes, and has not said what
                inbox.doubt(self._now())
        return inbox.open_session(request.node, request.window, until=request.until)

    def _locked_out(self, request: OpenRequest, inbox: Inbox | None) -> Refusal | None:
        if inbox is not None and inbox.held:
            return REFUSALS["migrating"]
        row = self._records.get(request.inbox)
        if row is not None and not row.names_us:
            return Refusal(ErrorCode.UNKNOWN_INBOX, "the newest record names other homes")
        if inbox is None and not request.create:
            return Refusal(ErrorCode.UNKNOWN_INBOX, "there is no such inbox here")
        if inbox is not None and not inbox.home:
            return REFUSALS["migrating"]
        return None

    async def close(self, inbox: AgentKey, fence: Fence, delivered_upto: Seq) -> bool:
        """End a session cleanly."""
        found = self._inboxes.get(inbox)
        return found is not None and found.close_session(fence, delivered_upto, self._now())

    async def read(
        self, inbox: AgentKey, fence: Fence, after: Seq, window: Window
    ) -> Page | Refusal:
        """Read on, past what expires on the way."""
        found = self._inboxes.get(inbox)
        if found is None:
            return _lost()
        while True:
            page = found.read(fence, after, window, self._now(), clock_ok=self._clock_ok)
            if isinstance(page, Refusal):
                return self._heal(found, fence, page)
            if not page.expired:
                return page
            self._conclude(found, page.expired, Reason.EXPIRED)

    async def take(self, inbox: AgentKey, session: LiveSession, window: Window) -> Page | Refusal:
        """Read from the cursor and write down how far."""
        found = self._inboxes.get(inbox)
        if found is None:
            return _lost()
        while True:
            page = found.take(session, window, self._now(), clock_ok=self._clock_ok)
            if isinstance(page, Refusal):
                return self._heal(found, session.fence, page)
            self._conclude(found, page.expired, Reason.EXPIRED)
            # what was taken with it is marked from now on: handed over now, never read again
            if page.items or not page.expired:
                return replace(page, expired=())

    def _heal(self, inbox: Inbox, fence: Fence, refusal: Refusal) -> Refusal:
        # a reader from before a reset is told the same, and there is nothing left to heal
        if refusal.code is ErrorCode.INBOX_RESET and fence == inbox.fence:
            inbox.reset(new_epoch(), int(self._now()) + BOUNCE_GRACE_S)
        return refusal

    async def ack(self, requests: Sequence[AckRequest]) -> list[AckResult | Refusal]:
        """Delete what was processed."""
        return [self._ack(request) for request in requests]

    def _ack(self, request: AckRequest) -> AckResult | Refusal:
        inbox = self._inboxes.get(request.inbox)
        if inbox is None:
            return _lost()
        step = inbox.take_ack if request.taken else inbox.ack
        done = step(request.ack, self._now())
        if isinstance(done, Refusal):
            return done
        acked, intents = done
        self._bounces.intend(intents)
        return acked

    async def conclude(self, inbox: AgentKey, seqs: Sequence[Seq], reason: Reason) -> None:
        """End entries that were never handed to the live session."""
        found = self._inboxes.get(inbox)
        if found is not None:
            self._conclude(found, seqs, reason)

    def _conclude(self, inbox: Inbox, seqs: Iterable[Seq], reason: Reason) -> None:
        self._bounces.intend(inbox.conclude(seqs, reason, self._now(), clock_ok=self._clock_ok))

    async def status(
        self, inbox: AgentKey, questions: Sequence[DedupKey]
    ) -> list[RememberedId | None]:
        """What became of ids; of the eid, its first :data:`KNOWN_BY` characters."""
        found = self._inboxes.get(inbox)
        if found is None:
            return [None] * len(questions)
        return [
            answer._replace(eid=Eid(answer.eid[:KNOWN_BY])) if answer else None
            for answer in found.status(questions)
        ]

    async def heads(self, inboxes: Sequence[AgentKey]) -> list[InboxHead | None]:
        """Fence, epoch and head of many inboxes."""
        found = [self._inboxes.get(key) for key in inboxes]
        return [
            InboxHead(one.fence, one.epoch, one.last, not one.home or one.held) if one else None
            for one in found
        ]

    async def inboxes(self, after: str, limit: int) -> InboxesPage:
        """Whose inboxes are here."""
        place = int(after or 0)
        owners = list(itertools.islice(self._inboxes, place, place + limit))
        return InboxesPage(owners, str(place + limit) if len(self._inboxes) > place + limit else "")

    async def sweep(self, node: NodeId, live_nodes: Collection[NodeId]) -> int:
        """End what expired, but nothing in flight."""
        if not self._clock_ok:
            return 0
        before = sum(len(inbox.live) for inbox in self._inboxes.values())
        for inbox in self._inboxes.values():
            self._bounces.intend(inbox.sweep(self._now(), {*live_nodes, node}))
        return before - sum(len(inbox.live) for inbox in self._inboxes.values())

    # ------------------------------------------------------------ outboxes

    async def due_outboxes(self, node: NodeId, *, most: int, lease_s: float) -> list[DueOutbox]:
        """Outboxes in which something waits and is due, each lent for ``lease_s``."""
        return await self._outboxes.due_outboxes(node, most=most, lease_s=lease_s)

    async def defer_outbox(
        self,
        inbox: AgentKey,
        fence: Fence,
        wait_s: float,
        *,
        peer: AgentKey | None = None,
        closed: Refusal | None = None,
    ) -> bool:
        """A courier's word on what it carries; False if fenced off."""
        return await self._outboxes.defer_outbox(inbox, fence, wait_s, peer=peer, closed=closed)

    async def outboxes(self) -> list[tuple[AgentKey, int, int]]:
        """(peer, envelopes, wire bytes) of all that waits for peers."""
        return await self._outboxes.totals()

    # ------------------------------------------------------------ bounces

    async def claim_bounces(self) -> list[BounceBatch]:
        """Batches that are due; one taken before and not finished comes again as it was."""
        return self._bounces.take()

    async def finalize_bounces(self, batch: BounceBatch) -> None:
        """Forget a batch that was delivered."""
        self._bounces.finish(batch)

    # ------------------------------------------------------------ nodes

    async def heartbeat(self, node: NodeId, ttl_s: float) -> frozenset[NodeId]:
        """Say that this node lives; gives all that do."""
        now = self._now()
        self._nodes[node] = now + ttl_s
        self._nodes = {name: until for name, until in self._nodes.items() if until > now}
        return frozenset(self._nodes)

    async def leave(self, node: NodeId) -> None:
        """Say that this node is gone."""
        self._nodes.pop(node, None)

    async def put_once(self, name: bytes, value: bytes, ttl_s: float) -> None:
        """Keep a small value until it is taken or ``ttl_s``."""
        now = self._now()
        gone = itertools.takewhile(lambda one: self._values[one][1] <= now, list(self._values))
        for old in list(gone):
            del self._values[old]
        self._values[name] = (value, now + ttl_s)

    async def get(self, name: bytes) -> bytes | None:
        """The value, if it is still there."""
        value, until = self._values.get(name, (None, 0.0))
        return value if until > self._now() else None

    async def pop_once(self, name: bytes) -> bytes | None:
        """The value, exactly once."""
        value = await self.get(name)
        self._values.pop(name, None)
        return value

    async def time(self) -> Timestamp:
        """The clock that expiry goes by."""
        return self._now()

    async def last_time(self) -> Timestamp | None:
        """Nothing is older than this process."""
        return None

    async def clock_ahead_s(self) -> float:
        """The clock that it was given may be another one than this process has."""
        return self._now() - clock.now()


def _is_moved(result: Accepted | Refusal) -> bool:
    return isinstance(result, Refusal) and result.code is ErrorCode.MOVED


def _lost() -> Refusal:
    # a session that was opened, of an inbox that is gone: lost, which is not the same as empty
    return Refusal(ErrorCode.INBOX_RESET, "the store lost this inbox")
