"""What may stand between an agent and its relay: proxies of three kinds, and one that ends TLS."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme

from relay.sockets import cut

HERE = "127.0.0.1"
Place = tuple[str, int]
Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Seen:
    """A proxy, and what it was asked."""

    url: str = ""
    targets: list[str] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)


@contextlib.asynccontextmanager
async def listening(handle: Handle, tls: ssl.SSLContext | None = None) -> AsyncIterator[Place]:
    """A server on loopback that cuts what is left at the end."""
    writers: set[asyncio.StreamWriter] = set()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        with contextlib.suppress(OSError, EOFError):
            await handle(reader, writer)
        writer.close()

    server = await asyncio.start_server(take, HERE, 0, ssl=tls)
    async with server:
        yield HERE, server.sockets[0].getsockname()[1]
        for writer in writers:
            cut(writer.transport)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to: Place) -> None:
    """Carry bytes both ways until one side ends."""
    far_reader, far_writer = await asyncio.open_connection(*to)

    async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        for one in (writer, far_writer):
            one.close()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(carry(reader, far_writer))
        tasks.create_task(carry(far_reader, writer))


def place_of(url: str) -> Place:
    host, _, port = url.rpartition(":")
    return host.rpartition("/")[2], int(port)


@contextlib.asynccontextmanager
async def tls_in_front(url: str, tls: ssl.SSLContext) -> AsyncIterator[Place]:
    """Ends TLS before a relay that speaks plain HTTP."""
    async with listening(lambda r, w: pump(r, w, place_of(url)), tls) as place:
        yield place


@contextlib.asynccontextmanager
async def http_proxy(
    to: Place, *, login: str | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Seen]:
    """A CONNECT proxy that leads to one place, whatever it is asked for."""
    seen = Seen()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        seen.targets.append(head[0])
        fields = dict(line.split(": ", 1) for line in head[1:] if line)
        said = fields.get("Proxy-Authorization", "Basic ").removeprefix("Basic ")
        seen.logins.append(base64.b64decode(said).decode())
        if login is not None and seen.logins[-1] != login:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            return
        writer.write(b"HTTP/1.1 200 Connection established\r\nVia: a proxy\r\n\r\n")
        await pump(reader, writer, to)

    async with listening(handle, tls) as place:
        seen.url = f"{'https' if tls else 'http'}://{place[0]}:{place[1]}"
        yield seen


@contextlib.asynccontextmanager
async def socks_proxy(to: Place) -> AsyncIterator[Seen]:
    """A SOCKS5 proxy that leads to one place, whatever name it is asked for."""
    seen = Seen()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, methods = await reader.readexactly(2)
        await reader.readexactly(methods)
        writer.write(b"\x05\x00")
        *_, kind = await reader.readexactly(4)
        length = (await reader.readexactly(1))[0] if kind == 3 else 4
        name = await reader.readexactly(length)
        port = int.from_bytes(await reader.readexactly(2))
        where = name.decode() if kind == 3 else ".".join(map(str, name))
        seen.targets.append(f"{where}:{port}")
        writer.write(b"\x05\x00\x00\x01" + bytes(6))
        await pump(reader, writer, to)

    async with listening(handle) as place:
        seen.url = f"socks5h://{place[0]}:{place[1]}"
        yield seen


@contextlib.contextmanager
def trusted(authority: trustme.CA, path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process trusts an authority, as a machine does that has it among its certificates."""
    file = path / "authority.pem"
    authority.cert_pem.write_to_path(str(file))
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    yield


def certified(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    """What a server of these names needs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context
