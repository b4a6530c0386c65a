"""What waits here for other relays: its bounds, and an inbox while its agent lives elsewhere.

An envelope for an agent elsewhere waits in
that agent's own inbox here, mode *away*; its courier has the session instead of the agent. What
waits counts in the outbox of one peer, the relay that it is to go to, in place of inbox quotas.

::

    away, something waits ──▶ due ──lent──▶ a courier's session ──defer──▶ due again
                               ▲                    │
                               └──── closed, or its lease ran out
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

from relay.inbox.model.store_contract import REFUSALS
from relay.inbox.model.types import (
    OutboxLimits,
)
from relay.protocol.envelope import StoredEnvelope
from relay.protocol.errors import (
    ErrorCode,
    Refusal,
)
from relay.protocol.ids import (
    AgentKey,
    Fence,
    Timestamp,
)


@dataclass(slots=True)
class Outbox:
    """All that waits for one peer, and how much of it is of each sender: counts, wire bytes."""

    peer: AgentKey
    count: int = 0
    bytes: int = 0
    senders: dict[AgentKey, tuple[int, int]] = field(default_factory=dict)

    def add(self, sender: AgentKey, count: int, size: int) -> None:
        """Count what came, or with negative numbers what went."""
        self.count, self.bytes = self.count + count, self.bytes + size
        had = self.senders.get(sender, (0, 0))
        self.senders[sender] = (had[0] + count, had[1] + size)
        if self.senders[sender][0] == 0:
            del self.senders[sender]

    def objection(
        self, item: StoredEnvelope, waiting: tuple[int, int], limits: OutboxLimits
    ) -> Refusal | None:
        """Why one more envelope has no room; ``waiting`` is what waits for its recipient (R7)."""
        if self.count >= limits.count or self.bytes + item.size > limits.bytes:
            return REFUSALS["outbox_full"]
        share = (max(1, limits.count // limits.shares), limits.bytes // limits.shares)
        if _is_over(self.senders.get(item.sender, (0, 0)), item.size, share):
            return REFUSALS["outbox_sender"]
        if _is_over(waiting, item.size, share):
            return REFUSALS["outbox_inbox"]
        return None


def _is_over(waiting: tuple[int, int], size: int, share: tuple[int, int]) -> bool:
    return waiting[0] >= share[0] or waiting[1] + size > share[1]


@dataclass(slots=True)
class Outboxes:
    """The outboxes of one partition."""

    limits: OutboxLimits = field(default_factory=OutboxLimits)
    peers: dict[AgentKey, Outbox] = field(default_factory=dict)

    def of(self, peer: AgentKey) -> Outbox:
        """Where what waits for this peer is counted."""
        return self.peers.setdefault(peer, Outbox(peer))

    def totals(self) -> list[tuple[AgentKey, int, int]]:
        """(peer, envelopes, wire bytes) of those for which something waits."""
        return [(one.peer, one.count, one.bytes) for one in self.peers.values() if one.count]


@dataclass(slots=True)
class Away:
    """What an inbox is besides, while its agent lives elsewhere.

    Args:
        left_fence: sessions with a lower fence ended when the agent's record named other homes.
        outbox: where what waits is counted; None until it is known which peer it waits for.
        due_at: when a courier should look; set wherever something waits.
        deferred_until: what the courier said in this session.
        closed: what new envelopes are refused with, before ``closed_until``.
    """

    left_fence: Fence = field(default=Fence(0))
    outbox: Outbox | None = None
    due_at: float | None = None
    deferred_until: float = 0
    closed: ErrorCode | None = None
    closed_until: int = 0

    def refusal(self, now: Timestamp) -> Refusal | None:
        """The peer's no, repeated here until it may be asked again."""
        if self.closed is None or now >= self.closed_until:
            return None
        wait_s = self.closed_until - int(now)
        return Refusal(self.closed, "the recipient's home takes nothing for it just now", wait_s)

    def defer(self, wait_s: float, closed: Refusal | None, now: Timestamp) -> None:
        """Write down what a courier says."""
        self.deferred_until = now + wait_s
        self.closed = closed.code if closed else None
        self.closed_until = int(now) + ceil(wait_s) if closed else 0
