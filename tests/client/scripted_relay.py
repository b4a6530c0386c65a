"""The other party of the SDK: relays that lie, stall or hang up, and a wire that can be cut.

An honest relay is a real one (``tests.support``). What is here exists because no honest relay does
these things on demand.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websocket
from websockets.exceptions import ConnectionClosed

from relay.protocol import envelope as envelopes
from relay.protocol import frames, handshake, receipts
from relay.protocol import jws as jose
from relay.protocol.did import SigningKey
from relay.protocol.envelope import Envelope
from relay.protocol.frames import (
    SUBPROTOCOL,
    Deliver,
    DeliverItem,
    Frame,
    Hello,
    Publish,
    Published,
    Resolve,
    Resolved,
    Submit,
    Submitted,
    Welcome,
    WelcomePending,
)
from relay.protocol.ids import Did, Epoch, Fence, Seq, Timestamp, new_message_id
from relay.protocol.receipts import ReceiptItem


def new_key() -> SigningKey:
    return SigningKey(os.urandom(32))


def envelope_of(
    sender: SigningKey, to: Did, body: bytes = b"hello", **values: Any
) -> envelopes.SignedEnvelope:
    draft = envelopes.Draft(
        to=to,
        id=new_message_id(Timestamp(time.time()), os.urandom),
        body=body,
        content_type=values.pop("content_type", "text/plain"),
        created_at=int(time.time()),
        **values,
    )
    return envelopes.sign(draft, sender)


def raw(envelope: envelopes.SignedEnvelope) -> dict[str, str]:
    """The envelope as it lies in a parsed frame."""
    return jose.loads(envelope.wire)


def deliver(*items: tuple[int, bytes], epoch: str = "e1", redelivered: bool = False) -> Deliver:
    """A ``deliver`` frame of (seq, wire bytes)."""
    entries = tuple(DeliverItem(Seq(seq), redelivered, jose.loads(wire)) for seq, wire in items)
    return Deliver(Epoch(epoch), entries)


def welcome(epoch: str = "e1", cursor: int = 0, head: int = 0, **values: Any) -> Welcome:
    defaults: dict[str, Any] = {
        "inbox": True,
        "session": Fence(1),
        "epoch": Epoch(epoch),
        "cursor": Seq(cursor),
        "head": Seq(head),
        "pending": WelcomePending(),
        "window_count": 64,
        "window_bytes": 1024 * 1024,
        "proof": "",
    }
    return Welcome(**{**defaults, **values})


@dataclass
class Talk:
    """One connection, as the relay's side of a script."""

    relay: LyingRelay
    socket: ServerConnection
    number: int

    async def say(self, frame: Frame) -> None:
        await self.socket.send(frames.encode(frame).decode())

    async def hear(self) -> Any:
        """The agent's next frame; what it asks about its own record is answered on the way."""
        while True:
            frame = frames.parse(await self.socket.recv(decode=False), "agent")
            self.relay.heard.append(frame)
            if isinstance(frame, Resolve):
                await self.say(Resolved(frame.ref, "absent"))
            elif isinstance(frame, Publish):
                await self.say(Published(frame.ref, stored=True, kv=1, seq=1))
            else:
                return frame

    async def log_in(
        self,
        *,
        said: Welcome | None = None,
        url: str | None = None,
        as_relay: SigningKey | None = None,
        proven_by: SigningKey | None = None,
    ) -> None:
        """Greet and prove; honest but for what the arguments say."""
        key = as_relay or self.relay.key
        nonce = jose.b64encode(os.urandom(32))
        hello = Hello(key.did, url or self.relay.url, nonce, {"envelopes": 256}, int(time.time()))
        await self.say(hello)
        auth = await self.hear()
        claims = handshake.parse_auth(auth.jws)[1]
        said = said or welcome()
        standing = handshake.InboxPosition(said.epoch, said.cursor, said.head)
        proof = handshake.sign_proof(proven_by or key, claims, standing, Timestamp(time.time()))
        await self.say(Welcome(**{**_fields(said), "proof": proof}))

    async def submit(self) -> tuple[Submit, list[Envelope]]:
        """Wait for a submit."""
        while not isinstance(frame := await self.hear(), Submit):
            pass
        return frame, [envelopes.parse(item) for item in frame.envelopes]

    def receipt(self, stored: list[Envelope], *, dup: bool = False) -> str:
        """An honest receipt."""
        items = [
            ReceiptItem(e.eid, e.recipient.did, Epoch("e"), "pos", e.expires_at, dup)
            for e in stored
        ]
        key, now = self.relay.key, Timestamp(time.time())
        return receipts.sign_receipt(key, items, durability="fsync", now=now)

    async def accept(self, *, dup: bool = False) -> list[Envelope]:
        """Wait for a submit and give its receipt."""
        frame, stored = await self.submit()
        await self.say(Submitted((frame.ref,), self.receipt(stored, dup=dup)))
        return stored

    async def until(self, event: asyncio.Event) -> None:
        """Go on answering what is asked, until ``event``."""
        listening = asyncio.ensure_future(self.until_closed())
        waiting = asyncio.ensure_future(event.wait())
        await asyncio.wait({listening, waiting}, return_when=asyncio.FIRST_COMPLETED)
        for task in (listening, waiting):
            task.cancel()
        await asyncio.gather(listening, waiting, return_exceptions=True)

    async def until_closed(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self.hear()


def _fields(frame: Welcome) -> dict[str, Any]:
    return {name: getattr(frame, name) for name in Welcome.__slots__}


Script = Callable[[Talk], Awaitable[None]]


@dataclass
class LyingRelay:
    """A WebSocket server that follows a script for each connection."""

    key: SigningKey
    script: Script
    url: str = ""
    heard: list[Frame] = field(default_factory=list)
    talks: int = 0

    async def handle(self, socket: ServerConnection) -> None:
        self.talks += 1
        with contextlib.suppress(ConnectionClosed):
            await self.script(Talk(self, socket, self.talks))


@contextlib.asynccontextmanager
async def lying_relay(script: Script, key: SigningKey | None = None) -> AsyncIterator[LyingRelay]:
    relay = LyingRelay(key or new_key(), script)
    server = await serve_websocket(
        relay.handle, "127.0.0.1", 0, subprotocols=[SUBPROTOCOL], compression=None, close_timeout=1
    )
    try:
        host, port = next(iter(server.sockets)).getsockname()[:2]
        relay.url = f"http://{host}:{port}"
        yield relay
    finally:
        server.close()
        await server.wait_closed()


@dataclass
class Wire:
    """A TCP forwarder that can swallow what the relay says, and cut."""

    url: str
    target: tuple[str, int]
    deaf: bool = False
    cuts: int = 0
    _pumps: set[asyncio.Task[None]] = field(default_factory=set)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.close()
            return
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            async with asyncio.TaskGroup() as tasks:
                asked = asyncio.Event()
                out = tasks.create_task(self._out(reader, far_writer, asked))
                back = tasks.create_task(self._back(far_reader, writer, asked))
                self._pumps |= {out, back}
                await asyncio.wait({out, back}, return_when=asyncio.FIRST_COMPLETED)
                out.cancel()
                back.cancel()
        far_writer.close()
        writer.close()

    async def _out(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: asyncio.Event
    ) -> None:
        while data := await reader.read(65536):
            if self.deaf:
                asked.set()
            writer.write(data)

    async def _back(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: asyncio.Event
    ) -> None:
        while data := await reader.read(65536):
            if self.deaf and asked.is_set():
                # the relay has answered who asked, and the answer is lost
                self.deaf, self.cuts = False, self.cuts + 1
                return
            writer.write(data)

    def cut(self) -> None:
        """Cut all that is connected."""
        for pump in self._pumps:
            pump.cancel()
        self._pumps.clear()


@contextlib.asynccontextmanager
async def wire(listen: tuple[str, int], target: tuple[str, int]) -> AsyncIterator[Wire]:
    made = Wire(f"http://{listen[0]}:{listen[1]}", target)
    server = await asyncio.start_server(made.handle, *listen)
    try:
        yield made
    finally:
        server.close()
        made.cut()
        await server.wait_closed()
