"""What a courier has in hand and what a relay's answer to it means (GUARANTEES.md S1, §4).

A courier takes what waits in an inbox whose agent lives elsewhere to the agent's home. Rules of the
file: nothing awaits; custody ends only by the other relay's signed receipt, a permanent no, or
expiry; one batch of an inbox is under way at a time, so that its order is kept; whatever may have
reached another relay than the one it goes to next is marked.

::

    handed ──▶ ready ──take──▶ under way ──receipt──▶ taken over (acked as forwarded)
                 ▲                │  └──permanent no──▶ refused (one bounce)
                 └──lost, later───┘
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Final, NamedTuple

from relay.protocol import frames
from relay.protocol.backoff import doubling_pause_s
from relay.protocol.envelope import signer_of
from relay.protocol.errors import (
    ErrorCode,
    Refusal,
)
from relay.protocol.ids import (
    Did,
    Seq,
)
from relay.protocol.receipts import (
    Durability,
    Receipt,
    ReceiptItem,
)

PERMANENT: Final = frozenset({
    ErrorCode.BAD_ENVELOPE, ErrorCode.BAD_SIGNATURE, ErrorCode.REPLAYED, ErrorCode.STALE_ID,
    ErrorCode.TOO_LARGE, ErrorCode.EXPIRED, ErrorCode.UNSUPPORTED, ErrorCode.BLOCKED,
    ErrorCode.NOT_ADMITTED,
})  # fmt: skip
"""A home's no after which trying again cannot help: the envelope ends, its sender is told."""

CLOSING: Final = frozenset({ErrorCode.INBOX_FULL, ErrorCode.UNKNOWN_INBOX})
"""A home's no to all envelopes of this recipient: more of them are refused at once for a while."""

OF_SENDER: Final = frozenset({
    ErrorCode.SENDER_QUOTA, ErrorCode.STRANGER_QUOTA, ErrorCode.RATE_LIMITED,
})  # fmt: skip
"""A home's no to one sender, for now: what others send goes on meanwhile."""

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 20.0
CLOSED_S: Final = 10
LONGEST_ASKED_S: Final = 300
"""A relay may ask for so long a pause; it must not hold back for ever what its agents get."""

_RANK: Final[dict[Durability, int]] = {"memory": 0, "unverified": 1, "fsync": 2}


class ForwardItem(NamedTuple):
    """One envelope in a courier's hands; ``maybe_at`` are relays that may have it already."""

    seq: Seq
    wire: bytes
    redelivered: bool
    maybe_at: frozenset[Did] = frozenset()


@dataclass(frozen=True, slots=True)
class ForwardResult:
    """What a relay's answer came to.

    Args:
        taken: it gave its receipt for these.
        refused: it never will; why.
        wait_s: seconds until the rest is tried again; None where nothing is left.
        closed: no more of this recipient's for a while.
        record: the recipient's newer record: it lives elsewhere.
        is_anew: the inbox is to be opened anew before the rest is tried, so that marks are durable.
    """

    taken: tuple[Seq, ...]
    refused: tuple[tuple[Seq, str], ...] = ()
    wait_s: float | None = None
    closed: Refusal | None = None
    record: str | None = None
    is_anew: bool = False


