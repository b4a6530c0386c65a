"""One Redis client for standalone servers, unix sockets and Cluster: options, errors, scripts.

Rules of the file: no retries (an answer that did not come is an unknown outcome, and the caller
says so); every await has a deadline; the errors of redis-py end in :func:`translated`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import redis.exceptions as foreign
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from relay.core.errors import ErrorCode, RelayError, UnavailableError
from relay.core.ids import Partition
from relay.store.redis import keys
from relay.store.redis.scripts import script

MAX_CONNECTIONS: Final = 32
_RETRY_AFTER_S: Final = 1
_FULL_RETRY_AFTER_S: Final = 30
_DOWN: Final = (
    foreign.ConnectionError,  # refused, reset, loading, not authenticated
    foreign.TimeoutError,
    foreign.ReadOnlyError,
    foreign.ClusterError,
    foreign.RedisClusterException,
    foreign.AskError,
    foreign.TryAgainError,
    OSError,
    TimeoutError,
    # a connection that one task drops while another writes to it: redis-py finds no writer (seen
    # when a Cluster's map is read anew), uvloop a closed handle
    AttributeError,
    RuntimeError,
)
# replies of a server that cannot just now; the first word of an error
_DOWN_WORDS: Final = frozenset({
    "LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS", "BUSY", "NOAUTH", "READONLY",
})  # fmt: skip
_FULL_WORDS: Final = frozenset({"OOM", "MISCONF"})


@contextmanager
def translated() -> Iterator[None]:
    """Turn what redis-py and the server raise into named errors.

    Raises:
        UnavailableError: ``storage_full`` (surely nothing stored) or ``storage_unavailable``.
        RelayError: ``internal``: something that should not happen.
    """
    try:
        yield
    except _DOWN as exc:
        raise _unavailable(exc) from exc
    except foreign.OutOfMemoryError as exc:
        raise _full(exc) from exc
    except foreign.RedisError as exc:
        word = str(exc).partition(" ")[0]
        if word in _FULL_WORDS:
            raise _full(exc) from exc
        if word in _DOWN_WORDS:
            raise _unavailable(exc) from exc
        raise RelayError(ErrorCode.INTERNAL, f"store: {exc}") from exc


def _unavailable(exc: BaseException) -> UnavailableError:
    detail = str(exc) or type(exc).__name__
    return UnavailableError(
        ErrorCode.STORAGE_UNAVAILABLE,
        f"the store does not answer: {detail}",
        retry_after=_RETRY_AFTER_S,
    )


def _full(exc: BaseException) -> UnavailableError:
    return UnavailableError(
        ErrorCode.STORAGE_FULL, f"the store is full: {exc}", retry_after=_FULL_RETRY_AFTER_S
    )


@dataclass(frozen=True, slots=True)
class Primary:
    """A server that takes writes: where it is, and what it says of itself (INFO)."""

    name: str
    info: dict[str, str]


class Client:
    """Commands and scripts, each with a deadline and named errors.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        cluster: whether it is a Cluster.
        timeout_s: after this many seconds without an answer the outcome is unknown.
    """

    def __init__(self, url: str, *, cluster: bool, timeout_s: float) -> None:
        self.is_cluster = cluster
        self.timeout_s = timeout_s
        self._url = url
        self._redis = self._connect()
        self._is_available = False

    def _options(self) -> dict[str, Any]:
        return {
            "protocol": 3,
            "legacy_responses": False,
            "decode_responses": False,
            "socket_timeout": self.timeout_s,
            "socket_connect_timeout": self.timeout_s,
            "retry": Retry(NoBackoff(), 0),
            # notices of one vendor's managed service; each would cost a command per connection
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }

    def _connect(self) -> Redis | RedisCluster:
        if self.is_cluster:
            return RedisCluster.from_url(self._url, require_full_coverage=False, **self._options())
        pool = BlockingConnectionPool.from_url(
            self._url, max_connections=MAX_CONNECTIONS, timeout=self.timeout_s, **self._options()
        )
        return Redis.from_pool(pool)

    @property
    def is_available(self) -> bool:
        """Whether the last attempt got an answer."""
        return self._is_available

    async def command(self, *words: Any, **options: Any) -> Any:
        """Run one command.

        Raises:
            RelayError: as :func:`translated` says.
        """
        try:
            with translated():
                async with asyncio.timeout(self.timeout_s):
                    reply = await self._redis.execute_command(*words, **options)
        except RelayError as exc:
            self._is_available = exc.code is not ErrorCode.STORAGE_UNAVAILABLE
            raise
        self._is_available = True
        return reply

    async def script(self, name: str, key: str, args: Sequence[Any]) -> Any:
        """Run a script on its one key; a store that does not know it is taught, once.

        Raises:
            RelayError: as :func:`translated` says.
        """
        found = script(name)
        try:
            with translated():
                async with asyncio.timeout(self.timeout_s):
                    try:
                        reply = await self._redis.execute_command(
                            "EVALSHA", found.sha, 1, key, *args
                        )
                    except foreign.NoScriptError:
                        # EVAL both runs it and keeps it; the whole commit is repeated
                        reply = await self._redis.execute_command("EVAL", found.text, 1, key, *args)
        except RelayError as exc:
            self._is_available = exc.code is not ErrorCode.STORAGE_UNAVAILABLE
            raise
        self._is_available = True
        return reply

    async def primaries(self, *sections: str) -> list[Primary]:
        """Ask every primary for INFO.

        Raises:
            RelayError: as :func:`translated` says.
        """
        return [
            Primary(name, parse_info(text)) for name, text in await self.ask_all("INFO", *sections)
        ]

    async def ask_all(self, *words: Any) -> list[tuple[str, Any]]:
        """Run a command on every primary: (its name, its reply).

        Raises:
            RelayError: as :func:`translated` says.
        """
        if not isinstance(self._redis, RedisCluster):
            return [("", await self.command(*words))]
        nodes = await self.nodes()
        replies = [await self.command(*words, target_nodes=[node]) for node in nodes]
        return [(node.name, reply) for node, reply in zip(nodes, replies, strict=True)]

    async def nodes(self, *, is_fresh: bool = False) -> list[ClusterNode]:
        """The primaries of a Cluster, asked again if wanted; none for a standalone server.

        Raises:
            RelayError: as :func:`translated` says.
        """
        if not isinstance(self._redis, RedisCluster):
            return []
        with translated():
            async with asyncio.timeout(self.timeout_s):
                await self._redis.initialize()  # type: ignore[unused-awaitable]  # itself
                if is_fresh:
                    await self._redis.nodes_manager.initialize()
            return self._redis.get_primaries()

    def node_of(self, partition: Partition) -> str:
        """Name of the primary that has a partition; '' for a standalone server."""
        if not isinstance(self._redis, RedisCluster):
            return ""
        with translated():
            node = self._redis.get_node_from_key(keys.state(partition))
        return node.name if node else ""

    def listener(self, name: str) -> Redis:
        """A connection of its own for a subscription, at the primary ``name``.

        Raises:
            UnavailableError: there is no such primary any more.
        """
        if not isinstance(self._redis, RedisCluster):
            return Redis.from_url(self._url, **self._options())
        node = self._redis.get_node(node_name=name)
        if node is None:
            raise UnavailableError(ErrorCode.STORAGE_UNAVAILABLE, f"{name} left the cluster")
        # of the URL only who we are goes on, and whether in clear: the address is the primary's own
        options = self._options() | {
            name: node.connection_kwargs[name]
            for name in ("username", "password")
            if node.connection_kwargs.get(name)
        }
        secure = self._url.startswith("rediss://")
        return Redis(host=str(node.host), port=int(node.port), ssl=secure, **options)

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()


def parse_info(reply: Any) -> dict[str, str]:
    """INFO as names and texts, whatever the client library made of it."""
    if isinstance(reply, dict):
        return {text_of(name): text_of(value) for name, value in reply.items()}
    pairs = (line.partition(":") for line in text_of(reply).splitlines())
    return {name: value.strip() for name, colon, value in pairs if colon}


def text_of(value: Any) -> str:
    """A reply as text, whatever the client library made of it."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
