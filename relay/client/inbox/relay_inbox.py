"""One home's side of the inbox: its seqs, its epoch, and what is to be acked there (R2, R5).

Rules of the file: only :meth:`HomeInbox.deliver` and the look at doubtful bounces await. An
envelope that cannot be verified or opened is refused with its code and counted, never shown. Seqs
mean something at this home and in this epoch only; what is known of an envelope by its eid is in
:mod:`relay.client.inbox.inbox`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Final

from relay.client.errors import AgentError, typed
from relay.client.inbox.ack_tracker import Progress
from relay.client.inbox.delivery import (
    GONE,
    Entry,
    Place,
    Stage,
)
from relay.client.inbox.inbox import Inbox
from relay.client.inbox.opener import Opened
from relay.client.inbox.unverified import (
    Doubt,
    Doubts,
)
from relay.client.state.journal import SeenEnvelope
from relay.protocol import frames
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
    RelayError,
)
from relay.protocol.ids import (
    Did,
    Eid,
    Epoch,
    Seq,
    Timestamp,
)
from relay.protocol.types import (
    Reason,
)

WINDOW_SLACK: Final = 64
ACK_AGAIN_S: Final = 1
ANSWER_S: Final = 20.0
"""A relay that answers pings but no ack for so long is left for another connection."""


class HomeInbox:
    """What one home holds for this agent, as far as it has said.

    Args:
        inbox: the agent's, of which this is a part.
        wake: called when there is something to write to this home.
    """

    def __init__(self, inbox: Inbox, wake: Callable[[], None]) -> None:
        self.is_open = self.has_moved = False
        self.no_inbox: AgentError | None = None
        self._inbox = inbox
        self._wake = wake
        self._relay: Did | None = None
        self._epoch: Epoch | None = None
        self._head = Seq(0)
        self._window = 0
        self._progress = Progress(Seq(0))
        self._places: dict[Seq, Place] = {}
        self._unsaid: list[Place] = []
        self._say_at = Timestamp(0)
        self._doubts = Doubts()
        inbox.homes.append(self)

    # ------------------------------------------------------------ connections

    def opened(self, relay: Did, welcome: frames.Welcome, *, was_reset: bool) -> None:
        """A login holds.

        Args:
            relay: who proved itself.
            welcome: where the inbox stands there.
            was_reset: whether this agent has known another epoch of it.
        """
        self._inbox.opener.proven.add(relay)
        self.no_inbox, self.is_open = None, welcome.inbox
        same = relay == self._relay and welcome.epoch == self._epoch
        went_back = same and welcome.head < self._head
        if not same or went_back:
            self._set_adrift()
        if went_back or was_reset:
            detail = "the relay's store was rolled back or lost; acked envelopes may come again"
            self._inbox.tell(typed(ErrorCode.INBOX_RESET, detail))
        self._relay, self._epoch, self._head = relay, welcome.epoch, welcome.head
        self._window = welcome.window_count
        self._progress = Progress(welcome.cursor)
        for place in [one for seq, one in self._places.items() if seq <= welcome.cursor]:
            self._conclude(place, None)
        for place in [one for one in self._places.values() if one.entry.is_let_go]:
            self.leave(place)
        self._inbox.sweep()
        self._inbox.changed()

    def has_none(self, failure: AgentError) -> None:
        """This relay holds no inbox of ours, or cannot be asked; whoever waits looks again."""
        self.no_inbox = failure
        self._inbox.changed()

    def lost(self) -> None:
        """The connection is gone; what was not shown yet is forgotten, it will come again."""
        self.is_open = False
        self._unsaid.clear()
        self._say_at = Timestamp(0)
        self._doubts = Doubts()
        for place in list(self._places.values()):
            place.here = place.said = False
            entry = place.entry
            if entry.stage in {Stage.QUEUED, Stage.DOUBTED} or entry.eid is None or entry.durable:
                self.leave(place)
            else:
                _pass_on(place)

    def end(self, failure: AgentError) -> None:
        """This relay will not be dialled again; the agent goes on with others."""
        self.lost()
        self.has_none(failure)
        for place in list(self._places.values()):
            self.leave(place, failure)

    def move_on(self) -> None:
        """The inbox has moved: what the program has in hand is answered where it comes again."""
        self.lost()
        self.has_moved = True
        self._inbox.homes.remove(self)

    def unreachable(self) -> None:
        """It could not be dialled again: an ack must not hold up what other homes deliver."""
        if not self._inbox.is_elsewhere(self):
            return
        detail = "its relay is out of reach; noted here, and acked unseen when it comes again"
        for place in self._places.values():
            if place.entry.stage is Stage.ANSWERED and not place.entry.is_here:
                place.entry.settle(typed(ErrorCode.PEER_UNREACHABLE, detail))

    def _set_adrift(self) -> None:
        """Another epoch: seqs mean nothing any more, eids still do."""
        for place in list(self._places.values()):
            if place.entry.stage is Stage.ANSWERED:
                detail = "the inbox began a new epoch before this answer was durable"
                self._conclude(place, typed(ErrorCode.INBOX_RESET, detail))
            else:
                place.entry.places.remove(place)
        self._places.clear()

    def leave(self, place: Place, failure: AgentError | None = None) -> None:
        """An envelope has no place here any more."""
        if self._places.get(place.seq) is place:
            del self._places[place.seq]
        place.entry.places.remove(place)
        if not place.entry.places:
            self._inbox.left(place.entry, failure)
        else:
            _pass_on(place)

    # ------------------------------------------------------------ delivered

    async def deliver(self, frame: frames.Deliver) -> None:
        """Take what the relay hands over.

        Raises:
            ProtocolError: another epoch than this session's, or far more than its window.
            AgentError: the journal cannot be written: nothing is shown.
        """
        self._expect(frame.epoch)
        new = [item for item in frame.items if not self._is_here(item.seq)]
        opened = [(item, self._inbox.opener.attempt(item.envelope)) for item in new]
        known = await self._inbox.take([one for _, one in opened if isinstance(one, Opened)])
        for item, one in opened:
            self._take(item, one, known)
        if len(self._places) > 2 * self._window + WINDOW_SLACK:
            raise ProtocolError(ErrorCode.BAD_FRAME, "more was delivered than the window allows")

    def _expect(self, epoch: Epoch) -> None:
        if epoch != self._epoch:
            raise ProtocolError(ErrorCode.BAD_FRAME, "delivered from another epoch")

    def _is_here(self, seq: Seq) -> bool:
        place = self._places.get(seq)
        return place is not None and place.here

    def _take(
        self, item: frames.DeliverItem, opened: Opened | RelayError, known: dict[Eid, SeenEnvelope]
    ) -> None:
        self._head = Seq(max(self._head, item.seq))
        if isinstance(opened, RelayError):
            self._inbox.refused += 1
            entry = Entry(None, Stage.ANSWERED, str(opened.code))
        else:
            before = known.get(opened.envelope.eid)
            entry = self._inbox.admit(opened, before, redelivered=item.redelivered)
        place = self._place(item.seq, entry)
        if isinstance(opened, Opened) and entry.stage is Stage.DOUBTED:
            redelivered = item.redelivered or opened.envelope.eid in known
            self._doubts.add(Doubt(entry, opened, redelivered))
        if entry.stage is Stage.ANSWERED and entry.noted:
            self.say(place)

    def _place(self, seq: Seq, entry: Entry) -> Place:
        """Where it lies now; what was thought to lie there does not."""
        before = self._places.get(seq)
        if before is not None and before.entry is entry:
            before.here, before.said = True, False
            return before
        place = Place(self, seq, entry)
        # where it lay before the inbox moved it lies no more
        entry.places[:] = [other for other in entry.places if not other.home.has_moved]
        entry.places.append(place)
        if before is not None:
            self.leave(before)
        self._places[seq] = place
        return place

    async def look_at_doubts(self) -> None:
        """Find out, one after the other, which bounces are to be believed; until cancelled.

        What else is delivered does not wait for it.

        Raises:
            AgentError: the journal cannot be written.
        """
        while True:
            doubt = await self._doubts.next()
            if await self._inbox.look_at(doubt):
                continue
            over = self._doubts.put_back(doubt, self._window)
            if over is not None:
                await self._inbox.give_up(over)

    def gap(self, frame: frames.Gap) -> None:
        """Take the relay's word on seqs that hold nothing any more.

        Raises:
            ProtocolError: another epoch than this session's.
        """
        self._expect(frame.epoch)
        for item in frame.ranges:
            self._progress.add(item.start, item.end)
            self._head = Seq(max(self._head, item.end))
            for place in [p for s, p in self._places.items() if item.start <= s <= item.end]:
                is_ended = item.reason in {Reason.ACKED, Reason.REFUSED}
                kept = is_ended and place.entry.stage is Stage.ANSWERED
                detail = f"{item.reason} before the answer was durable"
                self._conclude(place, None if kept else typed(GONE[item.reason], detail))

    # ------------------------------------------------------------ answered

    def say(self, place: Place) -> None:
        """The program's answer is noted: it may be said."""
        entry = place.entry
        is_anothers = entry.teller is not None and entry.teller is not place
        if not place.here or (is_anothers and entry.unsaid_code is not None):
            return
        entry.teller = place
        self._unsaid.append(place)
        self._wake()

    def next_ack(self, now: Timestamp) -> frames.Ack | None:
        """The next ``ack`` frame, if there is something to say; ``now`` is monotonic seconds."""
        if self._epoch is None or now < self._say_at:
            return None
        batch, self._unsaid = self._unsaid[: frames.MAX_SEQS], self._unsaid[frames.MAX_SEQS :]
        for place in batch:
            place.said, place.said_at = True, now
            # a refusal is passed only when it is durable: a cumulative ack must not overtake it
            if place.entry.unsaid_code is None:
                self._progress.add(place.seq, place.seq)
        if not batch and not self._progress.moved:
            return None
        upto = self._progress.take()
        refused = [(place.seq, place.entry.unsaid_code) for place in batch]
        return frames.Ack(
            self._epoch,
            upto,
            tuple(seq for seq, code in refused if code is None and seq > upto),
            tuple((seq, code) for seq, code in refused if code is not None),
        )

    def next_timer(self) -> Timestamp | None:
        """When :meth:`next_ack` or :meth:`check_answers` has work, monotonic seconds."""
        due = [self._say_at] if self._unsaid and self._say_at else []
        due += [Timestamp(place.said_at + ANSWER_S) for place in self._first_said()]
        return min(due, default=None)

    def check_answers(self, now: Timestamp) -> None:
        """Notice a relay that no longer answers acks: who waits for one must not wait for ever.

        Raises:
            UnavailableError: one has waited for too long.
        """
        if any(place.said_at + ANSWER_S <= now for place in self._first_said()):
            raise typed(ErrorCode.PEER_UNREACHABLE, "the relay does not answer acks")

    def _first_said(self) -> list[Place]:
        return list(islice((place for place in self._places.values() if place.said), 1))

    def acked(self, frame: frames.Acked) -> None:
        """Take the relay's word on what is durable."""
        if frame.epoch != self._epoch:
            return
        named = {*frame.seqs, *frame.refused}
        for seq, place in list(self._places.items()):
            if place.said and (seq <= frame.upto or seq in named):
                self._progress.add(seq, seq)
                self._conclude(place, None)

    def say_again(self, now: Timestamp, retry_after: int | None) -> None:
        """The store did not take our answers: say them once more, a little later."""
        self._say_at = Timestamp(now + (retry_after or ACK_AGAIN_S))
        said = [place for place in self._places.values() if place.said]
        for place in said:
            place.said = False
        self._unsaid += said

    def _conclude(self, place: Place, failure: AgentError | None) -> None:
        """It is over with this place; ``failure`` is why our answer did not count."""
        if place.entry.stage is Stage.ANSWERED and failure is None:
            place.entry.durable = True
        self.leave(place, failure)


def _pass_on(place: Place) -> None:
    """This home says the answer no more: another one that has the envelope does."""
    entry = place.entry
    if entry.teller is place:
        entry.teller = None
        if entry.stage is Stage.ANSWERED and entry.refuse_code is not None and entry.noted:
            for other in [one for one in entry.places if one is not place and not one.said]:
                other.home.say(other)
