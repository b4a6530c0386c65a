"""The inbox at one relay: its seqs, its epoch, and the acks to send there (GUARANTEES.md R2, R5).

Entry point: :class:`RelayInbox`. It reports ``connected``, ``delivered``, ``gap``, ``acked`` and
``disconnected`` to the deliveries. Invariants: an envelope that cannot be verified or opened is
refused with its code and counted, never shown. A seq is valid at this relay and in this epoch only.
A cumulative ack never passes a refusal that is not durable.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from relay import clock
from relay.client._util import wait_for_event
from relay.client.errors import AgentError, make_error
from relay.client.inbox.delivery import Delivery, DeliveryCopy, DeliveryState
from relay.client.inbox.inbox import Inbox, RelaySide
from relay.client.inbox.opener import Opened
from relay.client.state.journal import SeenEnvelope
from relay.protocol import frames
from relay.protocol.backoff import doubling_pause_s
from relay.protocol.errors import ErrorCode, ProtocolError, RelayError, error
from relay.protocol.ids import Did, Eid, Epoch, Seq, Timestamp

WINDOW_SLACK: Final = 64
ACK_RETRY_S: Final = 1
ACK_TIMEOUT_S: Final = 20.0
"""A relay that answers pings but no ack for so long is left for another connection."""
VERIFY_PAUSE_S: Final = 1.0
MAX_VERIFY_PAUSE_S: Final = 60.0
MAX_UNVERIFIED: Final = 32


class AckTracker:
    """The seq up to which all is settled in one session (PROTOCOL.md §5 ``ack``)."""

    __slots__ = ("_sent", "_spans", "_upto")

    def __init__(self, cursor: Seq) -> None:
        self._upto = self._sent = cursor
        self._spans: dict[int, int] = {}

    def add(self, start: Seq, end: Seq) -> None:
        """Note that seqs ``start`` … ``end`` are settled; a repetition changes nothing."""
        first = max(start, self._upto + 1)
        if first > end:
            return
        self._spans[first] = max(end, self._spans.get(first, 0))
        while self._upto + 1 in self._spans:
            self._upto = Seq(self._spans.pop(self._upto + 1))

    @property
    def has_moved(self) -> bool:
        """True if the seq is higher than at the last :meth:`take`."""
        return self._upto > self._sent

    def take(self) -> Seq:
        """Return the seq, to be sent to the relay."""
        self._sent = self._upto
        return self._upto


class RelayInbox:
    """The inbox of this agent at one relay.

    Args:
        inbox: the agent's inbox, of which this is a part.
        wake: called when there is a frame to send to this relay.
    """

    def __init__(self, inbox: Inbox, wake: Callable[[], None]) -> None:
        self.side = RelaySide(self.disconnected)
        self._inbox = inbox
        self._wake = wake
        self._relay: Did | None = None
        self._epoch: Epoch | None = None
        self._head = Seq(0)
        self._window = 0
        self._tracker = AckTracker(Seq(0))
        self._copies: dict[Seq, DeliveryCopy] = {}
        self._ack_queue: list[DeliveryCopy] = []
        self._ack_at = Timestamp(0)
        self._unverified = UnverifiedBounces()
        inbox.relays.append(self.side)

    # ------------------------------------------------------------ connections

    def connected(self, relay: Did, welcome: frames.Welcome, *, was_reset: bool) -> None:
        """Begin a session.

        Args:
            relay: has proved itself.
            welcome: the position of the inbox there.
            was_reset: this agent has known another epoch of it.
        """
        self._inbox.opener.authenticated_relays.add(relay)
        self.side.failure, self.side.is_open = None, welcome.inbox
        is_same = relay == self._relay and welcome.epoch == self._epoch
        went_back = is_same and welcome.head < self._head
        if not is_same or went_back:
            for copy in self._copies.values():
                copy.delivery.epoch_reset(copy)
            self._copies.clear()
        if went_back or was_reset:
            detail = "the relay's store was rolled back or lost; acked envelopes may come again"
            self._inbox.raise_once(make_error(ErrorCode.INBOX_RESET, detail))
        self._relay, self._epoch, self._head = relay, welcome.epoch, welcome.head
        self._window = welcome.window_count
        self._tracker = AckTracker(welcome.cursor)
        for copy in [one for seq, one in self._copies.items() if seq <= welcome.cursor]:
            self._pop(copy).acked(copy)
        for copy in [one for one in self._copies.values() if one.delivery.is_dropped]:
            self._pop(copy).remove(copy)
        self._inbox.sweep()
        self._inbox.changed()

    def on_no_inbox(self, failure: AgentError) -> None:
        """Note that this relay has no inbox of this agent, or cannot be asked."""
        self.side.failure = failure
        self._inbox.changed()

    def disconnected(self) -> None:
        """End the session: what was not shown is forgotten, since the relay redelivers it."""
        self.side.is_open = False
        self._ack_at = Timestamp(0)
        self._unverified = UnverifiedBounces()
        for copy in list(self._copies.values()):
            if not copy.delivery.disconnected(copy):
                self._pop(copy)
        # at the end: a refusal may have been handed on to another copy here
        self._ack_queue.clear()

    def end(self, failure: AgentError) -> None:
        """End it for good: this relay will not be dialled again; the agent goes on with others."""
        self.disconnected()
        self.on_no_inbox(failure)
        for copy in list(self._copies.values()):
            self._pop(copy).remove(copy, failure)

    def detach(self) -> None:
        """End it because the inbox has moved: messages in hand are acked at the new home."""
        self.disconnected()
        for copy in self._copies.values():
            copy.is_detached = True
        self.close()

    def close(self) -> None:
        """Take this relay out of the agent's inbox."""
        self._inbox.relays.remove(self.side)

    def unreachable(self) -> None:
        """Note that a reconnect failed: an ack must not hold up deliveries of other relays."""
        if not any(side.is_open for side in self._inbox.relays if side is not self.side):
            return
        detail = "its relay is out of reach; noted here, and acked unseen when it comes again"
        for copy in self._copies.values():
            if copy.delivery.is_settling and not copy.delivery.is_current:
                copy.delivery.finish(make_error(ErrorCode.PEER_UNREACHABLE, detail))

    def _pop(self, copy: DeliveryCopy) -> Delivery:
        if self._copies.get(copy.seq) is copy:
            del self._copies[copy.seq]
        return copy.delivery

    # ------------------------------------------------------------ delivered

    async def delivered(self, frame: frames.Deliver) -> None:
        """Process delivered envelopes.

        Raises:
            ProtocolError: another epoch than this session's, or far more than its window.
            AgentError: the journal cannot be written: nothing is shown.
        """
        self._check_epoch(frame.epoch)
        items = [item for item in frame.items if not self._is_current(item.seq)]
        opened = [(item, self._inbox.opener.open(item.envelope)) for item in items]
        seen = await self._inbox.record_delivered(
            [one for _, one in opened if isinstance(one, Opened)]
        )
        for item, one in opened:
            self._delivered(item, one, seen)
        if len(self._copies) > 2 * self._window + WINDOW_SLACK:
            raise ProtocolError(ErrorCode.BAD_FRAME, "more was delivered than the window allows")

    def _check_epoch(self, epoch: Epoch) -> None:
        if epoch != self._epoch:
            raise ProtocolError(ErrorCode.BAD_FRAME, "delivered from another epoch")

    def _is_current(self, seq: Seq) -> bool:
        copy = self._copies.get(seq)
        return copy is not None and copy.is_current

    def _delivered(
        self, item: frames.DeliverItem, opened: Opened | RelayError, seen: dict[Eid, SeenEnvelope]
    ) -> None:
        self._head = Seq(max(self._head, item.seq))
        if isinstance(opened, RelayError):
            delivery = self._inbox.refused_on_arrival(str(opened.code))
        else:
            before = seen.get(opened.envelope.eid)
            delivery = self._inbox.admit(opened, before, redelivered=item.redelivered)
        copy = self._copy(item.seq, delivery)
        if isinstance(opened, Opened) and delivery.state is DeliveryState.VERIFYING:
            redelivered = item.redelivered or opened.envelope.eid in seen
            self._unverified.add(UnverifiedBounce(delivery, opened, redelivered))
        if delivery.is_settling and delivery.is_journaled:
            self.queue_ack(copy)

    def _copy(self, seq: Seq, delivery: Delivery) -> DeliveryCopy:
        """Return the copy at a seq; it replaces a copy of another envelope there."""
        before = self._copies.get(seq)
        if before is not None and before.delivery is delivery:
            before.is_current, before.ack_sent = True, False
            return before
        copy = delivery.delivered(seq, self.queue_ack)
        if before is not None:
            self._pop(before).remove(before)
        self._copies[seq] = copy
        return copy

    async def verify_bounces(self) -> None:
        """Verify unverified bounces, one after the other, beside all else; until cancelled.

        Raises:
            AgentError: the journal cannot be written.
        """
        while True:
            bounce = await self._unverified.next()
            result = await self._inbox.verify_bounce(bounce.opened)
            if bounce.is_over:
                continue
            if isinstance(result, Opened):
                self._inbox.show(bounce.delivery, result, redelivered=bounce.redelivered)
            elif result is not None:
                await self._inbox.refuse_bounce(bounce.opened, result)
            elif (dropped := self._unverified.put_back(bounce, self._window)) is not None:
                detail = "too many bounces that cannot be judged now"
                await self._inbox.refuse_bounce(dropped.opened, error(ErrorCode.OVERLOADED, detail))

    def gap(self, frame: frames.Gap) -> None:
        """Process seqs that hold nothing any more.

        Raises:
            ProtocolError: another epoch than this session's.
        """
        self._check_epoch(frame.epoch)
        for item in frame.ranges:
            self._tracker.add(item.start, item.end)
            self._head = Seq(max(self._head, item.end))
            for copy in [c for s, c in self._copies.items() if item.start <= s <= item.end]:
                self._pop(copy).ended(copy, item.reason)

    # ------------------------------------------------------------ acks and refusals

    def queue_ack(self, copy: DeliveryCopy) -> None:
        """Queue the ack or refusal of a copy, unless another copy sends the refusal."""
        if copy.delivery.may_send(copy):
            self._ack_queue.append(copy)
            self._wake()

    def next_ack(self, now: Timestamp) -> frames.Ack | None:
        """Return the next ``ack`` frame, if one is due; ``now`` is monotonic seconds."""
        if self._epoch is None or now < self._ack_at:
            return None
        batch = self._ack_queue[: frames.MAX_SEQS]
        del self._ack_queue[: frames.MAX_SEQS]
        for copy in batch:
            copy.ack_sent, copy.ack_sent_at = True, now
            # passed only when it is durable: a cumulative ack must not overtake a refusal
            if copy.delivery.unsent_code is None:
                self._tracker.add(copy.seq, copy.seq)
        if not batch and not self._tracker.has_moved:
            return None
        upto = self._tracker.take()
        codes = [(copy.seq, copy.delivery.unsent_code) for copy in batch]
        return frames.Ack(
            self._epoch,
            upto,
            tuple(seq for seq, code in codes if code is None and seq > upto),
            tuple((seq, code) for seq, code in codes if code is not None),
        )

    def next_timer(self) -> Timestamp | None:
        """Return when :meth:`next_ack` or :meth:`check_answers` is due, monotonic seconds."""
        due = [self._ack_at] if self._ack_queue and self._ack_at else []
        due += [Timestamp(copy.ack_sent_at + ACK_TIMEOUT_S) for copy in self._first_sent()]
        return min(due, default=None)

    def check_answers(self, now: Timestamp) -> None:
        """Notice a relay that does not answer acks any more.

        Raises:
            UnavailableError: an ack is unanswered for too long.
        """
        if any(copy.ack_sent_at + ACK_TIMEOUT_S <= now for copy in self._first_sent()):
            raise make_error(ErrorCode.PEER_UNREACHABLE, "the relay does not answer acks")

    def _first_sent(self) -> list[DeliveryCopy]:
        return list(islice((copy for copy in self._copies.values() if copy.ack_sent), 1))

    def acked(self, frame: frames.Acked) -> None:
        """Process the relay's confirmation that acks and refusals are durable."""
        if frame.epoch != self._epoch:
            return
        named = {*frame.seqs, *frame.refused}
        for seq, copy in list(self._copies.items()):
            if copy.ack_sent and (seq <= frame.upto or seq in named):
                self._tracker.add(seq, seq)
                self._pop(copy).acked(copy)

    def requeue_acks(self, now: Timestamp, retry_after: int | None) -> None:
        """Send the unconfirmed acks again, a little later: the relay's store has failed."""
        self._ack_at = Timestamp(now + (retry_after or ACK_RETRY_S))
        sent = [copy for copy in self._copies.values() if copy.ack_sent]
        for copy in sent:
            copy.ack_sent = False
        self._ack_queue += sent


