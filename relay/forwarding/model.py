"""The mail in the hands of one forwarder, and what a relay's answer means (GUARANTEES.md S1, §4).

Nothing here awaits. Custody ends only by the other relay's signed receipt, a permanent refusal, or
expiry. One batch of an inbox is in flight at a time, so its order stays. An envelope that may have
reached one relay and goes to another is flagged as redelivered.

::

    added ──▶ ready ──next_batch──▶ in flight ──receipt──▶ forwarded (acked here)
                ▲                      │  └──permanent refusal──▶ refused (one bounce)
                └── no answer, later ──┘

Example, with two envelopes of different senders::

    add(1, 2); next_batch()         1 and 2 are in flight
    on_answer(receipt for 1, rate_limited for 2)
                                    ForwardResult(forwarded=(1,), wait_s=...)
    next_batch()                    2 again, after the pause
    on_no_answer(relay)             the relay may have 2: another relay gets it flagged
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Final, NamedTuple

from relay.protocol import frames
from relay.protocol.backoff import doubling_pause_s
from relay.protocol.envelope import signer_of
from relay.protocol.errors import ErrorCode, Refusal
from relay.protocol.ids import Did, Seq
from relay.protocol.receipts import Durability, Receipt, ReceiptItem

PERMANENT: Final = frozenset({
    ErrorCode.BAD_ENVELOPE, ErrorCode.BAD_SIGNATURE, ErrorCode.REPLAYED, ErrorCode.STALE_ID,
    ErrorCode.TOO_LARGE, ErrorCode.EXPIRED, ErrorCode.UNSUPPORTED, ErrorCode.BLOCKED,
    ErrorCode.NOT_ADMITTED,
})  # fmt: skip
"""Refusals of an envelope that no retry can change: it ends, and its sender gets a bounce."""

CLOSING: Final = frozenset({ErrorCode.INBOX_FULL, ErrorCode.UNKNOWN_INBOX})
"""Refusals of all envelopes for this recipient: new ones are refused here for a while."""

OF_SENDER: Final = frozenset({
    ErrorCode.SENDER_QUOTA, ErrorCode.STRANGER_QUOTA, ErrorCode.RATE_LIMITED,
})  # fmt: skip
"""Refusals of one sender for now: envelopes of other senders go on meanwhile."""

FIRST_PAUSE_S: Final = 0.5
MAX_PAUSE_S: Final = 20.0
CLOSED_S: Final = 10
MAX_ASKED_PAUSE_S: Final = 300
"""The longest pause that a relay may ask for: it must not hold back mail for ever."""

Outcome = ReceiptItem | frames.Rejection
_RANK: Final[dict[Durability, int]] = {"memory": 0, "unverified": 1, "fsync": 2}


class ForwardItem(NamedTuple):
    """One envelope; ``maybe_at`` are the relays that may have it already."""

    seq: Seq
    wire: bytes
    redelivered: bool
    maybe_at: frozenset[Did] = frozenset()

    def sent_to(self, relay: Did) -> ForwardItem:
        """Return the item, noting that the relay may have it."""
        return self._replace(maybe_at=self.maybe_at | {relay})

    @property
    def is_unflagged(self) -> bool:
        """True if a relay may have it, and no durable flag tells the bounce so."""
        return bool(self.maybe_at) and not self.redelivered


def is_redelivered(item: ForwardItem, relay: Did) -> bool:
    """Return True if its agent may have it already, as seen by ``relay``.

    What that relay itself may have stored needs no flag: it knows the id.
    """
    return item.redelivered or bool(item.maybe_at - {relay})


@dataclass(frozen=True, slots=True)
class ForwardResult:
    """The meaning of a relay's answer.

    Args:
        forwarded: the relay's receipt covers these.
        refused: the relay refused these for good, with the error codes.
        wait_s: seconds until the rest is tried again; None if nothing is left.
        closed: how new envelopes for this recipient are refused for a while.
        record: the recipient's newer record: it lives elsewhere.
        must_reopen: the inbox must be opened again before the next try: that makes flags durable.
    """

    forwarded: tuple[Seq, ...]
    refused: tuple[tuple[Seq, str], ...] = ()
    wait_s: float | None = None
    closed: Refusal | None = None
    record: str | None = None
    must_reopen: bool = False


@dataclass(slots=True)
class ForwardWindow:
    """The envelopes of one forwarder, in seq order for each sender.

    Args:
        durability: what our own receipts promised; the next relay's must promise no less.
        sender_of: called only after a home has refused a sender.
    """

    durability: Durability
    sender_of: Callable[[bytes], Hashable] = signer_of
    _ready: deque[ForwardItem] = field(default_factory=deque)
    _in_flight: list[ForwardItem] = field(default_factory=list)
    _deferred: list[ForwardItem] = field(default_factory=list)
    _deferred_senders: set[Hashable] = field(default_factory=set)
    _asked_s: int = 0
    _ended: set[Seq] = field(default_factory=set)
    _failures: int = 0

    def add(self, items: Sequence[frames.DeliverItem]) -> None:
        """Add what the inbox delivers."""
        for item in items:
            wire = item.envelope
            if not isinstance(wire, bytes):
                raise TypeError("a forwarder needs wire bytes")
            self._ready.append(ForwardItem(item.seq, wire, item.redelivered))

    def __len__(self) -> int:
        """Return the number of envelopes that have not ended."""
        return len(self._ready) + len(self._in_flight) + len(self._deferred)

    def next_batch(self, max_count: int, max_bytes: int) -> list[ForwardItem]:
        """Put the next batch in flight; return nothing while one is."""
        if self._in_flight:
            return []
        self._skip_deferred_senders()
        if not self._ready:
            self._release()
        size = 0
        while self._ready and len(self._in_flight) < max_count:
            size += len(self._ready[0].wire)
            if self._in_flight and size > max_bytes:
                break
            self._in_flight.append(self._ready.popleft())
            self._skip_deferred_senders()
        return list(self._in_flight)

    def _skip_deferred_senders(self) -> None:
        """Defer envelopes of refused senders until one of another sender is next."""
        while self._deferred and self._ready and self._sender_is_deferred(self._ready[0]):
            self._deferred.append(self._ready.popleft())

    def _sender_is_deferred(self, item: ForwardItem) -> bool:
        return self.sender_of(item.wire) in self._deferred_senders

    def maybe_sent_upto(self) -> Seq:
        """Return the last seq that waits here and that some relay may have; 0 if there is none."""
        waiting = (*self._deferred, *self._ready)
        left = [*self._in_flight, *(item for item in waiting if item.maybe_at)]
        return max((*self._ended, *(item.seq for item in left)), default=Seq(0))

    def on_acked(self, seqs: Iterable[Seq]) -> None:
        """Note that the acks of these are durable here."""
        self._ended.difference_update(seqs)

    # ------------------------------------------------------------ answers

    def on_answer(
        self,
        relay: Did,
        receipt: Receipt | None,
        outcomes: Sequence[ReceiptItem | frames.Rejection],
    ) -> ForwardResult:
        """Take a relay's answer to the batch in flight, item by item, in its order."""
        forwarded: list[Seq] = []
        refused: list[tuple[Seq, str]] = []
        left: list[ForwardItem] = []
        refusals: list[frames.Rejection] = []
        is_enough = receipt is not None and _RANK[receipt.durability] >= _RANK[self.durability]
        for item, outcome in zip(self._in_flight, outcomes, strict=True):
            if isinstance(outcome, ReceiptItem):
                if is_enough and outcome.custody == "inbox":
                    forwarded.append(item.seq)
                else:
                    left.append(item.sent_to(relay))
            elif outcome.error in PERMANENT and not item.is_unflagged:
                refused.append((item.seq, outcome.error))
            else:
                refusals.append(outcome)
                left.append(item.sent_to(relay) if outcome.stored == "unknown" else item)
        self._ended.update(forwarded, (seq for seq, _ in refused))
        return self._result(ForwardResult(tuple(forwarded), tuple(refused)), left, refusals)

    def _result(
        self, done: ForwardResult, left: list[ForwardItem], refusals: list[frames.Rejection]
    ) -> ForwardResult:
        """Decide when the rest is tried again; refused senders come after all others."""
        if done.forwarded:
            self._failures = 0
        if len(refusals) == len(left) and all(one.error in OF_SENDER for one in refusals):
            self._defer(left, refusals)
            if self._ready:
                return done
            self._release()
            if not self._ready:
                self._failures = 0
                return done
        else:
            self._put_back(left)
        if any(one.error in PERMANENT for one in refusals):
            return replace(done, wait_s=0.0, must_reopen=True)
        return self._retry_later(done, refusals)

    def _defer(self, items: Sequence[ForwardItem], refusals: Sequence[frames.Rejection]) -> None:
        self._in_flight = []
        self._deferred += items
        self._deferred_senders.update(self.sender_of(item.wire) for item in items)
        self._asked_s = max((self._asked_s, *(one.retry_after or 0 for one in refusals)))
        self._skip_deferred_senders()

    def _release(self) -> None:
        """End a round: make all deferred envelopes ready again, in order."""
        ordered = sorted((*self._deferred, *self._ready), key=lambda item: item.seq)
        self._ready, self._deferred, self._deferred_senders = deque(ordered), [], set()

    def _retry_later(
        self, done: ForwardResult, refusals: Sequence[frames.Rejection]
    ) -> ForwardResult:
        record = next((one.record for one in refusals if one.record is not None), None)
        if record is not None:
            # at once, but once only: a record that is not new here would lead in a circle
            wait_s = self._pause() if self._failures else 0.0
            self._failures = max(self._failures, 1)
            return replace(done, wait_s=wait_s, record=record)
        asked_s = max((self._asked_s, *(one.retry_after or 0 for one in refusals)))
        asked_s, self._asked_s = min(asked_s, MAX_ASKED_PAUSE_S), 0
        closing = next((one for one in refusals if one.error in CLOSING), None)
        wait_s, closed = max(self._pause(), float(asked_s)), None
        if closing is not None:
            # retry no sooner than new mail is admitted: each try costs its senders' rates there
            wait_s = max(wait_s, CLOSED_S)
            closed = Refusal(closing.error, closing.detail, retry_after=ceil(wait_s))
        return replace(done, wait_s=wait_s, closed=closed)

    def on_no_answer(self, relay: Did) -> float:
        """Note that the relay may have the batch; return the seconds until the next try."""
        self._put_back([item.sent_to(relay) for item in self._in_flight])
        return self._pause()

    def on_not_sent(self) -> float:
        """Note that no relay has the batch; return the seconds until the next try."""
        self._put_back(self._in_flight)
        return self._pause()

    def _put_back(self, items: Sequence[ForwardItem]) -> None:
        self._in_flight = []
        self._ready.extendleft(reversed(items))

    def _pause(self) -> float:
        pause = doubling_pause_s(self._failures, FIRST_PAUSE_S, MAX_PAUSE_S)
        self._failures += 1
        return pause
