"""The way from here to a relay: its name, a proxy, an address, TLS; for HTTP and the WebSocket.

Rules of the file: a name is looked up in a thread of its own, never in asyncio's default executor,
so no look-up delays another, the program's threads, or its end. What a stranger names is dialled at
public addresses only. A proxy is asked for such an address, not for the name: what a name leads to
there cannot be checked here.

::

    origin ──▶ proxy? ──▶ addresses, looked up once ──▶ the first that answers ──▶ tunnel? ──▶ TLS?
"""

from __future__ import annotations

import asyncio
import importlib
import ipaddress
import os
import socket
import ssl
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from relay import sockets
from relay.client._util import in_thread
from relay.client.errors import typed
from relay.client.http import http1
from relay.client.http.origin import Origin
from relay.client.http.proxies import (
    Proxy,
    proxy_for,
)
from relay.protocol import (
    dial_allowlist,
    hosts,
)
from relay.protocol.errors import ErrorCode
from relay.sockets import Address

T = TypeVar("T")
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

MOST_STRANGERS: Final = 32
"""Look-ups of names that strangers gave, at once and in this process; more are refused."""
_OF_THE_CLOCK: Final = frozenset({9, 10})
"""OpenSSL: a certificate that is not valid yet, or no more."""
_PROXY_LOGIN: Final = 407

_strangers: Final[weakref.WeakSet[threading.Thread]] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class Route:
    """How an origin is reached; its text is for errors.

    Args:
        origin: where to.
        proxy: what leads there; None: it is dialled directly.
    """

    origin: Origin
    proxy: Proxy | None

    @classmethod
    def to(cls, origin: Origin) -> Route:
        """The route that the environment names.

        Raises:
            UnsupportedError: it names a proxy that cannot be used.
        """
        return cls(origin, proxy_for(origin))

    def __str__(self) -> str:
        return f"{self.origin}{f' through the proxy {self.proxy}' if self.proxy else ''}"

    @property
    def tunnel(self) -> Proxy | None:
        """The proxy that is asked with HTTP's CONNECT."""
        return None if self.proxy is None or self.proxy.is_socks else self.proxy


async def connect(route: Route) -> socket.socket:
    """Connect to an origin, directly or through SOCKS; nothing is said yet.

    Raises:
        UnsupportedError: SOCKS needs a package that is not installed.
        OSError: unreachable, or a stranger's name leads inside.
    """
    origin, proxy = route.origin, route.proxy
    if proxy is None:
        return await sockets.connect(await _addresses(origin))
    return await _through_socks(proxy, await _target(origin), origin.port)


@asynccontextmanager
async def stream(route: Route) -> AsyncIterator[Stream]:
    """Connect to an origin, with TLS unless it is plain; cut off at the end of the block.

    Raises:
        UnsupportedError: as :func:`connect`.
        OSError: unreachable, TLS fails, or the proxy refuses.
        ValueError, EOFError: the proxy does not answer as one.
    """
    origin = route.origin
    if route.tunnel is not None:
        async with _tunnelled(route.tunnel, await _target(origin), origin) as (reader, writer):
            if not origin.is_plain:
                await writer.start_tls(await tls(), server_hostname=origin.host)
            yield reader, writer
        return
    context = None if origin.is_plain else await tls()
    async with _stream(await connect(route), context, origin.host) as opened:
        yield opened


async def tls() -> ssl.SSLContext:
    """Whom to trust: the machine's certificates, as they are now; reading them takes a while."""
    return await asyncio.wrap_future(in_thread(ssl.create_default_context))


def reason(exc: Exception) -> str:
    """What the network, TLS or a proxy says, in a few words."""
    if isinstance(exc, ssl.SSLError):
        return f"TLS: {_tls_reason(exc)}"
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    if isinstance(exc, EOFError):
        return "the connection ended before the answer did"
    if isinstance(exc, socket.gaierror) or not isinstance(exc, OSError) or not exc.errno:
        return getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
    # asyncio puts its own words, and the address once more, into strerror
    return os.strerror(exc.errno)


def refused_by_proxy(status: int) -> str:
    """Why there is no tunnel."""
    why = ": it wants a user and a password" if status == _PROXY_LOGIN else ""
    return f"the proxy answered HTTP {status}{why}"


