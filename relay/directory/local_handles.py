"""Manage the names under this relay: ``name@relay`` of agents that live here (PROTOCOL.md §7.5).

An agent claims a name by listing it in its endpoint record; the first claim wins. The agent's
record shows, whenever somebody asks, if the agent has left. Then the name leads to it for 30 more
days. No other agent gets the name for a year, so that no stranger receives its mail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from relay import clock
from relay.directory.ports import HandleRow, HandleStore, RecordStore
from relay.protocol import endpoint_record, handles
from relay.protocol.did import parse_did
from relay.protocol.endpoint_record import EndpointRecord
from relay.protocol.errors import RelayError
from relay.protocol.handles import RESERVED, Handle, LookupResult
from relay.protocol.ids import Did, Timestamp

SERVED_S: Final = 30 * 24 * 3600
"""How long a name leads to an agent that has left."""
RESERVED_S: Final = 365 * 24 * 3600
"""How long no other agent gets a name that was left."""


def claimed(current: HandleRow | None, name: str, did: Did, now: int) -> HandleRow:
    """Return the row after a claim; ``current`` itself if nothing changes. Every store applies it.

    >>> row = claimed(None, "ann", "did:a", 0)
    >>> claimed(row, "ann", "did:b", 1) is row
    True
    """
    if current is None:
        return HandleRow(name, did, now)
    if current.did == did:
        return current if current.left_at is None else HandleRow(name, did, current.since)
    if current.left_at is not None and current.left_at + RESERVED_S <= now:
        return HandleRow(name, did, now)
    return current


@dataclass(frozen=True, slots=True)
class LocalHandles:
    """The names under this relay.

    Args:
        origin: of this relay; the part behind the ``@`` follows from it.
        store: who has which name.
        records: where its agent lives.
        now: Unix seconds.
        admits: returns True if an agent may have an inbox here, and so a name.
    """

    origin: str
    store: HandleStore
    records: RecordStore
    now: Callable[[], Timestamp] = clock.now
    admits: Callable[[Did], bool] = bool

    @property
    def authority(self) -> str:
        """``host[:port]`` behind the ``@``."""
        return self.origin.partition("://")[2].lower()

    def is_ours(self, handle: Handle) -> bool:
        """Return True if the name is under this relay."""
        return handle.name is not None and handle.authority == self.authority

    async def resolve(self, handle: Handle) -> LookupResult:
        """Return the agent of a name under this relay, absent, or unreadable."""
        try:
            row = await self.store.get(handle.name or "")
            if row is None:
                return LookupResult("absent", why="nobody has this name")
            row, is_listed = await self._updated(row, handle)
        except RelayError as exc:
            return LookupResult("unreadable", why=f"the store does not answer: {exc.code}")
        if row.left_at is None and not is_listed:
            return LookupResult("absent", why="its agent does not use this name any more")
        if row.left_at is not None and self.now() >= row.left_at + SERVED_S:
            return LookupResult("absent", why="its agent has left")
        return LookupResult("found", row.did)

    async def claim(self, record: EndpointRecord) -> None:
        """Give an agent that lives here the names under this relay that its record lists.

        A name of another agent stays with that one. The record then lists a name that leads
        elsewhere, which whoever checks shows as unverified.

        Raises:
            UnavailableError: the store does not answer; a repeat does no harm.
        """
        if not self.admits(record.did):
            return
        for text in record.handles:
            try:
                handle = handles.parse(text)
            except ValueError:
                continue
            if self.is_ours(handle) and handle.name not in RESERVED:
                await self._claim(handle, record)

    async def _claim(self, handle: Handle, record: EndpointRecord) -> None:
        name = handle.name or ""
        current = await self.store.get(name)
        if current is not None and current.did != record.did:
            await self._updated(current, handle)
        if current is None or current.did != record.did or current.left_at is not None:
            await self.store.claim(name, record.did, int(self.now()))

    async def _updated(self, row: HandleRow, handle: Handle) -> tuple[HandleRow, bool]:
        """Return the row as of the agent's record, and True if that record lists the name."""
        stored = await self.records.get(parse_did(row.did).agent_key)
        record = endpoint_record.parse(stored.compact) if stored else None
        is_listed = record is not None and handles.is_listed(handle, record.handles)
        lives_here = stored is not None and stored.names_us
        left_at = row.left_at
        if lives_here and is_listed:
            left_at = None
        elif left_at is None and not lives_here:
            left_at = record.issued_at if record else int(self.now())
        if left_at != row.left_at:
            row = replace(row, left_at=left_at)
            await self.store.put(row)
        return row, is_listed
