"""The store over Redis or Valkey: puts its parts together and keeps them going.

::

    Inboxes  Outboxes  Handoffs  Records  Sweeper  Bounces      calls into partitions
          └────┴───┬────┴────────┘
               Partitions ── RollbackFile     lineage of each partition
                   │
    Nodes ───── Client ───── Wakeups          connection, errors, deadlines; hints
    Peers ────────┤
                   │
                 Guard                        settings, memory, clock

Rules of the file: it decides nothing about mail; :meth:`RedisStore.start` comes first.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Final

from relay.directory.ports import (
    DirectoryLimits,
)
from relay.health import Health
from relay.inbox.model.types import (
    InboxLimits,
    OutboxLimits,
)
from relay.protocol.errors import RelayError
from relay.protocol.ids import Did, NodeId
from relay.store.ports import Store
from relay.store.redis import permissions
from relay.store.redis.client import Client
from relay.store.redis.expiry_and_bounces import RedisBounces, RedisExpiry
from relay.store.redis.forwarding import RedisOutboxes
from relay.store.redis.guard import Guard
from relay.store.redis.inboxes import RedisInboxes
from relay.store.redis.lineage import RollbackFile
from relay.store.redis.migrations import RedisMigrations
from relay.store.redis.nodes import RedisClock, RedisNodes, RedisTokens
from relay.store.redis.partitions import Partitions
from relay.store.redis.peers import RedisHandles, RedisPeers
from relay.store.redis.records import RedisRecords
from relay.store.redis.rules import RedisRules
from relay.store.redis.wakeups import RedisWakeups

CLUSTER_PARTITIONS: Final = 16
TIMEOUT_S: Final = 1.8
"""So that a store that is down is ``storage_unavailable`` within 2 s."""
GUARD_EVERY_S: Final = 1.0


class RedisStore(Store):
    """All ports of a store, over one Redis or Valkey, standalone or Cluster.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        limits: quotas of each inbox.
        cluster: whether ``url`` names a Cluster.
        partitions: how many to make where the store is new; None = 1, or 16 in a Cluster.
        rollback_file: where this node keeps what it knows of the store; None = only in memory.
        allow_unsafe: start on settings that may lose mail; receipts then say ``unverified``.
        timeout_s: after this many seconds without an answer the outcome is unknown.
        directory: how many records of others are kept.
        outbox: bounds of what waits for one peer.
        health: told what is wrong with the store.
        is_own: this node has the store for itself, and its rollback file knows all of it.

    Raises:
        StateError: ``unsupported``: the URL is none.
    """

    def __init__(
        self,
        url: str,
        limits: InboxLimits,
        *,
        cluster: bool = False,
        partitions: int | None = None,
        rollback_file: Path | None = None,
        allow_unsafe: bool = False,
        timeout_s: float = TIMEOUT_S,
        directory: DirectoryLimits | None = None,
        outbox: OutboxLimits = OutboxLimits(),
        health: Health | None = None,
        is_own: bool = False,
    ) -> None:
        self.health = health or Health()
        self._client = Client(url, cluster=cluster, timeout_s=timeout_s, health=self.health)
        self._is_cluster = cluster
        self._limits = limits
        self._directory = directory or DirectoryLimits()
        self._outbox_limits = outbox
        self._wanted_partitions = partitions or (CLUSTER_PARTITIONS if cluster else 1)
        self._rollback_path = rollback_file
        self._is_own = is_own
        self._guard = Guard(self._client, self.health, allow_unsafe=allow_unsafe)
        self.wakeups = self._wakeups = RedisWakeups()
        self._file: RollbackFile | None = None

    # ------------------------------------------------------------ lifetime

    async def start(self, *, relay: Did, node: NodeId) -> None:
        """Connect and check: settings, relay DID, partitions, rollback. May be tried again.

        Raises:
            UnavailableError: not reachable, lacks a permission, or not safe for durable mode.
            StateError: ``wrong_relay``: the store belongs to another relay.
        """
        client, guard = self._client, self._guard
        await permissions.check(client, cluster=self._is_cluster)
        await guard.start()
        self._relay = relay
        count, last_time = await guard.claim(relay, self._wanted_partitions)
        self._file = self._file or RollbackFile(self._rollback_path)
        self._partitions = partitions = Partitions(
            client, self._file, node, count, health=self.health, is_own=self._is_own
        )
        await partitions.attach()
        await guard.poll(count)
        partitions.on_renewal = self._wakeups.renewed
        self.inboxes = RedisInboxes(partitions, guard, self._limits, self._outbox_limits)
        self.rules = RedisRules(partitions, self._limits)
        self.expiry = RedisExpiry(partitions, guard)
        self.bounces = RedisBounces(partitions)
        self.outboxes = outboxes = RedisOutboxes(partitions)
        self.migrations = RedisMigrations(partitions, guard, self._limits)
        self.records = RedisRecords(partitions, guard, self._directory)
        self.handles = RedisHandles(client)
        self.peers = RedisPeers(client)
        self.nodes = RedisNodes(client)
        self.tokens = RedisTokens(client)
        self.clock = RedisClock(client, guard, last_time)
        if self._is_own:
            # no other node lives that an earlier lease could belong to
            await outboxes.release()

    async def run(self) -> None:
        """Keep subscriptions, the memory guard and the rollback file going until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._wakeups.run(self._partitions))
            group.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(GUARD_EVERY_S)
            # what is wrong with the store is told to health, by each of these
            with contextlib.suppress(RelayError):
                await self._partitions.sync()
            with contextlib.suppress(RelayError):
                await self._guard.poll(self._partitions.count)
            with contextlib.suppress(RelayError):
                await permissions.look(self._client, self.health, cluster=self._is_cluster)
            with contextlib.suppress(RelayError):
                # may write: so it is seen whether the store takes writes
                await self._guard.claim(self._relay, self._partitions.count)

    async def stop(self) -> None:
        """Close connections; the data stay."""
        await self._client.close()
        if self._file is not None:
            self._file.close()

    def refuse_appends(self, reason: str | None) -> None:
        """Answer new envelopes with ``storage_full`` (a full disk); None allows them again."""
        self._guard.refuse_appends(reason)
