"""Names of keys in the store, and the partition of an inbox (GUARANTEES.md §2, partitions).

Every key of a partition carries its hash tag ``{p}``, so one declared key routes a script to all of
them. Scripts make the other names from ``relay:{p}:`` (scripts/lib/inbox.lua). :data:`KINDS` lists
all keys; ``REDIS.md`` beside this package is made from it.
"""

from __future__ import annotations

import binascii
from typing import Final, Literal, NamedTuple

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


class Kind(NamedTuple):
    """Keys of one kind: their pattern, type and contents.

    ``by_python`` names the module that writes the key without a script.
    """

    pattern: str
    type: Literal["hash", "zset", "set", "list", "string", "stream"]
    holds: str
    by_python: str = ""


_P: Final = "relay:{p}:"
KINDS: Final = (
    Kind("relay:store", "hash", "`did` of the relay, number of `partitions`, `time` of the clock"),
    Kind("relay:nodes", "zset", "node, until when its heartbeat holds", "nodes.py"),
    Kind("relay:peers", "hash", "DID of a relay, its row as JSON", "peers.py"),
    Kind("relay:handles", "hash", "name, its row as JSON", "peers.py"),
    Kind("relay:once:<name>", "string", "a nonce or a session token; it lapses", "nodes.py"),
    Kind(_P + "state", "hash", "lineage, `ids` remembered in all, `changes` of records"),
    Kind(_P + "inbox:<inbox>", "hash", "identity, counts, session, quotas: see lib/inbox.lua"),
    Kind(_P + "stream:<inbox>", "stream", "the entries: facts and wire bytes"),
    Kind(_P + "expiry:<inbox>", "zset", "seq, its expires_time"),
    Kind(_P + "gaps:<inbox>", "zset", "from:to:reason of ended seqs, by from"),
    Kind(_P + "hours:<inbox>", "zset", "hours of which ids are remembered"),
    Kind(_P + "ids:<hour>:<inbox>", "hash", "dedup key, what became of it"),
    Kind(_P + "known:<inbox>", "hash", "sender, allowed, denied or a contact"),
    Kind(_P + "memory", "zset", "inbox, how many ids it remembers"),
    Kind(_P + "due", "zset", "inbox, when a sweep should look at it"),
    Kind(_P + "lease:sweep", "string", "the node that sweeps; lapses"),
    Kind(_P + "bounces", "zset", "sender, when its next bounce is due"),
    Kind(_P + "bounce:<sender>", "zset", "pending bounces, by due time"),
    Kind(_P + "frozen:<sender>", "list", "the batch of bounces that is being sent"),
    Kind(_P + "outboxes", "zset", "inbox, when a forwarder should look at it"),
    Kind(_P + "outbox:<peer>", "hash", "count and bytes that wait for this peer, by sender"),
    Kind(_P + "outbox_peers", "set", "peers for which something waits"),
    Kind(_P + "peer_numbers", "hash", "peer, its number, and the way back"),
    Kind(_P + "handoffs", "set", "inboxes whose migration is open"),
    Kind(_P + "record:<owner>", "string", "the endpoint record and what the relay knows of it"),
    Kind(_P + "former:<owner>", "string", "the record before it, when the homes last changed"),
    Kind(_P + "evidence:<owner>", "list", "two records of one kv and seq"),
    Kind(_P + "changed", "zset", "owner, number of its newest change"),
    Kind(_P + "gone", "zset", "owner, when its record was purged"),
    Kind(_P + "introducers", "hash", "peer, how many agents it introduced"),
)  # fmt: skip
"""All keys of a store. ``relay:{p}:wake:<node>`` is a channel, not a key."""


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
