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
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

from relay.directory.ports import (
    Changes,
    DirectoryLimits,
    HandleRow,
    Merged,
    RecordRow,
)
from relay.forwarding.ports import (
    DueOutbox,
)
from relay.health import Health
from relay.inbox.model.types import (
    Accepted,
    AckRequest,
    AckResult,
    InboxLimits,
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
from relay.peering.ports import (
    PeerRow,
)
from relay.protocol.envelope import StoredEnvelope
from relay.protocol.errors import (
    Refusal,
    RelayError,
)
from relay.protocol.ids import (
    AgentKey,
    Did,
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
from relay.store.redis import listing, permissions
from relay.store.redis.client import Client
from relay.store.redis.expiry_and_bounces import (
    Bounces,
    Sweeper,
)
from relay.store.redis.facts import clock_ahead_s
from relay.store.redis.forwarding import Outboxes
from relay.store.redis.guard import Guard
from relay.store.redis.inboxes import Inboxes
from relay.store.redis.lineage import RollbackFile
from relay.store.redis.migrations import (
    HandoffCalls,
    Handoffs,
)
from relay.store.redis.nodes import Nodes
from relay.store.redis.partitions import Partitions
from relay.store.redis.peers import Peers
from relay.store.redis.records import Records
from relay.store.redis.rules import Rules
from relay.store.redis.wakeups import Wakeups

CLUSTER_PARTITIONS: Final = 16
TIMEOUT_S: Final = 1.8
"""So that a store that is down is ``storage_unavailable`` within 2 s."""
GUARD_EVERY_S: Final = 1.0


class RedisStore(HandoffCalls):
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
        self._wakeups = Wakeups()
        self._file: RollbackFile | None = None

    # ------------------------------------------------------------ lifetime

    async def start(self, *, relay: Did, node: NodeId) -> None:
        """Connect and check: settings, relay DID, partitions, rollback. May be tried again.

        Raises:
            UnavailableError: not reachable, lacks a permission, or not safe for durable mode.
            StateError: ``wrong_relay``: the store belongs to another relay.
        """
        await permissions.check(self._client, cluster=self._is_cluster)
        await self._guard.start()
        self._relay = relay
        count, last_time = await self._guard.claim(relay, self._wanted_partitions)
        self._file = self._file or RollbackFile(self._rollback_path)
        self._partitions = Partitions(
            self._client, self._file, node, count, health=self.health, is_own=self._is_own
        )
        await self._partitions.attach()
        await self._guard.poll(count)
        self._inboxes = Inboxes(self._partitions, self._guard, self._limits, self._outbox_limits)
        self._outboxes = Outboxes(self._partitions)
        self._handoffs = Handoffs(self._partitions, self._guard, self._limits)
        self._rules = Rules(self._partitions, self._limits)
        self._records = Records(self._partitions, self._guard, self._directory)
        await self._records.adopt()
        self._sweeper = Sweeper(self._partitions, self._guard)
        self._bounces = Bounces(self._partitions)
        self._nodes = Nodes(self._client, last_time)
        self._peers = Peers(self._client)

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

    @property
    def durability(self) -> Durability:
        """What a receipt may promise now."""
        return self._guard.durability

    @property
    def promised(self) -> Durability:
        """See :attr:`relay.inbox.ports.InboxStore.promised`."""
        return self._guard.promised

    def trust_clock(self, *, ok: bool) -> None:
        """Whether the store's clock may expire anything from now on."""
        self._guard.is_clock_trusted = ok

    def refuse_appends(self, reason: str | None) -> None:
        """Answer new envelopes with ``storage_full`` (a full disk); None takes them again."""
        self._guard.refuse_appends(reason)

    def on_wake(self, callback: OnWake) -> None:
        """Call ``callback`` with the inboxes that have news; with none: look at all of them."""
        self._wakeups.on_wake(callback)

    def on_renewal(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once a partition is seen to be another one than it was."""
        self._partitions.on_renewal = callback

    # ------------------------------------------------------------ inboxes

    async def append(self, items: Sequence[StoredEnvelope]) -> list[Accepted | Refusal]:
        """See :meth:`relay.inbox.ports.InboxStore.append`."""
        results = await self._inboxes.append(items)
        if any(isinstance(result, Accepted) for result in results):
            await self._guard.confirm()
        return results

    async def change_rules(
        self, inbox: AgentKey, fence: Fence, patch: RulesPatch
    ) -> RulesNow | Refusal:
        """See :meth:`relay.inbox.ports.InboxStore.change_rules`."""
        return await self._rules.change_rules(inbox, fence, patch)

    async def add_contacts(self, pairs: Sequence[tuple[AgentKey, AgentKey]]) -> list[bool]:
        """See :meth:`relay.inbox.ports.InboxStore.meet`."""
        return await self._rules.add_contacts(pairs)

    async def open(self, request: OpenRequest) -> OpenedSession | Refusal:
        """See :meth:`relay.inbox.ports.InboxStore.open`."""
        return await self._inboxes.open(request)

    async def close(self, inbox: AgentKey, fence: Fence, delivered_upto: Seq) -> bool:
        """See :meth:`relay.inbox.ports.InboxStore.close`."""
        return await self._inboxes.close(inbox, fence, delivered_upto)

    async def read(
        self, inbox: AgentKey, fence: Fence, after: Seq, window: Window
    ) -> Page | Refusal:
        """See :meth:`relay.inbox.ports.InboxStore.read`."""
        return await self._inboxes.read(inbox, fence, after, window)

    async def take(self, inbox: AgentKey, session: LiveSession, window: Window) -> Page | Refusal:
        """See :meth:`relay.inbox.ports.InboxStore.take`."""
        return await self._inboxes.take(inbox, session, window)

    async def ack(self, requests: Sequence[AckRequest]) -> list[AckResult | Refusal]:
        """See :meth:`relay.inbox.ports.InboxStore.ack`."""
        return await self._inboxes.ack(requests)

    async def conclude(self, inbox: AgentKey, seqs: Sequence[Seq], reason: Reason) -> None:
        """See :meth:`relay.inbox.ports.InboxStore.conclude`."""
        await self._inboxes.conclude(inbox, seqs, reason)

    async def status(
        self, inbox: AgentKey, questions: Sequence[DedupKey]
    ) -> list[RememberedId | None]:
        """See :meth:`relay.inbox.ports.InboxStore.status`."""
        return await self._inboxes.status(inbox, questions)

    async def heads(self, inboxes: Sequence[AgentKey]) -> list[InboxHead | None]:
        """See :meth:`relay.inbox.ports.InboxStore.heads`."""
        return await self._inboxes.heads(inboxes)

    async def inboxes(self, after: str, limit: int) -> InboxesPage:
        """See :meth:`relay.inbox.ports.InboxStore.inboxes`."""
        return await listing.inboxes(self._partitions, after, limit)

    async def merge_record(self, owner: AgentKey, row: RecordRow) -> RecordRow:
        """See :meth:`relay.inbox.ports.InboxStore.merge_record`."""
        return await self._records.merge_record(owner, row)

    async def record(self, owner: AgentKey) -> RecordRow | None:
        """See :meth:`relay.inbox.ports.InboxStore.record`."""
        return await self._records.record(owner)

    async def due_outboxes(self, node: NodeId, *, most: int, lease_s: float) -> list[DueOutbox]:
        """See :meth:`relay.forwarding.ports.OutboxStore.due_outboxes`."""
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
        """See :meth:`relay.forwarding.ports.OutboxStore.defer_outbox`."""
        return await self._outboxes.defer_outbox(inbox, fence, wait_s, peer=peer, closed=closed)

    async def free_outboxes(self) -> None:
        """What earlier nodes had lent to couriers is due: this one has the store for itself."""
        await self._outboxes.free_outboxes()

    async def outboxes(self) -> list[tuple[AgentKey, int, int]]:
        """See :meth:`relay.forwarding.ports.OutboxStore.outboxes`."""
        return await self._outboxes.outboxes()

    async def sweep(self, node: NodeId, live_nodes: Collection[NodeId]) -> int:
        """See :meth:`relay.inbox.ports.InboxStore.sweep`."""
        return await self._sweeper.sweep(node, live_nodes)

    async def claim_bounces(self) -> list[BounceBatch]:
        """See :meth:`relay.inbox.ports.InboxStore.take_bounces`."""
        return await self._bounces.claim_bounces()

    async def finalize_bounces(self, batch: BounceBatch) -> None:
        """See :meth:`relay.inbox.ports.InboxStore.finish_bounces`."""
        await self._bounces.finalize_bounces(batch)

    # ------------------------------------------------------------ directory

    async def merge_records(self, rows: Sequence[tuple[AgentKey, RecordRow]]) -> list[Merged]:
        """See :meth:`relay.directory.ports.RecordStore.merge_records`."""
        return await self._records.merge_records(rows)

    async def records(self, owners: Sequence[AgentKey]) -> list[RecordRow | None]:
        """See :meth:`relay.directory.ports.RecordStore.records`."""
        return await self._records.records(owners)

    async def record_changes(self, after: str, most: int) -> Changes:
        """See :meth:`relay.directory.ports.RecordStore.record_changes`."""
        return await self._records.record_changes(after, most)

    async def evidence(self, owner: AgentKey) -> tuple[str, str] | None:
        """See :meth:`relay.directory.ports.RecordStore.evidence`."""
        return await self._records.evidence(owner)

    async def purge_records(self) -> int:
        """See :meth:`relay.directory.ports.RecordStore.purge_records`."""
        return await self._records.purge_records()

    async def peers(self) -> list[PeerRow]:
        """See :meth:`relay.peering.ports.PeerRowStore.peers`."""
        return await self._peers.peers()

    async def put_peer(self, row: PeerRow) -> None:
        """See :meth:`relay.peering.ports.PeerRowStore.put_peer`."""
        await self._peers.put_peer(row)

    async def replace_peer(self, held: PeerRow | None, row: PeerRow) -> bool:
        """See :meth:`relay.peering.ports.PeerRowStore.replace_peer`."""
        return await self._peers.replace_peer(held, row)

    async def remove_peer(self, did: Did) -> bool:
        """See :meth:`relay.peering.ports.PeerRowStore.remove_peer`."""
        return await self._peers.remove_peer(did)

    async def claim_handle(self, name: str, did: Did, now: int) -> HandleRow:
        """See :meth:`relay.directory.ports.HandleStore.claim_handle`."""
        return await self._peers.claim_handle(name, did, now)

    async def put_handle(self, row: HandleRow) -> None:
        """See :meth:`relay.directory.ports.HandleStore.put_handle`."""
        await self._peers.put_handle(row)

    async def handle(self, name: str) -> HandleRow | None:
        """See :meth:`relay.directory.ports.HandleStore.handle`."""
        return await self._peers.handle(name)

    async def handles(self) -> list[HandleRow]:
        """See :meth:`relay.directory.ports.HandleStore.handles`."""
        return await self._peers.handles()

    # ------------------------------------------------------------ nodes

    async def heartbeat(self, node: NodeId, ttl_s: float) -> frozenset[NodeId]:
        """See :meth:`relay.inbox.ports.NodeStore.heartbeat`."""
        return await self._nodes.heartbeat(node, ttl_s)

    async def leave(self, node: NodeId) -> None:
        """See :meth:`relay.inbox.ports.NodeStore.leave`."""
        await self._nodes.leave(node)

    async def put_once(self, name: bytes, value: bytes, ttl_s: float) -> None:
        """See :meth:`relay.inbox.ports.NodeStore.put_once`."""
        await self._nodes.put_once(name, value, ttl_s)

    async def get(self, name: bytes) -> bytes | None:
        """See :meth:`relay.inbox.ports.NodeStore.get`."""
        return await self._nodes.get(name)

    async def pop_once(self, name: bytes) -> bytes | None:
        """See :meth:`relay.inbox.ports.NodeStore.take_once`."""
        return await self._nodes.pop_once(name)

    async def time(self) -> Timestamp:
        """See :meth:`relay.inbox.ports.NodeStore.time`."""
        return await self._nodes.time()

    async def last_time(self) -> Timestamp | None:
        """See :meth:`relay.inbox.ports.NodeStore.last_time`."""
        return await self._nodes.last_time()

    async def clock_ahead_s(self) -> float:
        """See :meth:`relay.inbox.ports.NodeStore.clock_ahead_s`."""
        return await clock_ahead_s(self._client)
