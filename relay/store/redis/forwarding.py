"""Lease what waits for other relays, partition by partition (reference/forwarding.py).

Rules of the file: those of ``store/redis/inboxes.py``; the rules of an outbox are in the scripts.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from relay.forwarding.ports import (
    DueOutbox,
)
from relay.inbox.model.types import (
    Disposition,
    Forwarded,
    RememberedId,
)
from relay.protocol.errors import Refusal
from relay.protocol.ids import (
    AgentKey,
    Eid,
    Fence,
    NodeId,
    Partition,
)
from relay.store.redis import entries
from relay.store.redis.partitions import Partitions

_HASH: Final = 32
"""Bytes of the hash of a receipt."""


class RedisOutboxes:
    """Inboxes that forward; see :class:`relay.forwarding.ports.OutboxStore`."""

    def __init__(self, partitions: Partitions) -> None:
        self._partitions = partitions
        self._first = 0

    async def due(self, node: NodeId, *, limit: int, lease_s: float) -> list[DueOutbox]:
        """Outboxes in which something waits and is due, each lent for ``lease_s``."""
        del node  # the scripts are told with every call
        parts = self._partitions.all()
        # each time another partition is asked first: a busy one must not keep the others waiting
        self._first = (self._first + 1) % len(parts)
        found: list[DueOutbox] = []
        for part in parts[self._first :] + parts[: self._first]:
            if len(found) < limit:
                found += await self._due(part, limit - len(found), lease_s)
        return found

    async def _due(self, part: Partition, limit: int, lease_s: float) -> list[DueOutbox]:
        replies = await self._partitions.call("due_outboxes", part, [limit, lease_s])
        return [DueOutbox(_key(inbox), _key(peer) if peer else None) for inbox, peer in replies]

    async def release(self) -> None:
        """This node has the store for itself: what earlier ones had lent is due now."""
        await self._partitions.gather(self._partitions.all(), self._release)

    async def _release(self, part: Partition) -> None:
        await self._partitions.call("release_outboxes", part, [])

    async def defer(
        self,
        inbox: AgentKey,
        fence: Fence,
        wait_s: float,
        *,
        peer: AgentKey | None = None,
        closed: Refusal | None = None,
    ) -> bool:
        """A courier's word on what it carries; False if fenced off."""
        args = [inbox, fence, wait_s, peer or "", closed.code if closed else ""]
        reply = await self._partitions.call("defer_outbox", self._partitions.of(inbox), args)
        return bool(reply[0] == inbox.encode() and reply[1] == 1)

    async def totals(self) -> list[tuple[AgentKey, int, int]]:
        """(peer, envelopes, wire bytes) of all that waits for peers."""
        counts: Counter[AgentKey] = Counter()
        sizes: Counter[AgentKey] = Counter()
        for replies in await self._partitions.gather(self._partitions.all(), self._sum):
            for peer, count, size in replies:
                counts[_key(peer)] += count
                sizes[_key(peer)] += size
        return [(peer, count, sizes[peer]) for peer, count in counts.items() if count]

    async def _sum(self, part: Partition) -> list[Any]:
        replies: list[Any] = await self._partitions.call("outbox_totals", part, [])
        return replies


def _key(raw: bytes) -> AgentKey:
    return AgentKey(raw.decode())


def proof_of(forwarded: Forwarded | None) -> bytes:
    """What is kept of who took an envelope over."""
    return b"" if forwarded is None else forwarded.receipt + forwarded.peer.encode()


def remembered(reply: Any) -> RememberedId:
    """What became of an id; of the eid, its first 21 characters: the store keeps 16 bytes."""
    disposition, eid16, proof = Disposition(reply[3].decode()), reply[4], reply[7]
    forwarded = Forwarded(_key(proof[_HASH:]), proof[:_HASH]) if proof else None
    return RememberedId(disposition, Eid(entries.eid_text(eid16)[:21]), forwarded)
