"""The store over Redis ≥ 7.0 or Valkey ≥ 8.1, standalone or Cluster.

Read in this order::

    ../REDIS.md       every key, its type, who writes and who reads it (generated)
    store.py          RedisStore: the parts and their lifetime
    keys.py           names and partitions
    scripts/*/*.lua   what happens to mail; scripts/lib/inbox.lua first
    inboxes.py        calls of those scripts; pages.py and entries.py check what is read
    partitions.py     what every call says and learns; lineage.py: rollback
    guard.py          what is known of the store, and what it may be trusted with
    facts.py          the questions for that, and what the answers mean
    wakeups.py        hints between nodes
    client.py         deadlines, errors; servers.py: connections, and which server has what
"""

from __future__ import annotations

from relay.store.redis.client import is_lasting
from relay.store.redis.store import RedisStore

__all__ = ["RedisStore", "is_lasting"]
