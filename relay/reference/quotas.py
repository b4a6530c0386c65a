"""What an inbox holds and counts: quotas refuse, they never evict (GUARANTEES.md R3, R7).

Rules of the file: those of :mod:`relay.reference.inbox`, whose lower half this is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from relay.inbox.model.store_contract import LEASE_S, PEER_SHARE, REFUSALS
from relay.inbox.model.types import (
    Accepted,
    Disposition,
    InboxLimits,
    InboxRole,
    LiveSession,
    Pending,
    RefusedCount,
    RememberedId,
)
from relay.protocol.envelope import StoredEnvelope
from relay.protocol.errors import (
    ErrorCode,
    Refusal,
)
from relay.protocol.ids import (
    AgentKey,
    Epoch,
    Seq,
    Timestamp,
)
from relay.protocol.migration_statement import (
    MigrationCounters,
)
from relay.protocol.types import (
    DedupKey,
)
from relay.reference.dedupe import Dedupe
from relay.reference.forwarding import (
    Away,
    Outbox,
    Outboxes,
)
from relay.reference.rules import Rules

MakeRoom = Callable[[bool], bool]
"""Makes room for one more id over all inboxes, for a stranger's or not; False: there is none."""


@dataclass(slots=True)
class Move:
    """What an inbox is besides, once it has changed relays (:mod:`relay.reference.handoff`).

    Args:
        text: this side of it, as it was last written; "" = never.
        has_work: a mover should look at it, whether or not anything waits.
        is_open: it is one of those that two relays may still talk about.
        tally: what became of its envelopes since a change that began anew; None: none did.
        last_then: the last seq when that was.
    """

    text: str = ""
    has_work: bool = False
    is_open: bool = False
    tally: MigrationCounters | None = None
    last_then: Seq = Seq(0)

    def count(self, what: str, by: int = 1) -> None:
        """Count what became of an envelope."""
        if self.tally is not None:
            self.tally = self.tally._replace(**{what: getattr(self.tally, what) + by})


