"""One inbox: the executable specification of what the store does (GUARANTEES.md R1-R6).

Rules of the file: every public method of :class:`Inbox` is one atomic step of the store; it either
happens whole or changes nothing. The memory store *is* this class; the Redis scripts are fuzzed
against it. ``now`` is the store's clock, Unix seconds.

::

    seq:      1 ........ cursor | cursor+1 ........................ last
              acked, forgotten  | live entries and explicit ranges, no holes
                                  ^ handed: at or below this is marked ``redelivered``
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from relay.inbox.model.store_contract import BOUNCE_GRACE_S, LEASE_S, REFUSALS
from relay.inbox.model.types import (
    Accepted,
    AckResult,
    Disposition,
    Forwarded,
    InboxAck,
    InboxLimits,
    InboxRole,
    LiveSession,
    OpenedSession,
    Page,
    PageItem,
    PendingBounce,
    RulesNow,
    RulesPatch,
)
from relay.protocol.envelope import StoredEnvelope
from relay.protocol.errors import (
    ErrorCode,
    Refusal,
)
from relay.protocol.ids import (
    Epoch,
    Fence,
    NodeId,
    Seq,
    Timestamp,
)
from relay.protocol.types import (
    Reason,
    Window,
)
from relay.reference.dedupe import Seen
from relay.reference.forwarding import (
    Away,
    Outbox,
    Outboxes,
)
from relay.reference.quotas import (
    Holdings,
    MakeRoom,
)
from relay.reference.ranges import (
    Ranges,
    holes,
)

_FATE: Final = {
    Reason.ACKED: Disposition.ACKED,
    Reason.REFUSED: Disposition.REFUSED,
    Reason.EXPIRED: Disposition.EXPIRED,
    Reason.CORRUPT: Disposition.CORRUPT,
    Reason.MOVED: Disposition.MOVED,
}


@dataclass(slots=True)
class Inbox(Holdings):
    """One agent's inbox at a relay: at its home, or one that takes mail for elsewhere."""

    last: Seq = Seq(0)
    cursor: Seq = Seq(0)
    ranges: Ranges = field(default_factory=Ranges)
    fence: Fence = field(default=Fence(0))
    window: Window = field(default_factory=Window)
    handed: Seq = Seq(0)
    taken: Seq = Seq(0)
    mark_before: int = 0
    reset_fence: Fence = field(default=Fence(0))
    quiet_until: int = 0

    # ------------------------------------------------------------ accept

    def accept(
        self,
        item: StoredEnvelope,
        limits: InboxLimits,
        now: Timestamp,
        *,
        clock_ok: bool = True,
        outboxes: Outboxes | None = None,
        make_room: MakeRoom = lambda is_strange: True,  # noqa: ARG005
    ) -> Accepted | Refusal:
        """Store an envelope, or say why not. Dedupe is asked first, then rules, then quotas."""
        known = self.answer(item)
        if known is not None:
            return self._brought_again(item, known) if item.moving else known
        item = item._replace(marked=item.marked or self._may_be_shown(item))
        no = (
            self._rules_out(item)
            or self._too_late(item, now, clock_ok=clock_ok)
            or self._no_room(item, limits, now, outboxes)
            or self._no_memory(item, limits, make_room)
        )
        if no is not None:
            return no
        if not self.home and outboxes is not None and item.peer is not None:
            self._join(self._outbox(item.peer, outboxes), now)
        self.last = Seq(self.last + 1)
        self.live[self.last] = item
        self._count(item, +1)
        is_stranger = self.home and self.is_strange(item)
        if is_stranger:
            self.strangers.add(self.last)
        seen = Seen(item.eid, self.last, Disposition.STORED)
        self.dedupe.remember(item.hour, item.dedupe_key, seen, item.expires_at)
        if item.moving:
            self.move.count("kept")
        # a marked entry must be read back with its mark, never handed over from memory
        session = None if self.is_marked(self.last, item) else self.session
        return Accepted(self.last, self.epoch, False, session, is_stranger, not self.home)

    def _brought_again(self, item: StoredEnvelope, known: Accepted | Refusal) -> Accepted | Refusal:
        """What came with its inbox is here already: a mark that it brings is kept."""
        if isinstance(known, Accepted):
            self.move.count("dups")
            here = self.live.get(known.seq)
            # a doubt about all of it is no mark: it ends
            if item.marked and here is not None and not here.marked:
                self.handed = max(self.handed, known.seq)
        return known

    def change_rules(
        self, fence: Fence, patch: RulesPatch, limits: InboxLimits
    ) -> RulesNow | Refusal:
        """Change the rules by a session of this inbox, or just read them (R7)."""
        return self._fenced(fence) or self.rules.change(patch, limits)

    # ------------------------------------------------------------ session

    def open_session(self, node: NodeId, window: Window, *, until: int = 0) -> OpenedSession:
        """Fence off any earlier session and give the inbox to a new one (R1)."""
        previous = self.end_session()
        self.session = LiveSession(self.fence, node, until)
        self.window = window
        self.away.deferred_until = 0
        return OpenedSession(
            self.fence, self.epoch, self.cursor, self.last, self.pending(), previous
        )

    def end_session(self) -> LiveSession | None:
        """No session goes on; what the last one can have handed over is marked."""
        previous = self.session
        if previous is not None:
            self.handed = max(self.handed, self._window_end())
        self.handed = max(self.handed, self.taken)
        self.taken = Seq(0)
        self.fence = Fence(self.fence + 1)
        self.session = None
        return previous

    def set_home(self, *, home: bool, now: Timestamp) -> None:
        """A newer record names this relay as a home of the agent, or others only.

        When that changes, the session ends, and what waits changes hands: the agent takes it, or a
        courier. Where the agent lives elsewhere still, a courier is to look where. What another
        home may have shown nobody has said yet: a mover is to ask.
        """
        if home != self.home:
            self.turn(InboxRole.UNCERTAIN if home else InboxRole.FORWARDING)
            self.call_mover(now)
        elif not home:
            self.away.closed, self.away.deferred_until = None, 0
            self.set_due(now)

    def turn(self, holding: InboxRole) -> None:
        """Something else becomes of it: no session goes on, and nothing waits for a peer."""
        self.end_session()
        stays = holding in {InboxRole.HOME, InboxRole.UNCERTAIN}
        left_fence = self.away.left_fence if stays else self.fence
        if self.home is not (holding is not InboxRole.FORWARDING):
            self._wait_for(None)
            self.away = Away()
        self.away.left_fence = left_fence
        self.holding = holding

    def defer(
        self, fence: Fence, wait_s: float, now: Timestamp, outbox: Outbox | None = None,
        closed: Refusal | None = None,
    ) -> bool:  # fmt: skip
        """A courier's word on what it carries; False if fenced off."""
        if self.home or self._fenced(fence) is not None:
            return False
        if outbox is not None and not self.hands_over:
            self._wait_for(outbox)
        self.away.defer(wait_s, closed, now)
        self.set_due(self.away.deferred_until)
        return True

    def _window_end(self) -> Seq:
        """The last seq that the session which ended uncleanly can have handed over."""
        end, room_count, room_bytes, first = self.cursor, self.window.count, self.window.bytes, True
        for seq, item in self.live.items():
            if room_count == 0 or (item.size > room_bytes and not first):
                break
            room_count, room_bytes, first, end = room_count - 1, room_bytes - item.size, False, seq
        return end

    def close_session(
        self, fence: Fence, delivered_upto: Seq, now: Timestamp = Timestamp(0)
    ) -> bool:
        """A clean end: the exact last seq handed over is known. False if superseded."""
        if self.session is None or fence != self.fence:
            return False
        self.handed = Seq(max(self.handed, delivered_upto))
        self.session = None
        if not self.home:
            self.set_due(max(now, self.away.deferred_until))
        return True

    # ------------------------------------------------------------ read

    def read(
        self, fence: Fence, after: Seq, window: Window, now: Timestamp, *, clock_ok: bool = True
    ) -> Page | Refusal:
        """Read on after ``after``; changes nothing."""
        no = self._fenced(fence)
        return no or self._page(after, window, now, clock_ok=clock_ok)

    def take(
        self, session: LiveSession, window: Window, now: Timestamp, *, clock_ok: bool = True
    ) -> Page | Refusal:
        """Read from the cursor and write down how far: a session without a connection (§6).

        ``session.node`` is the node that serves this read: it is the one to wake.
        """
        no = self._fenced(session.fence)
        if no is not None:
            return no
        page = self._page(self.cursor, window, now, clock_ok=clock_ok)
        self.session = session
        if isinstance(page, Page):
            self.taken = max(self.taken, page.upto)
        return page

    def _fenced(self, fence: Fence) -> Refusal | None:
        # its agent must begin anew; told "superseded" it would stop for good
        if fence < self.reset_fence:
            return REFUSALS["inbox_reset"]
        if fence != self.fence or self.session is None:
            if self.held:
                return REFUSALS["migrating"]
            if fence < self.away.left_fence:
                return Refusal(ErrorCode.MOVED, "the agent's record names other homes")
            return REFUSALS["superseded"]
        return None

    def _page(
        self, after: Seq, window: Window, now: Timestamp, *, clock_ok: bool
    ) -> Page | Refusal:
        items: list[PageItem] = []
        expired: list[Seq] = []
        room, upto = window.bytes, self.last
        # a selective ack may have moved the cursor past a reader, and ranges end at the cursor
        after = max(after, self.cursor)
        for seq, item in self.live.items():
            if seq <= after:
                continue
            # what a session without a connection was given is in flight until it ends (R6)
            if clock_ok and item.expires_at <= now and seq > self.taken:
                expired.append(seq)
            elif expired:
                break
            elif len(items) == window.count or (items and item.size > room):
                upto = Seq(seq - 1)
                break
            else:
                items.append(PageItem(seq, self.is_marked(seq, item), item.eid, item.wire))
                room -= item.size
        if expired:
            upto = Seq(expired[0] - 1)
        gaps = self.ranges.between(after, upto)
        if holes((item.seq for item in items), gaps, after, upto):
            return Refusal(ErrorCode.INBOX_RESET, "the store lost part of this inbox")
        return Page(tuple(items), tuple(gaps), upto, self.last, tuple(expired))

    def is_marked(self, seq: Seq, item: StoredEnvelope) -> bool:
        """Whether it may have been handed over before, here or by another relay."""
        return (
            item.marked
            or seq <= max(self.handed, self.taken)
            or item.created_at < self.mark_before
            or self.holding is InboxRole.UNCERTAIN
        )

    # ------------------------------------------------------------ ends of an entry

    def ack(
        self, ack: InboxAck, now: Timestamp, *, taken: bool = False
    ) -> tuple[AckResult, list[PendingBounce]] | Refusal:
        """Delete what the agent has durably processed or refuses (R2); repeating it is harmless."""
        if ack.epoch != self.epoch:
            return Refusal(ErrorCode.INBOX_RESET, "this ack is of another epoch")
        no = self._fenced(ack.fence) or self._not_theirs(ack, taken=taken)
        if no is not None:
            return no
        # first: a seq that is named in both, or covered by ``upto``, counts as refused
        intents: list[PendingBounce] = []
        for seq, code in ack.refuse:
            item = self._end(seq, Reason.REFUSED)
            if item is not None:
                # a courier refuses what its agent's home did not take: only marks say more
                maybe = self.home or self.is_marked(seq, item)
                intents += self._intent(item, code, int(now), maybe_delivered=maybe)
        for seq in ack.seqs:
            self._end(seq, Reason.MOVED if ack.forwarded else Reason.ACKED, ack.forwarded)
        self.cursor = self.ranges.absorb(self.cursor, ack.upto)
        if not self.home:
            self.set_due(now + LEASE_S)
        refused = tuple(seq for seq, _ in ack.refuse)
        return AckResult(self.cursor, ack.seqs, refused), intents

    def _not_theirs(self, ack: InboxAck, *, taken: bool) -> Refusal | None:
        if self.home and ack.forwarded is not None:
            return Refusal(ErrorCode.SUPERSEDED, "the agent's home is here")
        if not self.home and ack.forwarded is None and (ack.seqs or taken):
            return Refusal(ErrorCode.BAD_FRAME, "a courier acks only what went on")
        return None

    def take_ack(
        self, ack: InboxAck, now: Timestamp
    ) -> tuple[AckResult, list[PendingBounce]] | Refusal:
        """Ack of a session without a connection: ``upto`` covers what :meth:`take` gave it."""
        is_current = ack.epoch == self.epoch and self._fenced(ack.fence) is None
        named = (*ack.seqs, *(seq for seq, _ in ack.refuse))
        if is_current and (
            ack.upto > max(self.taken, self.cursor) or any(seq > self.last for seq in named)
        ):
            return REFUSALS["bad_frame"]
        refused = {seq for seq, _ in ack.refuse}
        covered = tuple(seq for seq in self.live if seq <= ack.upto and seq not in refused)
        return self.ack(replace(ack, seqs=(*ack.seqs, *covered)), now, taken=True)

    def conclude(
        self, seqs: Iterable[Seq], reason: Reason, now: Timestamp, *, clock_ok: bool = True
    ) -> list[PendingBounce]:
        """End entries that were never handed to the live session: expired or corrupt."""
        intents: list[PendingBounce] = []
        for seq in seqs:
            item = self.live.get(seq)
            if item is None or (
                reason is Reason.EXPIRED and (self.held or not clock_ok or item.expires_at > now)
            ):
                continue
            maybe = self.session is not None or self.is_marked(seq, item)
            self._end(seq, reason)
            grace = BOUNCE_GRACE_S if reason is Reason.EXPIRED else 0
            due = max(int(now), item.expires_at + grace) if grace else int(now)
            intents += self._intent(item, reason.value, due, maybe_delivered=maybe)
        return intents

    def sweep(self, now: Timestamp, live_nodes: Collection[NodeId]) -> list[PendingBounce]:
        """End what expired 300 s ago, but nothing that a live session may have in flight."""
        in_flight = self.cursor
        session = self.session
        if session and session.node in live_nodes and (not session.until or now < session.until):
            in_flight = max(self._window_end(), self.taken)
        gone = [
            seq
            for seq, item in self.live.items()
            if item.expires_at + BOUNCE_GRACE_S <= now and seq > in_flight
        ]
        self.dedupe.purge(now - 2 * BOUNCE_GRACE_S)
        return self.conclude(gone, Reason.EXPIRED, now)

    def _end(
        self, seq: Seq, reason: Reason, forwarded: Forwarded | None = None
    ) -> StoredEnvelope | None:
        item = self.live.pop(seq, None)
        if item is not None:
            self._count(item, -1)
            self.strangers.discard(seq)
            self.ranges.add(seq, reason)
            self.move.count(reason.value)
            disposition = Disposition.FORWARDED if forwarded else _FATE[reason]
            self.dedupe.conclude(item.hour, item.dedupe_key, disposition, forwarded)
        return item

    def _intent(
        self, item: StoredEnvelope, reason: str, due_at: int, *, maybe_delivered: bool
    ) -> list[PendingBounce]:
        if not item.bounces:
            return []
        if not self.home:
            # what a restored store has for elsewhere was probably handed on long ago
            due_at = max(due_at, self.quiet_until)
        return [PendingBounce(item.sender, item.eid, self.key, reason, maybe_delivered, due_at)]

    # ------------------------------------------------------------ the store's own troubles

    def reset(self, epoch: Epoch, mark_before: int, quiet_until: int = 0) -> None:
        """Begin a new epoch: the store was rolled back or lost something (R5).

        Holes become ``corrupt`` ranges, every present entry and every later one created before
        ``mark_before`` is marked, and no session goes on.
        """
        for seq in holes(self.live, self.ranges.between(self.cursor, self.last), self.cursor,
                         self.last):  # fmt: skip
            self.ranges.add(seq, Reason.CORRUPT)
            self.move.count("corrupt")
        self.epoch = epoch
        self.handed = self.last
        self.taken = Seq(0)
        self.mark_before = max(self.mark_before, mark_before)
        self.quiet_until = max(self.quiet_until, quiet_until)
        self.fence = self.reset_fence = Fence(self.fence + 1)
        self.session = None