@dataclass(slots=True)
class ForwardWindow:
    """What one courier has in hand, in seq order for each sender.

    Args:
        durability: what our own receipts may have promised; the next relay's are not below it.
        sender_of: asked only once a home has refused a sender.
    """

    durability: Durability
    sender_of: Callable[[bytes], Hashable] = signer_of
    _ready: deque[ForwardItem] = field(default_factory=deque)
    _under_way: list[ForwardItem] = field(default_factory=list)
    _held: list[ForwardItem] = field(default_factory=list)
    _held_senders: set[Hashable] = field(default_factory=set)
    _asked: int = 0
    _ended: set[Seq] = field(default_factory=set)
    _failures: int = 0

    def hand(self, items: Sequence[frames.DeliverItem]) -> None:
        """Take what the inbox hands over."""
        for item in items:
            wire = item.envelope
            if not isinstance(wire, bytes):
                raise TypeError("a courier carries wire bytes")
            self._ready.append(ForwardItem(item.seq, wire, item.redelivered))

    def __len__(self) -> int:
        """How many envelopes are in hand."""
        return len(self._ready) + len(self._under_way) + len(self._held)

    def take(self, most: int, most_bytes: int) -> list[ForwardItem]:
        """The next batch; nothing while one is under way."""
        if self._under_way:
            return []
        self._pass_over_held()
        if not self._ready:
            self._release()
        size = 0
        while self._ready and len(self._under_way) < most:
            size += len(self._ready[0].wire)
            if self._under_way and size > most_bytes:
                break
            self._under_way.append(self._ready.popleft())
            self._pass_over_held()
        return list(self._under_way)

    def _pass_over_held(self) -> None:
        """What comes next is of nobody whom the home has refused in this round."""
        while self._held and self._ready and self._sender(self._ready[0]) in self._held_senders:
            self._held.append(self._ready.popleft())

    def _sender(self, item: ForwardItem) -> Hashable:
        return self.sender_of(item.wire)

    def doubtful(self) -> Seq:
        """The last seq that some relay may have while it still waits here; 0: there is none."""
        waiting = (*self._held, *self._ready)
        left = [*self._under_way, *(item for item in waiting if item.maybe_at)]
        return max((*self._ended, *(item.seq for item in left)), default=Seq(0))

    def concluded(self, seqs: Iterable[Seq]) -> None:
        """These ended here, too, durably."""
        self._ended.difference_update(seqs)

    # ------------------------------------------------------------ answers

    def answered(
        self,
        relay: Did,
        receipt: Receipt | None,
        outcomes: Sequence[ReceiptItem | frames.Rejection],
    ) -> ForwardResult:
        """Take a relay's answer to the batch under way, item by item, in its order."""
        taken: list[Seq] = []
        refused: list[tuple[Seq, str]] = []
        left: list[ForwardItem] = []
        noes: list[frames.Rejection] = []
        is_enough = receipt is not None and _RANK[receipt.durability] >= _RANK[self.durability]
        for item, outcome in zip(self._under_way, outcomes, strict=True):
            if isinstance(outcome, ReceiptItem):
                if is_enough and outcome.custody == "inbox":
                    taken.append(item.seq)
                else:
                    left.append(_maybe(item, relay))
            elif outcome.error in PERMANENT and not _is_untold(item):
                refused.append((item.seq, outcome.error))
            else:
                noes.append(outcome)
                left.append(_maybe(item, relay) if outcome.stored == "unknown" else item)
        self._ended.update(taken, (seq for seq, _ in refused))
        return self._after(tuple(taken), tuple(refused), left, noes)

    def _after(
        self, taken: tuple[Seq, ...], refused: tuple[tuple[Seq, str], ...], left: list[ForwardItem],
        noes: list[frames.Rejection],
    ) -> ForwardResult:  # fmt: skip
        """What is left is tried again later; of refused senders after all others'."""
        if taken:
            self._failures = 0
        if len(noes) == len(left) and all(no.error in OF_SENDER for no in noes):
            self._hold(left, noes)
            if self._ready:
                return ForwardResult(taken, refused)
            self._release()
            if not self._ready:
                self._failures = 0
                return ForwardResult(taken, refused)
        else:
            self._put_back(left)
        if any(no.error in PERMANENT for no in noes):
            return ForwardResult(taken, refused, 0.0, is_anew=True)
        return self._later(taken, refused, noes)

    def _hold(self, items: Sequence[ForwardItem], noes: Sequence[frames.Rejection]) -> None:
        self._under_way = []
        self._held += items
        self._held_senders.update(map(self._sender, items))
        self._asked = max((self._asked, *(no.retry_after or 0 for no in noes)))
        self._pass_over_held()

    def _release(self) -> None:
        """One round is over: all is in order again."""
        ordered = sorted((*self._held, *self._ready), key=lambda item: item.seq)
        self._ready, self._held, self._held_senders = deque(ordered), [], set()

    def _later(
        self,
        taken: tuple[Seq, ...],
        refused: tuple[tuple[Seq, str], ...],
        noes: list[frames.Rejection],
    ) -> ForwardResult:
        record = next((no.record for no in noes if no.record is not None), None)
        if record is not None:
            # at once, but once only: the record may be no news, then this is a circle
            wait_s = self._pause() if self._failures else 0.0
            self._failures = max(self._failures, 1)
            return ForwardResult(taken, refused, wait_s, record=record)
        asked = min(max((self._asked, *(no.retry_after or 0 for no in noes))), LONGEST_ASKED_S)
        self._asked = 0
        shut = next((no for no in noes if no.error in CLOSING), None)
        wait_s, closed = max(self._pause(), float(asked)), None
        if shut is not None:
            # tried again no sooner than admitted again: each try costs its senders' rates there
            wait_s = max(wait_s, CLOSED_S)
            closed = Refusal(shut.error, shut.detail, retry_after=ceil(wait_s))
        return ForwardResult(taken, refused, wait_s, closed)

    def lost(self, relay: Did) -> float:
        """No answer: it may have them; gives the seconds until they are tried again."""
        self._put_back([_maybe(item, relay) for item in self._under_way])
        return self._pause()

    def unsent(self) -> float:
        """They never left; gives the seconds until they are tried again."""
        self._put_back(self._under_way)
        return self._pause()

    def _put_back(self, items: Sequence[ForwardItem]) -> None:
        self._under_way = []
        self._ready.extendleft(reversed(items))

    def _pause(self) -> float:
        pause = doubling_pause_s(self._failures, FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self._failures += 1
        return pause


def is_marked(item: ForwardItem, relay: Did) -> bool:
    """Whether its agent may have been handed it before, as seen by ``relay``.

    What that relay itself may have stored needs no mark: it knows the id.
    """
    return item.redelivered or bool(item.maybe_at - {relay})


def _is_untold(item: ForwardItem) -> bool:
    """Whether a relay may have had it and no durable mark says so, by which its bounce would go."""
    return bool(item.maybe_at) and not item.redelivered


def _maybe(item: ForwardItem, relay: Did) -> ForwardItem:
    return item._replace(maybe_at=item.maybe_at | {relay})
