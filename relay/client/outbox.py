"""Envelopes that wait for a relay's answer (GUARANTEES.md S1-S3).

Rules of the file: nothing here awaits or signs; ``now`` is monotonic seconds. The same bytes are
submitted until the answer is definite. Once an answer was lost or unknown, a later "no" of a rule
that is asked before the inbox cannot tell whether the first try was stored, so it is not definite.

::

    ready ──next_submit──▶ in flight ──submitted──▶ receipt or refusal: the waiting task has it
      ▲                       │   └──refused for a while──▶ later ──due──▶ ready
      └──────────lost─────────┘
"""

from __future__ import annotations

import asyncio
import heapq
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from relay.client.errors import AgentError, OutcomeUnknownError, again, typed
from relay.client.message import Sent
from relay.core.envelope import SignedEnvelope
from relay.core.errors import (
    ERROR_CLASS,
    ErrorCode,
    ProtocolError,
    Refusal,
    RelayError,
    UnavailableError,
)
from relay.core.frames import MAX_ENVELOPES, Rejection, Submit, Submitted
from relay.core.ids import Did, Eid, Timestamp
from relay.core.receipts import Receipt, ReceiptItem, verify_receipt

MAX_FRAME_WIRE: Final = 1_500_000
"""Wire bytes of the envelopes of one submit: well below the 2 MiB of a frame."""
MAX_IN_FLIGHT: Final = 1_024
ANSWER_S: Final = 20.0
"""A relay that answers pings but no submit for so long is left for another connection."""
REMEMBERED: Final = 4_096
FIRST_RETRY_S: Final = 0.2
LONGEST_RETRY_S: Final = 5.0

_RETRIED: Final = frozenset(
    {code for code, kind in ERROR_CLASS.items() if kind is UnavailableError} | {ErrorCode.INTERNAL}
)
_ASKED_BEFORE_DEDUPE: Final = frozenset({ErrorCode.RATE_LIMITED, ErrorCode.OVERLOADED})


@dataclass(slots=True, eq=False)
class Waiting:
    """One envelope and the task that waits for its receipt.

    ``cut_short``: the agent ended before a relay's answer.
    """

    envelope: SignedEnvelope
    order: int
    answer: asyncio.Future[Sent]
    tries: int = 0
    maybe_stored: bool = False
    in_flight: bool = False
    cut_short: bool = False
    last: Rejection | None = None

    @property
    def is_unknown(self) -> bool:
        """Whether it may be stored although there is no receipt."""
        return self.maybe_stored or self.in_flight

    def verdict(self) -> AgentError:
        """The error of one whose deadline has passed."""
        unknown = self.is_unknown
        code = self.last.error if self.last else ErrorCode.PEER_UNREACHABLE
        detail = self.last.detail if self.last else "no relay answered in time"
        if not unknown:
            return typed(code, detail, stored="no", envelope=self.envelope)
        exc = OutcomeUnknownError(code, detail or "no answer in time; it may be stored")
        exc.stored, exc.envelope = "unknown", self.envelope
        return exc


@dataclass(slots=True)
class _Flight:
    """One submit frame on its way."""

    at: Timestamp
    items: list[Waiting]


