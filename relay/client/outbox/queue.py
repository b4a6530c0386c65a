"""Envelopes that wait for a relay's answer (GUARANTEES.md S1-S3).

Rules of the file: nothing here awaits or signs; ``now`` is monotonic seconds. Whatever makes
something ready, now or later, wakes who submits. The same bytes are submitted until the answer is
definite. Once an answer was lost or unknown, a later "no" of a rule
that is asked before the inbox cannot tell whether the first try was stored, so it is not definite.
Each submit is in flight on one line, and only that line can answer it. Where a relay does not carry
an envelope on, it strays: held for a detour to the recipient's own home, and released after it.

::

    ready ──next_submit──▶ in flight ──submitted──▶ receipt or refusal: the waiting task has it
      ▲                      │ │ └──refused for a while──▶ later ──due──▶ ready
      ├─────────lost─────────┘ └──not carried on──▶ stray ──submit_direct──▶ in flight
      └──────────────────────────────release───────────┘
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from relay.client.errors import AgentError, again, typed
from relay.client.message import Sent
from relay.client.outbox.custody import Custody
from relay.client.outbox.submission import (
    Waiting,
    refusal_of,
    sent_of,
    take,
)
from relay.protocol import frames
from relay.protocol.backoff import doubling_pause_s
from relay.protocol.envelope import SignedEnvelope
from relay.protocol.errors import (
    ERROR_CLASS,
    ErrorCode,
    Refusal,
    RelayError,
    UnavailableError,
)
from relay.protocol.ids import (
    Did,
    Timestamp,
)
from relay.protocol.receipts import verify_receipt
from relay.protocol.submit_results import match

MAX_IN_FLIGHT: Final = 1_024
ANSWER_S: Final = 20.0
"""A relay that answers pings but no submit for so long is left for another connection."""
FIRST_RETRY_S: Final = 0.2
LONGEST_RETRY_S: Final = 5.0

_RETRIED: Final = frozenset(
    {code for code, kind in ERROR_CLASS.items() if kind is UnavailableError} | {ErrorCode.INTERNAL}
)
NOT_CARRIED: Final = frozenset({
    ErrorCode.NOT_FEDERATED, ErrorCode.NO_RELAYING, ErrorCode.MOVED, ErrorCode.PEER_UNREACHABLE,
    ErrorCode.UNKNOWN_INBOX,
})  # fmt: skip
"""Refusals that say nothing of the recipient's own home."""
PATIENT_TRIES: Final = 2
"""A relay of ours that says so often that it cannot now does not keep others from being asked."""
_ASKED_BEFORE_DEDUPE: Final = frozenset({ErrorCode.RATE_LIMITED, ErrorCode.OVERLOADED})


@dataclass(slots=True)
class _Flight:
    """One submit frame on its way."""

    at: Timestamp
    items: list[Waiting]
    line: str
    is_direct: bool = False


def _nobody() -> None:
    return


