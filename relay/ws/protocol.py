"""uvicorn's two protocols, hardened where they were measured to be soft (docs/adr/0004).

- a deadline from TCP accept to the complete HTTP header;
- a reader that leaves its socket full is aborted, since ``close()`` would wait for its buffer;
- frames are written and read as bytes, not as ``str`` through the ASGI queue;
- invalid UTF-8 closes with 1007 and without a traceback; a message has a bounded number of parts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState

HEADER_DEADLINE_S: Final = 5.0
MAX_FRAGMENTS: Final = 1024
MAX_QUEUED: Final = 32
MAX_QUEUED_BYTES: Final = 64 * 1024
"""With this many messages queued, or one this large, the socket is not read."""
EXTENSION: Final = "relay.socket"
_INVALID_DATA: Final = 1007
_TOO_BIG: Final = 1009


class HeaderDeadlineProtocol(HttpToolsProtocol):
    """HTTP/1.1 with a deadline for the header of each request."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the deadline with the TCP connection."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._deadline = self.loop.call_later(HEADER_DEADLINE_S, self.transport.abort)

    def on_headers_complete(self) -> None:
        """Stop the deadline: the header is complete."""
        self._stop_clock()
        super().on_headers_complete()

    def on_message_begin(self) -> None:
        """Start the deadline of the next header on a keep-alive connection."""
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_DEADLINE_S, self.transport.abort)
        super().on_message_begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the deadline: the connection is gone."""
        self._stop_clock()
        super().connection_lost(exc)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class RelaySocket(WebSocketsSansIOProtocol):
    """One WebSocket, with direct writes. The endpoint finds it under ``EXTENSION``."""

    write_timeout_s: float = 10.0
    on_slow: Callable[[], None] | None = None
    _fragments = 0
    _full: asyncio.TimerHandle | None = None

    def handle_connect(self, event: Any) -> None:
        """Accept the upgrade and let the endpoint find this socket."""
        super().handle_connect(event)
        scope: Any = getattr(self, "scope", None)
        if scope is not None:
            scope["extensions"][EXTENSION] = self

    # ------------------------------------------------------------ out

    def write_text(self, data: bytes) -> bool:
        """Send one text message, UTF-8 bytes; False if the socket is closing.

        Never waits: the caller bounds what it writes, and a reader that leaves its socket full is
        aborted after ``write_timeout_s``.
        """
        if self.disconnected or self.close_sent or self.transport.is_closing():
            return False
        try:
            self.conn.send_text(data)
        except InvalidState:
            return False
        self.transport.write(b"".join(self.conn.data_to_send()))
        return True

    def abort(self) -> None:
        """Drop the connection now, with whatever its buffer holds."""
        self.transport.abort()

    def pause_writing(self) -> None:
        """Start the deadline: the kernel takes no more, and the reader must read."""
        super().pause_writing()
        self._full = self.loop.call_later(self.write_timeout_s, self._too_slow)

    def resume_writing(self) -> None:
        """Stop the deadline: there is room again."""
        super().resume_writing()
        self._stop_clock()

    def _too_slow(self) -> None:
        if self.on_slow is not None:
            self.on_slow()
        self.abort()

    def _stop_clock(self) -> None:
        if self._full is not None:
            self._full.cancel()
            self._full = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the deadline: the connection is gone."""
        self._stop_clock()
        super().connection_lost(exc)

    # ------------------------------------------------------------ in

    def handle_text(self, event: Any) -> None:
        """Take a text message, or its first part."""
        self._fragments = 1
        super().handle_text(event)

    def handle_bytes(self, event: Any) -> None:
        """Take a binary message, or its first part."""
        self._fragments = 1
        super().handle_bytes(event)

    def handle_cont(self, event: Any) -> None:
        """Take a further part; empty ones cost their sender nothing, so they are counted."""
        self._fragments += 1
        if self._fragments > MAX_FRAGMENTS:
            self._refuse(_TOO_BIG, "too many fragments")
            return
        super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        """Queue a whole message as bytes, after the UTF-8 check that RFC 6455 §8.1 asks for."""
        if self.curr_msg_data_type == "text" and not self.close_sent:
            data = self.frames[0] if len(self.frames) == 1 else b"".join(self.frames)
            try:
                data.decode()
            except UnicodeDecodeError:
                self.frames = []
                self._refuse(_INVALID_DATA, "invalid UTF-8")
                return
            self.frames = []
            self.queue.put_nowait({"type": "websocket.receive", "bytes": data, "text": None})
            # pausing after each message would cost two system calls for each
            if not self.read_paused and (
                self.queue.qsize() >= MAX_QUEUED or len(data) > MAX_QUEUED_BYTES
            ):
                self.read_paused = True
                self.transport.pause_reading()
            return
        super().send_receive_event_to_app()

    def _refuse(self, code: int, reason: str) -> None:
        if self.close_sent:
            return
        self.conn.fail(code, reason)
        self.handle_parser_exception()
