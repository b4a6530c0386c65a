"""The addresses that a stranger may make us dial: the public ones, by our own table.

An address that is not listed as public is not dialled. The table is ours, because
``ipaddress.is_global`` calls several addresses global that lead inside (an IPv4 address embedded
in ``64:ff9b::/96`` or ``::/96``, site-local, multicast). It follows IANA's registries of
special-purpose addresses; addresses that no one needs to dial are left out even where those say
"globally reachable".
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from relay.protocol.hosts import IpAddress

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_CLOSED_V4: Final = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network; connects to this machine on Linux
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by providers; some clouds keep their metadata there
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # a cloud's host agent under a public address
        "169.254.0.0/16",  # link-local, metadata of clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # multicast tunnels
        "192.88.99.0/24",  # 6to4 anycast, withdrawn
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_OPEN_V6: Final = ipaddress.IPv6Network("2000::/3")
_CLOSED_V6: Final = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID, tunnels
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: holds an IPv4 address, withdrawn
        "2620:4f:8000::/48",  # AS112
        "3ffe::/16",  # 6bone, given back
        "3fff::/20",  # documentation
    )
)
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP: Final = frozenset({0x0000_5EFE, 0x0200_5EFE})
_LOW_32: Final = 0xFFFF_FFFF
_MAPPED_BITS: Final = 96


@dataclass(frozen=True, slots=True)
class Networks:
    """Networks that the operator has named; ``address in networks`` asks for a member."""

    _networks: tuple[Network, ...] = ()

    @classmethod
    def of(cls, words: Sequence[str]) -> Networks:
        """Read addresses, and networks in CIDR form.

        Raises:
            ValueError: one is neither, or a network has bits set behind its prefix.
        """
        return cls(tuple(_network(word) for word in words))

    def __contains__(self, address: IpAddress) -> bool:
        address = unwrapped(address)
        return any(address in network for network in self._networks)


def _network(word: str) -> Network:
    network = ipaddress.ip_network(word)
    mapped = network.network_address
    if isinstance(mapped, ipaddress.IPv6Address) and network.prefixlen >= _MAPPED_BITS:
        # addresses are compared as IPv4, however they or the network are spelled
        inner = unwrapped(mapped)
        if inner is not mapped:
            return ipaddress.ip_network(f"{inner}/{network.prefixlen - _MAPPED_BITS}")
    return network


@dataclass(frozen=True, slots=True)
class DialAllowlist:
    """The addresses that may be dialled.

    Args:
        named: beside the public ones, what the operator has named.
    """

    named: Networks = Networks()

    @classmethod
    def of(cls, networks: Sequence[str]) -> DialAllowlist:
        """Read networks in CIDR form.

        Raises:
            ValueError: one is not a network.
        """
        return cls(Networks.of(networks))

    def is_named(self, address: IpAddress) -> bool:
        """Return True if an operator's network has this address; plain text may go there."""
        return address in self.named

    def permits(self, address: IpAddress) -> bool:
        """Return True if it may be dialled at all."""
        return is_public(address) or self.is_named(address)


def unwrapped(address: IpAddress) -> IpAddress:
    """The IPv4 address that an IPv6 socket shows as ``::ffff:…``; any other as it is."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def is_public(address: IpAddress) -> bool:
    """Return True if an address belongs to the open internet, whatever it is wrapped in."""
    address = unwrapped(address)
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _CLOSED_V4)
    if address.scope_id is not None:
        return False
    if address in _NAT64:
        # how an IPv6-only machine sees the IPv4 internet; judged by what it leads to
        return is_public(ipaddress.IPv4Address(int(address) & _LOW_32))
    if int(address) >> 32 & _LOW_32 in _ISATAP:
        return False
    return address in _OPEN_V6 and not any(address in network for network in _CLOSED_V6)
