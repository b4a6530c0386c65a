"""The directory, other relays and names, in this process's memory: halves of ``MemoryStore``.

Rules of the file: those of ``relay/reference/memory_store.py``; what the scripts do is compared
with this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

from relay.directory.local_handles import claimed
from relay.directory.ports import (
    GONE,
    Changes,
    DirectoryLimits,
    HandleRow,
    Merged,
    RecordRow,
)
from relay.peering.ports import (
    PeerRow,
)
from relay.protocol import endpoint_record as records
from relay.protocol.endpoint_record import RecordVersion
from relay.protocol.ids import (
    AgentKey,
    Did,
    Timestamp,
)

_MOST_PURGED: Final = 500


class MemoryDirectory:
    """Endpoint records.

    Args:
        now: the clock that marks and ends of records go by.
        limits: how many records of others are kept.
    """

    _clock_ok = True

    def __init__(self, now: Callable[[], Timestamp], limits: DirectoryLimits) -> None:
        self._clock = now
        self._directory = limits
        self._records: dict[AgentKey, RecordRow] = {}
        self._evidence: dict[AgentKey, tuple[str, str]] = {}
        self._former: dict[AgentKey, str] = {}
        """The record before, of those that then changed whether this relay is named."""
        self._introduced: Counter[AgentKey] = Counter()
        self._changed: dict[AgentKey, int] = {}
        """Owner -> its newest change, oldest change first; gone ones, too."""
        self._over: set[AgentKey] = set()
        """Whose record is over, and kept only for the inbox: nobody is told of it."""
        self._changes = 0
        self._purged_to = 0

    # what the inboxes add

    def has_inbox(self, owner: AgentKey) -> bool:
        """Whether an inbox of this agent is here."""
        raise NotImplementedError

    def set_home(self, owner: AgentKey, *, home: bool) -> bool:
        """A newer record; whether that is news for an inbox here that changes relays, or may."""
        raise NotImplementedError

    def is_forked(self, owner: AgentKey) -> bool:
        """Two records of one seq came; whether that concerns an inbox here."""
        raise NotImplementedError

    # ------------------------------------------------------------ merge and read

    async def merge_record(self, owner: AgentKey, row: RecordRow) -> RecordRow:
        """Keep the newer of the held and the given record; gives the one kept."""
        return self._merge(owner, row).held or row

    async def merge_records(self, rows: Sequence[tuple[AgentKey, RecordRow]]) -> list[Merged]:
        """Keep the newer of each held and given record."""
        return [self._merge(owner, row) for owner, row in rows]

    def _merge(self, owner: AgentKey, row: RecordRow) -> Merged:
        held = self._records.get(owner)
        verdict = records.compare_versions(
            held.version if held else None, row.version, self._clock()
        )
        if held is None:
            return self._take_in(owner, row)
        moves = False
        if verdict == "equivocal" and owner not in self._evidence:
            self._evidence[owner] = (held.compact, row.compact)
            moves = self.is_forked(owner)
        if verdict == "newer" or (verdict == "equivocal" and row.version > held.version):
            moves = self._put(owner, row, held) or moves
        elif verdict == "same" and row.introducer is None:
            self._records[owner] = replace(held, introducer=self._introducer(row, held))
        return Merged(verdict, self._records[owner], moves)

    def _take_in(self, owner: AgentKey, row: RecordRow) -> Merged:
        if row.introducer and not self.has_inbox(owner) and self._is_full(row.introducer):
            return Merged("full", None)
        moves = self._put(owner, row, None)
        return Merged("newer", self._records[owner], moves)

    def _is_full(self, introducer: AgentKey) -> bool:
        """Of agents that nobody here knows, no more than fit; what is known stays."""
        most = self._directory.records
        share = max(1, most // self._directory.share)
        return len(self._records) - len(self._over) >= most or self._introduced[introducer] >= share

    def _put(self, owner: AgentKey, row: RecordRow, held: RecordRow | None) -> bool:
        home = row.names_us
        if row.is_parked:
            home = held.names_us if held else home or self.has_inbox(owner)
        if held is not None and held.names_us is not home:
            self._former[owner] = held.compact
        introducer = self._introducer(row, held)
        self._records[owner] = replace(row, names_us=home, introducer=introducer, is_parked=False)
        self._over.discard(owner)
        self._note_change(owner)
        return self.set_home(owner, home=home)

    def _introducer(self, row: RecordRow, held: RecordRow | None) -> AgentKey | None:
        """Who was first to tell of an agent stays so, until the agent comes itself."""
        if held is not None and row.introducer is not None:
            return held.introducer
        if held is not None and held.introducer is not None:
            self._introduced[held.introducer] -= 1
        if held is None and row.introducer is not None:
            self._introduced[row.introducer] += 1
        return row.introducer

    def _note_change(self, owner: AgentKey) -> None:
        self._changes += 1
        self._changed.pop(owner, None)
        self._changed[owner] = self._changes

    async def record(self, owner: AgentKey) -> RecordRow | None:
        """The newest record held of an agent."""
        return self._records.get(owner)

    async def records(self, owners: Sequence[AgentKey]) -> list[RecordRow | None]:
        """The newest records held."""
        return [self._records.get(owner) for owner in owners]

    async def evidence(self, owner: AgentKey) -> tuple[str, str] | None:
        """Two records of one kv and seq that the agent has signed: the first such two."""
        return self._evidence.get(owner)

    # ------------------------------------------------------------ what changed

    async def record_changes(self, after: str, most: int) -> Changes:
        """What changed after ``after`` ("" = all)."""
        place = int(after or 0)
        newer = ((owner, change) for owner, change in self._changed.items() if change > place)
        found = list(islice(newer, most + 1))
        items = tuple((owner, self._version(owner)) for owner, _ in found[:most])
        place = found[:most][-1][1] if items else place
        return Changes(items, str(place), more=len(found) > most)

    def _version(self, owner: AgentKey) -> RecordVersion:
        row = self._records.get(owner)
        return row.version if row and owner not in self._over else GONE

    async def purge_records(self) -> int:
        """Forget some records that are stale for more than 90 days; gives how many."""
        if not self._clock_ok:
            return 0
        later = ((one, change) for one, change in self._changed.items() if change > self._purged_to)
        found = list(islice(later, _MOST_PURGED))
        self._purged_to = found[-1][1] if len(found) == _MOST_PURGED else 0
        over = [owner for owner, _ in found if self._is_over(owner)]
        for owner in over:
            self._note_change(owner)
            if self.has_inbox(owner):
                self._over.add(owner)
                continue
            introducer = self._records.pop(owner).introducer
            if introducer is not None:
                self._introduced[introducer] -= 1
            self._evidence.pop(owner, None)
            self._former.pop(owner, None)
        return sum(owner not in self._over for owner in over)

    def _is_over(self, owner: AgentKey) -> bool:
        row = self._records.get(owner)
        if row is None or row.expires_at == 0 or owner in self._over:
            return False
        return records.is_purgeable(row.expires_at, self._clock())


class MemoryPeers:
    """Other relays, and names under this one."""

    def __init__(self) -> None:
        self._peers: dict[Did, PeerRow] = {}
        self._handles: dict[str, HandleRow] = {}

    async def peers(self) -> list[PeerRow]:
        """All that are known."""
        return list(self._peers.values())

    async def put_peer(self, row: PeerRow) -> None:
        """Write one down, in the place of what was known of this DID."""
        self._peers[row.did] = row

    async def replace_peer(self, held: PeerRow | None, row: PeerRow) -> bool:
        """Write one down where the store says what ``held`` does; False: it says otherwise."""
        if self._peers.get(row.did) != held:
            return False
        self._peers[row.did] = row
        return True

    async def remove_peer(self, did: Did) -> bool:
        """Forget one; False if it was not known."""
        return self._peers.pop(did, None) is not None

    async def claim_handle(self, name: str, did: Did, now: int) -> HandleRow:
        """Give a free name to an agent; gives who holds it now."""
        self._handles[name] = claimed(self._handles.get(name), name, did, now)
        return self._handles[name]

    async def put_handle(self, row: HandleRow) -> None:
        """Write down that a name was left, or taken up again."""
        self._handles[row.name] = row

    async def handle(self, name: str) -> HandleRow | None:
        """Who holds a name."""
        return self._handles.get(name)

    async def handles(self) -> list[HandleRow]:
        """All names."""
        return list(self._handles.values())
