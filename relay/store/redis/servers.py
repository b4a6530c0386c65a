"""The servers of one store: a pool of connections to each primary, and which has which slot.

Rules of the file: every command of the store has one key, so all that a Cluster needs is a map from
slots to primaries. redis-py's own Cluster client is not used: when one connection breaks it drops
the others under the tasks that use them, whose errors drop yet others, and with one call per
partition in flight this was seen not to end after the broken server was back.

::

    key ──slot──▶ name of a primary ──▶ its pool
                    ▲ map is read anew: at the start, after MOVED, after an error (rarely enough)
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Final

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import Connection, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

from relay.clock import monotonic
from relay.protocol.errors import (
    ErrorCode,
    StateError,
)

MAX_CONNECTIONS: Final = 32
REFRESH_EVERY_S: Final = 0.2
"""Sixteen partitions that fail at once ask for the map once."""
_SLOTS: Final = 16384
_SCHEMES: Final = ("redis", "rediss", "unix")
_OPTIONS: Final = frozenset({
    "host", "port", "path", "db", "username", "password", "client_name", "connection_class",
})  # fmt: skip
"""What a URL may say, beside ``ssl_...``; all else is the relay's own to set."""


class Servers:
    """Connections to every primary.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``; in a Cluster, any of its members.
        cluster: whether it is a Cluster.
        timeout_s: how long a connection, or an answer on it, may take.

    Raises:
        StateError: ``unsupported``: the URL is none; the sentence holds nothing secret of it.
    """

    def __init__(self, url: str, *, cluster: bool, timeout_s: float) -> None:
        self._is_cluster = cluster
        self._timeout_s = timeout_s
        self.connections_made = 0
        """How many connections were made: whoever answers on a new one may be another server."""
        self._given = _options(url)
        self._room: dict[Redis, asyncio.Semaphore] = {}
        self._seed = self._connect(self._given)
        self._clients: dict[str, Redis] = {} if cluster else {"": self._seed}
        self._owners: list[str | None] = [None if cluster else ""] * _SLOTS
        self._is_stale = cluster
        self._refreshed_at = -REFRESH_EVERY_S
        self._turn = 0

    def _connect(self, options: dict[str, Any], silence_s: float | None = None) -> Redis:
        # No timeouts within: every call has a deadline of its own (client.py), and redis-py makes a
        # task for each write it watches. Its pool that waits costs as much again.
        pool = ConnectionPool(
            max_connections=MAX_CONNECTIONS,
            protocol=3,
            legacy_responses=False,
            socket_timeout=silence_s,
            socket_connect_timeout=self._timeout_s,
            retry=Retry(NoBackoff(), 0),
            # else it looks up its own version, and each connection says that with two commands
            driver_info=None,
            redis_connect_func=self._connected,
            # notices of one vendor's managed service; each would cost a command per connection
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
            **options,
        )
        return Redis.from_pool(pool)

    async def _connected(self, made: Connection) -> None:
        """Log in on a new connection, and count it."""
        await made.on_connect()
        self.connections_made += 1

    # ------------------------------------------------------------ who has what

    def doubt(self) -> None:
        """The map may be wrong: read it again before it is used again."""
        self._is_stale = self._is_cluster

    def owner(self, key: str | bytes) -> str:
        """Name of the primary that has a key.

        Raises:
            ConnectionError: no primary has it just now.
        """
        raw = key.encode() if isinstance(key, str) else key
        name = self._owners[key_slot(raw) if self._is_cluster else 0]
        if name is None:
            raise ConnectionError("no primary of the cluster has this slot")
        return name

    async def client_for(self, key: str | bytes) -> Redis:
        """The connections to the primary that has a key."""
        await self.refresh()
        return self._clients[self.owner(key)]

    async def names(self) -> list[str]:
        """All primaries that have a slot."""
        await self.refresh()
        return sorted({name for name in self._owners if name is not None})

    def client(self, name: str) -> Redis:
        """The connections to one primary."""
        return self._clients[name]

    def listener(self, name: str) -> Redis:
        """A pool of its own to one primary, for a subscription."""
        return self._connect(self._given | self._address(name), self._timeout_s)

    def _address(self, name: str) -> dict[str, Any]:
        if not self._is_cluster:
            return {}
        host, _, port = name.rpartition(":")
        return {"host": host, "port": int(port)}

    # ------------------------------------------------------------ the map

    async def refresh(self) -> None:
        """Read the map, if it is in doubt; an old one is better than none.

        Raises:
            RedisError: nobody has ever answered.
            OSError: nobody has ever answered.
        """
        now = monotonic()
        if not self._is_stale or now - self._refreshed_at < REFRESH_EVERY_S:
            return
        self._refreshed_at = now
        problem: Exception | None = None
        self._turn += 1
        known = [*self._clients.values(), self._seed]
        for at in range(len(known)):
            asked = known[(at + self._turn) % len(known)]  # not always a hung one first
            try:
                async with asyncio.timeout(self._timeout_s / 4):
                    reply: Any = await self.ask(asked, "CLUSTER", "SLOTS")
                self._learn(asked, reply)
            except (RedisError, OSError, RuntimeError) as exc:
                problem = exc
            else:
                self._is_stale = False
                return
        if problem is not None and not self._clients:
            raise problem

    async def ask(self, redis: Redis, *words: Any) -> Any:
        """Run one command on one server; the caller has a deadline."""
        room = self._room.get(redis)
        if room is None:
            room = self._room[redis] = asyncio.Semaphore(MAX_CONNECTIONS)
        async with room:
            return await redis.execute_command(*words)  # type: ignore[no-untyped-call]  # redis-py

    def _learn(self, asked: Redis, reply: Any) -> None:
        owners: list[str | None] = [None] * _SLOTS
        for first, last, name in self._shares(asked, reply):
            owners[first : last + 1] = [name] * (last + 1 - first)
            if name not in self._clients:
                self._clients[name] = self._connect(self._given | self._address(name))
        self._owners = owners

    @staticmethod
    def _shares(asked: Redis, reply: Any) -> Iterator[tuple[int, int, str]]:
        own_host = asked.connection_pool.connection_kwargs.get("host", "127.0.0.1")
        for first, last, primary, *_ in reply:
            # a server that does not know its own address leaves it out
            host = primary[0].decode() if primary[0] else own_host
            yield first, last, f"{host}:{primary[1]}"

    async def close(self) -> None:
        """Close all connections."""
        for client in {id(one): one for one in [*self._clients.values(), self._seed]}.values():
            await client.aclose()


