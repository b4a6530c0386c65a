"""The store as the node sees it: a record of ports, each of the feature that uses it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from relay.directory.ports import HandleStore, RecordStore
from relay.forwarding.ports import OutboxStore
from relay.health import Health
from relay.inbox import ports as inbox
from relay.migration.ports import MigrationStore
from relay.peering.ports import PeerRowStore
from relay.protocol.ids import Did, NodeId


class Store(ABC):
    """One connection, one clock and one lifetime; :meth:`start` makes the ports ready.

    ``health`` learns what is wrong with the store and around the node.
    """

    health: Health

    inboxes: inbox.InboxStore
    rules: inbox.RuleStore
    expiry: inbox.ExpiryStore
    bounces: inbox.BounceStore
    outboxes: OutboxStore
    migrations: MigrationStore
    records: RecordStore
    handles: HandleStore
    peers: PeerRowStore
    nodes: inbox.NodeStore
    tokens: inbox.TokenStore
    clock: inbox.StoreClock
    wakeups: inbox.WakeupSource

    @abstractmethod
    async def start(self, *, relay: Did, node: NodeId) -> None:
        """Connect and check: settings, relay DID, partitions, rollback. May be tried again.

        Raises:
            UnavailableError: not reachable, lacks a permission, or not safe for durable mode.
            StateError: ``wrong_relay``: the store belongs to another relay.
        """

    @abstractmethod
    async def run(self) -> None:
        """Keep connections, subscriptions and guards going until cancelled."""

    @abstractmethod
    async def stop(self) -> None:
        """Close connections; the data stay."""

    @abstractmethod
    def refuse_appends(self, reason: str | None) -> None:
        """Answer every append with ``storage_full`` (a full disk); None allows them again."""
