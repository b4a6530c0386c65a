"""Accept a batch of envelopes: store, dispatch, wake the forwarders, record the contacts.

:class:`BatchAcceptor` is what the group commit of submits runs. The results that it returns may be
signed in receipts: each :class:`~relay.inbox.model.types.Accepted` is durable by then
(GUARANTEES.md R1, R7). An envelope may reach its recipient before its sender has the receipt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from relay import metrics
from relay.inbox.contacts import Contacts
from relay.inbox.dispatch import Dispatcher
from relay.inbox.model.types import Accepted
from relay.inbox.ports import InboxStore
from relay.inbox.submit import SubmitItem
from relay.protocol.errors import Refusal


@dataclass(frozen=True, slots=True)
class BatchAcceptor:
    """Accepts the batches of one node.

    Args:
        store: inboxes.
        dispatcher: the sessions of this node.
        contacts: records whom a sender has written to.
        wake_forwarders: called where an inbox has mail to forward and no open session.
    """

    store: InboxStore
    dispatcher: Dispatcher
    contacts: Contacts
    wake_forwarders: Callable[[], None]

    async def accept(self, items: Sequence[SubmitItem]) -> Sequence[Accepted | Refusal]:
        """Accept one batch; return a result for each item."""
        stored = [item.stored for item in items]
        metrics.COMMITS.inc()
        metrics.COMMIT_SIZE.observe(len(stored))
        with metrics.COMMIT_SECONDS.time():
            results = await self.dispatcher.store_and_dispatch(self.store, stored)
            if any(isinstance(one, Accepted) and one.away and not one.session for one in results):
                self.wake_forwarders()
            return await self.contacts.record(stored, results)
