"""The address of a relay, and where it may be dialled without TLS (PROTOCOL.md §5.4)."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit

from relay.client.errors import make_error
from relay.protocol import dial_allowlist, hosts
from relay.protocol.errors import ErrorCode

PATH: Final = "/v1/ws"
_SCHEMES: Final = {"http": "http", "ws": "http", "https": "https", "wss": "https"}
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Origin:
    """``http(s)://host[:port]`` as in ``hello.url``; made by :func:`parse`.

    ``public_only``: a stranger named it, and must not make this machine dial a private network.
    Only public addresses are dialled, whatever the host name resolves to.
    """

    scheme: str
    host: str
    port: int
    public_only: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.port == _DEFAULT_PORTS[self.scheme]:
            return f"{self.scheme}://{host}"
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def websocket(self) -> str:
        """The URL of the WebSocket."""
        return f"ws{str(self).removeprefix('http')}{PATH}"

    @property
    def is_insecure(self) -> bool:
        """True without TLS: everybody on the way can read the traffic."""
        return self.scheme == "http"

    @property
    def is_loopback(self) -> bool:
        """True if it is on this machine."""
        address = _address(self.host)
        return self.host == "localhost" if address is None else address.is_loopback

    @property
    def is_private_network(self) -> bool:
        """True for this machine, and for an address that only its own network can reach."""
        address = _address(self.host)
        return self.is_loopback or (address is not None and not dial_allowlist.is_public(address))

    def as_public(self) -> Origin | None:
        """Return the origin as ``public_only``; None: it may be read as a private address.

        Some resolvers take ``127.1``, ``0x7f000001`` or ``localhost.`` for this machine.
        """
        try:
            host = hosts.normal(self.host)
        except ValueError:
            return None
        if self.is_private_network or hosts.is_loopback(host):
            return None
        return replace(self, public_only=True)


def parse(url: str, *, insecure_networks: Sequence[str] = ()) -> Origin:
    """Parse the address of a relay; http(s) and ws(s) mean the same.

    Args:
        url: ``https://host[:port]``; ``http://`` only on loopback or in ``insecure_networks``.
        insecure_networks: CIDRs of literal addresses that may be dialled without TLS.

    Raises:
        ValueError: not the origin of a relay.
        ProtocolError: ``unsupported``: no TLS, and not on loopback.
    """
    parts = urlsplit(url)
    scheme = _SCHEMES.get(parts.scheme)
    if scheme is None or not parts.hostname or parts.username is not None:
        raise ValueError(f"{url!r} is not https://host[:port]")
    if parts.path.rstrip("/") not in {"", PATH} or parts.query or parts.fragment:
        raise ValueError(f"{url!r} must be an origin, without a path")
    origin = Origin(scheme, parts.hostname, parts.port or _DEFAULT_PORTS[scheme])
    if origin.is_insecure and not origin.is_loopback and not _is_in(origin.host, insecure_networks):
        detail = f"{origin}: without TLS only loopback is dialled; use https://"
        raise make_error(ErrorCode.UNSUPPORTED, detail)
    return origin


def _is_in(host: str, networks: Sequence[str]) -> bool:
    address = _address(host)
    return address is not None and any(address in ipaddress.ip_network(n) for n in networks)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
