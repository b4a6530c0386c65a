"""The newest records of other agents that this one has found: where to go when no relay answers.

Rules of the file: a record is taken only with its agent's own signature, and never one that is
older than what is held. What a relay says beside it is not believed.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict, deque
from typing import Final

from relay import clock
from relay.client.directory.resolve import verify
from relay.client.state.peers import PeerStore
from relay.protocol import endpoint_record
from relay.protocol.endpoint_record import EndpointRecord
from relay.protocol.errors import RelayError
from relay.protocol.ids import Did

REMEMBERED: Final = 4_096
ASKED_AGAIN_S: Final = 3600.0
MOST_WANTED: Final = 1_024


class Correspondents:
    """Records of other agents, in memory and, where there is a file, there.

    Args:
        knowledge: keeps them over a restart.
    """

    def __init__(self, knowledge: PeerStore | None = None) -> None:
        self._knowledge = knowledge
        self._found: OrderedDict[Did, EndpointRecord] = OrderedDict()
        self._recalled: set[Did] = set()
        self._wanted_at: OrderedDict[Did, float] = OrderedDict()
        self._wanted: deque[Did] = deque(maxlen=MOST_WANTED)

    def learn(self, did: Did, compact: str | None) -> EndpointRecord | None:
        """Take what a relay showed as the record of ``did``.

        Gives the newest one that is known in this life; :meth:`get` knows those before, too.
        """
        held = self._found.get(did)
        record = verify(compact, did) if compact is not None else None
        if record is None or (held is not None and held.version >= record.version):
            return held
        self._hold(did, record)
        if self._knowledge is not None:
            self._knowledge.save_record(did, record.jws.compact)
        return record

    def _hold(self, did: Did, record: EndpointRecord) -> None:
        self._found[did] = endpoint_record.merge(self._found.get(did), record)
        while len(self._found) > REMEMBERED:
            forgotten, _ = self._found.popitem(last=False)
            self._recalled.discard(forgotten)

    async def get(self, did: Did) -> EndpointRecord | None:
        """The newest one known, also of an earlier life.

        Raises:
            AgentError: the journal cannot be read.
        """
        if self._knowledge is not None and did not in self._recalled:
            # what a relay has shown in this life may be older than what an earlier one has seen
            compact = await self._knowledge.record(did)
            if compact is not None:
                # of a file that is damaged nothing is taken
                with contextlib.suppress(RelayError):
                    self._hold(did, endpoint_record.parse(compact))
                self._recalled.add(did)
        return self._found.get(did)

    # ------------------------------------------------------------ looked for in quiet moments

    def want(self, did: Did) -> bool:
        """This agent writes to ``did``: its record is looked for once an hour; True: now."""
        now = clock.monotonic()
        if now - self._wanted_at.get(did, -ASKED_AGAIN_S) < ASKED_AGAIN_S:
            return False
        self._wanted_at[did] = now
        while len(self._wanted_at) > REMEMBERED:
            self._wanted_at.popitem(last=False)
        self._wanted.append(did)
        return True

    def next_wanted(self) -> Did | None:
        """One to look for, if any."""
        return self._wanted.popleft() if self._wanted else None
