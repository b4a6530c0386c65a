"""The store of the migration feature: its port."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from relay.inbox.model.types import (
    InboxRole,
    MaybeSeenIds,
)
from relay.peering.ports import RecordRow
from relay.protocol.ids import (
    AgentKey,
    Seq,
)
from relay.protocol.migration_statement import (
    MigrationCounters,
)
from relay.protocol.types import (
    MovedRules,
    WaitingEnvelope,
)


@dataclass(frozen=True, slots=True)
class MigrationRow:
    """What a store holds of an inbox and of its changing relays.

    Args:
        text: the side as it was last written (:mod:`relay.protocol.migration_statement`); "" =
        never.
        holding: what the store does for the inbox; None: there is none.
        has_left: it was a home here once, and the agent's record named other homes then.
        record: the newest one of the agent.
        former: the one before that, when it last changed whether this relay is named; None: none.
        evidence: two records of one kv and seq, if the agent has signed such.
        tally: what became of its envelopes since the last change that began anew.
    """

    text: str = ""
    holding: InboxRole | None = None
    has_left: bool = False
    record: RecordRow | None = None
    former: str | None = None
    evidence: tuple[str, str] | None = None
    tally: MigrationCounters = field(default_factory=MigrationCounters)


@dataclass(frozen=True, slots=True)
class MigrationChange:
    """A step of a hand-off, and what it does to its inbox: one commit.

    Args:
        text: the side from now on.
        holding: what the store does for the inbox from now on; where there is none it is made.
        ends_session: no session goes on; what it may have handed over is marked.
        marks_present: mark all that waits.
        is_new: the tally begins anew.
        is_open: it is one of :meth:`HandoffStore.handoffs`.
        has_work: a mover should look at it, now, whether or not anything waits.
        doubts: ids that are remembered as doubtful, 36 bytes each, unless they are known here.
            What waits here under one of them is marked.
        floor: hours up to this one are forgotten; -1 = none.
    """

    text: str
    holding: InboxRole
    ends_session: bool = False
    marks_present: bool = False
    is_new: bool = False
    is_open: bool = True
    has_work: bool = False
    doubts: bytes = b""
    floor: int = -1


class HandoffStore(Protocol):
    """Inboxes that change relays: what both sides write down (GUARANTEES.md §3).

    Rules are not here: :mod:`relay.migration.model.machine` makes the steps,
    :meth:`change_handoff` takes
    each in one commit, if nobody else took one meanwhile.
    """

    async def handoff(self, inbox: AgentKey) -> MigrationRow:
        """All that a step is judged by."""
        ...

    async def change_handoff(
        self, inbox: AgentKey, seen: MigrationRow, change: MigrationChange
    ) -> bool:
        """Take a step; False, and nothing is done, where ``seen`` is not how things stand.

        That goes by its text and by the order of its record. Works when memory or disk is full.
        """
        ...

    async def handoffs(self) -> list[tuple[AgentKey, str]]:
        """All that are open, with their texts."""
        ...

    async def waiting(self, inbox: AgentKey, after: Seq, most: int) -> list[WaitingEnvelope]:
        """What waits behind ``after``, in seq order."""
        ...

    async def doubts(self, inbox: AgentKey, after: str, most: int) -> MaybeSeenIds:
        """Ids that its agent may have seen: acked, refused, ended, or marked as handed over.

        About ``most`` of them at once; ``after`` "" begins. An id may come twice.
        """
        ...

    async def known(self, inbox: AgentKey) -> MovedRules:
        """Whom the agent takes envelopes from."""
        ...

    async def learn_known(self, inbox: AgentKey, known: MovedRules) -> None:
        """Add whom the agent took envelopes from elsewhere; what stands here stands.

        ``first_contact`` counts where "accept" stands here. What is over a bound is left out.
        """
        ...
