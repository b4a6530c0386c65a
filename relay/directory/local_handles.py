"""Names under this relay: ``name@relay`` of the agents that live here (PROTOCOL.md §7.5).

Rules of the file: an agent asks for a name by listing it in its endpoint record; the first to ask
gets it. Whether its agent has left is seen from the record, when somebody asks: the name leads to
it for 30 days more, and is not given to another for a year (the store keeps that rule).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from relay import clock
from relay.peering.ports import (
    HandleRow,
    PeerStore,
    RecordStore,
)
from relay.protocol import (
    endpoint_record,
    handles,
)
from relay.protocol.did import parse_did
from relay.protocol.endpoint_record import EndpointRecord
from relay.protocol.errors import RelayError
from relay.protocol.handles import (
    RESERVED,
    Handle,
    Heard,
)
from relay.protocol.ids import (
    Did,
    Timestamp,
)

SERVED_S: Final = 30 * 24 * 3600
"""How long a name leads to an agent that has left."""


class NameStore(RecordStore, PeerStore, Protocol):
    """Names and records, in one store."""


@dataclass(frozen=True, slots=True)
class OwnHandles:
    """Names under this relay.

    Args:
        origin: of this relay; what stands behind the ``@`` follows from it.
        store: who has which name, and where its agent lives.
        now: Unix seconds.
        admits: whether an agent may have an inbox here, and so a name.
    """

    origin: str
    store: NameStore
    now: Callable[[], Timestamp] = clock.now
    admits: Callable[[Did], bool] = bool

    @property
    def authority(self) -> str:
        """``host[:port]`` behind the ``@``."""
        return self.origin.partition("://")[2].lower()

    def is_ours(self, handle: Handle) -> bool:
        """Whether the name is under this relay."""
        return handle.name is not None and handle.authority == self.authority

    async def resolve(self, handle: Handle) -> Heard:
        """Where a name under this relay leads."""
        try:
            row = await self.store.handle(handle.name or "")
            if row is None:
                return Heard("absent", why="nobody has this name")
            row, is_listed = await self._seen(row, handle)
        except RelayError as exc:
            return Heard("unreadable", why=f"the store does not answer: {exc.code}")
        if row.left_at is None and not is_listed:
            return Heard("absent", why="its agent does not use this name any more")
        if row.left_at is not None and self.now() >= row.left_at + SERVED_S:
            return Heard("absent", why="its agent has left")
        return Heard("found", row.did)

    async def claim(self, record: EndpointRecord) -> None:
        """Give an agent that lives here the names under this relay that its record lists.

        One that another has stays with that one: the record then lists a name that leads elsewhere,
        which whoever checks shows as unverified.

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
        held = await self.store.handle(name)
        if held is not None and held.did != record.did:
            await self._seen(held, handle)
        if held is None or held.did != record.did or held.left_at is not None:
            await self.store.claim_handle(name, record.did, int(self.now()))

    async def _seen(self, row: HandleRow, handle: Handle) -> tuple[HandleRow, bool]:
        """The row as the agent's record has it now, and whether that record lists the name."""
        [held] = await self.store.records([parse_did(row.did).agent_key])
        record = endpoint_record.parse(held.compact) if held else None
        is_listed = record is not None and handles.is_listed(handle, record.handles)
        lives_here = held is not None and held.names_us
        left_at = row.left_at
        if lives_here and is_listed:
            left_at = None
        elif left_at is None and not lives_here:
            left_at = record.issued_at if record else int(self.now())
        if left_at != row.left_at:
            row = replace(row, left_at=left_at)
            await self.store.put_handle(row)
        return row, is_listed
