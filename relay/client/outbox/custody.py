"""Who holds what this agent sent: whom to ask what became of it, and whose bounce to believe.

Rules of the file: a link of the chain is a receipt that was verified, or the word of a relay that
is in the chain already (GUARANTEES.md R6). What lies at a relay of our own is remembered by this
process only; what another relay has or is to have, the journal keeps, too: its end may come late.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from relay.client._util import log_failure
from relay.client.message import Sent
from relay.client.state.peers import CustodyRecord, PeerStore
from relay.protocol.ids import (
    Did,
    Eid,
    MessageId,
)

REMEMBERED: Final = 4_096
MOST_LINKS: Final = 4


def _is_ours(_: Did) -> bool:
    return True


class Custody:
    """The chains of receipts of one agent's envelopes.

    Args:
        knowledge: keeps those of other relays over a crash.
        is_ours: whether a relay is one that this agent logs in at.
    """

    def __init__(
        self, knowledge: PeerStore | None = None, is_ours: Callable[[Did], bool] = _is_ours
    ) -> None:
        self._knowledge = knowledge
        self._is_ours = is_ours
        self._by_eid: OrderedDict[Eid, CustodyRecord] = OrderedDict()
        self._eids: dict[MessageId, Eid] = {}

    def note(self, sent: Sent) -> None:
        """A relay has given its receipt."""
        before = self._by_eid.get(sent.eid)
        relays = before.chain if before is not None else ()
        holding = CustodyRecord(
            sent.eid, sent.id, sent.to, sent.expires_at, _with(relays, sent.relay)
        )
        self._keep(holding, lasting=sent.custody == "outbox" or not self._is_ours(sent.relay))

    def passed_on(self, holding: CustodyRecord, peer: Did) -> None:
        """A relay of the chain says that ``peer`` has taken it over."""
        if peer not in holding.chain:
            self._keep(replace(holding, chain=_with(holding.chain, peer)), lasting=True)

    def _keep(self, holding: CustodyRecord, *, lasting: bool) -> None:
        self._by_eid[holding.eid] = holding
        self._by_eid.move_to_end(holding.eid)
        self._eids[holding.id] = holding.eid
        while len(self._by_eid) > REMEMBERED:
            _, old = self._by_eid.popitem(last=False)
            self._eids.pop(old.id, None)
        if lasting and self._knowledge is not None:
            self._knowledge.save_custody(holding).add_done_callback(
                log_failure("it could not be saved")
            )

    def relay_of(self, eid: Eid) -> Did | None:
        """Which relay gave the first receipt, as far as this process remembers."""
        holding = self._by_eid.get(eid)
        return holding.chain[0] if holding else None

    def get(self, eid: Eid) -> CustodyRecord | None:
        """The chain of an envelope, as far as this process remembers."""
        return self._by_eid.get(eid)

    async def recall(self, eid: Eid) -> CustodyRecord | None:
        """The chain of an envelope, also of one that an earlier life has sent.

        Raises:
            AgentError: the journal cannot be read.
        """
        found = self._by_eid.get(eid)
        if found is None and self._knowledge is not None:
            found = await self._knowledge.custody(eid)
        return found

    async def recall_id(self, to: Did, message_id: MessageId) -> CustodyRecord | None:
        """As :meth:`recall`, by recipient and the sender's own id."""
        eid = self._eids.get(message_id)
        found = self._by_eid.get(eid) if eid else None
        if found is None and self._knowledge is not None:
            found = await self._knowledge.custody_by_id(message_id)
        return found if found is not None and found.to == to else None


def _with(relays: tuple[Did, ...], one: Did) -> tuple[Did, ...]:
    return relays if one in relays else (*relays, one)[:MOST_LINKS]
