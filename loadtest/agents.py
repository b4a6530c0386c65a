"""The driver's agents: sockets that do as little as possible while something is measured.

Rules of the file: a login goes through the relay's own core; after that a handler parses its frame,
notes the time and answers. What the frames mean is worked out between the measured intervals, from
``answers`` and ``deliveries`` (``fleet.py``).
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any, Final

import orjson
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from loadtest.posts import Stock
from relay.protocol import frames
from relay.protocol.client_session import ClientSession, Failed, LoginOptions, Ready, Send
from relay.protocol.did import SigningKey
from relay.protocol.errors import RelayError
from relay.protocol.ids import Timestamp

LOGIN_S: Final = 20
TEXT: Final = WSMsgType.TEXT


class AgentFailedError(RuntimeError):
    """An agent's conversation ended, or heard what it cannot hear in a healthy run."""


class Agent(WSListener):
    """One socket and its login.

    Args:
        key: who it is.
        url: the relay's origin.
        record: its endpoint record, published with the login.
    """

    def __init__(self, key: SigningKey, url: str, record: str | None = None) -> None:
        super().__init__()
        self.key = key
        self.failure: str | None = None
        self.transport: WSTransport | None = None
        self._url = url
        self._session = ClientSession(key, LoginOptions(url, record=record), os.urandom)
        self._ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._is_open = False

    async def open(self) -> Ready:
        """Connect and log in."""
        async with asyncio.timeout(LOGIN_S):
            self.transport, _ = await ws_connect(
                lambda: self,
                f"ws{self._url.removeprefix('http')}/v1/ws",
                extra_headers={"Sec-WebSocket-Protocol": frames.SUBPROTOCOL},
                logger_name="loadtest",
            )
            return await self._ready

    async def close(self) -> None:
        """Leave."""
        if self.transport is not None:
            self._is_open = False
            self.transport.disconnect()
            await self.transport.wait_disconnected()

    # ------------------------------------------------------------ picows

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Hear one frame."""
        if frame.msg_type is not TEXT:
            return
        data = frame.get_payload_as_bytes()
        if self._is_open:
            self.hear(orjson.loads(data), transport)
        else:
            self._log_in(data, transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """The socket is gone; a failure unless we left."""
        if self._is_open:
            self.fail(f"disconnected: {transport.close_handshake}")
        elif not self._ready.done():
            self._ready.set_exception(AgentFailedError("disconnected before the login held"))

    # ------------------------------------------------------------ what agents do

    def hear(self, frame: dict[str, Any], transport: WSTransport) -> None:
        """Take a frame after the login; an idle agent hears nothing."""
        del transport
        self.fail(f"unexpected {frame}")

    def fail(self, why: str) -> None:
        """Keep the first failure for whoever waits on this agent."""
        self.failure = self.failure or f"{type(self).__name__} {self.key.did}: {why[:500]}"

    def _log_in(self, data: bytes, transport: WSTransport) -> None:
        try:
            frame = frames.parse(data, "relay")
        except RelayError as exc:
            self._ready.set_exception(exc)
            return
        for effect in self._session.receive(frame, Timestamp(time.time())):
            if isinstance(effect, Send):
                transport.send(TEXT, frames.encode(effect.frame))
            elif isinstance(effect, Ready):
                self._is_open = True
                self._ready.set_result(effect)
            elif isinstance(effect, Failed):
                self._ready.set_exception(effect.error)


class Sender(Agent):
    """Writes the posts of its stock: as many in flight as ``depth``, or when it is told.

    Args:
        key: who it is.
        url: the relay's origin.
        stock: what it sends.
    """

    def __init__(self, key: SigningKey, url: str, stock: Stock) -> None:
        super().__init__(key, url)
        self.stock = stock
        self.depth = 0
        self.in_flight = 0
        self.answered = 0
        self.rejected = 0
        self.is_out_of_stock = False
        self.sent_at: list[float] = []
        self.answers: list[tuple[float, dict[str, Any]]] = []

    def send(self, count: int) -> None:
        """Write the next ``count`` posts."""
        transport, sent_at = self.transport, self.sent_at
        if transport is None:
            raise AgentFailedError("not connected")
        at = len(sent_at)
        now = time.perf_counter()
        for post in self.stock.posts[at : at + count]:
            transport.send(TEXT, post.frame)
            sent_at.append(now)
        self.in_flight += len(sent_at) - at

    def fill(self) -> None:
        """Closed loop: as much in flight as allowed."""
        wanted = self.depth - self.in_flight
        if wanted > 0:
            self.send(wanted)
            self.is_out_of_stock = self.in_flight < self.depth

    def hear(self, frame: dict[str, Any], transport: WSTransport) -> None:
        """An answer to one or more submits."""
        if frame["t"] != "submitted":
            super().hear(frame, transport)
            return
        self.answers.append((time.perf_counter(), frame))
        count = len(frame["refs"])
        self.in_flight -= count
        self.answered += count
        self.rejected += len(frame["rejected"])
        if self.depth:
            self.fill()


class Recipient(Agent):
    """Acks each deliver frame once, cumulatively."""

    def __init__(self, key: SigningKey, url: str, record: str | None = None) -> None:
        super().__init__(key, url, record)
        self.delivered = 0
        self.handed_upto = 0
        self.acked_upto = 0
        self.deliveries: list[tuple[float, list[dict[str, Any]]]] = []

    def hear(self, frame: dict[str, Any], transport: WSTransport) -> None:
        """Envelopes, or the answer to an ack."""
        kind = frame["t"]
        if kind == "deliver":
            items = frame["items"]
            self.deliveries.append((time.perf_counter(), items))
            self.delivered += len(items)
            self.handed_upto = items[-1]["seq"]
            ack = b'{"t":"ack","epoch":"%b","upto":%d}'
            transport.send(TEXT, ack % (frame["epoch"].encode(), self.handed_upto))
        elif kind == "acked":
            self.acked_upto = frame["upto"]
        else:
            super().hear(frame, transport)