@dataclass(slots=True)
class Outbox:
    """What this agent wants to have kept, in the order in which it was given."""

    _count: int = 0
    _ready: deque[Waiting] = field(default_factory=deque)
    _later: list[tuple[Timestamp, int, Waiting]] = field(default_factory=list)
    _flights: dict[str, _Flight] = field(default_factory=dict)
    _in_flight: int = 0
    _receipts: OrderedDict[Eid, Did] = field(default_factory=OrderedDict)

    # ------------------------------------------------------------ in and out

    def add(self, envelope: SignedEnvelope, *, maybe_stored: bool = False) -> Waiting:
        """Take an envelope; its answer comes through ``.answer``."""
        self._count += 1
        waiting = Waiting(envelope, self._count, asyncio.get_running_loop().create_future())
        waiting.maybe_stored = maybe_stored
        self._ready.append(waiting)
        return waiting

    def forget(self, waiting: Waiting) -> None:
        """Nobody waits any more: it is not submitted again."""
        if not waiting.answer.cancel() and not waiting.answer.cancelled():
            waiting.answer.exception()

    def next_submit(self, now: Timestamp, most: int = MAX_ENVELOPES) -> Submit | None:
        """The next frame, at most ``most`` envelopes, if anything may be submitted now."""
        while self._later and self._later[0][0] <= now:
            self._ready.append(heapq.heappop(self._later)[2])
        batch = list(self._take(min(most, MAX_ENVELOPES, MAX_IN_FLIGHT - self._in_flight)))
        if not batch:
            return None
        for item in batch:
            item.in_flight = True
        self._count += 1
        ref = str(self._count)
        self._flights[ref] = _Flight(now, batch)
        self._in_flight += len(batch)
        return Submit(ref, [item.envelope.wire for item in batch])

    def _take(self, most: int) -> Iterator[Waiting]:
        taken = size = 0
        while self._ready and taken < most:
            first = self._ready[0]
            if first.answer.done():
                self._ready.popleft()
                continue
            size += len(first.envelope.wire)
            if taken and size > MAX_FRAME_WIRE:
                return
            taken += 1
            yield self._ready.popleft()

    def next_timer(self) -> Timestamp | None:
        """When :meth:`next_submit` or :meth:`check_answers` has work, monotonic seconds."""
        due = [self._later[0][0]] if self._later else []
        due += [Timestamp(flight.at + ANSWER_S) for flight in self._oldest()]
        return min(due, default=None)

    def check_answers(self, now: Timestamp) -> None:
        """Notice a relay that no longer answers submits.

        Raises:
            UnavailableError: the oldest submit has waited for too long.
        """
        if any(flight.at + ANSWER_S <= now for flight in self._oldest()):
            raise typed(ErrorCode.PEER_UNREACHABLE, "the relay does not answer submits")

    def _oldest(self) -> list[_Flight]:
        return [next(iter(self._flights.values()))] if self._flights else []

    # ------------------------------------------------------------ answers

    def answered(self, frame: Submitted, relay: Did, now: Timestamp) -> None:
        """Take the answer to one or more submits.

        Raises:
            ProtocolError: it does not answer them item by item, or its receipt is not ``relay``'s.
        """
        receipt = verify_receipt(frame.receipt, relay) if frame.receipt is not None else None
        outcomes = self._match(frame, receipt)
        # nothing has changed so far: after a wrong answer all of it is still in flight
        for ref in frame.refs:
            self._land(ref)
        for waiting, outcome in outcomes:
            if isinstance(outcome, Rejection):
                self._refused(waiting, outcome, now)
            elif receipt is not None and frame.receipt is not None:
                self._receipted(waiting, sent_of(waiting.envelope, outcome, receipt, frame.receipt))

    def _match(
        self, frame: Submitted, receipt: Receipt | None
    ) -> list[tuple[Waiting, Rejection | ReceiptItem]]:
        """Give each submitted envelope its refusal, else the next item of the receipt."""
        rejected = {(item.ref, item.i): item for item in frame.rejected}
        left = iter(receipt.items if receipt else ())
        outcomes: list[tuple[Waiting, Rejection | ReceiptItem]] = []
        for ref in frame.refs:
            flight = self._flights.get(ref)
            for i, waiting in enumerate(flight.items if flight else ()):
                outcome = rejected.pop((ref, i), None) or next(left, None)
                is_wrong = isinstance(outcome, ReceiptItem) and outcome.eid != waiting.envelope.eid
                if outcome is None or is_wrong:
                    raise ProtocolError(ErrorCode.BAD_FRAME, "the receipt is of something else")
                outcomes.append((waiting, outcome))
        unknown = [ref for ref in frame.refs if ref not in self._flights]
        if unknown or rejected or next(left, None) or len({*frame.refs}) < len(frame.refs):
            raise ProtocolError(ErrorCode.BAD_FRAME, "an answer to what was not asked")
        return outcomes

    def _land(self, ref: str) -> list[Waiting]:
        flight = self._flights.pop(ref)
        self._in_flight -= len(flight.items)
        for item in flight.items:
            item.in_flight = False
        return flight.items

    def _receipted(self, waiting: Waiting, sent: Sent) -> None:
        self._receipts[sent.eid] = sent.relay
        while len(self._receipts) > REMEMBERED:
            self._receipts.popitem(last=False)
        if not waiting.answer.done():
            waiting.answer.set_result(sent)

    def _refused(self, waiting: Waiting, no: Rejection, now: Timestamp) -> None:
        waiting.last = no
        waiting.maybe_stored = waiting.maybe_stored or no.stored == "unknown"
        if waiting.answer.done():
            return
        not_definite = waiting.maybe_stored and no.error in _ASKED_BEFORE_DEDUPE
        if no.error not in _RETRIED and not not_definite:
            waiting.answer.set_exception(refusal_of(waiting, no))
            return
        pause = min(FIRST_RETRY_S * 2**waiting.tries, LONGEST_RETRY_S)
        waiting.tries += 1
        due = Timestamp(now + max(pause, no.retry_after or 0))
        heapq.heappush(self._later, (due, waiting.order, waiting))

    def failed(self, ref: str, exc: RelayError, now: Timestamp) -> bool:
        """A whole submit was answered by an error; False if ``ref`` is none of ours."""
        if ref not in self._flights:
            return False
        stored = Refusal.of(exc).stored
        for i, waiting in enumerate(self._land(ref)):
            no = Rejection(ref, i, exc.code, stored, exc.detail, exc.retry_after)
            self._refused(waiting, no, now)
        return True

    # ------------------------------------------------------------ ends

    def lost(self) -> None:
        """The connection is gone: what was in flight is submitted again, in the old order."""
        flying = [item for flight in self._flights.values() for item in flight.items]
        for item in flying:
            item.in_flight, item.maybe_stored = False, True
        self._flights.clear()
        self._in_flight = 0
        self._ready = deque(sorted([*flying, *self._ready], key=lambda item: item.order))

    def end(self, exc: AgentError) -> None:
        """No relay will be asked again."""
        self.lost()
        left = [*self._ready, *(item for _, _, item in self._later)]
        for waiting in left:
            if not waiting.answer.done():
                failure = again(exc)
                failure.stored = "unknown" if waiting.maybe_stored else "no"
                failure.envelope = waiting.envelope
                waiting.cut_short = True
                waiting.answer.set_exception(failure)
        self._ready.clear()
        self._later.clear()

    def receipted_by(self, eid: Eid) -> Did | None:
        """Which relay gave a receipt for an envelope of ours, as far as it is remembered."""
        return self._receipts.get(eid)


def refusal_of(waiting: Waiting, no: Rejection) -> AgentError:
    """The error of a definite no."""
    return typed(
        no.error,
        no.detail,
        retry_after=no.retry_after,
        stored="unknown" if waiting.maybe_stored else no.stored,
        envelope=waiting.envelope,
        record=no.record,
    )


def sent_of(envelope: SignedEnvelope, item: ReceiptItem, receipt: Receipt, compact: str) -> Sent:
    """What the program gets of a receipt."""
    return Sent(
        eid=envelope.eid,
        id=envelope.id,
        to=envelope.to,
        relay=receipt.relay,
        at=receipt.at,
        durability=receipt.durability,
        custody=item.custody,
        expires_at=envelope.expires_at,
        dup=item.dup,
        receipt=compact,
    )
