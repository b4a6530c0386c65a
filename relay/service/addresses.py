"""Addresses of dialers, as limits count them: a network prefix, seen through trusted proxies.

Rules of the file: one that cannot be read is its own group; an IPv4 address that an IPv6 socket
shows as ``::ffff:…`` is that IPv4 address, or all of IPv4 would be one network.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any


def peer_of(scope: Mapping[str, Any], trusted: frozenset[str]) -> str:
    """Who dialled, in an ASGI scope: the socket's peer, or what a trusted proxy says of it."""
    peer: str = (scope.get("client") or ("", 0))[0]
    if peer in trusted:
        for name, value in scope["headers"]:
            if name == b"x-forwarded-for":
                peer = value.decode("latin-1").rpartition(",")[2].strip()
    return peer


def network_of(peer: str, *, v4: int, v6: int) -> str:
    """The network of a peer, by its first ``v4`` or ``v6`` bits."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(ipaddress.IPv6Network((int(address), v6), strict=False))
        address = address.ipv4_mapped
    return str(ipaddress.IPv4Network((int(address), v4), strict=False))


def strangers_network(scope: Mapping[str, Any], trusted: frozenset[str]) -> str:
    """What strangers are limited by (R7): /24 of IPv4, /56 of IPv6."""
    return network_of(peer_of(scope, trusted), v4=24, v6=56)
