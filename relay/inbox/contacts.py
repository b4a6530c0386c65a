"""Contacts: whom an agent has written to is no stranger to its inbox (GUARANTEES.md R7).

Rules of the file: a contact is durable before its sender has the receipt; where it cannot be noted
the outcome is told as unknown, and the resend notes it. What was noted lately is not noted anew, so
a conversation costs one step of the store every ten minutes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from relay import clock
from relay.inbox.model.store_contract import CONTACT_FRESH_S
from relay.inbox.model.types import Accepted
from relay.inbox.ports import InboxStore
from relay.protocol.envelope import StoredEnvelope
from relay.protocol.errors import ErrorCode, Refusal, RelayError
from relay.protocol.ids import AgentKey

ABSENT_S: Final = 60
"""A sender without an inbox here may make one; then its contacts count from so soon on."""
MAX_PAIRS: Final = 100_000

Pair = tuple[AgentKey, AgentKey]


class Contacts:
    """What this node has noted lately.

    Args:
        store: inboxes.
        max_pairs: so many are kept in mind; then the longest noted are forgotten.
    """

    def __init__(self, store: InboxStore, max_pairs: int = MAX_PAIRS) -> None:
        self._store = store
        self._max_pairs = max_pairs
        self._until: dict[Pair, float] = {}

    async def note(
        self, items: Sequence[StoredEnvelope], results: Sequence[Accepted | Refusal]
    ) -> Sequence[Accepted | Refusal]:
        """Note the contacts of one commit; gives the results that may be told."""
        now = clock.monotonic()
        new: dict[Pair, None] = {}
        for item, result in zip(items, results, strict=True):
            pair = (item.sender, item.inbox)
            if isinstance(result, Accepted) and self._until.get(pair, 0.0) <= now:
                new[pair] = None
        if not new:
            return results
        pairs = list(new)
        try:
            kept = await self._store.meet(pairs)
        except RelayError as exc:
            return _unknown(items, results, new, exc)
        for pair, is_kept in zip(pairs, kept, strict=True):
            self._until.pop(pair, None)
            self._until[pair] = now + (CONTACT_FRESH_S if is_kept else ABSENT_S)
        while len(self._until) > self._max_pairs:
            del self._until[next(iter(self._until))]
        return results

    def forget(self, inbox: AgentKey, others: Iterable[AgentKey]) -> None:
        """An agent has changed its rules about these: the next envelope to one is news."""
        for other in others:
            self._until.pop((inbox, other), None)

    def __len__(self) -> int:
        """How many pairs are kept in mind."""
        return len(self._until)


def _unknown(
    items: Sequence[StoredEnvelope],
    results: Sequence[Accepted | Refusal],
    new: dict[Pair, None],
    exc: RelayError,
) -> list[Accepted | Refusal]:
    detail = f"stored, but the recipient could not be noted as a contact: {exc.detail}"
    no = Refusal(ErrorCode.STORAGE_UNAVAILABLE, detail, exc.retry_after)
    pairs = ((item.sender, item.inbox) for item in items)
    return [
        no if pair in new and isinstance(result, Accepted) else result
        for pair, result in zip(pairs, results, strict=True)
    ]
