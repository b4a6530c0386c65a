"""What lies beside the inboxes in a partition: expiry sweeps, bounce intents."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from relay.inbox.model.types import (
    PendingBounce,
)
from relay.inbox.ports import BounceBatch
from relay.protocol.ids import (
    AgentKey,
    Eid,
    NodeId,
    Partition,
)
from relay.protocol.receipts import MAX_BOUNCED
from relay.store.redis import entries, keys
from relay.store.redis.client import Client
from relay.store.redis.guard import Guard
from relay.store.redis.partitions import Partitions

SWEEP_LEASE_MS: Final = 10_000
CLOCK_EVERY_S: Final = 60
"""How often the store's clock is written down (GUARANTEES.md §2, clocks)."""
_MOST_STEPS: Final = 1000
_EID_BYTES: Final = 32


class RedisExpiry:
    """Sweeps, partition by partition; see :class:`relay.inbox.ports.ExpiryStore`."""

    def __init__(self, partitions: Partitions, guard: Guard) -> None:
        self._partitions = partitions
        self._guard = guard
        self._clock_written = 0.0

    async def sweep(self, node: NodeId, live_nodes: Collection[NodeId]) -> int:
        """End what expired; gives how many entries ended. Safe on several nodes at once."""
        if not self._guard.is_clock_trusted:
            return 0
        await self._write_clock(self._partitions.client)
        alive = sorted({*live_nodes, node})
        done = await self._partitions.gather(
            self._partitions.all(), lambda part: self._sweep(part, alive)
        )
        return sum(done)

    async def _sweep(self, part: Partition, alive: list[NodeId]) -> int:
        total, passed = 0, 0
        for _ in range(_MOST_STEPS):
            args = [SWEEP_LEASE_MS, passed, *alive]
            ended, passed, more = await self._partitions.call("sweep", part, args)
            total += ended
            if not more:
                break
        return total

    async def _write_clock(self, client: Client) -> None:
        seconds = int((await client.command(keys.STORE, "TIME"))[0])
        if seconds - self._clock_written >= CLOCK_EVERY_S:
            await client.script("write_clock", keys.STORE, [seconds])
            self._clock_written = seconds


class RedisBounces:
    """Bounces in frozen batches; see :class:`relay.inbox.ports.BounceStore`."""

    def __init__(self, partitions: Partitions) -> None:
        self._partitions = partitions
        self._from: dict[bytes, Partition] = {}

    async def claim(self) -> list[BounceBatch]:
        """Batches that are due, at most one a sender, each ≤ 256 intents."""
        done = await self._partitions.gather(self._partitions.all(), self._claim)
        # what is not due any more was finished by another node
        self._from = {batch.token: part for part, batches in done for batch in batches}
        # a sender's batches of other partitions are frozen, too, and come when this one is finished
        batches = {batch.sender: batch for _, some in reversed(done) for batch in some}
        return list(batches.values())

    async def _claim(self, part: Partition) -> tuple[Partition, list[BounceBatch]]:
        replies = await self._partitions.call("claim_bounces", part, [MAX_BOUNCED])
        return part, [_batch(reply) for reply in replies]

    async def finalize(self, batch: BounceBatch) -> None:
        """Forget a batch that was delivered; a repeat does nothing."""
        known = self._from.pop(batch.token, None)
        parts = self._partitions.all() if known is None else [known]
        args = [batch.sender, batch.token.hex()]
        await self._partitions.gather(
            parts, lambda part: self._partitions.call("finalize_bounces", part, args)
        )


def _batch(reply: Any) -> BounceBatch:
    sender, decided_at, token, *intents = reply
    who = AgentKey(sender.decode())
    return BounceBatch(
        sender=who,
        token=bytes.fromhex(token.decode()),
        decided_at=int(decided_at),
        intents=tuple(_intent(who, raw) for raw in intents),
    )


def _intent(sender: AgentKey, raw: bytes) -> PendingBounce:
    due, maybe, to, reason = raw[_EID_BYTES:].decode().split(" ", 3)
    eid: Eid = entries.eid_text(raw[:_EID_BYTES])
    return PendingBounce(sender, eid, AgentKey(to), reason, maybe == "1", int(due))