@dataclass(slots=True)
class Holdings:
    """Live entries of an inbox, and the counts that quotas go by."""

    key: AgentKey
    epoch: Epoch
    holding: InboxRole = InboxRole.HOME
    live: OrderedDict[Seq, StoredEnvelope] = field(default_factory=OrderedDict)
    bytes: int = 0
    senders: dict[AgentKey, tuple[int, int]] = field(default_factory=dict)
    strangers: set[Seq] = field(default_factory=set)
    rules: Rules = field(default_factory=Rules)
    refused: RefusedCount = field(default_factory=RefusedCount)
    dedupe: Dedupe = field(default_factory=Dedupe)
    session: LiveSession | None = None
    away: Away = field(default_factory=Away)
    move: Move = field(default_factory=Move)

    @property
    def home(self) -> bool:
        """Whether it takes mail for its agent, not for a courier."""
        return self.holding is not InboxRole.FORWARDING

    @property
    def held(self) -> bool:
        """Whether it takes mail and nobody may read it."""
        return self.holding is InboxRole.PAUSED

    # ------------------------------------------------------------ ids

    def answer(self, item: StoredEnvelope) -> Accepted | Refusal | None:
        """What the memory of ids says alone; None: it is to be kept, or kept anew."""
        seen = self.dedupe.find(item.hour, item.dedupe_key)
        if seen is None:
            return None
        if not seen.is_of(item.eid) and seen.disposition is not Disposition.MAYBE_SEEN:
            # another relay's word on an id turns nothing away
            return REFUSALS["replayed"]
        if seen.disposition is Disposition.MAYBE_SEEN or (
            self.home and seen.disposition is Disposition.FORWARDED
        ):
            return None
        if item.via is not None and self.has_gone(seen.disposition):
            return Refusal(ErrorCode.MOVED, "the recipient's home is elsewhere")
        if seen.disposition is Disposition.STORED and seen.seq not in self.live:
            return None
        return Accepted(seen.seq, self.epoch, True, None, away=self.has_gone(seen.disposition))

    def _may_be_shown(self, item: StoredEnvelope) -> bool:
        """Whether what is kept now, or kept anew, may have been handed over before."""
        seen = self.dedupe.find(item.hour, item.dedupe_key)
        if seen is None:
            # a part of an inbox that moves is taken however old it is, and nobody can tell
            return item.moving and item.hour <= self.dedupe.floor
        # the store lost it, or another relay may have shown it. What had gone on from here and
        # comes back was not: if it does so with its inbox, its mark is all that is to be said
        return seen.disposition is not Disposition.FORWARDED or not item.moving

    # ------------------------------------------------------------ rules and quotas

    def is_strange(self, item: StoredEnvelope) -> bool:
        """Whether nobody here knows the sender; the relay itself, whose word a bounce is, is none.

        Nor is the agent, which may write to itself. Another relay is one: its bounces pass the
        rules, but whoever runs many relays must not fill an inbox with them. Where an agent lives
        elsewhere, nobody knows whom it knows: its home will say.
        """
        if not self.home:
            return True
        is_own_word = not item.bounces and item.via is None
        return not is_own_word and item.sender != self.key and not self.rules.knows(item.sender)

    def _rules_out(self, item: StoredEnvelope) -> Refusal | None:
        is_own = not item.bounces or item.sender == self.key
        if not self.home or item.moving or is_own:
            return None
        no = self.rules.objection(item.sender)
        if no is None and item.barred and self.is_strange(item):
            no = REFUSALS["rate_limited"]
        return no

    def _over_quota(self, item: StoredEnvelope, limits: InboxLimits) -> Refusal | None:
        if len(self.live) >= limits.max_count or self.bytes + item.size > limits.max_bytes:
            return REFUSALS["inbox_full"]
        count, size = self.senders.get(item.sender, (0, 0))
        if count >= limits.sender_count or size + item.size > limits.sender_bytes:
            return REFUSALS["sender_quota"]
        if self.home and self.is_strange(item) and self._is_over_share(item, limits):
            return REFUSALS["stranger_quota"]
        return None

    def _over_twice(self, item: StoredEnvelope, limits: InboxLimits) -> Refusal | None:
        """What moves comes past all shares, but nobody fills a store with it."""
        most, most_bytes = 2 * limits.max_count, 2 * limits.max_bytes
        if len(self.live) >= most or self.bytes + item.size > most_bytes:
            return Refusal(ErrorCode.INBOX_FULL, "the recipient's inbox is full twice over")
        return None

    def _is_over_share(self, item: StoredEnvelope, limits: InboxLimits) -> bool:
        waiting = [self.live[seq] for seq in self.strangers if seq in self.live]
        count, size = limits.stranger_count, limits.stranger_bytes
        if _is_over(waiting, item, count, size):
            return True
        brought = [one for one in waiting if one.via == item.via]
        return item.via is not None and _is_over(
            brought, item, count // PEER_SHARE, size // PEER_SHARE
        )

    def _count(self, item: StoredEnvelope, sign: int) -> None:
        self.bytes += sign * item.size
        count, size = self.senders.get(item.sender, (0, 0))
        if count + sign:
            self.senders[item.sender] = (count + sign, size + sign * item.size)
        else:
            del self.senders[item.sender]
        if self.away.outbox is not None:
            self.away.outbox.add(item.sender, sign, sign * item.size)

    # ------------------------------------------------------------ room

    def has_gone(self, disposition: Disposition) -> bool:
        """Whether what became of an envelope is no custody of an inbox: it waits, or went on."""
        return disposition is Disposition.FORWARDED or (
            disposition is Disposition.STORED and not self.home
        )

    def _too_late(self, item: StoredEnvelope, now: Timestamp, *, clock_ok: bool) -> Refusal | None:
        if not self.home and item.peer is None:
            return Refusal(ErrorCode.MOVED, "the recipient's home is elsewhere")
        if item.expires_at <= now:
            # a clock that is in doubt must never say "expired" (GUARANTEES.md §2, clocks)
            if not clock_ok:
                return REFUSALS["clock_in_doubt"]
            return REFUSALS["expired"]
        if item.hour <= self.dedupe.floor and not item.moving:
            return REFUSALS["stale_id"]
        return None

    def _no_room(
        self, item: StoredEnvelope, limits: InboxLimits, now: Timestamp, outboxes: Outboxes | None
    ) -> Refusal | None:
        if self.home:
            no = (self._over_twice if item.moving else self._over_quota)(item, limits)
        else:
            no = self.away.refusal(now) or self._over_bounds(item, limits, outboxes)
        if no is not None and self.home:
            first = self.refused.first_at or int(now)
            self.refused = RefusedCount(self.refused.count + 1, first, int(now))
        return no

    def _no_memory(
        self, item: StoredEnvelope, limits: InboxLimits, make_room: MakeRoom
    ) -> Refusal | None:
        """Room for one more id: in this inbox's memory, then in that of all. Quotas come first."""
        if self.dedupe.find(item.hour, item.dedupe_key) is not None:
            return None
        # strangers must not close an inbox to those it knows
        is_strange = self.is_strange(item) and not item.moving
        most = limits.dedupe_entries // (2 if is_strange and self.home else 1)
        while len(self.dedupe) >= most:
            if not self.dedupe.can_shed():
                return REFUSALS["overloaded"]
            self.dedupe.shed()
        if not make_room(is_strange):
            return Refusal(ErrorCode.OVERLOADED, "the relay's memory of ids is full")
        return None

    def _join(self, outbox: Outbox, now: Timestamp) -> None:
        """One more will wait here for a courier: it is due."""
        due_at = now if self.session is None else now + LEASE_S
        if not self.live or self.away.due_at is None:
            self.away.due_at = due_at
        if outbox is not self.away.outbox and not self.hands_over:
            self._wait_for(outbox)

    @property
    def hands_over(self) -> bool:
        """Whether it has not been empty since its agent left.

        What waited then was taken as at home and is no outbox's, nor is what comes behind it: a
        move must close neither an outbox to others nor an inbox to those who write to it.
        """
        has_moved = not self.home and self.move.tally is not None
        return has_moved and bool(self.live) and self.away.outbox is None

    def _over_bounds(
        self, item: StoredEnvelope, limits: InboxLimits, outboxes: Outboxes | None
    ) -> Refusal | None:
        """Check the limits of an outbox (:mod:`relay.reference.forwarding`)."""
        if outboxes is None or item.peer is None:
            return Refusal(ErrorCode.MOVED, "the recipient's home is elsewhere")
        if self.hands_over:
            return self._over_quota(item, limits)
        outbox = self._outbox(item.peer, outboxes)
        return outbox.objection(item, (len(self.live), self.bytes), outboxes.limits)

    def _outbox(self, peer: AgentKey, outboxes: Outboxes) -> Outbox:
        """While something waits for a peer, only a courier says that it waits for another."""
        held = self.away.outbox
        return held if held is not None and self.live else outboxes.of(peer)

    def _wait_for(self, outbox: Outbox | None) -> None:
        """Count what waits in this outbox from now on."""
        for sender, (count, size) in self.senders.items():
            if self.away.outbox is not None:
                self.away.outbox.add(sender, -count, -size)
            if outbox is not None:
                outbox.add(sender, count, size)
        self.away.outbox = outbox

    # ------------------------------------------------------------ when somebody should look

    def set_due(self, at: float) -> None:
        """When a courier or a mover should look at it, where there is something for one."""
        waits = bool(self.live) and not self.home
        self.away.due_at = at if waits or self.move.has_work else None

    def call_mover(self, now: Timestamp) -> None:
        """There is something for a mover to do, or to find out."""
        self.move.has_work = True
        self.set_due(now)

    def doubt(self, now: Timestamp) -> None:
        """Other homes may have shown what comes, and have not said what: a mover is to ask."""
        self.holding = InboxRole.UNCERTAIN
        self.call_mover(now)

    def lend(self, now: Timestamp, lease_s: float) -> bool:
        """Whether somebody should look at it now; then it is lent to them for so long."""
        if self.away.due_at is None or self.away.due_at > now:
            return False
        self.set_due(now + lease_s)
        return self.away.due_at is not None

    # ------------------------------------------------------------ questions

    def pending(self) -> Pending:
        """What waits, and what was turned away."""
        oldest = next(iter(self.live.values())).created_at if self.live else None
        return Pending(len(self.live), self.bytes, oldest, self.refused)

    def status(self, questions: Sequence[DedupKey]) -> list[RememberedId | None]:
        """What became of ids, as far as it is remembered; None where it is not."""
        found = [self.dedupe.find(question.hour, question.dedupe_key) for question in questions]
        return [
            RememberedId(seen.disposition, seen.eid, seen.forwarded) if seen else None
            for seen in found
        ]


def _is_over(
    waiting: Iterable[StoredEnvelope], item: StoredEnvelope, count: int, size: int
) -> bool:
    sizes = [one.size for one in waiting]
    return len(sizes) >= count or sum(sizes) + item.size > size
