"""How often a program's handler has failed on an envelope: a poison one must not wedge an inbox.

Rules of the file: with a journal the count survives a crash; without one it is bounded, and the
envelope that failed longest ago is forgotten first.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from relay.client.state.journal import Journal
from relay.protocol.ids import Eid

MOST_FAILURES: Final = 5
POISON: Final = "poison"
"""The reason that the sender of a poison envelope reads in its bounce."""
FAILURE_PAUSE_S: Final = 0.1
LONGEST_FAILURE_PAUSE_S: Final = 60.0
_REMEMBERED: Final = 8_192


class Failures:
    """Counts failures by eid."""

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._counts: OrderedDict[Eid, int] = OrderedDict()

    async def add(self, eid: Eid) -> int:
        """Count one more; gives all so far.

        Raises:
            AgentError: the journal cannot be written.
        """
        if self._journal is not None:
            return await self._journal.count_attempt(eid)
        count = self._counts.pop(eid, 0) + 1
        self._counts[eid] = count
        while len(self._counts) > _REMEMBERED:
            self._counts.popitem(last=False)
        return count
