"""A mesh of real relays: each a process over a store of its own, with a key known in advance.

A relay keeps its origin over all its lives. Behind a proxy its public origin is the proxy's, since
a dialler refuses a relay that names another origin than was dialled. Tests ask a relay about its
peers at its admin listener, as an operator would. Every wait has a deadline.

::

    mesh(3, …) ──▶ relay 0 ⇄ relay 1 ⇄ relay 2     closed: each lists the others
                                                   open: each joins relay 0
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import urllib.error
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal

import orjson

from relay.inbox.model.types import InboxLimits
from relay.protocol import jws as jose
from relay.protocol.did import SigningKey
from relay.protocol.ids import Did, NodeId
from relay.store.redis import RedisStore
from tests.chaos.restarting_relay import SERVE, RelayProcess, read_url
from tests.support.fault_proxy import FaultProxy
from tests.support.link_faults import Faults
from tests.support.namespaces import Namespaces
from tests.support.patience import wait_until
from tests.support.ports import free_port

LOOPBACK = "127.0.0.0/8"

SMALL_STORE = "64mb"

Federation = Literal["closed", "open"]


class MeshRelay(RelayProcess):
    """One relay of a mesh.

    Args:
        name: how faults call it.
        key: who it is.
        directory: its data, stdout and stderr.
        arguments: what Python is to run.
        settings: more ``RELAY_*`` variables.
    """

    def __init__(
        self,
        name: str,
        key: SigningKey,
        directory: Path,
        arguments: Sequence[str] = SERVE,
        settings: Mapping[str, str] | None = None,
        **where: Any,
    ) -> None:
        super().__init__(directory, arguments, settings, **where)
        self.name = name
        self.key = key
        self.did = key.did
        self.proxy: FaultProxy | None = None
        _write_key(directory / "data", key)

    @property
    def url(self) -> str:
        """Its public origin."""
        return super().url if self.proxy is None else self.proxy.url

    def tell(self, **settings: str) -> None:
        """More settings, from its next start on."""
        self._settings.update(settings)

    async def admin_get(self, path: str) -> Any:
        """Return an answer of its operator's API."""
        return await asyncio.to_thread(_ask, f"{self.admin}{path}")

    async def admin_post(self, path: str, body: object) -> Any:
        """Return what its operator asks for."""
        return await asyncio.to_thread(_ask, f"{self.admin}{path}", jose.dumps(body))

    async def peers(self) -> list[dict[str, Any]]:
        """All the relays that it knows."""
        found = await self.admin_get("/v1/admin/peers")
        listed: list[dict[str, Any]] = found["peers"] if isinstance(found, dict) else found
        return listed

    @contextlib.asynccontextmanager
    async def store(self) -> AsyncIterator[RedisStore]:
        """The store below it, as one more node over it would see it."""
        store = RedisStore(self.store_url, InboxLimits())
        await store.start(relay=self.key.did, node=NodeId("a look"))
        try:
            yield store
        finally:
            await store.stop()

    async def waiting(self) -> int:
        """Envelopes that wait here for other relays."""
        async with self.store() as store:
            return sum(count for _, count, _ in await store.outboxes.totals())