@dataclass(slots=True, eq=False)
class UnverifiedBounce:
    """One bounce that is not shown yet.

    Args:
        delivery: of the bounce.
        opened: its content.
        redelivered: it may have been shown before.
    """

    delivery: Delivery
    opened: Opened
    redelivered: bool
    tries: int = 0
    due_at: float = 0.0

    @property
    def is_over(self) -> bool:
        """True if there is nothing to verify any more."""
        return self.delivery.state is not DeliveryState.VERIFYING or not self.delivery.copies

    @property
    def recipient(self) -> str:
        """The recipient of an envelope that it names."""
        return self.opened.unverified[0].to


@dataclass(slots=True)
class UnverifiedBounces:
    """Bounces of one relay to verify, and when (GUARANTEES.md R6).

    New ones come before those that wait, so no bounce holds up another agent's. At most half of the
    window waits. Beyond that, the newest one about the recipient with the most bounces is dropped:
    an attacker with forged bounces loses only those about itself.
    """

    _new: deque[UnverifiedBounce] = field(default_factory=deque)
    _waiting: list[UnverifiedBounce] = field(default_factory=list)
    _added: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, bounce: UnverifiedBounce) -> None:
        """Add a new bounce."""
        self._new.append(bounce)
        self._added.set()

    async def next(self) -> UnverifiedBounce:
        """Return the next one to verify; waits for it."""
        while True:
            self._added.clear()
            if self._new:
                return self._new.popleft()
            first = min(self._waiting, key=lambda one: one.due_at, default=None)
            pause = None if first is None else first.due_at - clock.monotonic()
            if first is not None and pause is not None and pause <= 0:
                self._waiting.remove(first)
                return first
            await wait_for_event(self._added, pause)

    def put_back(self, bounce: UnverifiedBounce, window: int) -> UnverifiedBounce | None:
        """Verify a bounce again later; return the one that is dropped for it, if any.

        Args:
            bounce: cannot be verified now.
            window: the number of envelopes that the relay delivers at once.
        """
        pause = doubling_pause_s(bounce.tries, VERIFY_PAUSE_S, MAX_VERIFY_PAUSE_S)
        bounce.due_at = clock.monotonic() + pause
        bounce.tries += 1
        self._waiting = [one for one in [*self._waiting, bounce] if not one.is_over]
        if len(self._waiting) <= max(1, min(MAX_UNVERIFIED, window // 2)):
            return None
        [(recipient, _)] = Counter(one.recipient for one in self._waiting).most_common(1)
        dropped = next(one for one in reversed(self._waiting) if one.recipient == recipient)
        self._waiting.remove(dropped)
        return dropped
