"""Keep this node's index of record versions up to date from the store's change log.

The store decides which records exist; the index repeats their versions, may lag, and starts again
when the store's lineage does. All writes to the index pass through :class:`RecordChangeReader`:
the change log sets a version, also a lower one; :meth:`RecordChangeReader.on_merged` only raises
one, so that a pull does not ask again for a record that the log has not shown yet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from relay import metrics
from relay.directory.model.index import Index
from relay.directory.ports import GONE, RecordStore
from relay.protocol.endpoint_record import RecordVersion
from relay.protocol.ids import AgentKey

PAGE: Final = 1_000


@dataclass(slots=True)
class RecordChangeReader:
    """The index, and the position in the change log."""

    store: RecordStore
    index: Index = field(default_factory=Index)
    is_current: bool = False
    """True once the log was read to its end."""
    _cursor: str = ""

    async def read(self) -> None:
        """Read on to the end of the change log."""
        more = True
        while more:
            changes = await self.store.changes(self._cursor, PAGE)
            if changes.restarted:
                self.index.clear()
                self.is_current = False
            for owner, version in changes.items:
                if version == GONE:
                    self.index.remove(owner)
                else:
                    self.index.set(owner, version)
            self._cursor, more = changes.cursor, changes.more
        self.is_current = True
        metrics.RECORDS.set(len(self.index))

    def on_merged(self, owner: AgentKey, version: RecordVersion) -> None:
        """Raise the version of an agent's record, which the store has merged just now."""
        self.index.put(owner, version)
