"""The port of migration to the store."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from relay.directory.ports import RecordRow
from relay.inbox.model.types import InboxRole, MaybeSeenIds
from relay.protocol.ids import AgentKey, Seq
from relay.protocol.migration_statement import MigrationCounters
from relay.protocol.types import MovedRules, WaitingEnvelope


@dataclass(frozen=True, slots=True)
class MigrationRow:
    """The state of an inbox and of its migration in the store.

    Args:
        text: the side as last written (:mod:`relay.migration.model.state_json`); "" = never.
        role: the role of the inbox; None: there is no inbox.
        has_left: this relay was the home, and then the record named others.
        record: the agent's newest record.
        former: the record before it, when the record last changed whether it names this relay.
        evidence: two records of one kv and seq, if the agent has signed such.
        counters: counts of its envelopes since the last change that reset them.
    """

    text: str = ""
    role: InboxRole | None = None
    has_left: bool = False
    record: RecordRow | None = None
    former: str | None = None
    evidence: tuple[str, str] | None = None
    counters: MigrationCounters = field(default_factory=MigrationCounters)


@dataclass(frozen=True, slots=True)
class MigrationChange:
    """A step of a migration and its effects on the inbox, in one commit.

    Args:
        text: the new side.
        role: the new role of the inbox; where there is no inbox, one is made.
        ends_session: the session ends; what it may have delivered is flagged as redelivered.
        marks_present: all waiting mail is flagged.
        is_new: the counts start again.
        is_open: :meth:`MigrationStore.list_open` returns it.
        has_work: a forwarder is due now, whether or not any mail waits.
        maybe_seen: ids to remember as maybe seen, 36 bytes each, unless they are known here. Mail
            that waits under one of them is flagged.
        dedup_horizon: hours up to this one are forgotten; -1 = none.
    """

    text: str
    role: InboxRole
    ends_session: bool = False
    marks_present: bool = False
    is_new: bool = False
    is_open: bool = True
    has_work: bool = False
    maybe_seen: bytes = b""
    dedup_horizon: int = -1


class MigrationStore(Protocol):
    """Inboxes that change relays: the state that both sides write down (GUARANTEES.md §3).

    :mod:`relay.migration.model.machine` makes the steps; :meth:`change` takes each in one commit,
    if nobody else took one meanwhile.
    """

    async def load(self, inbox: AgentKey) -> MigrationRow:
        """Return all that a step depends on."""
        ...

    async def change(
        self, inbox: AgentKey, expected: MigrationRow, change: MigrationChange
    ) -> bool:
        """Take a step; do nothing and return False where the store differs from ``expected``.

        Text and record version are compared. Works when memory or disk is full.
        """
        ...

    async def list_open(self) -> list[tuple[AgentKey, str]]:
        """Return all open migrations, with their texts."""
        ...

    async def waiting(self, inbox: AgentKey, after: Seq, limit: int) -> list[WaitingEnvelope]:
        """Return the entries behind ``after``, in seq order."""
        ...

    async def maybe_seen_ids(self, inbox: AgentKey, after: str, limit: int) -> MaybeSeenIds:
        """Return ids that the agent may have seen: acked, refused, ended, or redelivered.

        A page has about ``limit`` ids; ``after`` "" begins. An id may come twice.
        """
        ...

    async def known(self, inbox: AgentKey) -> MovedRules:
        """Return rules and contacts of the agent: the senders that it takes envelopes from."""
        ...

    async def add_known(self, inbox: AgentKey, known: MovedRules) -> None:
        """Add the rules and contacts that the agent had elsewhere; existing ones win.

        ``first_contact`` counts where "accept" stands here. The store leaves out all above a bound.
        """
        ...
