"""Names of machines as URLs and handles may spell them: strict, lower-case ASCII, one spelling.

A spelling that other readers of URLs might read differently is not a name here: an octal or
short IPv4 form, a trailing dot, a zone, a character outside ASCII.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

MAX_NAME: Final = 253
MAX_PORT: Final = 65_535

_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
# a last label that begins so makes a name an IPv4 address for some readers; no name ends that way
_DIGITS: Final = frozenset("0123456789")
# never asked of DNS: RFC 7686 (onion), RFC 6762 (local)
_ELSEWHERE: Final = frozenset({"onion", "local"})

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
LOOPBACK: Final = ipaddress.IPv4Address("127.0.0.1")


def literal(host: str) -> IpAddress | None:
    """The address, if ``host`` spells one: four decimal numbers, or IPv6 without brackets or zone.

    Args:
        host: returned by :func:`normal`.
    """
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def normal(host: str) -> str:
    """The one spelling of a host: a DNS name or an address (IPv6 without brackets).

    Raises:
        ValueError: not a host.
    """
    if not host.isascii() or len(host) > MAX_NAME:
        raise ValueError("a host is at most 253 ASCII characters")
    if ":" in host:
        if re.fullmatch(r"[0-9A-Fa-f:.]+", host) is None:
            raise ValueError("an IPv6 address has neither zone nor anything else around it")
        return str(ipaddress.IPv6Address(host))
    host = host.lower()
    labels = host.split(".")
    if labels[-1][:1] in _DIGITS:
        return str(ipaddress.IPv4Address(host))
    if any(_LABEL.fullmatch(label) is None for label in labels):
        raise ValueError("a name is letters, digits and hyphens between dots, without a last dot")
    if labels[-1] in _ELSEWHERE:
        raise ValueError(f"names under .{labels[-1]} are not looked up here")
    return host


def is_loopback(host: str) -> bool:
    """Return True if a normal ``host`` is spelled as this machine (RFC 6761 for ``localhost``)."""
    address = literal(host)
    if address is not None:
        return address.is_loopback
    return host == "localhost" or host.endswith(".localhost")


def bracketed(host: str) -> str:
    """A normal host as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def port(text: str) -> int:
    """Read a port: 1 … 65535, without a leading zero.

    Raises:
        ValueError: not one.
    """
    if re.fullmatch(r"[1-9][0-9]{0,4}", text, re.ASCII) is None or int(text) > MAX_PORT:
        raise ValueError("a port is a number from 1 to 65535")
    return int(text)
