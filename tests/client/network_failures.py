"""How the network, TLS, proxies and DNS fail: each gives the URL of a relay that fails so."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import trustme

from tests.client import proxies
from tests.client.proxies import HERE
from tests.support.ports import free_port

DAY = timedelta(days=1)
AT_ONCE = struct.pack("ii", 1, 0)
HTML = b"<html>It works!</html>"


@dataclass
class World:
    """What a failure may change of this process for as long as a test runs."""

    patch: pytest.MonkeyPatch
    directory: Path
    authority: trustme.CA = field(default_factory=trustme.CA)


Failing = Callable[[World], AbstractAsyncContextManager[str]]


def answer(body: bytes, status: bytes = b"200 OK", *more: bytes) -> bytes:
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *more, b"", body]
    return b"\r\n".join(lines)


# ---------------------------------------------------------------- sockets


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection as a crash does: the other side reads an error, not an end."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
    writer.transport.abort()


@asynccontextmanager
async def serving(_: World, handle: proxies.Handle, scheme: str = "http") -> AsyncIterator[str]:
    async with proxies.listening(handle) as (host, port):
        yield f"{scheme}://{host}:{port}"


def says(data: bytes, *, then: str = "close") -> proxies.Handle:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        await writer.drain()
        if then == "reset":
            reset(writer)
        elif then == "stay":
            await reader.read()
        elif then == "half-close":
            writer.write_eof()
            await reader.read()

    return handle


async def resets_at_once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    reset(writer)


async def hangs_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def is_silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    while await reader.read(65536):
        pass


async def drips(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        writer.write(b"HTTP/1.1 200 OK\r\nX: ")
        await writer.drain()
        await asyncio.sleep(0.02)


@asynccontextmanager
async def refuses(_: World) -> AsyncIterator[str]:
    yield f"http://{HERE}:{free_port()}"


# ---------------------------------------------------------------- TLS


@asynccontextmanager
async def with_tls(
    world: World, name: str = HERE, *, ended: bool = False, is_trusted: bool = True
) -> AsyncIterator[str]:
    authority = world.authority if is_trusted else trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ends = datetime.now(UTC) + (-DAY if ended else DAY)
    authority.issue_cert(name, not_after=ends).configure_cert(tls)
    with proxies.trusted(world.authority, world.directory, world.patch):
        async with proxies.listening(says(HTML), tls) as (host, port):
            yield f"https://{host}:{port}"


# ---------------------------------------------------------------- proxies and names


@asynccontextmanager
async def proxied(world: World, handle: proxies.Handle, scheme: str = "http") -> AsyncIterator[str]:
    async with proxies.listening(handle) as (host, port):
        world.patch.setenv("HTTPS_PROXY", f"{scheme}://name:secret@{host}:{port}")
        yield "https://relay.test"


@asynccontextmanager
async def proxy(world: World, text: str, *, without: str | None = None) -> AsyncIterator[str]:
    world.patch.setenv("HTTPS_PROXY", text)
    if without is not None:
        world.patch.setitem(sys.modules, without, None)
    yield "https://relay.test"


@asynccontextmanager
async def named(world: World, host: str, found: object = None) -> AsyncIterator[str]:
    real = socket.getaddrinfo

    def look_up(name: str, *values: object, **more: object) -> object:
        if name != host:
            return real(name, *values, **more)  # type: ignore[arg-type]
        if isinstance(found, Exception):
            raise found
        return found

    if found is not None:
        world.patch.setattr(socket, "getaddrinfo", look_up)
    yield f"https://{host}"


NO_NAME = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
NOT_NOW = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
TCP = (socket.AF_INET, socket.SOCK_STREAM, 6, "")

FAILURES: dict[str, Failing] = {
    "refused": refuses,
    "reset at once": partial(serving, handle=resets_at_once),
    "hangs up": partial(serving, handle=hangs_up),
    "silent": partial(serving, handle=is_silent),
    "drips": partial(serving, handle=drips),
    "reset after the request": partial(serving, handle=says(b"", then="reset")),
    "reset in the answer": partial(serving, handle=says(b"HTTP/1.1 200 OK\r\n", then="reset")),
    "ends in the body": partial(serving, handle=says(answer(HTML)[:-3])),
    "half-closed": partial(serving, handle=says(b"HTTP/1.1 200 OK\r\n\r\n", then="half-close")),
    "nothing": partial(serving, handle=says(b"")),
    "garbage": partial(serving, handle=says(bytes(range(256)) * 9)),
    "another protocol": partial(serving, handle=says(b"SSH-2.0-OpenSSH_9.2\r\n", then="stay")),
    "a web page": partial(serving, handle=says(answer(HTML))),
    "not found": partial(serving, handle=says(answer(HTML, b"404 Not Found"))),
    "a redirect": partial(
        serving, handle=says(answer(b"", b"301 Moved", b"Location: https://elsewhere.test/"))
    ),
    "bad gateway": partial(serving, handle=says(answer(b"", b"502 Bad Gateway"))),
    "a status that is none": partial(serving, handle=says(b"HTTP/1.1 abc\r\n\r\n")),
    "an interim answer for ever": partial(serving, handle=says(b"HTTP/1.1 102 P\r\n\r\n" * 9)),
    "a long head": partial(serving, handle=says(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000)),
    "many headers": partial(
        serving, handle=says(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n")
    ),
    "a long body": partial(
        serving, handle=says(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n", then="stay")
    ),
    "a length that is none": partial(
        serving, handle=says(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}")
    ),
    "chunks that are none": partial(
        serving,
        handle=says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n{}\r\n"),
    ),
    "a chunk that is longer than it says": partial(
        serving,
        handle=says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}xx\r\n0\r\n\r\n"),
    ),
    "a negative chunk": partial(
        serving, handle=says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n{}\r\n")
    ),
    "JSON of another shape": partial(serving, handle=says(answer(b'{"token":5,"state":[]}'))),
    "no JSON": partial(serving, handle=says(answer(b'{"a":NaN'))),
    "a list": partial(serving, handle=says(answer(b"[1]"))),
    "deep JSON": partial(serving, handle=says(answer(b"[" * 9_000))),
    "an unknown code": partial(
        serving, handle=says(answer(b'{"error":"new_code","detail":"x"}', b"400 no"))
    ),
    "an error of another shape": partial(serving, handle=says(answer(b'{"error":{}}', b"400 no"))),
    "TLS to a plain port": partial(serving, handle=says(answer(HTML)), scheme="https"),
    "TLS that is reset": partial(serving, handle=resets_at_once, scheme="https"),
    "TLS that hangs up": partial(serving, handle=hangs_up, scheme="https"),
    "TLS that is silent": partial(serving, handle=is_silent, scheme="https"),
    "an untrusted certificate": partial(with_tls, is_trusted=False),
    "a certificate of another name": partial(with_tls, name="other.test"),
    "a certificate that has expired": partial(with_tls, ended=True),
    "no relay behind TLS": with_tls,
    "a proxy that wants a login": partial(proxied, handle=says(answer(b"", b"407 no"))),
    "a proxy that leads nowhere": partial(proxied, handle=says(answer(b"", b"502 no"))),
    "a silent proxy": partial(proxied, handle=is_silent),
    "a proxy that speaks garbage": partial(proxied, handle=says(bytes(range(256)) * 9)),
    "a proxy that hangs up": partial(proxied, handle=hangs_up),
    "a proxy that is reset": partial(proxied, handle=resets_at_once),
    "a tunnel to a plain port": partial(proxied, handle=says(b"HTTP/1.1 200 OK\r\n\r\nhello")),
    "a proxy without its TLS": partial(proxied, handle=says(answer(HTML)), scheme="https"),
    "a SOCKS proxy that is none": partial(proxied, handle=hangs_up, scheme="socks5h"),
    "a silent SOCKS proxy": partial(proxied, handle=is_silent, scheme="socks5"),
    "a SOCKS4 proxy that is none": partial(proxied, handle=hangs_up, scheme="socks4a"),
    "SOCKS without its package": partial(proxy, text="socks5://h:1", without="python_socks"),
    "a proxy of another kind": partial(proxy, text="ftp://h:1"),
    "a proxy without a host": partial(proxy, text="http://:8080"),
    "a proxy without a scheme": partial(proxy, text=f"{HERE}:9"),
    "a proxy without a name": partial(proxy, text="http://proxy.invalid:3128"),
    "no such name": partial(named, host="relay.test", found=NO_NAME),
    "a name not found now": partial(named, host="relay.test", found=NOT_NOW),
    "a name without addresses": partial(named, host="relay.test", found=[]),
    "a name that leads nowhere": partial(
        named, host="relay.test", found=[(*TCP, ("255.255.255.255", 443))]
    ),
    "a name with an empty label": partial(named, host="relay..test"),
    "a name too long for DNS": partial(named, host=f"{'a' * 64}.test"),
    "a name outside ASCII": partial(named, host="bücher.test", found=NO_NAME),
}
