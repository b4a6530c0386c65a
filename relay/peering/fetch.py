"""Send one GET over a connected socket, and parse the answer with httptools.

The answer is bounded: 16 KiB of headers, 64 KiB of body. The caller sets the deadline. A compressed
answer is refused, so that nothing grows after it was counted. The connection ends in any case.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Final, NamedTuple

import httptools

from relay.peering.urls import Target
from relay.protocol.errors import unreachable
from relay.sockets import cut

MAX_HEADER_BYTES: Final = 16 * 1024
MAX_BODY_BYTES: Final = 64 * 1024
MAX_WIRE_BYTES: Final = 128 * 1024
_CHUNK: Final = 4 * 1024


class HttpAnswer(NamedTuple):
    """The answer to a GET.

    Args:
        status: 3xx is not followed.
        body: at most 64 KiB.
        content_type: the media type without parameters, in lower case; "" if there is none.
    """

    status: int
    body: bytes
    content_type: str


class _Response:
    """Callbacks of the parser: collects the body and the headers that matter."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.content_type = ""
        self.headers_done = False
        self.done = False
        self.is_compressed = False
        self.is_framed = False

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"content-type":
                kind = value.decode("latin-1").partition(";")[0]
                self.content_type = kind.strip().lower()
            case b"content-encoding":
                self.is_compressed = value.strip().lower() != b"identity"
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
) -> HttpAnswer:
    """Send a GET to ``target`` over ``sock``, which is connected to a checked address of it.

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
        # close() would wait for the other end
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


async def _answer(reader: asyncio.StreamReader, target: Target) -> HttpAnswer:
    response = _Response()
    parser = httptools.HttpResponseParser(response)
    headers = total = 0
    while not response.done:
        data = await reader.read(_CHUNK)
        if not data:
            break
        total += len(data)
        headers = headers if response.headers_done else total
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            raise unreachable(f"{target.origin}: what answers there is not HTTP") from exc
        if response.is_compressed or _is_too_much(response, headers, total):
            raise unreachable(f"{target.origin}: the answer is compressed or too long")
    if not response.headers_done or (response.is_framed and not response.done):
        raise unreachable(f"{target.origin}: the connection ended early")
    return HttpAnswer(parser.get_status_code(), bytes(response.body), response.content_type)


def _is_too_much(response: _Response, headers: int, total: int) -> bool:
    return (
        headers > MAX_HEADER_BYTES + _CHUNK
        or total > MAX_WIRE_BYTES
        or len(response.body) > MAX_BODY_BYTES
    )
