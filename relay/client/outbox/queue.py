"""Envelopes that wait for a relay's answer (GUARANTEES.md S1-S3).

Entry point: :class:`Outbox`; the states are in :mod:`relay.client.outbox.submission`. Nothing here
awaits or signs; ``now`` is monotonic seconds. Invariants: the same bytes are submitted until the
answer is definite. Each submit is in flight on one channel, and only that channel can answer it.
Whatever makes a submission ready, now or later, wakes the channels. After a lost answer, a refusal
by a rule that the relay checks before the inbox is not definite: the first try may be stored.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from relay.client.errors import AgentError, make_error
from relay.client.outbox.status import CustodyTracker
from relay.client.outbox.submission import (
    Submission,
    SubmissionEvent,
    SubmissionState,
    sent_of,
    take_batch,
)
from relay.protocol import frames
from relay.protocol.backoff import doubling_pause_s
from relay.protocol.client_session import match
from relay.protocol.envelope import SignedEnvelope
from relay.protocol.errors import ERROR_CLASS, ErrorCode, Refusal, RelayError, UnavailableError
from relay.protocol.ids import Did, Timestamp
from relay.protocol.receipts import verify_receipt

MAX_IN_FLIGHT: Final = 1_024
ANSWER_S: Final = 20.0
"""A relay that answers pings but no submit for so long is left for another connection."""
MIN_RETRY_S: Final = 0.2
MAX_RETRY_S: Final = 5.0
DIRECT_AFTER_TRIES: Final = 2
"""A relay of the agent that keeps postponing does not keep direct delivery from trying."""

_RETRIED: Final = frozenset(
    {code for code, kind in ERROR_CLASS.items() if kind is UnavailableError} | {ErrorCode.INTERNAL}
)
FORWARD_REFUSALS: Final = frozenset({
    ErrorCode.NOT_FEDERATED, ErrorCode.NO_RELAYING, ErrorCode.MOVED, ErrorCode.PEER_UNREACHABLE,
    ErrorCode.UNKNOWN_INBOX,
})  # fmt: skip
"""Refusals that do not say what the recipient's own relay would answer."""
_CHECKED_BEFORE_DEDUP: Final = frozenset({ErrorCode.RATE_LIMITED, ErrorCode.OVERLOADED})


@dataclass(slots=True)
class _Flight:
    """One submit frame that is not answered yet."""

    at: Timestamp
    items: list[Submission]
    channel_id: str
    is_direct: bool = False


def _no_op() -> None:
    return


