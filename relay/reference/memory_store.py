"""The store in this process's memory: durability ``memory``, since all ends with the process."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final

from relay import clock
from relay.directory.local_handles import claimed
from relay.directory.ports import DirectoryLimits, HandleRow
from relay.health import Health
from relay.inbox.model.types import InboxLimits, OutboxLimits
from relay.inbox.ports import OnWake
from relay.peering.ports import PeerRow
from relay.protocol.ids import Did, NodeId, Timestamp
from relay.reference.forwarding import Outboxes
from relay.reference.memory_inboxes import (
    MemoryBounces,
    MemoryExpiry,
    MemoryInboxes,
    MemoryOutboxes,
    MemoryRules,
)
from relay.reference.memory_migrations import MemoryMigrations
from relay.reference.memory_records import MemoryRecords
from relay.reference.memory_state import MemoryState
from relay.store.ports import Store

DEDUPE_TOTAL: Final = 1_000_000
"""Ids remembered over all inboxes, unless the caller knows better (R3: 20 % of memory)."""


class MemoryStore(Store):
    """All ports of a store, for one process.

    Args:
        limits: quotas of each inbox.
        now: the clock that expiry goes by.
        dedupe_total: ids remembered over all inboxes; above it, the inbox that remembers most
            forgets its oldest hour.
        directory: how many records of others are kept.
        outbox: bounds of what waits for one peer.
    """

    def __init__(
        self,
        limits: InboxLimits,
        now: Callable[[], Timestamp],
        *,
        dedupe_total: int = DEDUPE_TOTAL,
        directory: DirectoryLimits | None = None,
        outbox: OutboxLimits = OutboxLimits(),
    ) -> None:
        self.health = Health()
        self.state = state = MemoryState(limits, now, dedupe_total)
        outboxes, bounces = Outboxes(outbox), MemoryBounces(state)
        records = MemoryRecords(state, directory or DirectoryLimits())
        self.inboxes = self._inboxes = MemoryInboxes(state, records, bounces, outboxes)
        self.rules = MemoryRules(state)
        self.expiry = MemoryExpiry(state, bounces)
        self.bounces = bounces
        self.outboxes = MemoryOutboxes(state, outboxes)
        self.migrations = MemoryMigrations(state, records)
        self.records = records
        self.handles = MemoryHandles()
        self.peers = MemoryPeers()
        self.nodes = MemoryNodes(now)
        self.tokens = MemoryTokens(now)
        self.clock = MemoryClock(state)
        self.wakeups = MemoryWakeups()

    async def start(self, *, relay: Did, node: NodeId) -> None:
        """Do nothing: one process is one relay."""

    async def run(self) -> None:
        """Do nothing: there is no connection."""

    async def stop(self) -> None:
        """Do nothing: the data stay until the object goes."""

    def refuse_appends(self, reason: str | None) -> None:
        """Answer new envelopes with ``storage_full``; None allows them again."""
        self._inboxes.full = reason


class MemoryHandles:
    """Names under this relay; see :class:`relay.directory.ports.HandleStore`."""

    def __init__(self) -> None:
        self._rows: dict[str, HandleRow] = {}

    async def claim(self, name: str, did: Did, now: int) -> HandleRow:
        """Give a free name to an agent; return the row of its present owner."""
        self._rows[name] = claimed(self._rows.get(name), name, did, now)
        return self._rows[name]

    async def put(self, row: HandleRow) -> None:
        """Record that an agent left a name, or took it up again."""
        self._rows[row.name] = row

    async def get(self, name: str) -> HandleRow | None:
        """Return the owner of a name."""
        return self._rows.get(name)

    async def all(self) -> list[HandleRow]:
        """Return all names."""
        return list(self._rows.values())


class MemoryPeers:
    """Other relays; see :class:`relay.peering.ports.PeerRowStore`."""

    def __init__(self) -> None:
        self._rows: dict[Did, PeerRow] = {}

    async def all(self) -> list[PeerRow]:
        """Return all known relays."""
        return list(self._rows.values())

    async def put(self, row: PeerRow) -> None:
        """Store a row, in the place of the former one of this DID."""
        self._rows[row.did] = row

    async def replace(self, expected: PeerRow | None, row: PeerRow) -> bool:
        """Store a row if the store still has ``expected``; return False otherwise."""
        if self._rows.get(row.did) != expected:
            return False
        self._rows[row.did] = row
        return True

    async def remove(self, did: Did) -> bool:
        """Forget a relay; return False if it was not known."""
        return self._rows.pop(did, None) is not None


class MemoryNodes:
    """The nodes that live; see :class:`relay.inbox.ports.NodeStore`."""

    def __init__(self, now: Callable[[], Timestamp]) -> None:
        self._now = now
        self._until: dict[NodeId, float] = {}

    async def heartbeat(self, node: NodeId, ttl_s: float) -> frozenset[NodeId]:
        """Record that this node lives; return all nodes that do."""
        now = self._now()
        self._until[node] = now + ttl_s
        self._until = {name: until for name, until in self._until.items() if until > now}
        return frozenset(self._until)

    async def leave(self, node: NodeId) -> None:
        """Record that this node is gone."""
        self._until.pop(node, None)


class MemoryTokens:
    """Small values that lapse; see :class:`relay.inbox.ports.TokenStore`."""

    def __init__(self, now: Callable[[], Timestamp]) -> None:
        self._now = now
        self._values: dict[bytes, tuple[bytes, float]] = {}

    async def put(self, name: bytes, value: bytes, ttl_s: float) -> None:
        """Store a value until somebody pops it or ``ttl_s`` is over."""
        now = self._now()
        lapsed = itertools.takewhile(lambda one: self._values[one][1] <= now, list(self._values))
        for old in list(lapsed):
            del self._values[old]
        self._values[name] = (value, now + ttl_s)

    async def get(self, name: bytes) -> bytes | None:
        """Return the value, if it is still there."""
        value, until = self._values.get(name, (None, 0.0))
        return value if until > self._now() else None

    async def pop(self, name: bytes) -> bytes | None:
        """Return and delete the value."""
        value = await self.get(name)
        self._values.pop(name, None)
        return value


class MemoryClock:
    """The clock that the store was given; see :class:`relay.inbox.ports.StoreClock`."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state

    def trust(self, *, ok: bool) -> None:
        """Allow or forbid anything to expire from now on."""
        self._state.clock_ok = ok

    async def time(self) -> Timestamp:
        """Return the time that expiry goes by."""
        return self._state.now()

    async def last_time(self) -> Timestamp | None:
        """Return None: nothing is older than this process."""
        return None

    async def ahead_s(self) -> float:
        """Return the difference to the clock of this process."""
        return self._state.now() - clock.now()


class MemoryWakeups:
    """No other node; see :class:`relay.inbox.ports.WakeupSource`."""

    def on_wake(self, callback: OnWake) -> None:
        """Do nothing: no other node changes an inbox."""

    def on_renewal(self, callback: Callable[[], None]) -> None:
        """Do nothing: this store never goes back in time."""
