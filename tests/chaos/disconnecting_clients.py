"""Clients that hang up: a random conversation, cut off at a random moment in a random way.

What they send is valid until the cut, or random. They write only to each other, so no honest agent
ever has mail of theirs. Every wait has an end.

::

    connect ──▶ upgrade ──▶ hello ──▶ auth ──▶ welcome ──▶ frames ... ──▶ (cut at any byte of any)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from urllib.parse import urlsplit

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidState
from websockets.frames import Frame as WireFrame
from websockets.uri import parse_uri

from relay.protocol import endpoint_record, frames
from relay.protocol.client_session import (
    ClientSession,
    LoginOptions,
    Ready,
    Send,
)
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import Home
from relay.protocol.errors import RelayError
from relay.protocol.frames import (
    SUBPROTOCOL,
    Ack,
    Bye,
    Deliver,
    Frame,
    Publish,
    Resolve,
    Rules,
    Status,
    StatusItem,
    Submit,
)
from relay.protocol.ids import (
    Did,
    Epoch,
    Seq,
    Timestamp,
)
from relay.protocol.jws import (
    dumps,
    loads,
)
from tests.support.nodes import make_envelope

WAIT_S = 2.0
PAUSES = (0.0, 0.0, 0.002, 0.01, 0.04)
"""Seconds before a cut: from within the same read of the node to after its answer."""
STALL_S = 0.2
STAGES = (
    "requested", "answered", "upgrading", "logging in", "logged in", "spoken",
)  # fmt: skip
ENDINGS = ("reset", "closed", "half closed", "stopped reading")


class Cut(Exception):  # noqa: N818  no error: it is what the client wants
    """The conversation is cut off here."""


@dataclass(slots=True)
class HangUps:
    """Many such clients of one relay.

    Args:
        url: the relay's origin.
        relay: its DID.
        rng: draws everything.
        keys: whose clients they are; few, so that they supersede and write to each other.
        count: how many conversations there are to be.
    """

    url: str
    relay: Did
    rng: Random
    keys: Sequence[SigningKey]
    count: int
    begun: int = 0
    cuts: Counter[str] = field(default_factory=Counter)
    """How far the conversations came, and how they ended."""

    @property
    def are_over(self) -> bool:
        """True if the last one has begun."""
        return self.begun >= self.count

    async def run(self, at_once: int) -> None:
        """Hang up ``count`` times.

        Args:
            at_once: conversations at a time.
        """
        async with asyncio.TaskGroup() as tasks:
            for _ in range(at_once):
                tasks.create_task(self._one_by_one())

    async def _one_by_one(self) -> None:
        while not self.are_over:
            self.begun += 1
            rng = Random(self.rng.random())  # noqa: S311  whims, no keys
            client = Client(self.url, self.relay, rng, rng.choice(self.keys), self.keys)
            with contextlib.suppress(OSError):
                await client()
            self.cuts[client.stage] += 1
            self.cuts[client.ending] += 1


@dataclass(slots=True)
class Client:
    """One conversation of :class:`HangUps`."""

    url: str
    relay: Did
    rng: Random
    key: SigningKey
    others: Sequence[SigningKey]
    stage: str = "connected"
    ending: str = "closed"
    _socket: socket.socket = field(init=False)
    _protocol: ClientProtocol = field(init=False)
    _epoch: Epoch = field(init=False)
    _seen: Seq = field(init=False)

    async def __call__(self) -> None:
        """Converse, then hang up."""
        where = urlsplit(self.url)
        self._epoch, self._seen = Epoch(""), Seq(0)
        self._socket = socket.socket()
        try:
            if self.rng.random() < 0.2:
                # the smallest buffers there are: what the relay says soon has no room
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            self._socket.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(self._socket, (where.hostname or "", where.port or 80))
            with contextlib.suppress(Cut, TimeoutError, RelayError, InvalidState):
                async with asyncio.timeout(WAIT_S):
                    await (self._request() if self.rng.random() < 0.2 else self._converse())
            await self._hang_up()
        finally:
            self._socket.close()

    # ------------------------------------------------------------ frames

    async def _request(self) -> None:
        """Plain HTTP."""
        method, path, body = self.rng.choice(
            [
                ("GET", "/.well-known/agent-relay.json", b""),
                ("GET", f"/v1/agents/{self.rng.choice(self.others).did}", b""),
                ("POST", "/v1/envelopes", dumps({"envelopes": self._envelopes()})),
                ("PUT", f"/v1/agents/{self.key.did}", dumps({"record": self._record()})),
            ]
        )
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        self.stage = "requested"
        await self._send(head.encode() + body)
        await self._receive()
        self.stage = "answered"

    async def _converse(self) -> None:
        address = f"ws{self.url.removeprefix('http')}/v1/ws"
        self._protocol = ClientProtocol(parse_uri(address), subprotocols=[SUBPROTOCOL])
        self._protocol.send_request(self._protocol.connect())
        self.stage = "upgrading"
        await self._flush()
        session = ClientSession(self.key, LoginOptions(self.url), os.urandom)
        while not await self._log_in(session, await self._hear()):
            pass
        self.stage = "logged in"
        for _ in range(self.rng.randint(0, 6)):
            self._protocol.send_text(frames.encode(self._frame()))
            await self._flush()
            self.stage = "spoken"
            if self.rng.random() < 0.4:
                await self._hear()

    async def _log_in(self, session: ClientSession, frame: Frame) -> bool:
        for effect in session.receive(frame, Timestamp(time.time())):
            if isinstance(effect, Send):
                self._protocol.send_text(frames.encode(effect.frame))
                self.stage = "logging in"
                await self._flush()
            if isinstance(effect, Ready):
                self._epoch = effect.welcome.epoch or Epoch("")
                return True
        return False

    def _frame(self) -> Frame:
        ref, other = str(self.rng.random()), self.rng.choice(self.others).did
        makers: list[Callable[[], Frame]] = [
            lambda: Submit(ref, [dumps(one) for one in self._envelopes()]),
            lambda: Submit(ref, [dumps(one) for one in self._envelopes()]),
            lambda: Ack(self._epoch, upto=self._seen),
            lambda: Status(ref, (StatusItem(other, "00000000-0000-7000-8000-000000000000"),)),
            lambda: Publish(ref, self._record()),
            lambda: Resolve(ref, other),
            lambda: Resolve(ref, self._nobody()),
            lambda: Rules(ref),
            lambda: Bye(None),
        ]
        return self.rng.choice(makers)()

    def _envelopes(self) -> list[object]:
        """For others of the kind, or for somebody who has no inbox anywhere."""
        made = []
        for _ in range(self.rng.randint(1, 8)):
            to = self._nobody() if self.rng.random() < 0.6 else self.rng.choice(self.others).did
            made.append(loads(make_envelope(self.key, to, self.rng.randbytes(40)).wire))
        return made

    def _nobody(self) -> Did:
        return SigningKey(self.rng.randbytes(32)).did

    def _record(self) -> str:
        return endpoint_record.sign(
            self.key, [Home(self.relay, self.url)], now=Timestamp(time.time())
        )

    # ------------------------------------------------------------ the wire

    async def _flush(self) -> None:
        await self._send(b"".join(self._protocol.data_to_send()))

    async def _send(self, data: bytes) -> None:
        """Send it, or a part of it."""
        is_last = self.rng.random() < 0.18
        if is_last:
            data = data[: self.rng.randint(0, len(data))]
        await asyncio.get_running_loop().sock_sendall(self._socket, data)
        if is_last:
            raise Cut

    async def _hear(self) -> Frame:
        while True:
            for event in self._protocol.events_received():
                if isinstance(event, WireFrame):
                    frame = frames.parse(bytes(event.data), "relay")
                    if isinstance(frame, Deliver):
                        self._seen = frame.items[-1].seq
                    return frame
            self._protocol.receive_data(await self._receive())

    async def _receive(self) -> bytes:
        data = await asyncio.get_running_loop().sock_recv(self._socket, 65_536)
        if not data:
            raise Cut
        return data

    async def _hang_up(self) -> None:
        """In one of the ways that there are."""
        await asyncio.sleep(self.rng.choice(PAUSES))
        self.ending = self.rng.choice(ENDINGS)
        match self.ending:
            case "reset":
                self._reset_on_close()
            case "half closed":
                self._socket.shutdown(socket.SHUT_WR)
                with contextlib.suppress(TimeoutError, Cut):
                    async with asyncio.timeout(STALL_S):
                        while True:
                            await self._receive()
            case "stopped reading":
                await asyncio.sleep(STALL_S)
                self._reset_on_close()

    def _reset_on_close(self) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
