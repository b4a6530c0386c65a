"""Client addresses as limits count them: a network prefix, seen through trusted proxies.

::

    X-Forwarded-For: made up by the client, client, proxy 2       socket: proxy 1
                                            ◀────── read from the right, past trusted ones

Only the operator's own proxies are trusted, so the walk never reaches what a client wrote itself.
An element that is no address ends the walk: the proxy that passed it on counts as the client. One
client has one spelling, whatever its port or address family.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any, Final

from relay.protocol.dial_allowlist import Networks, unwrapped
from relay.protocol.hosts import IpAddress, literal

_BRACKETED: Final = re.compile(r"\[([^]]*)\](?::[0-9]+)?")
_V4_WITH_PORT: Final = re.compile(r"([0-9.]+):[0-9]+")


def client_ip(scope: Mapping[str, Any], trusted: Networks) -> str:
    """Return the client of an ASGI scope: the socket's peer, or the one that proxies name."""
    peer: str = (scope.get("client") or ("", 0))[0]
    elements = [
        word
        for name, value in scope["headers"]
        if name == b"x-forwarded-for"
        for word in value.decode("latin-1").split(",")
    ]
    for word in reversed(elements):
        proxy, before = literal(peer), _address(word.strip())
        if proxy is None or proxy not in trusted or before is None:
            break
        peer = str(before)
    return peer


def _address(word: str) -> IpAddress | None:
    """Return the address in an element: with or without a port, IPv6 in brackets or bare."""
    match = _BRACKETED.fullmatch(word) or _V4_WITH_PORT.fullmatch(word)
    found = literal(match[1] if match else word)
    return None if found is None else unwrapped(found)


def network_of(peer: str, *, v4: int, v6: int) -> str:
    """Return the network of an address, by its first bits; anything else is its own network."""
    address = literal(peer)
    if address is None:
        return peer
    address = unwrapped(address)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(address), v6), strict=False))
    return str(ipaddress.IPv4Network((int(address), v4), strict=False))


def strangers_network(peer: str) -> str:
    """Return the network that limits strangers (R7): /24 of IPv4, /56 of IPv6."""
    return network_of(peer, v4=24, v6=56)
