"""Deliver one inbox to one consumer, an agent's connection or a forwarder (R1, R2, R4).

The promises are in GUARANTEES.md. Inputs are results of the store, hints and the clock; outputs
are effects, in order. A wake-up is a hint: it makes the delivery read, and proves nothing.

::

    NEW ──open──▶ OPEN ──close──▶ CLOSED

An open delivery passes three phases, and goes back to the first one whenever it falls behind:

- backfill: read page after page from ``position``;
- cutover: a page holds nothing new, and nothing was stored during the read;
- streaming: what this node stores next in line is delivered from memory, without a read.

``position``: each seq up to here was delivered or explained by a gap. ``outstanding``: delivered
and not yet durably acked, at most one window.

Example, with a window of two envelopes::

    open(cursor=2, head=4)     Read after 2
    on_page(items 3, 4)        Deliver 3, 4; the window is full
    on_stored(item 5)          nothing: it does not fit
    ack(upto=3)                AckRequest 3
    on_acked(cursor=3)         Acked; Read after 4
    on_page(item 5)            Deliver 5
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

from relay.inbox.model import types
from relay.inbox.model.effects import CloseInbox, Effect, EndSession, Read
from relay.inbox.model.types import AckRequest, PageItem
from relay.protocol import frames
from relay.protocol.client_session import Send
from relay.protocol.errors import ErrorCode, Refusal
from relay.protocol.ids import AgentKey, Epoch, Fence, Seq, Timestamp
from relay.protocol.types import Range, Window

READ_RETRY_S: Final = 1.0


def _first_seq(entry: PageItem | Range) -> Seq:
    return entry.seq if isinstance(entry, PageItem) else entry.start


class InboxDelivery:
    """The position and the window of one inbox session.

    Args:
        window: the most that may be outstanding; one envelope always fits.
    """

    def __init__(self, window: Window) -> None:
        self.inbox = AgentKey("")
        self.fence = Fence(0)
        self.epoch = Epoch("")
        self.is_open = False
        self._window = window
        self._timer: Timestamp | None = None
        self._position = Seq(0)
        self._delivered_upto = Seq(0)
        self._head = Seq(0)
        self._outstanding: dict[Seq, int] = {}
        self._room = window.bytes
        self._reading = False
        self._more = False
        self._ended_while_reading: set[Seq] = set()

    def open(
        self, inbox: AgentKey, fence: Fence, epoch: Epoch, cursor: Seq, head: Seq
    ) -> list[Effect]:
        """Begin at the cursor of a session that the store has opened."""
        self.inbox, self.fence, self.epoch = inbox, fence, epoch
        self.is_open = True
        self._position = self._delivered_upto = cursor
        self._head = head
        # gaps above the cursor are reported even where nothing is live
        return self._pump()

    def close(self) -> list[Effect]:
        """End the session, and tell the store exactly how far it delivered."""
        if not self.is_open:
            return []
        self.is_open, self._timer = False, None
        return [CloseInbox(self.inbox, self.fence, self._delivered_upto)]

    # ------------------------------------------------------------ backfill

    def _pump(self) -> list[Effect]:
        """Read on, if there is more and room for it."""
        if not self.is_open or self._reading:
            return []
        room = self._window.count - len(self._outstanding)
        is_behind = self._more or self._head > self._position
        if not is_behind or room <= 0 or (self._outstanding and self._room <= 0):
            return []
        self._reading, self._more, self._timer = True, False, None
        window = Window(room, max(self._room, 1))
        return [Read(self.inbox, self.fence, self._position, window)]

    def on_page(self, page: types.Page | Refusal, now: Timestamp) -> list[Effect]:
        """Deliver the result of a :class:`Read`."""
        self._reading = False
        ended, self._ended_while_reading = self._ended_while_reading, set()
        if not self.is_open:
            return []
        if isinstance(page, Refusal):
            if page.code is ErrorCode.STORAGE_UNAVAILABLE:
                return self._retry(now)
            return _end_session(page)
        if page.upto <= self._position and not page.items:
            return self._nothing_new(page, now)
        self._head = Seq(max(self._head, page.head))
        fitting = self._fitting([item for item in page.items if item.seq not in ended])
        done = ended.union(item.seq for item in fitting)
        left = [item.seq for item in page.items if item.seq not in done]
        upto = Seq(left[0] - 1) if left else page.upto
        self._position = Seq(max(self._position, upto))
        gaps = [item for item in page.gaps if item.start <= upto]
        effects = self._in_order_of_seq(fitting, gaps)
        return effects if left else [*effects, *self._pump()]

    def _in_order_of_seq(self, items: Sequence[PageItem], gaps: Sequence[Range]) -> list[Effect]:
        """Let no gap overtake an envelope below it: an agent acks up to what it has received."""
        effects: list[Effect] = []
        entries: list[PageItem | Range] = [*items, *gaps]
        entries.sort(key=_first_seq)
        for kind, group in groupby(entries, key=type):
            part: list[Any] = list(group)
            if kind is PageItem:
                effects += self._deliver(part)
            else:
                cuts = range(0, len(part), frames.MAX_SEQS)
                effects += [
                    Send(frames.Gap(self.epoch, tuple(part[at : at + frames.MAX_SEQS])))
                    for at in cuts
                ]
        return effects

    # ------------------------------------------------------------ cutover

    def _nothing_new(self, page: types.Page, now: Timestamp) -> list[Effect]:
        if page.head > page.upto:
            return self._retry(now)  # the store cannot read on just now
        # the page lacks what was stored during the read: read once more
        self._more = self._more or self._head > page.head
        self._head = page.head
        return self._pump()

    def _retry(self, now: Timestamp) -> list[Effect]:
        self._more = True
        self._timer = Timestamp(now + READ_RETRY_S)
        return []

    def next_timer(self) -> Timestamp | None:
        """Return when to call :meth:`on_timer`, monotonic seconds."""
        return self._timer

    def on_timer(self, now: Timestamp) -> list[Effect]:
        """Repeat a failed read."""
        if self._timer is None or now < self._timer:
            return []
        self._timer = None
        return self._pump()

    # ------------------------------------------------------------ streaming

    def on_stored(self, fence: Fence, items: Sequence[PageItem]) -> list[Effect]:
        """Deliver what this node has stored for the session, from memory where R4 allows it."""
        if not self.is_open:
            self._more = True  # perhaps newer than the position that the session opens at
            return []
        if fence != self.fence:
            return []
        direct: list[PageItem] = []
        if not self._reading:
            direct = self._next_in_line(items)
            if direct:
                self._position = direct[-1].seq
        effects = self._deliver(direct)
        self._head = Seq(max(self._head, items[-1].seq))
        return [*effects, *self._pump()]

    def _next_in_line(self, items: Sequence[PageItem]) -> list[PageItem]:
        direct: list[PageItem] = []
        position = self._position
        room = self._window.count - len(self._outstanding)
        for item in self._fitting(items)[: max(room, 0)]:
            if item.seq != position + 1:
                break
            position = item.seq
            direct.append(item)
        return direct

    def _fitting(self, items: Sequence[PageItem]) -> list[PageItem]:
        fitting: list[PageItem] = []
        room = self._room
        for item in items:
            if len(item.wire) > room and (self._outstanding or fitting):
                break
            room -= len(item.wire)
            fitting.append(item)
        return fitting

    def _deliver(self, items: Sequence[PageItem]) -> list[Effect]:
        if not items:
            return []
        for item in items:
            self._outstanding[item.seq] = len(item.wire)
            self._room -= len(item.wire)
        self._delivered_upto = items[-1].seq
        entries = tuple(frames.DeliverItem(item.seq, item.redelivered, item.wire) for item in items)
        return [Send(frames.Deliver(self.epoch, entries))]

    # ------------------------------------------------------------ hints

    def on_wakeup(self) -> list[Effect]:
        """Look: the inbox may have more, or a newer session."""
        self._more = True
        return self._pump()

    def on_superseded(self) -> list[Effect]:
        """End: a newer session has the inbox. With a full window no read would find it out."""
        if not self.is_open:
            return []
        return [EndSession(Refusal(ErrorCode.SUPERSEDED, "a newer session has this inbox"))]

    def is_current(self, fence: Fence, head: Seq) -> bool:
        """Return True if the store has nothing that this session does not know of."""
        return self.fence == fence and head <= self._head

    # ------------------------------------------------------------ acks

    def ack(self, frame: frames.Ack) -> list[Effect]:
        """Check an agent's ack and ask the store for it (PROTOCOL.md §5.5)."""
        if frame.epoch != self.epoch:
            detail = "this ack is of another epoch; nothing changed"
            return [Send(frames.Error(ErrorCode.INBOX_RESET, detail))]
        if frame.upto > self._position:
            return _bad_ack("upto covers what was never delivered")
        covered = [seq for seq in self._outstanding if seq <= frame.upto]
        refused = {seq for seq, _ in frame.refuse}
        if max((*frame.seqs, *refused), default=0) > self._head:
            return _bad_ack("ack names a seq that was never assigned")
        named = dict.fromkeys((*covered, *frame.seqs))
        seqs = tuple(seq for seq in named if seq not in refused)
        ack = types.InboxAck(self.fence, frame.epoch, seqs, frame.upto, frame.refuse)
        return [AckRequest(self.inbox, ack)]

    def on_acked(self, asked: types.InboxAck, result: types.AckResult | Refusal) -> list[Effect]:
        """Take the result of an :class:`AckRequest`; only now the window opens."""
        if not self.is_open:
            return []
        if isinstance(result, Refusal):
            if result.code is ErrorCode.STORAGE_UNAVAILABLE:
                return [Send(frames.Error(result.code, "ack again", result.retry_after))]
            return _end_session(result)
        ended = {*result.seqs, *result.refused}
        for seq in ended:
            self._room += self._outstanding.pop(seq, 0)
        # acks of what is not delivered yet may move the cursor past the position
        self._position = Seq(max(self._position, result.cursor))
        if self._reading:
            self._ended_while_reading |= ended
        explicit = tuple(seq for seq in asked.seqs if seq > result.cursor)
        answer = frames.Acked(asked.epoch, result.cursor, explicit, result.refused)
        return [Send(answer), *self._pump()]


def _end_session(refusal: Refusal) -> list[Effect]:
    if refusal.code is ErrorCode.INBOX_RESET:
        # it has no close code: sent as an error; the next login shows the new epoch
        reset = Send(frames.Error(refusal.code, refusal.detail))
        return [reset, EndSession(Refusal(ErrorCode.STORAGE_UNAVAILABLE, "log in again"))]
    return [EndSession(refusal)]


def _bad_ack(detail: str) -> list[Effect]:
    return [EndSession(Refusal(ErrorCode.BAD_FRAME, detail))]
