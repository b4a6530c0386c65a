"""Endpoint records in the store, each in its agent's partition (PROTOCOL.md §7.2-§7.4).

Rules of the file: the scripts judge records, this only carries them; every reply echoes the agent
it speaks of and is compared.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any, Final

from relay.directory.ports import (
    GONE,
    Changes,
    DirectoryLimits,
    Merged,
    RecordRow,
)
from relay.protocol.endpoint_record import STALE_SERVED_S, RecordVersion
from relay.protocol.errors import (
    ErrorCode,
    RelayError,
)
from relay.protocol.ids import (
    AgentKey,
    Partition,
)
from relay.store.redis.guard import Guard
from relay.store.redis.partitions import Partitions

GONE_TOLD_S: Final = 3600
"""How long readers of the change log are told that a record is gone."""
_MOST_ROWS: Final = 256
_MOST_PURGED: Final = 500
_NO_ONE: Final = "-"
_START: Final = ("", "0")
_Place = tuple[str, str]
"""Token of a partition's generation, and the last change that was read of it."""


class RedisRecords:
    """Endpoint records, over scripts; see :class:`relay.directory.ports.RecordStore`.

    Args:
        partitions: where they are.
        guard: whether the store's clock may be believed.
        limits: how many records of others are kept.
    """

    def __init__(self, partitions: Partitions, guard: Guard, limits: DirectoryLimits) -> None:
        self._partitions = partitions
        self._guard = guard
        most = max(1, limits.records // partitions.count)
        self._limits = [most, max(1, most // limits.share)]
        self._purged_to: dict[Partition, int] = {}

    # ------------------------------------------------------------ merge and read

    async def merge(self, rows: Sequence[tuple[AgentKey, RecordRow]]) -> list[Merged]:
        """Keep the newer of each held and given record, durably; safe to repeat."""
        return await self._partitions.spread(rows, itemgetter(0), self._merge)

    async def _merge(
        self, part: Partition, rows: Sequence[tuple[AgentKey, RecordRow]]
    ) -> list[Merged]:
        merged: list[Merged] = []
        for start in range(0, len(rows), _MOST_ROWS):
            some = rows[start : start + _MOST_ROWS]
            blob = b"".join(_packed(owner, row) for owner, row in some)
            args = [*self._limits, blob]
            replies = await self._partitions.call("merge_records", part, args)
            merged.extend(
                _merged(owner, row, reply)
                for (owner, row), reply in zip(some, replies, strict=True)
            )
        return merged

    async def get(self, owner: AgentKey) -> RecordRow | None:
        """The newest record held of an agent."""
        return (await self.get_many([owner]))[0]

    async def get_many(self, owners: Sequence[AgentKey]) -> list[RecordRow | None]:
        """The newest records held."""
        return await self._partitions.spread(owners, lambda owner: owner, self._read)

    async def _read(self, part: Partition, owners: Sequence[AgentKey]) -> list[RecordRow | None]:
        rows: list[RecordRow | None] = []
        for start in range(0, len(owners), _MOST_ROWS):
            some = owners[start : start + _MOST_ROWS]
            replies = await self._partitions.call("get_records", part, some)
            for owner, (echo, text) in zip(some, replies, strict=True):
                _check_echo(owner, echo)
                rows.append(row_of(text) if text else None)
        return rows

    async def fork_proof(self, owner: AgentKey) -> tuple[str, str] | None:
        """Two records of one kv and seq that the agent has signed: the first such two."""
        found = await self._partitions.call("fork_proof", self._partitions.of(owner), [owner])
        return (found[0].decode(), found[1].decode()) if found else None

    # ------------------------------------------------------------ what changed

    async def changes(self, after: str, limit: int) -> Changes:
        """What changed after ``after`` ("" = all): how a node keeps its index up to date."""
        places = _places(after, self._partitions.count)
        replies = await self._ask(places, limit)
        anew = any(len(reply) == 1 for reply in replies)
        if anew:
            places = [_START] * self._partitions.count
            replies = await self._ask(places, limit)
        if any(len(reply) == 1 for reply in replies):
            # it was renewed between two questions; the next reading begins anew, too
            return Changes((), "", more=True, restarted=True)
        return _changes(places, replies, limit, anew=anew)

    async def _ask(self, places: Sequence[_Place], most: int) -> list[Any]:
        share = max(1, most // len(places))
        parts = self._partitions.all()
        return await self._partitions.gather(
            parts,
            lambda part: self._partitions.call("record_changes", part, [*places[part], share]),
        )

    # ------------------------------------------------------------ purge

    async def purge(self) -> int:
        """Forget some records that are stale for more than 90 days; gives how many."""
        if not self._guard.is_clock_trusted:
            return 0
        return sum(await self._partitions.gather(self._partitions.all(), self._purge))

    async def _purge(self, part: Partition) -> int:
        args = [self._purged_to.get(part, 0), _MOST_PURGED, STALE_SERVED_S, GONE_TOLD_S]
        purged, place = await self._partitions.call("purge_records", part, args)
        self._purged_to[part] = int(place)
        return int(purged)


def _packed(owner: AgentKey, row: RecordRow) -> bytes:
    kv, seq, digest = row.version
    introducer = row.introducer or _NO_ONE
    head = f"{row.names_us:d} {kv} {seq} {digest.hex()} {row.expires_at} {introducer} "
    name, text = owner.encode(), (head + row.compact).encode()
    return struct.pack(">BHH", row.is_parked, len(name), len(text)) + name + text


def row_of(text: bytes) -> RecordRow:
    """A record as it is kept."""
    home, kv, seq, digest, expires, introducer, compact = text.decode().split(" ", 6)
    return RecordRow(
        version=RecordVersion(int(kv), int(seq), bytes.fromhex(digest)),
        compact=compact,
        names_us=home == "1",
        introducer=None if introducer == _NO_ONE else AgentKey(introducer),
        expires_at=int(expires),
    )


def _merged(owner: AgentKey, row: RecordRow, reply: Any) -> Merged:
    echo, outcome, text, moves = reply
    _check_echo(owner, echo)
    if outcome == b"full":
        return Merged("full", None)
    held = row_of(text) if text else replace(row, is_parked=False)
    return Merged(outcome.decode(), held, moves == 1)


def _check_echo(owner: AgentKey, echo: bytes) -> None:
    if echo != owner.encode():
        raise RelayError(ErrorCode.INTERNAL, "store: a reply speaks of another agent")


def _places(cursor: str, count: int) -> list[_Place]:
    words = cursor.split()
    if len(words) != 2 * count:
        return [_START] * count
    return list(zip(words[::2], words[1::2], strict=True))


def _changes(places: Sequence[_Place], replies: Sequence[Any], most: int, *, anew: bool) -> Changes:
    items: list[Any] = []
    more, cursor = False, []
    for (_, change), (token, has_more, *found) in zip(places, replies, strict=True):
        taken = found[: most - len(items)]
        items += taken
        more = more or has_more == 1 or len(taken) < len(found)
        cursor += [token.decode(), taken[-1][1].decode() if taken else change]
    return Changes(tuple(_item(found) for found in items), " ".join(cursor), more, anew)


def _item(found: Sequence[Any]) -> tuple[AgentKey, RecordVersion]:
    owner = AgentKey(found[0].decode())
    if len(found) == 2:  # noqa: PLR2004  the owner and the change, and no version
        return owner, GONE
    return owner, RecordVersion(int(found[2]), int(found[3]), bytes.fromhex(found[4].decode()))
