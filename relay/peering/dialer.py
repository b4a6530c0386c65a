"""The one way out: every connection that this relay opens to anybody is dialled here.

::

    URL ─▶ read strictly ─▶ all its addresses, asked for once ─▶ every one allowed? ─▶ connect to
    one of these very addresses ─▶ TLS, checked for the name in the URL ─▶ upgrade, or one GET

Rules of the file: nothing is sent before the addresses are checked, and a name is never asked
about twice, so an answer that changes in between changes nothing. No redirects, no proxies of the
environment, no compression; everything has a bound and a deadline. A URL that may not be dialled is
``unsupported``, whatever the network does is ``peer_unreachable``.
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

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from relay import sockets
from relay.peering import urls
from relay.peering.dns import (
    Dns,
    Resolver,
)
from relay.peering.fetch import (
    Answer,
    fetch,
)
from relay.peering.urls import Target
from relay.protocol import frames, hosts
from relay.protocol.dial_allowlist import (
    DialAllowlist,
    unwrapped,
)
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
    UnavailableError,
)
from relay.protocol.hosts import IpAddress
from relay.sockets import Address

PATH: Final = "/v1/ws"
DIAL_S: Final = 10.0
CONNECT_S: Final = 4.0
PING_S: Final = 20.0
PONG_S: Final = 25.0
CLOSE_S: Final = 2.0
MARGIN_BYTES: Final = 64 * 1024
QUEUED_FRAMES: Final = 4
DIALS: Final = 64
GETS: Final = 32
"""Of their own: agents may ask for any handle, and must not keep relays from being dialled."""


class NoAddressError(UnavailableError):
    """``peer_unreachable``, for as long as DNS says so: there is no such host."""


class _Connect(connect):
    """A handshake that takes a redirect for what it is here: not a relay."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class Dialer:
    """Opens connections to addresses that strangers name."""

    def __init__(
        self,
        networks: Sequence[str] = (),
        resolver: Resolver | None = None,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Dial nothing yet.

        Args:
            networks: CIDRs that may be dialled although they are not public, also without TLS.
            resolver: who answers for names; None: the machine's DNS servers.
            tls: whom to trust; None: the machine's certificate store.

        Raises:
            ValueError: one of ``networks`` is not a network.
        """
        self._allowed = DialAllowlist.of(networks)
        self._resolver = resolver or Dns()
        self._tls = tls
        self._dials = asyncio.Semaphore(DIALS)
        self._gets = asyncio.Semaphore(GETS)

    async def websocket(self, origin: str) -> ClientConnection:
        """Open the conversation of a relay; nothing but the upgrade is sent.

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
                return await _Connect(
                    f"ws{target.origin.removeprefix('http')}{PATH}",
                    sock=sock,
                    ssl=self._context() if target.secure else None,
                    subprotocols=[Subprotocol(frames.SUBPROTOCOL)],
                    compression=None,
                    proxy=None,
                    max_size=frames.MAX_FRAME_BYTES + MARGIN_BYTES,
                    max_queue=QUEUED_FRAMES,
                    open_timeout=DIAL_S,
                    ping_interval=PING_S,
                    ping_timeout=PONG_S,
                    close_timeout=CLOSE_S,
                )

    async def get(self, url: str, *, accept: str = "*/*") -> Answer:
        """Ask with one GET; a redirect is an answer like any other, and not followed.

        Args:
            url: ``https://host[:port]/path``.
            accept: the media type wished for.

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
        """All TXT records of a name.

        Raises:
            UnavailableError: ``peer_unreachable``: DNS does not say.
        """
        return await self._resolver.texts(name)

    def origin_of(self, authority: str) -> str:
        """The origin of ``host[:port]``: with TLS, but not on this machine or in a named network.

        Raises:
            ProtocolError: ``unsupported``: not a host and port.
        """
        target = _read(urls.parse_origin, f"https://{authority}")
        address = hosts.literal(target.host)
        plain = hosts.is_loopback(target.host) or (address and self._allowed.is_named(address))
        return _read(urls.parse_origin, f"http://{authority}").origin if plain else target.origin

    @contextlib.asynccontextmanager
    async def _dialling(self, target: Target, room: asyncio.Semaphore) -> AsyncIterator[None]:
        """Bound it: so many at once, so long each; and name what goes wrong."""
        with _translated(target):
            async with asyncio.timeout(DIAL_S):
                async with room:
                    yield

    async def _connected(self, target: Target) -> socket.socket:
        """A socket connected to one of the target's checked addresses."""
        addresses = await self._checked(target)
        if not addresses:
            detail = f"{target.origin}: the host has no address"
            raise NoAddressError(ErrorCode.PEER_UNREACHABLE, detail)
        async with asyncio.timeout(CONNECT_S):
            return await sockets.connect([_socket_address(one, target.port) for one in addresses])

    async def _checked(self, target: Target) -> list[IpAddress]:
        """The target's addresses; every one is allowed, or none is dialled."""
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
            # never asked of DNS, which may say anything (RFC 6761)
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
    done = False
    try:
        yield
        done = True
    finally:
        if not done:
            sock.close()


@contextlib.contextmanager
def _translated(target: Target) -> Iterator[None]:
    """Turn what the network and its libraries raise into ``peer_unreachable``."""
    try:
        yield
    except InvalidStatus as exc:
        raise _away(target, f"answered HTTP {exc.response.status_code}") from exc
    except WebSocketException as exc:
        raise _away(target, "no relay answers there") from exc
    except ssl.SSLError as exc:
        raise _away(target, f"TLS: {exc.reason or 'failed'}") from exc
    except TimeoutError as exc:
        raise _away(target, "no answer in time") from exc
    except OSError as exc:
        # asyncio puts the address into strerror
        raise _away(target, os.strerror(exc.errno) if exc.errno else str(exc)) from exc


def _away(target: Target, detail: str) -> UnavailableError:
    return UnavailableError(ErrorCode.PEER_UNREACHABLE, f"{target.origin}: {detail}")
