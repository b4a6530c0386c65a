"""The newest records of other agents: where to deliver when no relay of this agent answers.

Invariants: a record is taken only with its agent's own signature, and never in place of a newer
one. Other claims of a relay about an agent do not count.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Final

from relay import clock
from relay.client._util import BoundedDict
from relay.client.directory.resolve import verify
from relay.client.state.peers import PeerStore
from relay.protocol import endpoint_record
from relay.protocol.endpoint_record import EndpointRecord
from relay.protocol.errors import RelayError
from relay.protocol.ids import Did

CACHE_SIZE: Final = 4_096
REFRESH_S: Final = 3600.0
MAX_REFRESHES: Final = 1_024


class RecordCache:
    """Records of other agents, in memory and, with a state file, there.

    Args:
        store: saves them over a restart.
    """

    def __init__(self, store: PeerStore | None = None) -> None:
        self._store = store
        self._loaded: set[Did] = set()
        self._records: BoundedDict[Did, EndpointRecord] = BoundedDict(
            CACHE_SIZE, lambda did, _: self._loaded.discard(did)
        )
        self._refreshed_at: BoundedDict[Did, float] = BoundedDict(CACHE_SIZE)
        self._refreshes: deque[Did] = deque(maxlen=MAX_REFRESHES)

    def add(self, did: Did, compact: str | None) -> EndpointRecord | None:
        """Take a record that a relay shows for ``did``.

        Returns:
            The newest record that this process knows; :meth:`get` knows saved ones, too.
        """
        known = self._records.get(did)
        record = verify(compact, did) if compact is not None else None
        if record is None or (known is not None and known.version >= record.version):
            return known
        self._put(did, record)
        if self._store is not None:
            self._store.save_record(did, record.jws.compact)
        return record

    def _put(self, did: Did, record: EndpointRecord) -> None:
        self._records[did] = endpoint_record.merge(self._records.get(did), record)

    async def get(self, did: Did) -> EndpointRecord | None:
        """Return the newest record that is known, also from an earlier process.

        Raises:
            AgentError: the journal cannot be read.
        """
        if self._store is not None and did not in self._loaded:
            # a relay may have shown an older record than the saved one
            compact = await self._store.record(did)
            if compact is not None:
                # a damaged file counts as an empty one
                with contextlib.suppress(RelayError):
                    self._put(did, endpoint_record.parse(compact))
                self._loaded.add(did)
        return self._records.get(did)

    # ------------------------------------------------------------ refreshed in quiet moments

    def schedule_refresh(self, did: Did) -> bool:
        """Schedule a look-up of a recipient, at most once an hour; return whether it is due."""
        now = clock.monotonic()
        if now - self._refreshed_at.get(did, -REFRESH_S) < REFRESH_S:
            return False
        self._refreshed_at[did] = now
        self._refreshes.append(did)
        return True

    def next_refresh(self) -> Did | None:
        """Return the next agent to look up, if any."""
        return self._refreshes.popleft() if self._refreshes else None
