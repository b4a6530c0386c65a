"""Parse the URLs that this relay may dial: every URL of a record is an attacker's input.

A URL has one spelling or none. Python's own parsers accept what other programs read differently:
backslashes, control characters, user info, octal addresses. So the whole text must match before any
part is used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from relay.protocol import hosts

MAX_URL_CHARS: Final = 2_048

_URL: Final = re.compile(
    r"(?P<scheme>https?|wss?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::(?P<port>[0-9]+))?"
    r"(?P<path>/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*"
    r"(?:\?(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?)?"
)
_DEFAULT_PORTS: Final = {False: 80, True: 443}


@dataclass(frozen=True, slots=True)
class Target:
    """The parts of a URL.

    Args:
        secure: True with TLS.
        host: a DNS name or an address, in its one spelling.
        port: 1 … 65535; relays run on any.
        path: path and query; empty for an origin.
    """

    secure: bool
    host: str
    port: int
    path: str = ""

    @property
    def authority(self) -> str:
        """``host[:port]``, as in the Host header."""
        host = hosts.bracketed(self.host)
        return host if self.port == _DEFAULT_PORTS[self.secure] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """``https://host[:port]``."""
        return f"{'https' if self.secure else 'http'}://{self.authority}"


def parse(url: str) -> Target:
    """Parse a URL.

    Raises:
        ValueError: anything but http(s) or ws(s), host, port, path and query in plain spelling.
    """
    found = _URL.fullmatch(url) if len(url) <= MAX_URL_CHARS else None
    if found is None:
        raise ValueError("not a plain https:// address")
    secure = found["scheme"] in {"https", "wss"}
    host = found["host"]
    if host.startswith("["):
        host = host[1:-1]
        if ":" not in host:
            raise ValueError("only an IPv6 address stands in brackets")
    port = hosts.port(found["port"]) if found["port"] is not None else _DEFAULT_PORTS[secure]
    return Target(secure, hosts.normal(host), port, found["path"] or "")


def parse_origin(url: str) -> Target:
    """Parse the origin of a relay: a URL without a path.

    Raises:
        ValueError: not one.
    """
    target = parse(url)
    if target.path:
        raise ValueError("the address of a relay has no path")
    return target
