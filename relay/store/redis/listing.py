"""Whose inboxes are in the store: its keys are walked, since nothing else lists them all.

Rules of the file: a question of a start, not of every day; each step is short, and others have a
turn in between.
"""

from __future__ import annotations

from typing import Final

from relay.inbox.ports import (
    InboxesPage,
)
from relay.protocol.ids import (
    AgentKey,
    Partition,
)
from relay.store.redis import keys
from relay.store.redis.partitions import Partitions

_SCANNED: Final = 2_000
"""Keys looked at in one step: about a millisecond."""


async def inboxes(partitions: Partitions, after: str, limit: int) -> InboxesPage:
    """Some of those who have an inbox here; see :meth:`relay.inbox.ports.InboxStore.inboxes`.

    The cursor is a partition, and a place in the walk of its keys.

    Raises:
        RelayError: the store.
    """
    number, place = map(int, after.split()) if after else (0, 0)
    found: list[AgentKey] = []
    while number < partitions.count and len(found) < limit:
        owners, place = await _step(partitions, Partition(number), place)
        found += owners
        number += place == 0
    return InboxesPage(found, f"{number} {place}" if number < partitions.count else "")


async def _step(partitions: Partitions, part: Partition, place: int) -> tuple[list[AgentKey], int]:
    head = keys.inbox(part, AgentKey("")).encode()
    words = ("SCAN", place, "MATCH", head + b"*", "COUNT", _SCANNED)
    cursor, found = await partitions.client.command(keys.state(part), *words)
    return [AgentKey(name.removeprefix(head).decode()) for name in found], int(cursor)