@dataclass(slots=True)
class Mesh:
    """The relays, and what lies between them."""

    relays: list[MeshRelay]
    federation: Federation
    faults: Faults | None = None
    namespaces: Namespaces | None = None
    _number: int = field(default=0)

    def __getitem__(self, index: int) -> MeshRelay:
        """One of them."""
        return self.relays[index]

    def pids(self) -> dict[str, int]:
        """Process ids by name, as they are now."""
        return {relay.name: relay.pid for relay in self.relays if relay.runs}

    def introduce(self) -> None:
        """Let each know the others, from its next start on."""
        for relay in self.relays:
            others = [one for one in self.relays if one is not relay]
            if self.federation == "open":
                others = [one for one in others if one is self.relays[0]]
            relay.tell(RELAY_PEERS=",".join(f"{one.did}@{one.url}" for one in others))

    async def start(self, *, at_once: int = 4) -> None:
        """Start all, some at once; a start is the dearest thing that a relay does."""
        room = asyncio.Semaphore(at_once)

        async def start(relay: MeshRelay) -> None:
            async with room:
                await relay.start()

        async with asyncio.TaskGroup() as tasks:
            for relay in self.relays:
                tasks.create_task(start(relay))

    async def linked(self, deadline_s: float = 30.0) -> None:
        """Wait until every relay has a live link to each that it was configured with."""

        async def are_linked() -> bool:
            for relay in self.relays:
                peers = [one for one in await relay.peers() if one["standing"] == "added"]
                if not peers or not all(one["linked"] for one in peers):
                    return False
            return True

        await wait_until(are_linked, deadline_s, "all relays are linked")

    async def waiting(self) -> int:
        """Envelopes that wait in outboxes, over all relays."""
        return sum([await relay.waiting() for relay in self.relays])

    async def drained(self, deadline_s: float) -> None:
        """Wait until no outbox holds anything."""

        async def is_drained() -> bool:
            return await self.waiting() == 0

        await wait_until(is_drained, deadline_s, "all outboxes are empty")

    def kill(self) -> None:
        """``kill -9`` of all."""
        for relay in self.relays:
            relay.kill()

    def log_tails(self) -> str:
        """The end of each log."""
        return "\n".join(f"--- {relay.name}\n{relay.log_tail()}" for relay in self.relays)


@contextlib.asynccontextmanager
async def mesh(
    count: int,
    directory: Path,
    *,
    federation: Federation = "closed",
    faults: Random | None = None,
    namespaces: Namespaces | None = None,
    arguments: Mapping[int, Sequence[str]] | None = None,
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[Mesh]:
    """A mesh whose relays are not started yet; killed at the end of the block.

    Args:
        count: how many relays.
        directory: where they live.
        federation: closed, each lists all others; or open, each knows only the first.
        faults: draws what is lost; each relay is then behind a proxy.
        namespaces: each relay in a network namespace of its own.
        arguments: what Python is to run instead, by number: mutants.
        settings: more ``RELAY_*`` variables of all.
    """
    async with contextlib.AsyncExitStack() as stack:
        played = Faults(faults) if faults is not None else None
        made = Mesh([], federation, played, namespaces)
        for number in range(count):
            name = f"relay{number}"
            common = {
                "RELAY_FEDERATION": federation,
                "RELAY_STORE_MAXMEMORY": SMALL_STORE,
                "RELAY_DIAL_NETWORKS": namespaces.network if namespaces else LOOPBACK,
                **(settings or {}),
            }
            where: dict[str, Any] = {}
            if namespaces is not None:
                where = {"host": namespaces.address(name), "within": namespaces.command(name)}
            words = (arguments or {}).get(number, SERVE)
            key = SigningKey(os.urandom(32))
            relay = MeshRelay(name, key, directory / name, words, common, **where)
            made.relays.append(relay)
            if played is not None:
                proxy = FaultProxy(name, relay.port, played, made.pids)
                relay.proxy = await stack.enter_async_context(proxy.running(free_port()))
                relay.tell(RELAY_PUBLIC_URL=relay.url)
        made.introduce()
        try:
            yield made
        finally:
            made.kill()


def _write_key(data: Path, key: SigningKey) -> None:
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = data / "relay.key"
    path.touch(mode=0o600)
    path.write_text(f"{jose.b64encode(key.seed)}\n", encoding="ascii")


def _ask(url: str, body: bytes | None = None) -> Any:
    return orjson.loads(read_url(url, body))


async def knows(relay: RelayProcess, did: Did) -> bool:
    """Return True if an agent's record lies in a relay's own store; nobody else is asked."""
    return await asyncio.to_thread(_is_known, f"{relay.url}/v1/agents/{did}")


def _is_known(url: str) -> bool:
    try:
        return bool(_ask(url)["state"] == "found")
    except urllib.error.HTTPError as exc:
        exc.close()
        return False
