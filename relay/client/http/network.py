"""The route to a relay: host name, proxy, address and TLS, for HTTP and the WebSocket.

Entry points: :func:`connect` and :func:`stream`. Invariants: each host name is resolved in a thread
of its own, never in asyncio's default executor. So no look-up delays another one, the threads of
the program, or its end. A ``public_only`` origin is dialled at public addresses only. A proxy gets
such an address instead of the name: its own look-up could not be checked here.

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
from relay.client.errors import make_error
from relay.client.http import http1
from relay.client.http.origin import Origin
from relay.client.http.proxies import Proxy, proxy_for
from relay.protocol import dial_allowlist, hosts
from relay.protocol.errors import ErrorCode
from relay.sockets import Address

T = TypeVar("T")
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

MAX_PUBLIC_LOOKUPS: Final = 32
"""Look-ups of names from strangers, at once in this process; more are refused."""
_VALIDITY_CODES: Final = frozenset({9, 10})
"""OpenSSL: a certificate is not valid yet, or not any more."""
_PROXY_AUTH_REQUIRED: Final = 407

_public_lookups: Final[weakref.WeakSet[threading.Thread]] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class Route:
    """The way to an origin; ``str()`` is for error texts.

    Args:
        origin: of the relay.
        proxy: None: the origin is dialled directly.
    """

    origin: Origin
    proxy: Proxy | None

    @classmethod
    def to(cls, origin: Origin) -> Route:
        """Return the route that the environment sets.

        Raises:
            UnsupportedError: it sets a proxy that cannot be used.
        """
        return cls(origin, proxy_for(origin))

    def __str__(self) -> str:
        return f"{self.origin}{f' through the proxy {self.proxy}' if self.proxy else ''}"

    @property
    def tunnel(self) -> Proxy | None:
        """The proxy that gets an HTTP CONNECT request."""
        return None if self.proxy is None or self.proxy.is_socks else self.proxy


async def connect(route: Route) -> socket.socket:
    """Connect to an origin, directly or through SOCKS; nothing is sent yet.

    Raises:
        UnsupportedError: SOCKS needs a package that is not installed.
        OSError: unreachable, or a public name resolves to a private address.
    """
    origin, proxy = route.origin, route.proxy
    if proxy is None:
        return await sockets.connect(await _addresses(origin))
    return await _through_socks(proxy, await _target(origin), origin.port)


@asynccontextmanager
async def stream(route: Route) -> AsyncIterator[Stream]:
    """Connect to an origin, with TLS unless it is insecure; cut off at the end of the block.

    Raises:
        UnsupportedError: as :func:`connect`.
        OSError: unreachable, TLS fails, or the proxy refuses.
        ValueError, EOFError: the proxy does not answer as one.
    """
    origin = route.origin
    if route.tunnel is not None:
        async with _tunnelled(route.tunnel, await _target(origin), origin) as (reader, writer):
            if not origin.is_insecure:
                await writer.start_tls(await tls(), server_hostname=origin.host)
            yield reader, writer
        return
    context = None if origin.is_insecure else await tls()
    async with _stream(await connect(route), context, origin.host) as opened:
        yield opened


async def tls() -> ssl.SSLContext:
    """Return a context that trusts the machine's certificates; reading them takes a while."""
    return await asyncio.wrap_future(in_thread(ssl.create_default_context))


def reason(exc: Exception) -> str:
    """Return the reason of the network, TLS or a proxy in a few words."""
    if isinstance(exc, ssl.SSLError):
        return f"TLS: {_tls_reason(exc)}"
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    if isinstance(exc, EOFError):
        return "the connection ended before the answer did"
    if isinstance(exc, socket.gaierror) or not isinstance(exc, OSError) or not exc.errno:
        return getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
    # asyncio adds its own text, and the address once more, to strerror
    return os.strerror(exc.errno)


def refused_by_proxy(status: int) -> str:
    """Return the reason why a proxy opens no tunnel."""
    reason_ = ": it requires a user and a password" if status == _PROXY_AUTH_REQUIRED else ""
    return f"the proxy answered HTTP {status}{reason_}"


def _tls_reason(exc: ssl.SSLError) -> str:
    text = str(getattr(exc, "verify_message", None) or exc.reason or exc)
    if getattr(exc, "verify_code", 0) in _VALIDITY_CODES:
        return f"{text}; is the clock of this machine right?"
    if exc.reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST"}:
        return f"{text}; the server there does not speak TLS"
    return text


# ---------------------------------------------------------------- names


async def _addresses(origin: Origin) -> list[Address]:
    return await _look_up(origin.host, origin.port, public_only=origin.public_only)


async def _target(origin: Origin) -> str:
    """Return the target for a proxy: the name, or a public address that was checked here."""
    if not origin.public_only:
        return origin.host
    return str((await _addresses(origin))[0].where[0])


async def _look_up(host: str, port: int, *, public_only: bool = False) -> list[Address]:
    literal = hosts.literal(host)
    if literal is not None and getattr(literal, "scope_id", None) is None:
        family = socket.AF_INET if literal.version == 4 else socket.AF_INET6  # noqa: PLR2004
        found = [Address(family, (str(literal), port))]
    else:
        work = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        infos = await asyncio.wrap_future(in_thread(_counted(work) if public_only else work))
        found = [Address(family, where) for family, *_, where in infos]
    if public_only and not all(_is_public(one) for one in found):
        raise OSError(f"{host} resolves to an address inside a private network")
    return found


def _counted(work: Callable[[], T]) -> Callable[[], T]:
    """Wrap the look-up of a name that a stranger chose: their number is limited.

    Raises:
        OSError: too many are under way.
    """
    # a forked child has no thread but its own: dead ones do not count
    if sum(one.is_alive() for one in list(_public_lookups)) >= MAX_PUBLIC_LOOKUPS:
        raise OSError("too many names that strangers chose are being looked up")

    def run() -> T:
        _public_lookups.add(threading.current_thread())
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
        # not close(), which would wait for the other side
        sockets.cut(writer.transport)


@asynccontextmanager
async def _tunnelled(proxy: Proxy, host: str, origin: Origin) -> AsyncIterator[Stream]:
    """Open a connection through a proxy with CONNECT."""
    context = await tls() if proxy.scheme == "https" else None
    sock = await sockets.connect(await _look_up(proxy.host, proxy.port))
    async with _stream(sock, context, proxy.host) as (reader, writer):
        target = f"{hosts.bracketed(host)}:{origin.port}"
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if proxy.authorization is not None:
            lines.append(f"Proxy-Authorization: {proxy.authorization}")
        writer.write(http1.encode_head(lines))
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
        raise make_error(ErrorCode.UNSUPPORTED, detail, stored="no") from exc
    is_remote = proxy.scheme in {"socks4a", "socks5h"}
    kind = socks.ProxyType.SOCKS5 if "5" in proxy.scheme else socks.ProxyType.SOCKS4
    connector = socks_proxy(
        kind, proxy.host, proxy.port, proxy.name, proxy.password, rdns=is_remote
    )
    try:
        connected: socket.socket = await connector.connect(host, port)
    except socks.ProxyError as exc:
        raise OSError(f"the proxy refuses: {exc}") from exc
    return connected
