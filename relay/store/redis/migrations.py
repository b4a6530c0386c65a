"""Hand-offs over Lua scripts: what both sides write down (reference/handoff.py, GUARANTEES.md §3).

Rules of the file: those of ``store/redis/inboxes.py``; the scripts compare and write, nothing is
decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from relay.directory.ports import (
    RecordRow,
)
from relay.inbox.model.store_contract import max_imported_ids
from relay.inbox.model.types import (
    InboxLimits,
    InboxRole,
    MaybeSeenIds,
)
from relay.migration.ports import (
    MigrationChange,
    MigrationRow,
)
from relay.protocol.errors import (
    ErrorCode,
    RelayError,
)
from relay.protocol.ids import (
    AgentKey,
    Partition,
    Seq,
)
from relay.protocol.migration_statement import MigrationCounters
from relay.protocol.types import (
    DedupKey,
    FirstContact,
    MovedRules,
    WaitingEnvelope,
)
from relay.store.redis import entries
from relay.store.redis.guard import Guard
from relay.store.redis.partitions import Partitions
from relay.store.redis.records import row_of

_MOST_READ: Final = 256
"""Entries of one reading: their content is read with them."""


class RedisMigrations:
    """State of migrations, over scripts; see :class:`relay.migration.ports.MigrationStore`.

    Args:
        partitions: where the scripts run.
        guard: how many ids fit.
        limits: quotas of each inbox.
    """

    def __init__(self, partitions: Partitions, guard: Guard, limits: InboxLimits) -> None:
        self._partitions = partitions
        self._guard = guard
        self._limits = limits

    async def _call(self, name: str, inbox: AgentKey, *args: Any) -> Any:
        """A script about one inbox.

        Raises:
            RelayError: as :meth:`Partitions.call`; ``internal`` if it speaks of another inbox.
        """
        reply = await self._partitions.call(name, self._partitions.of(inbox), [inbox, *args])
        if reply[0] != inbox.encode():
            raise RelayError(ErrorCode.INTERNAL, f"the store's answer to {name} makes no sense")
        return reply

    # ------------------------------------------------------------ steps

    async def load(self, inbox: AgentKey) -> MigrationRow:
        """All that a step is judged by."""
        reply = await self._call("load_migration", inbox)
        _, text, holding, has_left, record, former, tally, last, count, evidence = reply
        return MigrationRow(
            text=text.decode(),
            role=InboxRole(holding.decode()) if holding else None,
            has_left=has_left == 1,
            record=row_of(record) if record else None,
            former=former.decode() if former else None,
            evidence=(evidence[0].decode(), evidence[1].decode()) if evidence else None,
            counters=_tally(tally, last, count),
        )

    async def change(
        self, inbox: AgentKey, expected: MigrationRow, change: MigrationChange
    ) -> bool:
        """Take a step, if nobody else took one meanwhile and no newer record came.

        Raises:
            UnavailableError: also where the store cannot be relied on: steps are signed for.
        """
        self._must_keep()
        flags = (
            change.ends_session,
            change.marks_present,
            change.is_new,
            change.is_open,
            change.has_work,
        )
        reply = await self._call(
            "change_migration",
            inbox,
            expected.text,
            _version(expected.record),
            change.text,
            change.role,
            *map(int, flags),
            change.dedup_horizon,
            max_imported_ids(self._limits),
            self._guard.ids_per_partition,
            change.maybe_seen,
        )
        return bool(reply[1] == 1)

    def _must_keep(self) -> None:
        no = self._guard.no_promise()
        if no is not None:
            raise no.to_error()

    # ------------------------------------------------------------ questions

    async def list_open(self) -> list[tuple[AgentKey, str]]:
        """All that are open, with their texts."""
        found = await self._partitions.gather(self._partitions.all(), self._open)
        return [(_key(inbox), text.decode()) for some in found for inbox, text in some]

    async def _open(self, part: Partition) -> list[Any]:
        replies: list[Any] = await self._partitions.call("list_migrations", part, [])
        return replies

    async def waiting(self, inbox: AgentKey, after: Seq, limit: int) -> list[WaitingEnvelope]:
        """What waits behind ``after``, in seq order."""
        found: list[WaitingEnvelope] = []
        while len(found) < limit:
            wanted = min(limit - len(found), _MOST_READ)
            _, *items = await self._call("list_waiting", inbox, after, wanted)
            found += map(_waiting, items)
            if len(items) < wanted:
                break
            after = found[-1].seq
        return found

    async def maybe_seen_ids(self, inbox: AgentKey, after: str, limit: int) -> MaybeSeenIds:
        """Ids that its agent may have seen: acked, refused, ended, or marked as handed over."""
        _, ids, on, floor = await self._call("list_maybe_seen", inbox, after, limit)
        return MaybeSeenIds(ids, on.decode(), floor)

    # ------------------------------------------------------------ rules

    async def known(self, inbox: AgentKey) -> MovedRules:
        """Whom the agent takes envelopes from."""
        _, *flat = await self._call("known", inbox)
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return _known({_key(name): value.decode() for name, value in pairs})

    async def add_known(self, inbox: AgentKey, known: MovedRules) -> None:
        """Add whom the agent took envelopes from elsewhere; what stands here stands.

        Raises:
            UnavailableError: as :meth:`change`.
        """
        self._must_keep()
        limits = (self._limits.rules, self._limits.contacts, known.first_contact)
        names = (*known.allow, *known.deny, *known.contacts)
        counts = (len(known.allow), len(known.deny))
        await self._call("add_known", inbox, *limits, *counts, *names)


def _key(raw: bytes) -> AgentKey:
    return AgentKey(raw.decode())


def _version(row: RecordRow | None) -> str:
    if row is None:
        return ""
    kv, seq, digest = row.version
    return f"{kv} {seq} {digest.hex()}"


def _tally(counted: Sequence[int], last: int, waiting: int) -> MigrationCounters:
    """Its numbers are in the order of scripts/lib/inbox.lua."""
    if not counted:
        return MigrationCounters(waiting=waiting)
    last_then, was, was_bytes, moved, acked, expired, refused, corrupt, kept, dups = counted
    return MigrationCounters(
        was=was,
        was_bytes=was_bytes,
        late=last - last_then,
        waiting=waiting,
        moved=moved,
        acked=acked,
        expired=expired,
        refused=refused,
        corrupt=corrupt,
        kept=kept,
        dups=dups,
    )


def _waiting(item: Sequence[Any]) -> WaitingEnvelope:
    seq, eid, hour, key, size, expires_at = item
    return WaitingEnvelope(Seq(seq), entries.eid_text(eid), DedupKey(key, hour), size, expires_at)


def _known(kept: dict[AgentKey, str]) -> MovedRules:
    """Fields as scripts/lib/rules.lua names them."""
    first_contact: FirstContact = "refuse" if kept.pop(AgentKey("*"), "") == "refuse" else "accept"
    kept.pop(AgentKey("#"), None)
    noted = sorted((int(how[1:]), one) for one, how in kept.items() if how.startswith("C"))
    return MovedRules(
        first_contact=first_contact,
        allow=tuple(sorted(one for one, how in kept.items() if how == "A")),
        deny=tuple(sorted(one for one, how in kept.items() if how == "D")),
        contacts=tuple(one for _, one in noted),
    )