def _tls_reason(exc: ssl.SSLError) -> str:
    said = str(getattr(exc, "verify_message", None) or exc.reason or exc)
    if getattr(exc, "verify_code", 0) in _OF_THE_CLOCK:
        return f"{said}; is the clock of this machine right?"
    if exc.reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST"}:
        return f"{said}; what answers there does not speak TLS"
    return said


# ---------------------------------------------------------------- names


async def _addresses(origin: Origin) -> list[Address]:
    return await _look_up(origin.host, origin.port, is_strangers=origin.is_strangers)


async def _target(origin: Origin) -> str:
    """What a proxy is asked for: the name, or a stranger's address, which was checked here."""
    if not origin.is_strangers:
        return origin.host
    return str((await _addresses(origin))[0].where[0])


async def _look_up(host: str, port: int, *, is_strangers: bool = False) -> list[Address]:
    literal = hosts.literal(host)
    if literal is not None and getattr(literal, "scope_id", None) is None:
        family = socket.AF_INET if literal.version == 4 else socket.AF_INET6  # noqa: PLR2004
        found = [Address(family, (str(literal), port))]
    else:
        work = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        infos = await asyncio.wrap_future(in_thread(_counted(work) if is_strangers else work))
        found = [Address(family, where) for family, *_, where in infos]
    if is_strangers and not all(_is_public(one) for one in found):
        raise OSError(f"{host} leads to an address inside of here")
    return found


def _counted(work: Callable[[], T]) -> Callable[[], T]:
    """The look-up of a name that a stranger gave: there are never more than so many.

    Raises:
        OSError: there are so many.
    """
    # a fork leaves no thread but its own: the dead ones do not count
    if sum(one.is_alive() for one in list(_strangers)) >= MOST_STRANGERS:
        raise OSError("too many names that others gave are being looked up")

    def run() -> T:
        _strangers.add(threading.current_thread())
        return work()

    return run


def _is_public(address: Address) -> bool:
    return dial_allowlist.is_public(ipaddress.ip_address(str(address.where[0])))


# ---------------------------------------------------------------- streams and proxies


@asynccontextmanager
async def _stream(
    sock: socket.socket, context: ssl.SSLContext | None, host: str
) -> AsyncIterator[Stream]:
    try:
        name = host if context else None
        reader, writer = await asyncio.open_connection(sock=sock, ssl=context, server_hostname=name)
    except BaseException:
        sock.close()
        raise
    try:
        yield reader, writer
    finally:
        # not close(), which would wait for the other end
        sockets.cut(writer.transport)


@asynccontextmanager
async def _tunnelled(proxy: Proxy, host: str, origin: Origin) -> AsyncIterator[Stream]:
    """A connection through a proxy that was told where to."""
    context = await tls() if proxy.scheme == "https" else None
    sock = await sockets.connect(await _look_up(proxy.host, proxy.port))
    async with _stream(sock, context, proxy.host) as (reader, writer):
        where = f"{hosts.bracketed(host)}:{origin.port}"
        lines = [f"CONNECT {where} HTTP/1.1", f"Host: {where}"]
        if proxy.authorization is not None:
            lines.append(f"Proxy-Authorization: {proxy.authorization}")
        writer.write(http1.head(lines))
        answer = await http1.read_head(reader)
        if answer.status not in http1.SUCCESS:
            raise OSError(refused_by_proxy(answer.status))
        yield reader, writer


async def _through_socks(proxy: Proxy, host: str, port: int) -> socket.socket:
    try:
        socks: Any = importlib.import_module("python_socks")
        socks_proxy: Any = importlib.import_module("python_socks.async_.asyncio").Proxy
    except ImportError as exc:
        detail = f"{proxy}: a SOCKS proxy needs a package: pip install 'did-relay[socks]'"
        raise typed(ErrorCode.UNSUPPORTED, detail, stored="no") from exc
    is_remote = proxy.scheme in {"socks4a", "socks5h"}
    kind = socks.ProxyType.SOCKS5 if "5" in proxy.scheme else socks.ProxyType.SOCKS4
    made = socks_proxy(kind, proxy.host, proxy.port, proxy.name, proxy.password, rdns=is_remote)
    try:
        connected: socket.socket = await made.connect(host, port)
    except socks.ProxyError as exc:
        raise OSError(f"the proxy refuses: {exc}") from exc
    return connected
