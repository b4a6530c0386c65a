"""One envelope on its way from a ``send`` to a definite answer: its states, and its errors.

Events that belong to no state are bugs and raise. Final states absorb every event: a relay may
answer when nobody waits any more. Example: a relay refuses to forward an envelope, and the
recipient's own relay stores it: ``queued --dispatch--> in_flight --route_direct--> for_direct
--take_direct--> with_direct --dispatch--> direct_in_flight --answer--> answered``.

::

    queued ──dispatch──▶ in_flight ──answer──▶ answered      (each state: ──abort──▶ aborted,
      ▲ ▲                 │ │  └──postpone──▶ waiting                  ──forget──▶ forgotten)
      │ └────undecided────┘ │                  │ due
      ├─────────────────────┼──────────────────┘
      │                     └──route_direct──▶ for_direct (also from queued)
      │ return                                   │ take_direct
      └───────────────────────────────────── with_direct ──postpone──▶ waiting
                                               │ dispatch  ▲ undecided
                                               └──▶ direct_in_flight ──answer──▶ answered
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from relay import clock
from relay.client.errors import AgentError, OutcomeUnknownError, clone, make_error
from relay.client.message import Sent
from relay.protocol.envelope import SignedEnvelope
from relay.protocol.errors import ErrorCode
from relay.protocol.frames import Rejection
from relay.protocol.ids import Timestamp
from relay.protocol.receipts import Receipt, ReceiptItem

MAX_SUBMIT_BYTES: Final = 1_500_000
"""Wire bytes of the envelopes of one submit: well below the 2 MiB of a frame."""


class SubmissionState(StrEnum):
    """The place of a submission."""

    QUEUED = "queued"  # ready for the next submit to a relay of the agent
    IN_FLIGHT = "in_flight"  # in a submit to a relay of the agent
    WAITING = "waiting"  # refused for now; queued again once its pause is over
    FOR_DIRECT = "for_direct"  # for direct delivery, which has not taken it yet
    WITH_DIRECT = "with_direct"  # taken by direct delivery, not submitted there yet
    DIRECT_IN_FLIGHT = "direct_in_flight"  # in a submit to a relay of the recipient
    ANSWERED = "answered"  # stored, definitely refused, or expired
    ABORTED = "aborted"  # the agent ended before a definite answer
    FORGOTTEN = "forgotten"  # nobody waits for it any more: it is not submitted again


class SubmissionEvent(StrEnum):
    """The reasons for a change of state."""

    DISPATCH = "dispatch"  # a submit takes it
    UNDECIDED = "undecided"  # the submit has no answer, or none that decides about direct delivery
    POSTPONE = "postpone"  # a relay refuses it for now
    DUE = "due"  # its pause is over
    ROUTE_DIRECT = "route_direct"  # no relay of the agent forwards it, or none is reachable
    TAKE_DIRECT = "take_direct"  # direct delivery begins with its recipient
    RETURN = "return"  # direct delivery has failed, and no relay of the agent has refused it
    ANSWER = "answer"  # a receipt or a definite refusal arrives, or its lifetime ends
    ABORT = "abort"  # the agent ends
    FORGET = "forget"  # nobody waits any more


S, E = SubmissionState, SubmissionEvent
_ENDS: Final = {E.ANSWER: S.ANSWERED, E.ABORT: S.ABORTED, E.FORGET: S.FORGOTTEN}
FINAL: Final = frozenset(_ENDS.values())
TRANSITIONS: Final[dict[SubmissionState, dict[SubmissionEvent, SubmissionState]]] = {
    S.QUEUED: {E.DISPATCH: S.IN_FLIGHT, E.ROUTE_DIRECT: S.FOR_DIRECT, **_ENDS},
    S.IN_FLIGHT: {
        E.UNDECIDED: S.QUEUED, E.POSTPONE: S.WAITING, E.ROUTE_DIRECT: S.FOR_DIRECT, **_ENDS,
    },
    S.WAITING: {E.DUE: S.QUEUED, **_ENDS},
    S.FOR_DIRECT: {E.TAKE_DIRECT: S.WITH_DIRECT, **_ENDS},
    S.WITH_DIRECT: {
        E.DISPATCH: S.DIRECT_IN_FLIGHT, E.RETURN: S.QUEUED, E.POSTPONE: S.WAITING, **_ENDS,
    },
    S.DIRECT_IN_FLIGHT: {E.UNDECIDED: S.WITH_DIRECT, E.POSTPONE: S.WAITING, **_ENDS},
}  # fmt: skip


def next_state(state: SubmissionState, event: SubmissionEvent) -> SubmissionState:
    """Return the state after ``event``.

    Raises:
        RuntimeError: the event cannot happen in that state, so there is a bug.
    """
    if state in FINAL:
        return state
    after = TRANSITIONS[state].get(event)
    if after is None:
        raise RuntimeError(f"a submission that is {state} cannot {event}")
    return after


@dataclass(slots=True, eq=False)
class Submission:
    """One envelope and the task that waits for its receipt.

    Args:
        envelope: what is submitted, always the same bytes.
        order: its position in the outbox.
        answer: the receipt or the error, for the task that waits.
        maybe_stored: a relay may have stored it, without a receipt that arrived.
        tries: how often it was postponed.
        last: the latest refusal.
        forward_refusal: the refusal for which it went to direct delivery.
        refused_by: the channel of that refusal.
        direct_after: without a connected relay, direct delivery takes it no earlier.
    """

    envelope: SignedEnvelope
    order: int
    answer: asyncio.Future[Sent]
    maybe_stored: bool = False
    state: SubmissionState = SubmissionState.QUEUED
    tries: int = 0
    last: Rejection | None = None
    forward_refusal: Rejection | None = None
    refused_by: str = ""
    direct_after: Timestamp = Timestamp(0)

    def apply(self, event: SubmissionEvent) -> None:
        """Go to the next state."""
        self.state = next_state(self.state, event)

    @property
    def is_done(self) -> bool:
        """True in a final state."""
        return self.state in FINAL

    @property
    def in_flight(self) -> bool:
        """True while a relay has to answer a submit with it."""
        return self.state in {S.IN_FLIGHT, S.DIRECT_IN_FLIGHT}

    @property
    def is_unknown(self) -> bool:
        """True if it may be stored although there is no receipt."""
        return self.maybe_stored or self.in_flight

    def succeed(self, sent: Sent) -> None:
        """End with a receipt."""
        if not self.is_done:
            self.apply(E.ANSWER)
            self.answer.set_result(sent)

    def fail(self, failure: AgentError) -> None:
        """End with a definite error."""
        if not self.is_done:
            self.apply(E.ANSWER)
            self.answer.set_exception(failure)

    def abort(self, ended: AgentError) -> None:
        """End with the agent; the error tells what is known of the envelope."""
        if not self.is_done:
            self.apply(E.ABORT)
            failure = clone(ended)
            failure.stored = "unknown" if self.maybe_stored else "no"
            failure.envelope = self.envelope
            self.answer.set_exception(failure)

    def forget(self) -> None:
        """End without an answer; an answer that is there counts as seen."""
        self.apply(E.FORGET)
        if not self.answer.cancel() and not self.answer.cancelled():
            self.answer.exception()

    def timeout_error(self, failure: AgentError | None = None) -> AgentError:
        """Return the error after the deadline.

        Args:
            failure: why no relay could be reached the last time.
        """
        code, detail = ErrorCode.PEER_UNREACHABLE, "no relay answered in time"
        if self.last is not None:
            code, detail = self.last.error, self.last.detail or detail
        elif failure is not None:
            is_same = failure.code is code
            detail = failure.detail if is_same and failure.detail else f"{detail}; {failure}"
        if not self.is_unknown:
            return make_error(code, detail, stored="no", envelope=self.envelope)
        exc = OutcomeUnknownError(code, detail)
        exc.stored, exc.envelope = "unknown", self.envelope
        return exc

    def refusal_error(self, refusal: Rejection) -> AgentError:
        """Return the error for a definite refusal."""
        detail = refusal.detail
        if refusal.error is ErrorCode.EXPIRED and clock.now() < self.envelope.expires_at:
            detail += "; by this machine's clock it has not: one of the two clocks is wrong"
        return make_error(
            refusal.error,
            detail,
            retry_after=refusal.retry_after,
            stored="unknown" if self.maybe_stored else refusal.stored,
            envelope=self.envelope,
            record=refusal.record,
        )


def take_batch(queue: deque[Submission], max_count: int) -> Iterator[Submission]:
    """Take as many as one submit holds; skip those that are done."""
    taken = size = 0
    while queue and taken < max_count:
        first = queue[0]
        if first.is_done:
            queue.popleft()
            continue
        size += len(first.envelope.wire)
        if taken and size > MAX_SUBMIT_BYTES:
            return
        taken += 1
        yield queue.popleft()


def sent_of(envelope: SignedEnvelope, item: ReceiptItem, receipt: Receipt, compact: str) -> Sent:
    """Return the result of ``send`` for an envelope of a verified receipt."""
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