def _options(url: str) -> dict[str, Any]:
    """What a URL says, for redis-py.

    redis-py finds much of what is wrong only at the first connection, and may quote the password.
    """
    scheme = url.partition("://")[0]
    if scheme == "redis+sentinel":
        raise _bad_url(
            "redis+sentinel:// is not supported: name an address that always leads to the primary "
            "(OPERATIONS.md, External Redis or Valkey)"
        )
    if scheme not in _SCHEMES:
        raise _bad_url("it begins with redis://, rediss:// or unix://")
    try:
        options: dict[str, Any] = dict(parse_url(url))
    except ValueError:
        raise _bad_url(
            "its host, port, database or options cannot be read; write odd characters of the "
            "password as %XX"
        ) from None
    strange = [name for name in options if name not in _OPTIONS and not name.startswith("ssl_")]
    if strange:
        # without a host the rest may be a part of a password that was not written as %XX
        named = f": {strange[0]}" if {"host", "path"} & options.keys() else ""
        raise _bad_url(f"it has an option after the ? that the relay does not take{named}")
    kind: type[Connection] = options.get("connection_class", Connection)
    try:
        made = kind(**{name: options[name] for name in options if name != "connection_class"})
    except (TypeError, ValueError, RedisError):
        raise _bad_url("one of its ssl_... options is not known, or has a wrong value") from None
    if isinstance(made, SSLConnection):
        _check_files(made)
    return options


def _check_files(made: SSLConnection) -> None:
    try:
        made.ssl_context.get()
    except (OSError, RedisError) as exc:
        # an ssl.SSLError is an OSError, too
        raise _bad_url(f"the certificates or the key that it names cannot be used: {exc}") from None


def _bad_url(why: str) -> StateError:
    return StateError(ErrorCode.UNSUPPORTED, f"the Redis URL is not usable: {why}")
