"""Bounces: report to senders how their envelopes ended without an ack (GUARANTEES.md R6).

A pending bounce is durable before any node sends it. Its envelope is derived from a frozen batch
alone. So a repeat, on any node, has the same bytes and is a duplicate.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from relay import log, metrics
from relay.inbox.dispatch import Dispatcher
from relay.inbox.model.admission import admit_own
from relay.inbox.model.types import Accepted
from relay.inbox.ports import BounceBatch, BounceStore, InboxStore, Router, StoreClock
from relay.inbox.submit import ELSEWHERE
from relay.protocol import envelope as envelopes
from relay.protocol.did import SigningKey, did_of
from relay.protocol.envelope import Draft, StoredEnvelope
from relay.protocol.errors import ErrorCode, Refusal, RelayError
from relay.protocol.ids import Timestamp, new_message_id
from relay.protocol.jws import loads
from relay.protocol.receipts import BOUNCE_CONTENT_TYPE, BounceItem, sign_bounce
from relay.tasks import side_by_side

FINAL: Final = frozenset({
    ErrorCode.UNKNOWN_INBOX, ErrorCode.BLOCKED, ErrorCode.EXPIRED, ErrorCode.STALE_ID,
    ErrorCode.REPLAYED, ErrorCode.NOT_FEDERATED,
})  # fmt: skip
"""Refusals that no retry can change; after all others the batch is retried."""


@dataclass(frozen=True, slots=True)
class BouncePump:
    """Sends pending bounces that are due to the inboxes of their senders."""

    key: SigningKey
    inboxes: InboxStore
    bounces: BounceStore
    clock: StoreClock
    dispatcher: Dispatcher
    router: Router | None = None

    async def __call__(self) -> int:
        """Send what is due; return how many batches ended.

        They run side by side: a sender that nobody can find just now delays no other bounce.
        """
        batches = await self.bounces.claim()
        return sum(await side_by_side(self._finalize(batch) for batch in batches))

    async def _finalize(self, batch: BounceBatch) -> bool:
        """Send one; return False where it is retried later."""
        result = await self._send(bounce_envelope(self.key, batch))
        if isinstance(result, Refusal) and result.code not in FINAL:
            return False
        outcome = result.code if isinstance(result, Refusal) else "delivered"
        if isinstance(result, Refusal):
            log.event("bounce_undeliverable", code=result.code, count=len(batch.intents))
        metrics.BOUNCES.labels(outcome).inc()
        await self.bounces.finalize(batch)
        return True

    async def _send(self, envelope: StoredEnvelope) -> Accepted | Refusal:
        """Store it in the sender's inbox here, or for forwarding to the one elsewhere."""
        [result] = await self.dispatcher.store_and_dispatch(self.inboxes, [envelope])
        if self.router is None or not isinstance(result, Refusal) or result.code not in ELSEWHERE:
            return result
        if envelope.expires_at <= await self.clock.time():
            return Refusal(ErrorCode.EXPIRED, "the home of its sender was not found in time")
        try:
            peer = await self.router.find(did_of(envelope.inbox))
        except RelayError as exc:
            return Refusal.of(exc)
        [result] = await self.dispatcher.store_and_dispatch(
            self.inboxes, [envelope._replace(peer=peer)]
        )
        return result


def bounce_envelope(key: SigningKey, batch: BounceBatch) -> StoredEnvelope:
    """Make the envelope of a batch: id and times come from the batch, so it is always the same."""
    items = [
        BounceItem(intent.eid, did_of(intent.to), intent.reason, intent.maybe_delivered)
        for intent in batch.intents
    ]
    seed = hashlib.sha256(batch.token).digest()
    draft = Draft(
        to=did_of(batch.sender),
        id=new_message_id(Timestamp(batch.decided_at), lambda count: seed[:count]),
        body=sign_bounce(key, items).encode(),
        content_type=BOUNCE_CONTENT_TYPE,
        created_at=batch.decided_at,
    )
    envelope = envelopes.parse(loads(envelopes.sign(draft, key).wire))
    return envelopes.stored(admit_own(envelope), bounces=False)
