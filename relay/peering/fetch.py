"""One GET over a connected socket, read by the parser that also serves: httptools.

Rules of the file: the whole answer has a bound (headers 16 KiB, body 64 KiB), the caller has the
deadline; what is compressed is refused, so nothing grows after it was counted; the connection is
closed at the end, whatever happens.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Final, NamedTuple

import httptools

from relay.peering.urls import Target
from relay.protocol.errors import (
    ErrorCode,
    UnavailableError,
)
from relay.sockets import cut

MAX_HEADER_BYTES: Final = 16 * 1024
MAX_BODY_BYTES: Final = 64 * 1024
MAX_WIRE_BYTES: Final = 128 * 1024
_CHUNK: Final = 4 * 1024


class Answer(NamedTuple):
    """What came back.

    Args:
        status: of HTTP; 3xx is not followed.
        body: at most 64 KiB.
        content_type: the media type without parameters, lower case; "" where none is given.
    """

    status: int
    body: bytes
    content_type: str


class _Reading:
    """Callbacks of the parser: keeps what is asked for, refuses what is too much."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.content_type = ""
        self.headers_done = False
        self.done = False
        self.is_packed = False
        self.is_framed = False

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"content-type":
                kind = value.decode("latin-1").partition(";")[0]
                self.content_type = kind.strip().lower()
            case b"content-encoding":
                self.is_packed = value.strip().lower() != b"identity"
            case b"content-length" | b"transfer-encoding":
                self.is_framed = True
            case _:
                pass

    def on_headers_complete(self) -> None:
        self.headers_done = True

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.done = True


async def fetch(
    sock: socket.socket, target: Target, accept: str, context: ssl.SSLContext | None
) -> Answer:
    """Ask ``target`` over ``sock``, which is connected to a checked address of it.

    Raises:
        UnavailableError: ``peer_unreachable``: not HTTP, compressed, or beyond the bounds.
        OSError: of the network or of TLS.
    """
    reader, writer = await asyncio.open_connection(
        sock=sock, ssl=context, server_hostname=target.host if context else None
    )
    try:
        writer.write(_request(target, accept))
        await writer.drain()
        return await _answer(reader, target)
    finally:
        # not close(), which would wait for the other end
        cut(writer.transport)


def _request(target: Target, accept: str) -> bytes:
    lines = (
        f"GET {target.path or '/'} HTTP/1.1",
        f"Host: {target.authority}",
        f"Accept: {accept}",
        "Accept-Encoding: identity",
        "User-Agent: did-relay",
        "Connection: close",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


async def _answer(reader: asyncio.StreamReader, target: Target) -> Answer:
    reading = _Reading()
    parser = httptools.HttpResponseParser(reading)
    headers = total = 0
    while not reading.done:
        data = await reader.read(_CHUNK)
        if not data:
            break
        total += len(data)
        headers = headers if reading.headers_done else total
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            raise _odd(target, "what answers there is not HTTP") from exc
        if reading.is_packed or _is_too_much(reading, headers, total):
            raise _odd(target, "the answer is compressed or too long")
    if not reading.headers_done or (reading.is_framed and not reading.done):
        raise _odd(target, "the connection ended early")
    return Answer(parser.get_status_code(), bytes(reading.body), reading.content_type)


def _is_too_much(reading: _Reading, headers: int, total: int) -> bool:
    return (
        headers > MAX_HEADER_BYTES + _CHUNK
        or total > MAX_WIRE_BYTES
        or len(reading.body) > MAX_BODY_BYTES
    )


def _odd(target: Target, detail: str) -> UnavailableError:
    return UnavailableError(ErrorCode.PEER_UNREACHABLE, f"{target.origin}: {detail}")
