"""Nodes of one relay, tokens that lapse, and the store's clock."""

from __future__ import annotations

from relay.protocol.ids import NodeId, Timestamp
from relay.store.redis import facts, keys
from relay.store.redis.client import Client
from relay.store.redis.guard import Guard


class RedisNodes:
    """The nodes that live; see :class:`relay.inbox.ports.NodeStore`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def heartbeat(self, node: NodeId, ttl_s: float) -> frozenset[NodeId]:
        """Record that this node lives; return all nodes that do."""
        found = await self._client.script("heartbeat", keys.NODES, [node, ttl_s])
        return frozenset(NodeId(name.decode()) for name in found)

    async def leave(self, node: NodeId) -> None:
        """Record that this node is gone."""
        await self._client.command(keys.NODES, "ZREM", keys.NODES, node)


class RedisTokens:
    """Small values that lapse; see :class:`relay.inbox.ports.TokenStore`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def put(self, name: bytes, value: bytes, ttl_s: float) -> None:
        """Store a value until somebody pops it or ``ttl_s`` is over."""
        key = keys.once(name)
        await self._client.command(key, "SET", key, value, "PX", int(ttl_s * 1000))

    async def get(self, name: bytes) -> bytes | None:
        """Return the value, if it is still there."""
        key = keys.once(name)
        found: bytes | None = await self._client.command(key, "GET", key)
        return found

    async def pop(self, name: bytes) -> bytes | None:
        """Return and delete the value: exactly one caller over all nodes gets it."""
        key = keys.once(name)
        found: bytes | None = await self._client.command(key, "GETDEL", key)
        return found


class RedisClock:
    """The server's clock; see :class:`relay.inbox.ports.StoreClock`.

    Args:
        client: the connection.
        guard: stops expiry where the clock is not trusted.
        last_time: the store's time as last written down before this start.
    """

    def __init__(self, client: Client, guard: Guard, last_time: Timestamp | None) -> None:
        self._client = client
        self._guard = guard
        self._last_time = last_time

    def trust(self, *, ok: bool) -> None:
        """Allow or forbid the store's clock to expire anything from now on."""
        self._guard.is_clock_trusted = ok

    async def time(self) -> Timestamp:
        """Return the store's time, Unix seconds."""
        seconds, micros = await self._client.command(keys.STORE, "TIME")
        return Timestamp(int(seconds) + int(micros) / 1_000_000)

    async def last_time(self) -> Timestamp | None:
        """Return the store's time as last written down before this start."""
        return self._last_time

    async def ahead_s(self) -> float:
        """Return by how many seconds the store's clock is surely ahead of this node's."""
        return await facts.clock_ahead_s(self._client)
