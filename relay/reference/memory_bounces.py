"""Bounce intents of the store in memory, in frozen batches (GUARANTEES.md R6).

Rules of the file: those of ``reference/memory_store.py``, of which it is a part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from relay.inbox.model.types import (
    PendingBounce,
)
from relay.inbox.ports import BounceBatch
from relay.protocol.ids import (
    AgentKey,
    Timestamp,
)
from relay.protocol.receipts import MAX_BOUNCED


@dataclass(slots=True)
class _Bounces:
    """Intents of one sender: those that wait, and the batch that is being delivered."""

    waiting: list[PendingBounce] = field(default_factory=list)
    frozen: BounceBatch | None = None


class MemoryBounces:
    """What senders are to be told.

    Args:
        now: the store's clock.
    """

    def __init__(self, now: Callable[[], Timestamp]) -> None:
        self._now = now
        self._senders: dict[AgentKey, _Bounces] = {}

    def intend(self, intents: Iterable[PendingBounce]) -> None:
        """Write down that senders are to be told."""
        for intent in intents:
            self._senders.setdefault(intent.sender, _Bounces()).waiting.append(intent)

    def take(self) -> list[BounceBatch]:
        """Batches that are due; one taken before and not finished comes again as it was."""
        batches = (self._batch(sender, bounces) for sender, bounces in self._senders.items())
        return [batch for batch in batches if batch is not None]

    def _batch(self, sender: AgentKey, bounces: _Bounces) -> BounceBatch | None:
        if bounces.frozen is None:
            now = self._now()
            bounces.waiting.sort(key=lambda intent: intent.due_at)
            due = [intent for intent in bounces.waiting if intent.due_at <= now][:MAX_BOUNCED]
            if due:
                bounces.waiting = bounces.waiting[len(due) :]
                text = "|".join([sender, str(int(now)), *(intent.eid for intent in due)])
                token = hashlib.sha256(text.encode()).digest()[:20]
                bounces.frozen = BounceBatch(sender, token, int(now), tuple(due))
        return bounces.frozen

    def finish(self, batch: BounceBatch) -> None:
        """Forget a batch that was delivered."""
        bounces = self._senders.get(batch.sender)
        if bounces is None or bounces.frozen is None or bounces.frozen.token != batch.token:
            return
        bounces.frozen = None
        if not bounces.waiting:
            del self._senders[batch.sender]
