"""The directory of the store in memory; the merge script of Redis is compared with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

from relay.directory.ports import (
    GONE,
    Changes,
    DirectoryLimits,
    Merged,
    RecordRow,
)
from relay.protocol import endpoint_record as records
from relay.protocol.endpoint_record import RecordVersion
from relay.protocol.ids import (
    AgentKey,
)
from relay.reference.memory_state import MemoryState

_MAX_PURGED: Final = 500


class MemoryRecords:
    """Endpoint records; see :class:`relay.directory.ports.RecordStore`.

    Args:
        state: inboxes, which a record may move, and the clock that records end by.
        limits: how many records of others are kept.
    """

    def __init__(self, state: MemoryState, limits: DirectoryLimits) -> None:
        self._state = state
        self._limits = limits
        self.rows: dict[AgentKey, RecordRow] = {}
        self.former: dict[AgentKey, str] = {}
        """The record before, of those that then changed whether this relay is named."""
        self.fork_proofs: dict[AgentKey, tuple[str, str]] = {}
        self._introduced: Counter[AgentKey] = Counter()
        self._changed: dict[AgentKey, int] = {}
        """Owner -> its newest change, oldest change first; purged ones, too."""
        self._over: set[AgentKey] = set()
        """Owners whose record is over and stays only for the inbox: no reader learns of it."""
        self._changes = 0
        self._purged_to = 0

    # ------------------------------------------------------------ what a record means for an inbox

    def _has_inbox(self, owner: AgentKey) -> bool:
        return owner in self._state.inboxes

    def _set_home(self, owner: AgentKey, *, home: bool) -> bool:
        """Apply a newer record; return True if a migration step may be due."""
        inbox = self._state.inboxes.get(owner)
        if inbox is None:
            return False
        is_news = bool(inbox.move.text) or inbox.home is not home
        if inbox.move.text:
            # a step of the migration decides what becomes of it
            inbox.call_mover(self._state.now())
        else:
            inbox.set_home(home=home, now=self._state.now())
        return is_news

    def _note_fork(self, owner: AgentKey) -> bool:
        """Apply two records of one seq; return True if an inbox here is concerned."""
        inbox = self._state.inboxes.get(owner)
        if inbox is not None and inbox.move.text:
            inbox.call_mover(self._state.now())
        return inbox is not None

    # ------------------------------------------------------------ merge and read

    async def merge(self, rows: Sequence[tuple[AgentKey, RecordRow]]) -> list[Merged]:
        """Keep the newer of each held and given record."""
        return [self._merge(owner, row) for owner, row in rows]

    def _merge(self, owner: AgentKey, row: RecordRow) -> Merged:
        held = self.rows.get(owner)
        verdict = records.compare_versions(
            held.version if held else None, row.version, self._state.now()
        )
        if held is None:
            return self._take_in(owner, row)
        moves = False
        if verdict == "equivocal" and owner not in self.fork_proofs:
            self.fork_proofs[owner] = (held.compact, row.compact)
            moves = self._note_fork(owner)
        if verdict == "newer" or (verdict == "equivocal" and row.version > held.version):
            moves = self._put(owner, row, held) or moves
        elif verdict == "same" and row.introducer is None:
            self.rows[owner] = replace(held, introducer=self._introducer(row, held))
        return Merged(verdict, self.rows[owner], moves)

    def _take_in(self, owner: AgentKey, row: RecordRow) -> Merged:
        if row.introducer and not self._has_inbox(owner) and self._is_full(row.introducer):
            return Merged("full", None)
        moves = self._put(owner, row, None)
        return Merged("newer", self.rows[owner], moves)

    def _is_full(self, introducer: AgentKey) -> bool:
        """Of agents that nobody here knows, no more than fit; what is known stays."""
        limit = self._limits.records
        share = max(1, limit // self._limits.share)
        return len(self.rows) - len(self._over) >= limit or self._introduced[introducer] >= share

    def _put(self, owner: AgentKey, row: RecordRow, held: RecordRow | None) -> bool:
        home = row.names_us
        if row.is_parked:
            home = held.names_us if held else home or self._has_inbox(owner)
        if held is not None and held.names_us is not home:
            self.former[owner] = held.compact
        introducer = self._introducer(row, held)
        self.rows[owner] = replace(row, names_us=home, introducer=introducer, is_parked=False)
        self._over.discard(owner)
        self._note_change(owner)
        return self._set_home(owner, home=home)

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

    async def get(self, owner: AgentKey) -> RecordRow | None:
        """The newest record held of an agent."""
        return self.rows.get(owner)

    async def get_many(self, owners: Sequence[AgentKey]) -> list[RecordRow | None]:
        """The newest records held."""
        return [self.rows.get(owner) for owner in owners]

    async def fork_proof(self, owner: AgentKey) -> tuple[str, str] | None:
        """Two records of one kv and seq that the agent has signed: the first such two."""
        return self.fork_proofs.get(owner)

    # ------------------------------------------------------------ what changed

    async def changes(self, after: str, limit: int) -> Changes:
        """What changed after ``after`` ("" = all)."""
        place = int(after or 0)
        newer = ((owner, change) for owner, change in self._changed.items() if change > place)
        found = list(islice(newer, limit + 1))
        items = tuple((owner, self._version(owner)) for owner, _ in found[:limit])
        place = found[:limit][-1][1] if items else place
        return Changes(items, str(place), more=len(found) > limit)

    def _version(self, owner: AgentKey) -> RecordVersion:
        row = self.rows.get(owner)
        return row.version if row and owner not in self._over else GONE

    async def purge(self) -> int:
        """Forget some records that are stale for more than 90 days; gives how many."""
        if not self._state.clock_ok:
            return 0
        later = ((one, change) for one, change in self._changed.items() if change > self._purged_to)
        found = list(islice(later, _MAX_PURGED))
        self._purged_to = found[-1][1] if len(found) == _MAX_PURGED else 0
        over = [owner for owner, _ in found if self._is_over(owner)]
        for owner in over:
            self._note_change(owner)
            if self._has_inbox(owner):
                self._over.add(owner)
                continue
            introducer = self.rows.pop(owner).introducer
            if introducer is not None:
                self._introduced[introducer] -= 1
            self.fork_proofs.pop(owner, None)
            self.former.pop(owner, None)
        return sum(owner not in self._over for owner in over)

    def _is_over(self, owner: AgentKey) -> bool:
        row = self.rows.get(owner)
        if row is None or row.expires_at == 0 or owner in self._over:
            return False
        return records.is_purgeable(row.expires_at, self._state.now())