@dataclass(slots=True)
class Outbox:
    """What this agent wants to have kept, in the order in which it was given.

    Args:
        custody: learns of each receipt.
        strayed: called when there are strays; None: there are none, each refusal is what it is.
        wake: called when there is something to submit, now or later.
    """

    custody: Custody = field(default_factory=Custody)
    strayed: Callable[[], None] | None = None
    wake: Callable[[], None] = _nobody
    _count: int = 0
    _ready: deque[Waiting] = field(default_factory=deque)
    _later: list[tuple[Timestamp, int, Waiting]] = field(default_factory=list)
    _flights: dict[str, _Flight] = field(default_factory=dict)
    _in_flight: int = 0
    _strays: dict[Did, deque[Waiting]] = field(default_factory=dict)

    # ------------------------------------------------------------ in and out

    def add(self, envelope: SignedEnvelope, *, maybe_stored: bool = False) -> Waiting:
        """Take an envelope; its answer comes through ``.answer``."""
        self._count += 1
        waiting = Waiting(envelope, self._count, asyncio.get_running_loop().create_future())
        waiting.maybe_stored = maybe_stored
        self._ready.append(waiting)
        self.wake()
        return waiting

    def forget(self, waiting: Waiting) -> None:
        """Nobody waits any more: it is not submitted again."""
        if not waiting.answer.cancel() and not waiting.answer.cancelled():
            waiting.answer.exception()

    def next_submit(
        self, now: Timestamp, most: int = frames.MAX_ENVELOPES, *, line: str = ""
    ) -> frames.Submit | None:
        """The next frame for ``line``, if anything may be submitted now.

        Args:
            now: monotonic seconds.
            most: envelopes in it.
            line: who is asked, and alone may answer.
        """
        self._ripen(now)
        batch = list(
            take(self._ready, min(most, frames.MAX_ENVELOPES, MAX_IN_FLIGHT - self._in_flight))
        )
        return self._fly(_Flight(now, batch, line)) if batch else None

    def _ripen(self, now: Timestamp) -> None:
        while self._later and self._later[0][0] <= now:
            self._ready.append(heapq.heappop(self._later)[2])

    def _fly(self, flight: _Flight) -> frames.Submit:
        for item in flight.items:
            item.in_flight = True
        self._count += 1
        ref = str(self._count)
        self._flights[ref] = flight
        self._in_flight += len(flight.items)
        return frames.Submit(ref, [item.envelope.wire for item in flight.items])

    def next_timer(self, line: str = "", *, sends: bool = True) -> Timestamp | None:
        """When :meth:`next_submit` or :meth:`check_answers` has work, monotonic seconds."""
        due = [self._later[0][0]] if self._later and sends else []
        due += [Timestamp(flight.at + ANSWER_S) for flight in self._oldest(line)]
        return min(due, default=None)

    def check_answers(self, now: Timestamp, line: str = "") -> None:
        """Notice a relay that no longer answers submits.

        Raises:
            UnavailableError: the oldest submit has waited for too long.
        """
        if any(flight.at + ANSWER_S <= now for flight in self._oldest(line)):
            raise typed(ErrorCode.PEER_UNREACHABLE, "the relay does not answer submits")

    def _oldest(self, line: str) -> list[_Flight]:
        return list(islice((one for one in self._flights.values() if one.line == line), 1))

    # ------------------------------------------------------------ strays

    def stray_all(self, now: Timestamp) -> None:
        """No relay of ours can be reached: all that may be submitted strays."""
        self._ripen(now)
        due = [one for one in self._ready if one.astray_at <= now and not one.answer.done()]
        for waiting in due:
            self._stray(waiting, None, "")
        self._ready = deque(one for one in self._ready if one.astray_at > now)

    def _stray(self, waiting: Waiting, no: frames.Rejection | None, at: str) -> None:
        waiting.not_carried, waiting.at = no, at
        self._strays.setdefault(waiting.envelope.to, deque()).append(waiting)

    def strays(self) -> list[Did]:
        """Recipients for whom something strays."""
        return list(self._strays)

    def hold_strays(self, to: Did) -> list[Waiting]:
        """Take what strays for ``to``, as much as one submit holds; to be released."""
        queue = self._strays.get(to, deque())
        batch = list(take(queue, frames.MAX_ENVELOPES))
        if not queue:
            self._strays.pop(to, None)
        for waiting in batch:
            waiting.held = True
        return batch

    def submit_direct(self, items: list[Waiting], now: Timestamp, line: str) -> frames.Submit:
        """A submit of held strays to another relay than ours; answered, failed or landed."""
        return self._fly(_Flight(now, items, line, is_direct=True))

    @property
    def is_waiting(self) -> bool:
        """Whether something is to be submitted, now or later."""
        return bool(self._ready or self._later)

    def land(self, ref: str, *, maybe_stored: bool) -> None:
        """There is no answer to a direct submit; after the end there is nothing to land."""
        for waiting in self._land(ref) if ref in self._flights else ():
            waiting.maybe_stored = waiting.maybe_stored or maybe_stored

    def release(self, items: list[Waiting], now: Timestamp, *, try_again: bool) -> None:
        """The detour is over: what has no answer is refused after all, or tried again later."""
        for waiting in items:
            if waiting.held and not waiting.answer.done():
                no, waiting.held = waiting.not_carried, False
                if no is None:
                    # our own relay, should it come back, is not kept waiting
                    waiting.astray_at = Timestamp(now + self._pause(waiting))
                    self._put_back([waiting])
                elif try_again:
                    self._postpone(waiting, now, None)
                else:
                    self._decide(waiting, no, now)

    # ------------------------------------------------------------ answers

    def answered(self, frame: frames.Submitted, relay: Did, now: Timestamp, line: str = "") -> None:
        """Take the answer of ``line`` to one or more submits.

        Raises:
            ProtocolError: it does not answer them item by item, or its receipt is not ``relay``'s.
        """
        receipt = verify_receipt(frame.receipt, relay) if frame.receipt is not None else None
        mine = {ref: one for ref, one in self._flights.items() if one.line == line}
        asked = {ref: [one.envelope.eid for one in flight.items] for ref, flight in mine.items()}
        outcomes = match(frame, receipt, asked)
        # nothing has changed so far: after a wrong answer all of it is still in flight
        landed = [
            (waiting, ref, i) for ref in frame.refs for i, waiting in enumerate(self._land(ref))
        ]
        for waiting, ref, i in landed:
            outcome = outcomes[ref][i]
            if isinstance(outcome, frames.Rejection):
                self._refused(waiting, outcome, now, line)
            elif receipt is not None and frame.receipt is not None:
                self._receipted(waiting, sent_of(waiting.envelope, outcome, receipt, frame.receipt))

    def _land(self, ref: str) -> list[Waiting]:
        flight = self._flights.pop(ref)
        self._in_flight -= len(flight.items)
        for item in flight.items:
            item.in_flight = False
        # there is room for what waited until less was in flight
        self.wake()
        return flight.items

    def _receipted(self, waiting: Waiting, sent: Sent) -> None:
        self.custody.note(sent)
        waiting.held = False
        if not waiting.answer.done():
            waiting.answer.set_result(sent)

    def _refused(self, waiting: Waiting, no: frames.Rejection, now: Timestamp, at: str) -> None:
        waiting.last = no
        waiting.maybe_stored = waiting.maybe_stored or no.stored == "unknown"
        if waiting.answer.done():
            return
        if self.strayed is not None and _is_astray(waiting, no):
            # one that is held already is the detour's: it looks at what was said
            if not waiting.held:
                self._stray(waiting, no, at)
                self.strayed()
            return
        waiting.held = False
        self._decide(waiting, no, now)

    def _decide(self, waiting: Waiting, no: frames.Rejection, now: Timestamp) -> None:
        not_definite = waiting.maybe_stored and no.error in _ASKED_BEFORE_DEDUPE
        if no.error in _RETRIED or not_definite:
            self._postpone(waiting, now, no.retry_after)
        else:
            waiting.answer.set_exception(refusal_of(waiting, no))

    def _postpone(self, waiting: Waiting, now: Timestamp, retry_after: int | None) -> None:
        due = Timestamp(now + max(self._pause(waiting), retry_after or 0))
        heapq.heappush(self._later, (due, waiting.order, waiting))
        self.wake()

    @staticmethod
    def _pause(waiting: Waiting) -> float:
        waiting.tries += 1
        return doubling_pause_s(waiting.tries - 1, FIRST_RETRY_S, LONGEST_RETRY_S)

    def failed(self, ref: str, exc: RelayError, now: Timestamp, line: str = "") -> bool:
        """A whole submit was answered by an error; False if ``line`` has no such one."""
        if ref not in self._flights or self._flights[ref].line != line:
            return False
        stored = Refusal.of(exc).stored
        for i, waiting in enumerate(self._land(ref)):
            no = frames.Rejection(ref, i, exc.code, stored, exc.detail, exc.retry_after)
            self._refused(waiting, no, now, line)
        return True

    # ------------------------------------------------------------ ends

    def lost(self, line: str = "") -> None:
        """The connection is gone: what was in flight is submitted again, in the old order."""
        flying: list[Waiting] = []
        for ref in [ref for ref, flight in self._flights.items() if flight.line == line]:
            flying += self._land(ref)
        for item in flying:
            item.maybe_stored = True
        self._put_back(flying)

    def _put_back(self, items: list[Waiting]) -> None:
        self._ready = deque(sorted([*items, *self._ready], key=lambda item: item.order))
        self.wake()

    def end(self, exc: AgentError) -> None:
        """No relay will be asked again."""
        left = [item for ref in list(self._flights) for item in self._land(ref)]
        for item in left:
            item.maybe_stored = True
        left += [*self._ready, *(item for _, _, item in self._later)]
        left += [item for queue in self._strays.values() for item in queue]
        for waiting in left:
            self._cut(waiting, exc)
        self._ready.clear()
        self._later.clear()
        self._strays.clear()

    def cut(self, items: list[Waiting], exc: AgentError) -> None:
        """As :meth:`end`, for those that a detour holds."""
        for waiting in items:
            self._cut(waiting, exc)

    def _cut(self, waiting: Waiting, exc: AgentError) -> None:
        if not waiting.answer.done():
            failure = again(exc)
            failure.stored = "unknown" if waiting.maybe_stored else "no"
            failure.envelope = waiting.envelope
            waiting.cut_short = True
            waiting.answer.set_exception(failure)


def is_passing(no: frames.Rejection) -> bool:
    """Whether it says only that it cannot be done now."""
    return no.error in _RETRIED


def _is_astray(waiting: Waiting, no: frames.Rejection) -> bool:
    """Whether what a relay says keeps no other one from taking it."""
    is_tried = waiting.held or waiting.tries >= PATIENT_TRIES
    return no.error in NOT_CARRIED or (is_passing(no) and is_tried)
