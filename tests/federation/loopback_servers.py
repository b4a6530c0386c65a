"""Real servers on loopback that a dialer meets: DNS, a canary, a web server, an authority."""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import trustme

from relay.peering.dns import Dns
from relay.protocol.errors import ErrorCode, UnavailableError

HERE = "127.0.0.2"
"""Stands for an honest address: tests name it as a network of the operator's."""
INSIDE = "127.0.0.1"
"""Stands for an address that no stranger may have dialled: here the canary listens."""
Records = dict[tuple[str, str], list[list[str]]]


class Table:
    """A resolver that knows what it was given; counts what it was asked."""

    def __init__(
        self,
        addresses: Mapping[str, Sequence[str]] | None = None,
        texts: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.known = dict(addresses or {})
        self.text = dict(texts or {})
        self.silent: set[str] = set()
        self.asked: list[str] = []

    async def addresses(self, host: str) -> Sequence[str]:
        return self._look(host, self.known)

    async def texts(self, name: str) -> Sequence[str]:
        return self._look(name, self.text)

    def _look(self, name: str, table: Mapping[str, Sequence[str]]) -> Sequence[str]:
        self.asked.append(name)
        if name in self.silent:
            raise UnavailableError(ErrorCode.PEER_UNREACHABLE, "DNS does not say")
        return table.get(name, ())


class DnsServer(asyncio.DatagramProtocol):
    """Answers with the first of what is left for (name, kind); the last stays for ever."""

    def __init__(self) -> None:
        self.records: Records = {}
        self.rcodes: dict[str, dns.rcode.Rcode] = {}
        self.is_silent = False
        self.asked: list[tuple[str, str]] = []
        self.port = 0
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        [question] = query.question
        name, kind = str(question.name).rstrip("."), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        if not self.is_silent:
            self._transport.sendto(self._answer(query, name, kind).to_wire(), addr)

    def _answer(self, query: dns.message.Message, name: str, kind: str) -> dns.message.Message:
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        answer.set_rcode(self.rcodes.get(name, dns.rcode.NOERROR))
        left = self.records.get((name, kind), [[]])
        found = left.pop(0) if len(left) > 1 else left[0]
        if alias := self.records.get((name, "CNAME")):
            answer.answer.append(dns.rrset.from_text(f"{name}.", 0, "IN", "CNAME", alias[0][0]))
            name = alias[0][0].rstrip(".")
            found = self.records.get((name, kind), [[]])[0]
        if found:
            answer.answer.append(dns.rrset.from_text(f"{name}.", 0, "IN", kind, *found))
        return answer

    def resolver(self) -> Dns:
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers = ["127.0.0.1"]
        resolver.port = self.port
        return Dns(resolver)


@asynccontextmanager
async def dns_server(**records: list[list[str]]) -> AsyncIterator[DnsServer]:
    """A DNS server over UDP; ``a__relay_example=[["127.0.0.2"], ["127.0.0.1"]]``."""
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(DnsServer, ("127.0.0.1", 0))
    for key, answers in records.items():
        kind, _, name = key.partition("__")
        server.records[name.replace("_", "."), kind.upper()] = answers
    try:
        yield server
    finally:
        transport.close()


class Canary:
    """Counts who connects to it."""

    def __init__(self) -> None:
        self.hits = 0
        self.port = 0

    def take(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.hits += 1
        writer.close()


@asynccontextmanager
async def canary(port: int = 0) -> AsyncIterator[Canary]:
    """A listener where no stranger may lead the dialer: 127.0.0.1."""
    bird = Canary()
    server = await asyncio.start_server(bird.take, INSIDE, port)
    bird.port = server.sockets[0].getsockname()[1]
    async with server:
        yield bird


Reply = Callable[[bytes], bytes]


class Web:
    """Says to each connection what ``reply`` makes of its request; keeps the requests."""

    def __init__(self, reply: Reply, *, stays: bool) -> None:
        self.requests: list[bytes] = []
        self.port = 0
        self._reply = reply
        self._stays = stays
        self._open: set[asyncio.StreamWriter] = set()

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(request)
            writer.write(self._reply(request))
            await writer.drain()
            if self._stays:
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async def end(self) -> None:
        for writer in self._open:
            writer.transport.abort()
            with suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()


@asynccontextmanager
async def web(
    reply: Reply | bytes,
    *,
    host: str = HERE,
    tls: ssl.SSLContext | None = None,
    stays: bool = False,
) -> AsyncIterator[Web]:
    """A web server on loopback."""
    site = Web(reply if callable(reply) else lambda _: reply, stays=stays)
    server = await asyncio.start_server(site.take, host, 0, ssl=tls)
    site.port = server.sockets[0].getsockname()[1]
    async with server:
        try:
            yield site
        finally:
            await site.end()


def said(body: bytes, kind: str = "text/plain", status: str = "200 OK", *more: str) -> bytes:
    """A whole HTTP answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", f"Content-Type: {kind}", *more]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Authority:
    """A certificate authority of this test alone."""

    def __init__(self) -> None:
        self._authority = trustme.CA()

    def server(self, *names: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert(*names).configure_cert(context)
        return context

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self._authority.configure_trust(context)
        return context


_watching: list[list[str]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event in {"socket.connect", "socket.getaddrinfo"}:
        where = arguments[1] if event == "socket.connect" else arguments
        for seen in _watching:
            seen.append(f"{event} {where}")


sys.addaudithook(_audit)


@contextmanager
def watched() -> Iterator[list[str]]:
    """Every connect and every look-up by the machine's own resolver, as the interpreter saw it."""
    seen: list[str] = []
    _watching.append(seen)
    try:
        yield seen
    finally:
        _watching.remove(seen)