@dataclass(slots=True)
class Outbox:
    """The submissions of one agent, in the order in which the program made them.

    Args:
        custody: records each receipt.
        on_direct: called when there is work for direct delivery; None: there is no such delivery.
        wake: called when there is something to submit, now or later.
        ended: why the agent is over; None: it is not.
    """

    custody: CustodyTracker = field(default_factory=CustodyTracker)
    on_direct: Callable[[], None] | None = None
    wake: Callable[[], None] = _no_op
    ended: AgentError | None = None
    _count: int = 0
    _ready: deque[Submission] = field(default_factory=deque)
    _later: list[tuple[Timestamp, int, Submission]] = field(default_factory=list)
    _flights: dict[str, _Flight] = field(default_factory=dict)
    _in_flight: int = 0
    _for_direct: dict[Did, deque[Submission]] = field(default_factory=dict)

    # ------------------------------------------------------------ submit

    def add(self, envelope: SignedEnvelope, *, maybe_stored: bool = False) -> Submission:
        """Queue an envelope; its answer arrives through ``.answer``."""
        self._count += 1
        answer = asyncio.get_running_loop().create_future()
        submission = Submission(envelope, self._count, answer, maybe_stored)
        self._ready.append(submission)
        self.wake()
        return submission

    def next_submit(
        self, now: Timestamp, max_count: int = frames.MAX_ENVELOPES, *, channel_id: str = ""
    ) -> frames.Submit | None:
        """Return the next frame for a channel, if there is something to submit now.

        Args:
            now: monotonic seconds.
            max_count: envelopes in it.
            channel_id: the channel that sends it; only that one can answer it.
        """
        self._promote_due(now)
        room = min(max_count, frames.MAX_ENVELOPES, MAX_IN_FLIGHT - self._in_flight)
        batch = list(take_batch(self._ready, room))
        return self._dispatch(_Flight(now, batch, channel_id)) if batch else None

    def _promote_due(self, now: Timestamp) -> None:
        while self._later and self._later[0][0] <= now:
            submission = heapq.heappop(self._later)[2]
            submission.apply(SubmissionEvent.DUE)
            self._ready.append(submission)

    def _dispatch(self, flight: _Flight) -> frames.Submit:
        for item in flight.items:
            item.apply(SubmissionEvent.DISPATCH)
        self._count += 1
        ref = str(self._count)
        self._flights[ref] = flight
        self._in_flight += len(flight.items)
        return frames.Submit(ref, [item.envelope.wire for item in flight.items])

    def next_timer(self, channel_id: str = "", *, is_active: bool = True) -> Timestamp | None:
        """Return when :meth:`next_submit` or :meth:`check_answers` has work, monotonic seconds."""
        due = [self._later[0][0]] if self._later and is_active else []
        due += [Timestamp(flight.at + ANSWER_S) for flight in self._oldest(channel_id)]
        return min(due, default=None)

    def check_answers(self, now: Timestamp, channel_id: str = "") -> None:
        """Detect a relay that answers submits no more.

        Raises:
            UnavailableError: the oldest submit has waited for too long.
        """
        if any(flight.at + ANSWER_S <= now for flight in self._oldest(channel_id)):
            raise make_error(ErrorCode.PEER_UNREACHABLE, "the relay does not answer submits")

    def _oldest(self, channel_id: str) -> list[_Flight]:
        flights = (one for one in self._flights.values() if one.channel_id == channel_id)
        return list(islice(flights, 1))

    @property
    def is_waiting(self) -> bool:
        """True if there is something to submit, now or later."""
        return bool(self._ready or self._later)

    # ------------------------------------------------------------ direct delivery

    def route_all_direct(self, now: Timestamp) -> None:
        """Give direct delivery everything that is due: no relay of the agent is reachable."""
        self._promote_due(now)
        ready, self._ready = self._ready, deque()
        for submission in ready:
            if submission.direct_after > now:
                self._ready.append(submission)
            elif not submission.is_done:
                self._route_direct(submission, None, "")

    def _route_direct(
        self, submission: Submission, refusal: frames.Rejection | None, channel_id: str
    ) -> None:
        submission.apply(SubmissionEvent.ROUTE_DIRECT)
        submission.forward_refusal, submission.refused_by = refusal, channel_id
        self._for_direct.setdefault(submission.envelope.to, deque()).append(submission)

    def direct_recipients(self) -> list[Did]:
        """Return the recipients for whom direct delivery has work."""
        return list(self._for_direct)

    def take_direct(self, to: Did) -> list[Submission]:
        """Take what is for one recipient, as much as one submit holds; to be returned."""
        queue = self._for_direct.get(to, deque())
        batch = list(take_batch(queue, frames.MAX_ENVELOPES))
        if not queue:
            self._for_direct.pop(to, None)
        for submission in batch:
            submission.apply(SubmissionEvent.TAKE_DIRECT)
        return batch

    def submit_direct(
        self, items: list[Submission], now: Timestamp, channel_id: str
    ) -> frames.Submit:
        """Submit what was taken to a relay of the recipient."""
        return self._dispatch(_Flight(now, items, channel_id, is_direct=True))

    def unanswered(self, ref: str, *, maybe_stored: bool) -> None:
        """End a direct submit that has no answer; after the end of the agent it is gone already."""
        for submission in self._complete(ref) if ref in self._flights else ():
            submission.maybe_stored = submission.maybe_stored or maybe_stored
            submission.apply(SubmissionEvent.UNDECIDED)

    def return_direct(self, items: list[Submission], now: Timestamp, *, try_again: bool) -> None:
        """Take back what direct delivery could not place: refused after all, or tried again."""
        for submission in items:
            if self.ended is not None:
                submission.abort(self.ended)
            if submission.state is not SubmissionState.WITH_DIRECT:
                continue
            refusal = submission.forward_refusal
            if refusal is None:
                # a relay of the agent that is back gets it at once
                submission.direct_after = Timestamp(now + self._pause_s(submission))
                self._put_back([submission], SubmissionEvent.RETURN)
            elif try_again:
                self._postpone(submission, now, None)
            else:
                self._decide(submission, refusal, now)

    # ------------------------------------------------------------ answers

    def answered(
        self, frame: frames.Submitted, relay: Did, now: Timestamp, channel_id: str = ""
    ) -> None:
        """Process the answer of a channel to one or more submits.

        Raises:
            ProtocolError: it does not answer each envelope, or the receipt is not ``relay``'s.
        """
        receipt = verify_receipt(frame.receipt, relay) if frame.receipt is not None else None
        mine = {ref: one for ref, one in self._flights.items() if one.channel_id == channel_id}
        asked = {ref: [one.envelope.eid for one in flight.items] for ref, flight in mine.items()}
        outcomes = match(frame, receipt, asked)
        # nothing has changed so far: after a wrong answer everything is still in flight
        completed = [
            (item, ref, i) for ref in frame.refs for i, item in enumerate(self._complete(ref))
        ]
        for submission, ref, i in completed:
            outcome = outcomes[ref][i]
            if isinstance(outcome, frames.Rejection):
                self._refused(submission, outcome, now, channel_id)
            elif receipt is not None and frame.receipt is not None:
                sent = sent_of(submission.envelope, outcome, receipt, frame.receipt)
                self.custody.add_receipt(sent)
                submission.succeed(sent)

    def failed(self, ref: str, exc: RelayError, now: Timestamp, channel_id: str = "") -> bool:
        """Process an error for a whole submit; return False if the channel has no such submit."""
        if ref not in self._flights or self._flights[ref].channel_id != channel_id:
            return False
        stored = Refusal.of(exc).stored
        for i, submission in enumerate(self._complete(ref)):
            refusal = frames.Rejection(ref, i, exc.code, stored, exc.detail, exc.retry_after)
            self._refused(submission, refusal, now, channel_id)
        return True

    def _complete(self, ref: str) -> list[Submission]:
        """Remove a flight; its submissions get their next state from the caller."""
        flight = self._flights.pop(ref)
        self._in_flight -= len(flight.items)
        # there is room for submissions that waited until less was in flight
        self.wake()
        return flight.items

    def _refused(
        self, submission: Submission, refusal: frames.Rejection, now: Timestamp, channel_id: str
    ) -> None:
        submission.last = refusal
        submission.maybe_stored = submission.maybe_stored or refusal.stored == "unknown"
        if submission.is_done:
            return
        if self.on_direct is None or not _may_go_direct(submission, refusal):
            self._decide(submission, refusal, now)
        elif submission.state is SubmissionState.DIRECT_IN_FLIGHT:
            # direct delivery itself looks at the refusal
            submission.apply(SubmissionEvent.UNDECIDED)
        else:
            self._route_direct(submission, refusal, channel_id)
            self.on_direct()

    def _decide(self, submission: Submission, refusal: frames.Rejection, now: Timestamp) -> None:
        may_be_stored = submission.maybe_stored and refusal.error in _CHECKED_BEFORE_DEDUP
        if is_retried(refusal) or may_be_stored:
            self._postpone(submission, now, refusal.retry_after)
        else:
            submission.fail(submission.refusal_error(refusal))

    def _postpone(self, submission: Submission, now: Timestamp, retry_after: int | None) -> None:
        submission.apply(SubmissionEvent.POSTPONE)
        due = Timestamp(now + max(self._pause_s(submission), retry_after or 0))
        heapq.heappush(self._later, (due, submission.order, submission))
        self.wake()

    @staticmethod
    def _pause_s(submission: Submission) -> float:
        submission.tries += 1
        return doubling_pause_s(submission.tries - 1, MIN_RETRY_S, MAX_RETRY_S)

    # ------------------------------------------------------------ ends

    def lost(self, channel_id: str = "", *, maybe_stored: bool = True) -> None:
        """Queue what was in flight on a lost connection again, in the old order."""
        items: list[Submission] = []
        for ref in [ref for ref, one in self._flights.items() if one.channel_id == channel_id]:
            items += self._complete(ref)
        for item in items:
            item.maybe_stored = item.maybe_stored or maybe_stored
        self._put_back(items, SubmissionEvent.UNDECIDED)

    def _put_back(self, items: list[Submission], event: SubmissionEvent) -> None:
        for item in items:
            item.apply(event)
        self._ready = deque(sorted([*items, *self._ready], key=lambda item: item.order))
        self.wake()

    def end(self, ended: AgentError) -> None:
        """Abort everything: no relay will be asked again."""
        self.ended = ended
        left = [item for ref in list(self._flights) for item in self._complete(ref)]
        for item in left:
            item.maybe_stored = True
        left += [*self._ready, *(item for _, _, item in self._later)]
        left += [item for queue in self._for_direct.values() for item in queue]
        for submission in left:
            submission.abort(ended)
        self._ready.clear()
        self._later.clear()
        self._for_direct.clear()


def is_retried(refusal: frames.Rejection) -> bool:
    """Return whether a refusal is only for now."""
    return refusal.error in _RETRIED


def _may_go_direct(submission: Submission, refusal: frames.Rejection) -> bool:
    """Return whether another relay may store it despite the refusal."""
    is_direct = submission.state is SubmissionState.DIRECT_IN_FLIGHT
    is_tried = is_direct or submission.tries >= DIRECT_AFTER_TRIES
    return refusal.error in FORWARD_REFUSALS or (is_retried(refusal) and is_tried)
