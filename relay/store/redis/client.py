"""Commands and scripts of one store, standalone or Cluster: deadlines and named errors.

Rules of the file: no retries (an answer that did not come is an unknown outcome, and the caller
says so; MOVED is an answer: nothing was done); every await has a deadline; the errors of redis-py
end in :func:`translated`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import redis.exceptions as foreign
from redis.asyncio import Redis

from relay.health import Health, ProblemReason
from relay.protocol.errors import (
    ErrorCode,
    RelayError,
    UnavailableError,
)
from relay.protocol.ids import Partition
from relay.store.redis import keys
from relay.store.redis.scripts import Script, script
from relay.store.redis.servers import REFRESH_EVERY_S, Servers

_R = TypeVar("_R")
_MOST_MOVES: Final = 4
_RETRY_AFTER_S: Final = 1
_FULL_RETRY_AFTER_S: Final = 30
_DOWN: Final = (
    foreign.ConnectionError,  # refused, reset, loading, not authenticated
    foreign.TimeoutError,
    foreign.ReadOnlyError,
    foreign.ClusterError,
    foreign.AskError,
    foreign.TryAgainError,
    OSError,
    TimeoutError,
    RuntimeError,  # uvloop: the handle of a connection that broke meanwhile is closed
)
# replies of a server that cannot just now; the first word of an error
_DOWN_WORDS: Final = frozenset({
    "LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS", "BUSY", "NOAUTH", "READONLY",
})  # fmt: skip
_FULL_WORDS: Final = frozenset({"OOM", "MISCONF"})
_LASTING: Final = (
    foreign.AuthenticationError,
    foreign.AuthorizationError,
    foreign.NoPermissionError,
    ssl.SSLError,
)
"""Wrong settings, of the relay or of the server: no wait mends them."""
_REFUSALS: Final = (foreign.AuthenticationError, foreign.ReadOnlyError)


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
    except foreign.NoPermissionError as exc:
        # the operator's to mend, and no bug: permissions were taken away since the start
        detail = f"the store denies a command: {exc}"
        raise UnavailableError(ErrorCode.STORAGE_UNAVAILABLE, detail) from exc
    except foreign.RedisError as exc:
        word = _word(exc)
        if word in _FULL_WORDS:
            raise _full(exc) from exc
        if word in _DOWN_WORDS:
            raise _unavailable(exc) from exc
        raise RelayError(ErrorCode.INTERNAL, f"store: {exc}") from exc


def _unavailable(exc: BaseException) -> UnavailableError:
    detail = str(exc) or type(exc).__name__
    what = "refuses" if isinstance(exc, _REFUSALS) else "does not answer"
    return UnavailableError(
        ErrorCode.STORAGE_UNAVAILABLE,
        f"the store {what}: {detail}",
        retry_after=_RETRY_AFTER_S,
    )


def is_lasting(exc: BaseException | None) -> bool:
    """Whether an error comes from wrong settings, so that trying again is of no use."""
    while exc is not None:
        if isinstance(exc, _LASTING) and not isinstance(exc, ssl.SSLEOFError):
            return True
        exc = exc.__cause__ or exc.__context__
    return False


def is_denied(exc: RelayError) -> bool:
    """Whether the store's user may not run what was asked."""
    return isinstance(exc.__cause__, foreign.NoPermissionError)


def _full(exc: BaseException) -> UnavailableError:
    what = "the store refuses writes" if _word(exc) == "MISCONF" else "the store is full"
    return UnavailableError(
        ErrorCode.STORAGE_FULL, f"{what}: {exc}", retry_after=_FULL_RETRY_AFTER_S
    )


def _word(exc: BaseException) -> str:
    """The first word of what a server said, which names the error."""
    return str(exc).partition(" ")[0]


