"""What this relay says of itself, signed, from its live configuration (PROTOCOL.md §8)."""

from __future__ import annotations

from relay import __version__, clock
from relay.node.node import Node
from relay.protocol import (
    envelope,
    relay_info,
)


def relay_information(node: Node) -> str:
    """The signed self-description."""
    said = relay_info.Description(
        url=node.url,
        software="did-relay",
        version=__version__,
        limits=node.limits(),
        retention_s=envelope.MAX_LIFETIME_S,
        registration=node.settings.registration,
        federation=node.peers.federation,
        durability=node.store.durability,
        peers=len(node.peers.chosen()),
        contact=node.settings.contact,
    )
    return relay_info.sign(node.key, said, clock.now())
