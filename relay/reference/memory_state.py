"""What the ports of the store in memory share: the inboxes, their limits and the clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from relay.clock import entropy
from relay.inbox.model.types import InboxLimits
from relay.protocol.ids import AgentKey, Epoch, Timestamp
from relay.protocol.jws import b64encode
from relay.reference.inbox import Inbox


@dataclass(slots=True)
class MemoryState:
    """All inboxes of the process.

    Args:
        limits: quotas of each inbox.
        now: the clock that expiry goes by.
        dedupe_total: ids remembered over all inboxes.
        inboxes: by owner.
        max_ids: ids remembered over all inboxes now, at most; counted again where it matters.
        clock_ok: False: nothing expires.
    """

    limits: InboxLimits
    now: Callable[[], Timestamp]
    dedupe_total: int
    inboxes: dict[AgentKey, Inbox] = field(default_factory=dict)
    max_ids: int = 0
    clock_ok: bool = True

    def make_room(self, is_stranger: bool) -> bool:  # noqa: FBT001  a fact, no switch
        """Keep within the budget of all inboxes together (R3); strangers fill three quarters."""
        limit = self.dedupe_total * 3 // 4 if is_stranger else self.dedupe_total
        if self.max_ids < limit:
            self.max_ids += 1
            return True
        sizes = {owner: len(inbox.dedupe) for owner, inbox in self.inboxes.items()}
        while sum(sizes.values()) >= limit:
            able = [owner for owner in sizes if self.inboxes[owner].dedupe.can_shed()]
            if not able:
                return False
            largest = max(able, key=lambda owner: (sizes[owner], owner))
            sizes[largest] -= self.inboxes[largest].dedupe.shed()
        self.max_ids = sum(sizes.values()) + 1
        return True


def new_epoch() -> Epoch:
    """Return a fresh name for a history of an inbox."""
    return Epoch(b64encode(entropy(12)))
