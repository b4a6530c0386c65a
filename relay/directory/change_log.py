"""Following the directory: this node's index of versions, kept up to date from the change log.

Rules of the file: the store decides what is held; the index only repeats it, so it may be late,
and begins anew where the store does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from relay import metrics
from relay.directory.model.anti_entropy import (
    Index,
)
from relay.peering.ports import (
    GONE,
    RecordStore,
)
from relay.protocol.endpoint_record import RecordVersion
from relay.protocol.ids import AgentKey

PAGE: Final = 1_000


@dataclass(slots=True)
class Following:
    """The index, and how far the change log was read."""

    store: RecordStore
    index: Index = field(default_factory=Index)
    is_current: bool = False
    """Whether the log was read to its end, once."""
    _cursor: str = ""

    async def __call__(self) -> None:
        """Read on to the end of the change log."""
        more = True
        while more:
            changes = await self.store.record_changes(self._cursor, PAGE)
            if changes.anew:
                self.index.clear()
                self.is_current = False
            for owner, version in changes.items:
                self._put(owner, version)
            self._cursor, more = changes.cursor, changes.more
        self.is_current = True
        metrics.RECORDS.set(len(self.index))

    def _put(self, owner: AgentKey, version: RecordVersion) -> None:
        if version == GONE:
            self.index.remove(owner)
        else:
            self.index.set(owner, version)
