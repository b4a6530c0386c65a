"""Open every outgoing connection of the relay: to peers, and to hosts that strangers name.

::

    URL ─▶ parse strictly ─▶ resolve all addresses once ─▶ every one allowed? ─▶ connect to one of
    these very addresses ─▶ TLS, checked for the name in the URL ─▶ upgrade, or one GET

Nothing is sent before the addresses are checked. A name is resolved only once, so a DNS answer that
changes in between has no effect. There are no redirects, no proxies of the environment and no
compression; everything has a bound and a deadline. A URL that may not be dialled is
``unsupported``; a failure of the network is ``peer_unreachable``.

Entry points: :meth:`Dialer.websocket`, :meth:`Dialer.get` and :meth:`Dialer.texts`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from ipaddress import IPv4Address
from typing import Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidStatus, WebSocketException

from relay import sockets
from relay.peering import urls
from relay.peering.dns import Dns, Resolver
from relay.peering.fetch import HttpAnswer, fetch
from relay.peering.urls import Target
from relay.protocol import hosts
from relay.protocol.dial_allowlist import DialAllowlist, unwrapped
from relay.protocol.errors import ErrorCode, ProtocolError, UnavailableError, unreachable
from relay.protocol.hosts import IpAddress
from relay.sockets import Address

PATH: Final = "/v1/ws"
DIAL_S: Final = 10.0
CONNECT_S: Final = 4.0
CLOSE_S: Final = 2.0
MAX_DIALS: Final = 64
MAX_GETS: Final = 32
"""Separate, so that agents who look up handles do not keep relays from being dialled."""


class NoAddressError(UnavailableError):
    """``peer_unreachable``: DNS says that there is no such host."""


class Dialer:
    """The only way out, with its allowlist and bounds."""

    def __init__(
        self,
        networks: Sequence[str] = (),
        resolver: Resolver | None = None,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Dial nothing yet.

        Args:
            networks: CIDRs that may be dialled although they are not public, and without TLS.
            resolver: None: the machine's DNS servers.
            tls: None: trust the machine's certificate store.

        Raises:
            ValueError: one of ``networks`` is not a network.
        """
        self._allowed = DialAllowlist.of(networks)
        self._resolver = resolver or Dns()
        self._tls = tls
        self._dials = asyncio.Semaphore(MAX_DIALS)
        self._gets = asyncio.Semaphore(MAX_GETS)

    async def websocket(self, origin: str) -> ClientConnection:
        """Open a WebSocket to a relay; send nothing but the upgrade.

        Args:
            origin: ``https://host[:port]`` of a relay.

        Raises:
            ProtocolError: ``unsupported``: not to be dialled.
            UnavailableError: ``peer_unreachable``.
        """
        target = _read(urls.parse_origin, origin)
        async with self._dialling(target, self._dials):
            sock = await self._connected(target)
            with _closed_on_error(sock):
                return await sockets.websocket(
                    f"ws{target.origin.removeprefix('http')}{PATH}",
                    sock=sock,
                    ssl=self._context() if target.secure else None,
                    proxy=None,
                    open_timeout=DIAL_S,
                    close_timeout=CLOSE_S,
                )

    async def get(self, url: str, *, accept: str = "*/*") -> HttpAnswer:
        """Send one GET; return a redirect like any other answer, and do not follow it.

        Args:
            url: ``https://host[:port]/path``.
            accept: the wanted media type.

        Raises:
            ProtocolError: ``unsupported``: not to be dialled.
            UnavailableError: ``peer_unreachable``, also for an answer beyond the bounds.
        """
        target = _read(urls.parse, url)
        async with self._dialling(target, self._gets):
            sock = await self._connected(target)
            with _closed_on_error(sock):
                context = self._context() if target.secure else None
                return await fetch(sock, target, accept, context)

    async def texts(self, name: str) -> Sequence[str]:
        """Return all TXT records of a name.

        Raises:
            UnavailableError: ``peer_unreachable``: DNS does not say.
        """
        return await self._resolver.texts(name)

    def origin_of(self, authority: str) -> str:
        """Return the origin of ``host[:port]``: TLS, but not for this machine or a named network.

        Raises:
            ProtocolError: ``unsupported``: not a host and port.
        """
        target = _read(urls.parse_origin, f"https://{authority}")
        address = hosts.literal(target.host)
        plain = hosts.is_loopback(target.host) or (address and self._allowed.is_named(address))
        return _read(urls.parse_origin, f"http://{authority}").origin if plain else target.origin

    @contextlib.asynccontextmanager
    async def _dialling(self, target: Target, room: asyncio.Semaphore) -> AsyncIterator[None]:
        """Bound the number and the time of dials, and translate errors."""
        with _translated(target):
            async with asyncio.timeout(DIAL_S):
                async with room:
                    yield

    async def _connected(self, target: Target) -> socket.socket:
        """Return a socket connected to one of the target's checked addresses."""
        addresses = await self._checked(target)
        if not addresses:
            detail = f"{target.origin}: the host has no address"
            raise NoAddressError(ErrorCode.PEER_UNREACHABLE, detail)
        async with asyncio.timeout(CONNECT_S):
            return await sockets.connect([_socket_address(one, target.port) for one in addresses])

    async def _checked(self, target: Target) -> list[IpAddress]:
        """Return the target's addresses; raise if one of them is not allowed."""
        addresses = await self._addresses(target.host)
        for address in addresses:
            if not self._allowed.permits(address):
                detail = "not a public address, nor in this relay's RELAY_DIAL_NETWORKS"
                raise _refused(f"{target.origin}: {detail}")
            if not target.secure and not self._allowed.is_named(address):
                raise _refused(f"{target.origin}: without TLS only named networks are dialled")
        return addresses

    async def _addresses(self, host: str) -> list[IpAddress]:
        literal = hosts.literal(host)
        if literal is not None:
            return [unwrapped(literal)]
        if hosts.is_loopback(host):
            # DNS may answer anything for it (RFC 6761)
            return [hosts.LOOPBACK]
        found = [hosts.literal(text) for text in await self._resolver.addresses(host)]
        return [unwrapped(address) for address in found if address is not None]

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        return self._tls


def _read(reader: Callable[[str], Target], url: str) -> Target:
    try:
        return reader(url)
    except ValueError as exc:
        raise _refused(f"{url[:100]!r}: {exc}") from exc


def _refused(detail: str) -> ProtocolError:
    return ProtocolError(ErrorCode.UNSUPPORTED, detail)


def _socket_address(address: IpAddress, port: int) -> Address:
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    return Address(family, (str(address), port))


@contextlib.contextmanager
def _closed_on_error(sock: socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        sock.close()
        raise


@contextlib.contextmanager
def _translated(target: Target) -> Iterator[None]:
    """Raise ``peer_unreachable`` for errors of the network and its libraries."""
    cause: Exception
    try:
        yield
    except InvalidStatus as exc:
        detail, cause = f"answered HTTP {exc.response.status_code}", exc
    except WebSocketException as exc:
        detail, cause = "no relay answers there", exc
    except ssl.SSLError as exc:
        detail, cause = f"TLS: {exc.reason or 'failed'}", exc
    except TimeoutError as exc:
        detail, cause = "no answer in time", exc
    except OSError as exc:
        # asyncio puts the address into strerror
        detail, cause = os.strerror(exc.errno) if exc.errno else str(exc), exc
    else:
        return
    raise unreachable(f"{target.origin}: {detail}") from cause
