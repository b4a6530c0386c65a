"""Relays in this process that dial each other, and peers that speak frames by hand."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection

from relay.peering.link import Link
from relay.peering.links import Links
from relay.peering.model.membership import MemberTable
from relay.protocol import endpoint_record, frames
from relay.protocol.client_session import ClientSession, LoginOptions, Ready
from relay.protocol.did import SigningKey
from relay.protocol.errors import RelayError
from relay.protocol.frames import Frame
from relay.protocol.ids import Did, Timestamp
from relay.store.ports import Store
from tests.support.nodes import RunningNode, dial, new_key, running_node, talk
from tests.support.patience import within


class Everybody:
    """A policy that deals with any relay."""

    def require_contact(self, did: Did) -> None:
        pass

    def require_federated(self, did: Did) -> None:
        pass

    def may_contact(self, did: Did) -> bool:
        return bool(did)

    def is_federated(self, did: Did) -> bool:
        return bool(did)

    def is_handoff_peer(self, did: Did) -> bool:
        return not did


class Dialler:
    """Dials every origin without a check, and records it."""

    def __init__(self) -> None:
        self.dialled: list[str] = []

    async def websocket(self, origin: str) -> ClientConnection:
        self.dialled.append(origin)
        return await dial(origin)


@dataclass
class Chooser(Everybody):
    """Chooses the links to keep, dials by a roster, and notes what becomes of them."""

    wanted: list[tuple[Did, str]] = field(default_factory=list)
    notes: list[tuple[str, Any]] = field(default_factory=list)
    roster: MemberTable = field(default_factory=lambda: MemberTable(new_key().did))

    def desired_links(self) -> list[tuple[Did, str]]:
        for did, _ in self.wanted:
            self.roster.add(did)
        return self.wanted

    def due_dials(self, linked: Collection[Did]) -> list[tuple[Did, str]]:
        due = self.roster.due(now(), linked)
        return [(did, url) for did, url in self.wanted if did in due]

    def on_link_up(self, link: Link) -> None:
        self.roster.on_link_up(link.peer, now())
        self.notes.append(("came", link.peer))

    def on_dial_failed(self, relay: Did, why: RelayError, url: str | None = None) -> float | None:
        if url is not None and url not in {at for did, at in self.wanted if did == relay}:
            return None
        self.notes.append(("missed" if url else "went", relay, why.code))
        self.roster.on_dial_failed(relay, now(), 0.0)
        peer = self.roster.get(relay)
        return None if peer is None else peer.dial_at - now()


@contextlib.asynccontextmanager
async def running_links(links: Links, chooser: Chooser | None = None) -> AsyncIterator[Links]:
    async with asyncio.TaskGroup() as tasks:
        work = tasks.create_task(links.run((chooser or Chooser()).on_link_up))
        await asyncio.sleep(0)
        try:
            yield links
        finally:
            work.cancel()


async def until(condition: Callable[[], object], seconds: float = 8) -> None:
    """Wait for a condition; a deadline makes it a failure."""
    async with within(seconds):
        while not condition():  # noqa: ASYNC110  any condition
            await asyncio.sleep(0.01)


@dataclass
class Peer:
    """A relay by hand: it has logged in somewhere as a peer."""

    key: SigningKey
    socket: ClientConnection
    ready: Ready

    async def say(self, frame: Frame) -> None:
        await self.socket.send(frames.encode(frame).decode())

    async def hear(self, *kinds: type) -> Any:
        async with within(8):
            while True:
                frame = frames.parse((await self.socket.recv()).encode(), "relay")
                if not kinds or isinstance(frame, kinds):
                    return frame


@contextlib.asynccontextmanager
async def peer(url: str, relay: Did, key: SigningKey | None = None) -> AsyncIterator[Peer]:
    """Log in as a peer; raises the named error where it is refused."""
    key = key or new_key()
    socket = await dial(url)
    try:
        yield Peer(
            key,
            socket,
            await talk(socket, ClientSession(key, LoginOptions(url, relay), os.urandom, "peer")),
        )
    finally:
        await socket.close()


# ---------------------------------------------------------------- whole relays


@dataclass(frozen=True)
class Place:
    """A relay that will be started: who it is and where."""

    key: SigningKey
    port: int

    @property
    def did(self) -> Did:
        return self.key.did

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def word(self) -> str:
        return f"{self.did}@{self.url}"


def places(count: int) -> list[Place]:
    """Relays with ports that are free just now."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [Place(new_key(), one.getsockname()[1]) for one in found]


@contextlib.asynccontextmanager
async def relay_at(
    place: Place, peers: Sequence[Place] = (), store: Store | None = None, **values: Any
) -> AsyncIterator[RunningNode]:
    """A relay that dials loopback; each of ``peers`` counts as added."""
    said = {
        "listen": f"127.0.0.1:{place.port}",
        "peers": tuple(one.word for one in peers),
        "dial_networks": ("127.0.0.0/8",),
        **values,
    }
    async with running_node(store, key=place.key, **said) as node:
        yield node


def record_of(agent: SigningKey, home: Place, *, seq: int = 0) -> str:
    return endpoint_record.sign(
        agent, [endpoint_record.Home(home.did, home.url)], now=now(), newest_seq=seq
    )


def now() -> Timestamp:
    return Timestamp(time.time())


async def held(node: RunningNode, agent: SigningKey) -> str | None:
    """The record of an agent that a relay holds."""
    return (await node.parts.directory.resolve(agent.did)).record


async def until_held(node: RunningNode, agent: SigningKey, record: str, seconds: float = 8) -> None:
    async with within(seconds):
        while await held(node, agent) != record:  # noqa: ASYNC110  any node
            await asyncio.sleep(0.02)
