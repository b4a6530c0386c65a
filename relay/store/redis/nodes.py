"""What the nodes of one relay share beside inboxes: who lives, small values, the clock."""

from __future__ import annotations

from relay.protocol.ids import (
    NodeId,
    Timestamp,
)
from relay.store.redis import keys
from relay.store.redis.client import Client


class Nodes:
    """The node half of a store.

    Args:
        client: the connection.
        last_time: the store's clock as last written down before this start.
    """

    def __init__(self, client: Client, last_time: Timestamp | None) -> None:
        self._client = client
        self._last_time = last_time

    async def heartbeat(self, node: NodeId, ttl_s: float) -> frozenset[NodeId]:
        """Say that this node lives; gives all nodes that do."""
        found = await self._client.script("heartbeat", keys.NODES, [node, ttl_s])
        return frozenset(NodeId(name.decode()) for name in found)

    async def leave(self, node: NodeId) -> None:
        """Say that this node is gone."""
        await self._client.command(keys.NODES, "ZREM", keys.NODES, node)

    async def put_once(self, name: bytes, value: bytes, ttl_s: float) -> None:
        """Keep a small value until it is taken or ``ttl_s``."""
        key = keys.once(name)
        await self._client.command(key, "SET", key, value, "PX", int(ttl_s * 1000))

    async def get(self, name: bytes) -> bytes | None:
        """The value, if it is still there."""
        key = keys.once(name)
        found: bytes | None = await self._client.command(key, "GET", key)
        return found

    async def pop_once(self, name: bytes) -> bytes | None:
        """The value, exactly once over all nodes."""
        key = keys.once(name)
        found: bytes | None = await self._client.command(key, "GETDEL", key)
        return found

    async def time(self) -> Timestamp:
        """The store's own clock, Unix seconds."""
        seconds, micros = await self._client.command(keys.STORE, "TIME")
        return Timestamp(int(seconds) + int(micros) / 1_000_000)

    async def last_time(self) -> Timestamp | None:
        """The store's clock as last written down before this start."""
        return self._last_time
