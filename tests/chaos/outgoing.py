"""Envelopes that one agent sends, until each has its receipt.

The agent submits the same bytes until their answer is definite. It believes a receipt only if it is
signed and names what was submitted, in that order. Nothing awaits; ``now`` is monotonic seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from relay.protocol.did import SigningKey
from relay.protocol.errors import ErrorCode
from relay.protocol.frames import (
    Rejection,
    Submit,
    Submitted,
)
from relay.protocol.ids import Did
from relay.protocol.receipts import (
    Receipt,
    ReceiptItem,
    verify_receipt,
)
from tests.chaos.ledger import Ledger, Sent
from tests.chaos.traffic_plan import (
    Habits,
    Letter,
)
from tests.support.nodes import make_envelope

RETRY_S = 0.1
TRY_AGAIN = frozenset({
    ErrorCode.STORAGE_UNAVAILABLE, ErrorCode.STORAGE_FULL, ErrorCode.OVERLOADED,
    ErrorCode.DRAINING,
    # where the recipient is moving, or lives elsewhere, and this relay has just come back
    ErrorCode.MIGRATING, ErrorCode.PEER_UNREACHABLE,
})  # fmt: skip


@dataclass(slots=True)
class _Flight:
    """One submit without an answer."""

    at: float
    items: list[Sent]


@dataclass(slots=True)
class Outgoing:
    """An agent's envelopes on their way to the relay.

    Args:
        key: signs them.
        letters: what is to be sent; agents may share one source.
        ledger: where it is written down.
        rng: draws the size of submits and what is replayed.
        habits: how this agent behaves.
    """

    key: SigningKey
    letters: Iterator[Letter]
    ledger: Ledger
    rng: Random
    habits: Habits
    not_before: float = 0.0
    slowest_answer: float = 0.0
    _again: deque[Sent] = field(default_factory=deque)
    _flights: dict[str, _Flight] = field(default_factory=dict)
    _count: int = 0

    def next_submit(self, now: float) -> Submit | None:
        """The next submit, if the window has room."""
        room = self.habits.window - sum(len(flight.items) for flight in self._flights.values())
        if room <= 0 or now < self.not_before:
            return None
        most = min(room, self.rng.randint(1, self.habits.batch))
        batch = [item for _, item in zip(range(most), self._next(), strict=False)]
        if not batch:
            return None
        self._count += 1
        self._flights[str(self._count)] = _Flight(now, batch)
        return Submit(str(self._count), [item.envelope.wire for item in batch])

    def _next(self) -> Iterator[Sent]:
        while self._again:
            yield self._again.popleft()
        for letter in self.letters:
            made = make_envelope(self.key, letter.to, letter.body)
            yield self.ledger.submit(self.key.did, made, letter.body, poison=letter.is_poison)

    def answered(self, frame: Submitted, relay: Did, now: float) -> None:
        """Take the answer to one or more submits."""
        receipt = verify_receipt(frame.receipt, relay) if frame.receipt else None
        items = iter(receipt.items if receipt else ())
        refused = {(item.ref, item.i): item for item in frame.rejected}
        for ref in frame.refs:
            flight = self._flights.pop(ref)
            self.slowest_answer = max(self.slowest_answer, now - flight.at)
            for i, sent in enumerate(flight.items):
                no = refused.pop((ref, i), None)
                if no is not None:
                    self._refused(sent, no, now)
                else:
                    self._receipted(sent, next(items, None), receipt)
        if next(items, None) or refused:
            self.ledger.surprise("an answer to more than was submitted")

    def _receipted(self, sent: Sent, item: ReceiptItem | None, receipt: Receipt | None) -> None:
        if item is None or receipt is None or item.eid != sent.envelope.eid:
            self.ledger.surprise(f"{item} stands where {sent.envelope.eid} was submitted")
            return
        is_first = sent.receipted is None
        place = (item.epoch, item.pos)
        self.ledger.receipt(
            item.eid, item.to, durability=receipt.durability, dup=item.dup, place=place
        )
        if is_first and self.rng.random() < self.habits.replays:
            self._again.append(sent)

    def _refused(self, sent: Sent, no: Rejection, now: float) -> None:
        if no.error not in TRY_AGAIN:
            self.ledger.surprise(f"{sent.envelope.eid} was refused: {no}")
            return
        sent.maybe_stored = sent.maybe_stored or no.stored == "unknown"
        self._again.append(sent)
        self.not_before = max(self.not_before, now + (no.retry_after or RETRY_S))

    def lost(self) -> None:
        """The connection is gone: whether they are stored is not known."""
        flying = [item for flight in self._flights.values() for item in flight.items]
        for item in flying:
            item.maybe_stored = True
        self._again.extendleft(reversed(flying))
        self._flights.clear()
