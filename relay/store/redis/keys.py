"""Names in the store, and which partition an inbox lives in (GUARANTEES.md §2, partitions).

Rules: every key of a partition carries its hash tag ``{p}``, so one declared key routes a script to
all of them. Scripts make the other names from ``relay:{p}:`` (scripts/lib/inbox.lua).
"""

from __future__ import annotations

import binascii
from typing import Final

from relay.protocol.ids import (
    AgentKey,
    NodeId,
    Partition,
)

STORE: Final = "relay:store"
"""Whose store it is: did, partitions; time = the clock as last written down."""
NODES: Final = "relay:nodes"
"""Sorted set: node -> until when its heartbeat holds."""
PEERS: Final = "relay:peers"
"""Hash: DID of another relay -> what is known of it, as JSON."""
HANDLES: Final = "relay:handles"
"""Hash: name under this relay -> whose it is, as JSON."""


def partition_of(inbox: AgentKey, partitions: int) -> Partition:
    """The partition of an inbox; fixed for as long as the store lives."""
    return Partition(binascii.crc_hqx(inbox.encode(), 0) % partitions)


def state(partition: Partition) -> str:
    """Lineage and counters of a partition; KEYS[1] of its scripts."""
    return f"relay:{{{partition}}}:state"


def inbox(partition: Partition, owner: AgentKey) -> str:
    """The hash of an inbox."""
    return f"relay:{{{partition}}}:inbox:{owner}"


def wake(partition: Partition, node: NodeId) -> str:
    """Channel on which a node hears of its inboxes in this partition."""
    return f"relay:{{{partition}}}:wake:{node}"


def once(name: bytes) -> bytes:
    """A small value that is taken at most once; the only thing that lapses by the store's TTL."""
    return b"relay:once:" + name
