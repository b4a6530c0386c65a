"""Several real relays that know each other, each over a store of its own.

Rules of the file: closed federation, as it is by default: every relay lists the others, so their
keys and ports are chosen before they start. A store is looked into beside its relay, as another
node would: what is looked at costs the measured node nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from loadtest.process import RelayFailedError, RelayProcess, relay_process
from relay.inbox.model.types import InboxLimits
from relay.protocol import jws as jose
from relay.protocol.did import SigningKey
from relay.protocol.ids import Did, NodeId
from relay.store.redis import RedisStore

AT_ONCE: Final = 4
POLL_S: Final = 0.05
ANSWER_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a relay will live, and who it will be.

    Args:
        key: the relay's.
        directory: of its data and its log.
        port: of its public bind.
        url: its public origin; another than its own port where something stands before it.
    """

    key: SigningKey
    directory: Path
    port: int
    url: str


def places(count: int, directory: Path) -> list[Place]:
    """So many, each with its key written down."""
    with contextlib.ExitStack() as held:
        ports = [held.enter_context(_any_port()).getsockname()[1] for _ in range(count)]
    return [_place(directory / f"relay{at}", port) for at, port in enumerate(ports)]


def _any_port() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def _place(directory: Path, port: int) -> Place:
    key = SigningKey(os.urandom(32))
    data = directory / "data"
    data.mkdir(parents=True, mode=0o700)
    secret = data / "relay.key"
    secret.touch(mode=0o600)
    secret.write_text(f"{jose.b64encode(key.seed)}\n", encoding="ascii")
    return Place(key, directory, port, f"http://127.0.0.1:{port}")


@contextlib.asynccontextmanager
async def peered(
    where: Sequence[Place], settings: Mapping[str, str] | None = None
) -> AsyncIterator[list[RelayProcess]]:
    """Start them, some at once; all stopped at the end."""
    room = asyncio.Semaphore(AT_ONCE)
    async with contextlib.AsyncExitStack() as stack:

        async def start(place: Place) -> RelayProcess:
            async with room:
                return await stack.enter_async_context(_relay(place, where, settings or {}))

        async with asyncio.TaskGroup() as tasks:
            started = [tasks.create_task(start(place)) for place in where]
        yield [task.result() for task in started]


def _relay(
    place: Place, where: Sequence[Place], settings: Mapping[str, str]
) -> contextlib.AbstractAsyncContextManager[RelayProcess]:
    others = [one for one in where if one is not place]
    words = {
        "RELAY_FEDERATION": "closed",
        "RELAY_PEERS": ",".join(f"{one.key.did}@{one.url}" for one in others),
        "RELAY_DIAL_NETWORKS": "127.0.0.0/8",
        "RELAY_PUBLIC_URL": place.url,
        **settings,
    }
    return relay_process(place.directory, listen=f"127.0.0.1:{place.port}", **words)


# ---------------------------------------------------------------- looking


@contextlib.asynccontextmanager
async def store_of(relay: RelayProcess, directory: Path) -> AsyncIterator[RedisStore]:
    """The store below a relay, as one more node over it would see it."""
    socket_path = directory / "data" / "store" / "store.sock"
    elsewhere = socket_path.with_name("store.sock.path")
    path = elsewhere.read_text() if elsewhere.exists() else str(socket_path)
    store = RedisStore(f"unix://{path}", InboxLimits())
    await store.start(relay=relay.did, node=NodeId("bench"))
    try:
        yield store
    finally:
        await store.stop()


async def resolved(relay: RelayProcess, did: Did) -> bool:
    """Whether a relay knows where an agent lives."""
    return await asyncio.to_thread(_is_found, f"{relay.url}/v1/agents/{did}")


def _is_found(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_S) as answer:  # noqa: S310  our own relay
            return bool(orjson.loads(answer.read())["state"] == "found")
    except urllib.error.HTTPError:
        return False


async def publish(relay: RelayProcess, did: Did, record: str) -> None:
    """Publish a record at one of its homes, as its agent would."""
    await asyncio.to_thread(_put, f"{relay.url}/v1/agents/{did}", {"record": record})


def _put(url: str, body: Mapping[str, Any]) -> None:
    head = {"content-type": "application/json"}
    request = urllib.request.Request(  # noqa: S310  our own relay
        url, data=orjson.dumps(body), headers=head, method="PUT"
    )
    with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:  # noqa: S310
        answer.read()


async def until(condition: Callable[[], Awaitable[bool]], seconds: float, what: str) -> float:
    """Wait until it is so; gives the seconds that it took.

    Raises:
        RelayFailedError: it was not in time.
    """
    began = time.perf_counter()
    while not await condition():
        if time.perf_counter() - began > seconds:
            raise RelayFailedError(f"not within {seconds:.0f} s: {what}")
        await asyncio.sleep(POLL_S)
    return time.perf_counter() - began
