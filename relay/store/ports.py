"""The whole store of a relay: one implementation meets the ports of every feature.

They share a connection, a clock and a lifetime. The features themselves name only the ports that
they need.
"""

from __future__ import annotations

from typing import Protocol

from relay.directory.ports import (
    HandleStore,
    RecordStore,
)
from relay.forwarding.ports import (
    OutboxStore,
)
from relay.health import Health
from relay.inbox.ports import (
    InboxStore,
    NodeStore,
    WakeupSource,
)
from relay.migration.ports import MigrationStore
from relay.peering.ports import (
    PeerRowStore,
)
from relay.protocol.ids import Did, NodeId


class Store(
    InboxStore,
    OutboxStore,
    MigrationStore,
    RecordStore,
    PeerRowStore,
    HandleStore,
    NodeStore,
    WakeupSource,
    Protocol,
):
    """All ports of the store.

    ``health`` shows what is wrong with the store and around the node.
    """

    health: Health

    async def run(self) -> None:
        """Keep connections, subscriptions and guards going until cancelled."""
        ...

    async def start(self, *, relay: Did, node: NodeId) -> None:
        """Connect and check: settings, relay DID, partitions, rollback. May be tried again.

        Raises:
            UnavailableError: not reachable, or not safe for durable mode.
            StateError: ``wrong_relay``-like: the store belongs to another relay.
        """
        ...

    async def stop(self) -> None:
        """Close connections; the data stay."""
        ...

    def refuse_appends(self, reason: str | None) -> None:
        """Answer every append with ``storage_full`` until told None (disk nearly full)."""
        ...
