"""The proxy for a relay, from the environment or the system's settings (macOS).

Entry point: :func:`proxy_for`. Invariants: HTTP and the WebSocket use the same proxy. A relay on
this machine, and one that ``NO_PROXY`` names, needs none. No text shows the login of a proxy.

::

    https://  HTTPS_PROXY, else SOCKS_PROXY, else ALL_PROXY      http://  HTTP_PROXY, …
"""

from __future__ import annotations

import base64
import ipaddress
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from relay.client.errors import make_error
from relay.client.http.origin import Origin
from relay.protocol import hosts
from relay.protocol.errors import ErrorCode

_PORTS: Final = {"http": 80, "https": 443} | dict.fromkeys(
    ("socks4", "socks4a", "socks5", "socks5h"), 1080
)
_FORMS: Final = "http://, https:// or socks5:// and host:port"


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy; ``str()`` shows neither user nor password."""

    scheme: str
    host: str
    port: int
    name: str | None = field(default=None, repr=False)
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.scheme}://{hosts.bracketed(self.host)}:{self.port}"

    @property
    def is_socks(self) -> bool:
        """True for SOCKS, False for HTTP."""
        return self.scheme.startswith("socks")

    @property
    def url(self) -> str:
        """The URL with user and password: for the library that connects, never to be shown."""
        if self.name is None:
            return str(self)
        login = f"{quote(self.name, safe='')}:{quote(self.password, safe='')}"
        return f"{self.scheme}://{login}@{hosts.bracketed(self.host)}:{self.port}"

    @property
    def authorization(self) -> str | None:
        """The value of ``Proxy-Authorization``; None: it requires none."""
        if self.name is None:
            return None
        login = f"{self.name}:{self.password}".encode()
        return f"Basic {base64.b64encode(login).decode()}"


def proxy_for(origin: Origin) -> Proxy | None:
    """Return the proxy for an origin; None: it is dialled directly.

    Raises:
        UnsupportedError: the setting is not the address of a proxy.
    """
    settings = urllib.request.getproxies()
    name = next((one for one in (origin.scheme, "socks", "all") if settings.get(one)), None)
    is_local = origin.is_loopback or hosts.is_loopback(origin.host)
    if name is None or is_local or _is_exempt(origin, settings):
        return None
    text = settings[name]
    if name == "socks":
        # a system's setting has http:// for a SOCKS proxy
        text = f"socks5h://{text.rpartition('://')[2]}"
    try:
        return _parse(text if "://" in text else f"http://{text}")
    except ValueError:
        # without the cause: its text could show the password
        detail = f"{name.upper()}_PROXY is not the address of a proxy; write {_FORMS}"
        raise make_error(ErrorCode.UNSUPPORTED, detail, stored="no") from None


def _parse(text: str) -> Proxy:
    parts = urlsplit(text)
    default = _PORTS.get(parts.scheme)
    if default is None or not parts.hostname or parts.path not in {"", "/"}:
        raise ValueError("not scheme://host:port")
    if parts.query or parts.fragment or not text.isprintable():
        raise ValueError("more than an address")
    # a name outside ASCII as DNS knows it; UnicodeError is a ValueError
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
    login = unquote(parts.username, errors="strict") if parts.username else None
    password = unquote(parts.password or "", errors="strict")
    return Proxy(parts.scheme, host, parts.port or default, login, password)


def _is_exempt(origin: Origin, settings: Mapping[str, str]) -> bool:
    if urllib.request.proxy_bypass(f"{hosts.bracketed(origin.host)}:{origin.port}"):
        return True
    # the library compares text alone: an address may also be named by its network
    address = hosts.literal(origin.host)
    named = settings.get("no", "").split(",") if address is not None else ()
    return any(address in network for network in map(_network, named) if network is not None)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text.strip().strip("[]"), strict=False)
    except ValueError:
        return None
