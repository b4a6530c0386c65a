"""Nodes in this process, and agents that speak frames by hand, for the tests of the edges."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from relay import clock
from relay.inbox.model.types import InboxLimits
from relay.node.build import build
from relay.node.node import Node
from relay.node.open_store import OpenedStore
from relay.node.serve import bind, operators_side, serve
from relay.protocol import envelope, frames
from relay.protocol.client_session import (
    ClientPhase,
    ClientSession,
    Failed,
    LoginOptions,
    Ready,
    Send,
)
from relay.protocol.did import SigningKey
from relay.protocol.envelope import SignedEnvelope
from relay.protocol.frames import SUBPROTOCOL, Frame
from relay.protocol.ids import Did, NodeId, Timestamp, new_message_id
from relay.reference.memory_store import MemoryStore
from relay.settings import Settings, load
from relay.store.ports import Store
from tests.support.patience import within


@dataclass
class RunningNode:
    """A node that listens."""

    parts: Node
    url: str
    admin: str
    stop: asyncio.Event

    @property
    def ws_url(self) -> str:
        return f"ws{self.url.removeprefix('http')}/v1/ws"


def settings(**values: Any) -> Settings:
    """Settings for a test: free ports, no limits that a test does not ask for."""
    defaults = {
        "listen": "127.0.0.1:0",
        "admin": "127.0.0.1:0",
        "sender_rate": 1_000_000,
        "stranger_rate": 1_000_000,
    }
    return load({**defaults, **values})


def new_key() -> SigningKey:
    return SigningKey(os.urandom(32))


@contextlib.asynccontextmanager
async def running_node(
    store: Store | None = None,
    *,
    key: SigningKey | None = None,
    data: Path = Path("unused"),
    **values: Any,
) -> AsyncIterator[RunningNode]:
    """A node in this event loop, drained at the end."""
    made = settings(data=data, **values)
    key, node_id = key or new_key(), NodeId(os.urandom(6).hex())
    store = store or MemoryStore(InboxLimits(), clock.now)
    await store.start(relay=key.did, node=node_id)
    stop = asyncio.Event()
    said: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()
    with bind(made.listen) as public, bind(made.admin) as admin:
        host, port = public.getsockname()
        opened = OpenedStore(key, node_id, store, None, None)
        node = await build(made, opened, made.public_url or f"http://{host}:{port}")
        async with (
            operators_side(admin, made, store.health) as operators,
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(serve(node, public, operators, stop, said.set_result))
            try:
                line = await said
                yield RunningNode(node, line["url"], line["admin"], stop)
            finally:
                stop.set()
    await store.stop()


@dataclass
class Speaker:
    """An agent that says and hears single frames."""

    key: SigningKey
    socket: ClientConnection
    ready: Ready
    heard: list[Frame] = field(default_factory=list)

    async def say(self, frame: Frame) -> None:
        await self.socket.send(frames.encode(frame).decode())

    async def hear(self, *kinds: type) -> Any:
        """Return the next frame of one of ``kinds``; collect others in ``heard``."""
        async with within(8):
            while True:
                frame = frames.parse((await self.socket.recv()).encode(), "relay")
                self.heard.append(frame)
                if not kinds or isinstance(frame, kinds):
                    return frame

    async def closed(self) -> int:
        """Read on to the end; return the close code."""
        async with within(15):
            await self.socket.wait_closed()
        return self.socket.close_code or 0


async def dial(url: str, **options: Any) -> ClientConnection:
    return await connect(
        f"ws{url.removeprefix('http')}/v1/ws",
        **{"compression": None, "subprotocols": [SUBPROTOCOL], "max_size": None, **options},
    )


@contextlib.asynccontextmanager
async def speaker(
    url: str, key: SigningKey | None = None, *, record: str | None = None, **options: Any
) -> AsyncIterator[Speaker]:
    """Log in; raises the named error if the relay refuses."""
    key = key or new_key()
    socket = await dial(url, **options)
    try:
        yield Speaker(key, socket, await log_in(socket, url, key, record=record))
    finally:
        await socket.close()


async def log_in(
    socket: ClientConnection, url: str, key: SigningKey, *, record: str | None = None
) -> Ready:
    return await talk(socket, ClientSession(key, LoginOptions(url, record=record), os.urandom))


async def talk(socket: ClientConnection, session: ClientSession) -> Ready:
    """Log in by this session, as an agent or a peer."""
    async with within(8):
        while True:
            frame = frames.parse((await socket.recv()).encode(), "relay")
            for effect in session.receive(frame, Timestamp(time.time())):
                if isinstance(effect, Send):
                    await socket.send(frames.encode(effect.frame).decode())
                if isinstance(effect, Failed):
                    raise effect.error
                if isinstance(effect, Ready):
                    assert session.phase is ClientPhase.OPEN
                    return effect


def make_envelope(
    sender: SigningKey, to: Did, body: bytes = b"hello", **values: Any
) -> SignedEnvelope:
    now = int(time.time())
    draft = envelope.Draft(
        to=to,
        id=values.pop("id", None) or new_message_id(Timestamp(time.time()), os.urandom),
        body=body,
        content_type=values.pop("content_type", "text/plain"),
        created_at=values.pop("created_at", now),
        **values,
    )
    return envelope.sign(draft, sender)


async def get(origin: str, path: str) -> tuple[int, str]:
    """A plain HTTP/1.1 GET."""
    host, _, port = origin.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    async with within(8):
        answer = (await reader.read()).decode()
    writer.close()
    return int(answer.split()[1]), answer.partition("\r\n\r\n")[2]