def _problem(exc: UnavailableError) -> ProblemReason | None:
    """What an error tells of the store; how full it is, only its own numbers tell."""
    cause = exc.__cause__
    if isinstance(cause, foreign.ReadOnlyError) or (cause and _word(cause) == "READONLY"):
        return ProblemReason.STORE_REPLICA
    if is_denied(exc):
        # it answers; what cannot be asked is told by who asks
        return None
    if exc.code is ErrorCode.STORAGE_UNAVAILABLE:
        return ProblemReason.STORE_UNREACHABLE
    if cause and _word(cause) == "MISCONF":
        return ProblemReason.STORE_REFUSES_WRITES
    return None


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
        health: told at once when the store is away or takes no writes; that this is over is for
            :class:`~relay.store.redis.guard.Guard` to say.

    Raises:
        StateError: ``unsupported``: the URL is none.
    """

    def __init__(self, url: str, *, cluster: bool, timeout_s: float, health: Health) -> None:
        self.timeout_s = timeout_s
        self._url = url
        self._servers = Servers(url, cluster=cluster, timeout_s=timeout_s)
        self._health = health

    @property
    def connections_made(self) -> int:
        """How many connections were made so far; a new one may lead to another server."""
        return self._servers.connections_made

    async def command(self, key: str | bytes, *words: Any) -> Any:
        """Run one command where ``key`` lies.

        Raises:
            RelayError: as :func:`translated` says.
        """
        return await self._answer(lambda: self._at(key, *words))

    async def script(self, name: str, key: str, args: Sequence[Any]) -> Any:
        """Run a script on its one key; a store that does not know it is taught, once.

        Raises:
            RelayError: as :func:`translated` says.
        """
        return await self._answer(lambda: self._script(script(name), key, args))

    async def _script(self, found: Script, key: str, args: Sequence[Any]) -> Any:
        try:
            return await self._at(key, "EVALSHA", found.sha, 1, key, *args)
        except foreign.NoScriptError:
            # EVAL both runs it and keeps it; the whole commit is repeated
            return await self._at(key, "EVAL", found.text, 1, key, *args)

    async def _at(self, key: str | bytes, *words: Any) -> Any:
        for _ in range(_MOST_MOVES):
            redis = await self._servers.client_for(key)
            try:
                return await self._servers.ask(redis, *words)
            except foreign.MovedError:
                # nothing was done there; the map is read anew, at most every so often
                self._servers.doubt()
                await asyncio.sleep(REFRESH_EVERY_S)
        raise foreign.ClusterError("the slots of the cluster do not settle")

    async def _answer(self, work: Callable[[], Awaitable[_R]]) -> _R:
        try:
            with translated():
                async with asyncio.timeout(self.timeout_s):
                    reply = await work()
        except UnavailableError as exc:
            self._tell(exc)
            raise
        return reply

    def _tell(self, exc: UnavailableError) -> None:
        if exc.code is ErrorCode.STORAGE_UNAVAILABLE:
            self._servers.doubt()
        reason = _problem(exc)
        # a store that never let us in is raised, and told as the reason why there is no node
        if reason is not None and (self.connections_made or not is_lasting(exc)):
            self._health.found(reason, exc.detail)

    # ------------------------------------------------------------ all primaries

    async def primaries(self, *sections: str) -> list[Primary]:
        """Ask every primary for INFO.

        Raises:
            RelayError: as :func:`translated` says.
        """
        found = await self.ask_all("INFO", *sections)
        return [Primary(name, parse_info(text)) for name, text in found]

    async def ask_all(self, *words: Any) -> list[tuple[str, Any]]:
        """Run a command on every primary: (its name, its reply).

        Raises:
            RelayError: as :func:`translated` says.
        """
        replies = []
        for name in await self._answer(self._servers.names):
            redis = self._servers.client(name)
            replies.append((name, await self._answer(partial(self._servers.ask, redis, *words))))
        return replies

    async def refresh(self) -> None:
        """Read the map of a Cluster again.

        Raises:
            RelayError: as :func:`translated` says.
        """
        self._servers.doubt()
        await self._answer(self._servers.refresh)

    def owner_of(self, partition: Partition) -> str:
        """Name of the primary that has a partition; '' for a standalone server.

        Raises:
            RelayError: as :func:`translated` says.
        """
        with translated():
            return self._servers.owner(keys.state(partition))

    def listener(self, name: str) -> Redis:
        """A connection of its own for a subscription, at the primary ``name``."""
        return self._servers.listener(name)

    async def close(self) -> None:
        """Close all connections."""
        await self._servers.close()


def parse_info(reply: Any) -> dict[str, str]:
    """INFO as names and texts, whatever the client library made of it."""
    if isinstance(reply, dict):
        return {text_of(name): text_of(value) for name, value in reply.items()}
    pairs = (line.partition(":") for line in text_of(reply).splitlines())
    return {name: value.strip() for name, colon, value in pairs if colon}


def text_of(value: Any) -> str:
    """A reply as text, whatever the client library made of it."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
