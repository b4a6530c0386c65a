"""Contacts: an agent that one has written to is no stranger to one's inbox (GUARANTEES.md R7).

A contact is durable before its sender has the receipt. Where it cannot be stored, the outcome is
reported as unknown, and the resend stores it. A recently stored contact is not stored again: a
conversation costs one step of the store every ten minutes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from relay import clock
from relay.inbox.model.store_contract import CONTACT_FRESH_S
from relay.inbox.model.types import Accepted
from relay.inbox.ports import RuleStore
from relay.limits import BoundedTtl
from relay.protocol.envelope import StoredEnvelope
from relay.protocol.errors import ErrorCode, Refusal, RelayError
from relay.protocol.ids import AgentKey

NO_INBOX_S: Final = 60
"""A sender without an inbox here may make one; its contacts count after this time at the latest."""
MAX_PAIRS: Final = 100_000

Pair = tuple[AgentKey, AgentKey]


class Contacts:
    """Stores contacts, and remembers those that this node stored recently.

    Args:
        store: inboxes.
        max_pairs: pairs remembered; then the oldest are forgotten.
    """

    def __init__(self, store: RuleStore, max_pairs: int = MAX_PAIRS) -> None:
        self._store = store
        self._recent: BoundedTtl[Pair, bool] = BoundedTtl(max_pairs)

    async def record(
        self, items: Sequence[StoredEnvelope], results: Sequence[Accepted | Refusal]
    ) -> Sequence[Accepted | Refusal]:
        """Store the contacts of one commit; return the results that may be reported."""
        now = clock.monotonic()
        new: dict[Pair, None] = {}
        for item, result in zip(items, results, strict=True):
            pair = (item.sender, item.inbox)
            if isinstance(result, Accepted) and not self._recent.get(pair, now):
                new[pair] = None
        if not new:
            return results
        pairs = list(new)
        try:
            have_inbox = await self._store.add_contacts(pairs)
        except RelayError as exc:
            return _unknown(items, results, new, exc)
        for pair, has_inbox in zip(pairs, have_inbox, strict=True):
            self._recent.put(pair, True, now + (CONTACT_FRESH_S if has_inbox else NO_INBOX_S))
        return results

    def forget(self, inbox: AgentKey, others: Iterable[AgentKey]) -> None:
        """Store the next contact with these again: the agent has changed its rules about them."""
        for other in others:
            self._recent.pop((inbox, other))

    def __len__(self) -> int:
        """Return the number of pairs remembered."""
        return len(self._recent)


def _unknown(
    items: Sequence[StoredEnvelope],
    results: Sequence[Accepted | Refusal],
    new: dict[Pair, None],
    exc: RelayError,
) -> list[Accepted | Refusal]:
    detail = f"stored, but the recipient could not be noted as a contact: {exc.detail}"
    unknown = Refusal(ErrorCode.STORAGE_UNAVAILABLE, detail, exc.retry_after)
    pairs = ((item.sender, item.inbox) for item in items)
    return [
        unknown if pair in new and isinstance(result, Accepted) else result
        for pair, result in zip(pairs, results, strict=True)
    ]
