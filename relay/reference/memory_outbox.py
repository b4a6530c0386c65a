"""The outboxes of the store in memory; see :class:`relay.reference.inbox.Inbox`.

Rules of the file: those of ``reference/memory_store.py``, of which it is a part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from relay.forwarding.ports import (
    DueOutbox,
)
from relay.protocol.errors import Refusal
from relay.protocol.ids import (
    AgentKey,
    Fence,
    NodeId,
    Timestamp,
)
from relay.reference.forwarding import Outboxes
from relay.reference.inbox import Inbox


@dataclass(slots=True)
class MemoryOutboxes:
    """See :class:`relay.peering.ports.OutboxStore`.

    Args:
        inboxes: those of the store.
        outboxes: what is counted of those that are away.
        now: the store's clock.
    """

    inboxes: dict[AgentKey, Inbox]
    outboxes: Outboxes
    now: Callable[[], Timestamp]

    async def due_outboxes(self, node: NodeId, *, most: int, lease_s: float) -> list[DueOutbox]:
        """Outboxes in which something waits and is due, each lent for ``lease_s``."""
        del node
        now = self.now()
        due = [
            (box.away.due_at, key)
            for key, box in self.inboxes.items()
            if box.away.due_at is not None and box.away.due_at <= now
        ]
        found: list[DueOutbox] = []
        for _, key in sorted(due):
            box = self.inboxes[key]
            if len(found) < most and box.lend(now, lease_s):
                found.append(DueOutbox(key, box.away.outbox.peer if box.away.outbox else None))
        return found

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
        box = self.inboxes.get(inbox)
        outbox = None if peer is None else self.outboxes.of(peer)
        return box is not None and box.defer(fence, wait_s, self.now(), outbox, closed)

    async def totals(self) -> list[tuple[AgentKey, int, int]]:
        """(peer, envelopes, wire bytes) of all that waits for peers."""
        return self.outboxes.totals()
