"""The relay's side of a conversation (PROTOCOL.md §5, GUARANTEES.md R1, R2, R4).

Rules of the file: inputs are frames, results and the clock; outputs are effects, in order. Nothing
here awaits, and bad input never raises: it is answered. Delivery is backfill → cutover → streaming:
read the inbox from where we are, and only a session that has caught up is handed an envelope from
memory. A wake-up is a hint.

::

    HELLO ──auth──▶ OPENING ──opened──▶ OPEN ──bye, lost, superseded, drain──▶ CLOSED
                                         │
             position: every seq up to here was handed over or explained by ``gap``
             outstanding: handed over and not yet durably acked, at most one window
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from itertools import groupby
from typing import Any, Final

from relay.inbox.model import permissions
from relay.inbox.model.effects import (
    AckInbox,
    Ask,
    CloseInbox,
    Effect,
    Hear,
    Login,
    Question,
    Read,
    Store,
)
from relay.inbox.model.permissions import Identity
from relay.inbox.model.types import (
    Ack as InboxAck,
)
from relay.inbox.model.types import (
    Acked as InboxAcked,
)
from relay.inbox.model.types import (
    Page,
    PageItem,
)
from relay.protocol import frames
from relay.protocol.client_session import (
    Close,
    Send,
)
from relay.protocol.errors import (
    ErrorCode,
    Refusal,
    RelayError,
)
from relay.protocol.ids import (
    Epoch,
    Fence,
    Seq,
    Timestamp,
)
from relay.protocol.types import (
    Range,
    Window,
)

AUTH_DEADLINE_S: Final = 5.0
READ_RETRY_S: Final = 1.0


def _first_seq(one: PageItem | Range) -> Seq:
    return one.seq if isinstance(one, PageItem) else one.start


class Phase(Enum):
    """Where a conversation stands."""

    HELLO = "hello"
    OPENING = "opening"
    OPEN = "open"
    CLOSED = "closed"


class RelaySession:
    """One conversation, as the relay sees it.

    Args:
        hello: the first frame.
        window: how much may be outstanding.
        now: monotonic seconds; the auth deadline runs from here.
    """

    def __init__(self, hello: frames.Hello, window: Window, now: Timestamp) -> None:
        self.phase = Phase.HELLO
        self.who: Identity | None = None
        self._hello = hello
        self._window = window
        self._timer: Timestamp | None = Timestamp(now + AUTH_DEADLINE_S)
        self._epoch = Epoch("")
        self._position = Seq(0)
        self._handed = Seq(0)
        self._head = Seq(0)
        self._outstanding: dict[Seq, int] = {}
        self._room = window.bytes
        self._reading = False
        self._more = False
        self._ended_while_reading: set[Seq] = set()

    # ------------------------------------------------------------ conversation

    def start(self) -> list[Effect]:
        """Say hello."""
        return [Send(self._hello)]

    def receive(
        self, frame: frames.Frame, now: Timestamp, *, is_partner: bool = False
    ) -> list[Effect]:
        """Take one frame from the dialler; a partner is dealt with for a hand-off alone."""
        del now
        if self.phase is Phase.CLOSED:
            return []
        if isinstance(frame, frames.Bye):
            return self._end(None)
        if isinstance(frame, frames.Auth):
            return self._auth(frame)
        if self.phase is not Phase.OPEN or self.who is None:
            return self.fail(ErrorCode.AUTH_REQUIRED, "auth comes first")
        detail = permissions.objection(frame, self.who.role)
        if detail is not None:
            return self.fail(ErrorCode.BAD_FRAME, detail)
        return self._speak(frame, permissions.no_to_partner(frame) if is_partner else None)

    def _speak(self, frame: frames.Frame, no: frames.Error | None) -> list[Effect]:
        if no is not None:
            return [Send(no)] if no.ref else self.fail(no.error, no.detail)
        match frame:
            case frames.Submit():
                return self._submit(frame)
            case frames.Ack():
                return self._ack(frame)
            case frames.Gossip():
                return [Hear(frame)]
            case _:
                return self._ask(frame) if isinstance(frame, Question) else []

    def _submit(self, submit: frames.Submit) -> list[Effect]:
        if permissions.is_too_far(submit, self._hello.relay):
            detail = "these envelopes have been here, or at too many relays"
            return [Send(frames.Error(ErrorCode.TOO_MANY_HOPS, detail, None, submit.ref))]
        return [Store(submit)]

    def _ask(self, question: Question) -> list[Effect]:
        if isinstance(question, frames.Rules) and (self.who is None or self.who.fence is None):
            detail = "a send-only session has no inbox here"
            return [Send(frames.Error(ErrorCode.UNKNOWN_INBOX, detail, None, question.ref))]
        return [Ask(question)]

    def _auth(self, frame: frames.Auth) -> list[Effect]:
        if self.phase is not Phase.HELLO:
            return self.fail(ErrorCode.BAD_FRAME, "auth is said once")
        self.phase = Phase.OPENING
        return [Login(frame, self._hello.nonce)]

    def opened(self, who: Identity, welcome: frames.Welcome) -> list[Effect]:
        """The login holds."""
        if self.phase is not Phase.OPENING:
            return [CloseInbox(who.inbox, who.fence, Seq(0))] if who.fence else []
        self.phase, self.who, self._timer = Phase.OPEN, who, None
        self._position = self._handed = welcome.cursor
        self._head = welcome.head
        self._epoch = welcome.epoch or Epoch("")
        # gaps above the cursor are told even where nothing is live
        return [Send(welcome), *self._pump()]

    def refused(self, exc: RelayError) -> list[Effect]:
        """The login does not hold."""
        return self.fail(exc.code, exc.detail, retry_after=exc.retry_after)

    # ------------------------------------------------------------ delivery

    def _pump(self) -> list[Effect]:
        who = self.who
        if self.phase is not Phase.OPEN or who is None or who.fence is None or self._reading:
            return []
        room = self._window.count - len(self._outstanding)
        behind = self._more or self._head > self._position
        if not behind or room <= 0 or (self._outstanding and self._room <= 0):
            return []
        self._reading, self._more, self._timer = True, False, None
        window = Window(room, max(self._room, 1))
        return [Read(who.inbox, who.fence, self._position, window)]

    def page(self, page: Page | Refusal, now: Timestamp) -> list[Effect]:
        """The result of a :class:`Read`."""
        self._reading = False
        ended, self._ended_while_reading = self._ended_while_reading, set()
        if self.phase is not Phase.OPEN:
            return []
        if isinstance(page, Refusal):
            return self._read_failed(page, now)
        if page.upto <= self._position and not page.items:
            return self._nothing_new(page, now)
        self._head = Seq(max(self._head, page.head))
        fitting = self._fitting([item for item in page.items if item.seq not in ended])
        done = ended.union(item.seq for item in fitting)
        left = [item.seq for item in page.items if item.seq not in done]
        upto = Seq(left[0] - 1) if left else page.upto
        self._position = Seq(max(self._position, upto))
        gaps = [item for item in page.gaps if item.start <= upto]
        effects = self._say_in_order(fitting, gaps)
        return effects if left else [*effects, *self._pump()]

    def _say_in_order(self, items: Sequence[PageItem], gaps: Sequence[Range]) -> list[Effect]:
        """An agent acks up to what it has heard: no gap may overtake an envelope below it."""
        effects: list[Effect] = []
        said: list[PageItem | Range] = [*items, *gaps]
        said.sort(key=_first_seq)
        for kind, group in groupby(said, key=type):
            part: list[Any] = list(group)
            if kind is PageItem:
                effects += self._hand_over(part)
            else:
                cuts = range(0, len(part), frames.MAX_SEQS)
                effects += [
                    Send(frames.Gap(self._epoch, tuple(part[at : at + frames.MAX_SEQS])))
                    for at in cuts
                ]
        return effects

    def _nothing_new(self, page: Page, now: Timestamp) -> list[Effect]:
        if page.head > page.upto:
            return self._retry(now)  # a store that cannot read on just now
        # what was committed while the read was under way is not in it: read once more
        self._more = self._more or self._head > page.head
        self._head = page.head
        return self._pump()

    def _fitting(self, items: Sequence[PageItem]) -> list[PageItem]:
        fitting: list[PageItem] = []
        room = self._room
        for item in items:
            if len(item.wire) > room and (self._outstanding or fitting):
                break
            room -= len(item.wire)
            fitting.append(item)
        return fitting

    def _hand_over(self, items: Sequence[PageItem]) -> list[Effect]:
        if not items:
            return []
        for item in items:
            self._outstanding[item.seq] = len(item.wire)
            self._room -= len(item.wire)
        self._handed = items[-1].seq
        entries = tuple(frames.DeliverItem(item.seq, item.redelivered, item.wire) for item in items)
        return [Send(frames.Deliver(self._epoch, entries))]

    def _read_failed(self, no: Refusal, now: Timestamp) -> list[Effect]:
        if no.code is ErrorCode.STORAGE_UNAVAILABLE:
            return self._retry(now)
        return self._store_ended(no)

    def _store_ended(self, no: Refusal) -> list[Effect]:
        if no.code is ErrorCode.INBOX_RESET:
            # no close code of its own: told as an error; logging in again shows the new epoch
            reset = Send(frames.Error(no.code, no.detail))
            return [reset, *self.fail(ErrorCode.STORAGE_UNAVAILABLE, "log in again")]
        return self.fail(no.code, no.detail)

    def _retry(self, now: Timestamp) -> list[Effect]:
        self._more = True
        self._timer = Timestamp(now + READ_RETRY_S)
        return []

    def committed(self, fence: Fence, items: Sequence[PageItem]) -> list[Effect]:
        """This node stored ``items`` for this inbox: hand over from memory where R4 allows it."""
        who = self.who
        if self.phase is Phase.OPENING:
            self._more = True  # perhaps newer than the welcome that is on its way
        if who is None or fence != who.fence or self.phase is not Phase.OPEN:
            return []
        direct: list[PageItem] = []
        if not self._reading:
            direct = self._next_in_line(items)
            if direct:
                self._position = direct[-1].seq
        effects = self._hand_over(direct)
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

    def is_current(self, fence: Fence, head: Seq) -> bool:
        """Whether the store has nothing that this session does not know of."""
        who = self.who
        return who is not None and who.fence == fence and head <= self._head

    @property
    def epoch(self) -> Epoch:
        """Of the inbox, as it was welcomed."""
        return self._epoch

    def superseded(self) -> list[Effect]:
        """The inbox has a newer session: with a full window no read would tell."""
        if self.phase is not Phase.OPEN:
            return []
        return self.fail(ErrorCode.SUPERSEDED, "a newer session has this inbox")

    def woken(self) -> list[Effect]:
        """A hint: the inbox may have news, or a newer session."""
        self._more = True
        return self._pump()

    # ------------------------------------------------------------ ack

    def _ack(self, frame: frames.Ack) -> list[Effect]:
        who = self.who
        if who is None or who.fence is None:
            return self.fail(ErrorCode.BAD_FRAME, "a send-only session has nothing to ack")
        if frame.epoch != self._epoch:
            detail = "this ack is of another epoch; nothing changed"
            return [Send(frames.Error(ErrorCode.INBOX_RESET, detail))]
        if frame.upto > self._position:
            return self.fail(ErrorCode.BAD_FRAME, "upto covers what was never handed over")
        covered = [seq for seq in self._outstanding if seq <= frame.upto]
        refused = {seq for seq, _ in frame.refuse}
        if max((*frame.seqs, *refused), default=0) > self._head:
            return self.fail(ErrorCode.BAD_FRAME, "ack names a seq that was never assigned")
        named = dict.fromkeys((*covered, *frame.seqs))
        seqs = tuple(seq for seq in named if seq not in refused)
        ack = InboxAck(who.fence, frame.epoch, seqs, frame.upto, frame.refuse)
        return [AckInbox(who.inbox, ack)]

    def acked(self, asked: InboxAck, result: InboxAcked | Refusal, now: Timestamp) -> list[Effect]:
        """The result of an :class:`AckInbox`; only now the window opens."""
        del now
        if self.phase is not Phase.OPEN:
            return []
        if isinstance(result, Refusal):
            if result.code is ErrorCode.STORAGE_UNAVAILABLE:
                return [Send(frames.Error(result.code, "ack again", result.retry_after))]
            return self._store_ended(result)
        ended = {*result.seqs, *result.refused}
        for seq in ended:
            self._room += self._outstanding.pop(seq, 0)
        # acks of what was not handed over yet may move the cursor past us
        self._position = Seq(max(self._position, result.cursor))
        if self._reading:
            self._ended_while_reading |= ended
        explicit = tuple(seq for seq in asked.seqs if seq > result.cursor)
        answer = frames.Acked(asked.epoch, result.cursor, explicit, result.refused)
        return [Send(answer), *self._pump()]

    # ------------------------------------------------------------ ends

    def fail(self, code: ErrorCode, detail: str, *, retry_after: int | None = None) -> list[Effect]:
        """End the conversation from this side with a named reason."""
        if self.phase is Phase.CLOSED:
            return []
        if code not in permissions.CLOSES:
            # said in full, closed under the nearest code that has a number
            said = [Send(frames.Error(code, detail, retry_after))]
            return [*said, *self.fail(ErrorCode.AUTH_REQUIRED, detail)]
        return [Send(frames.Bye(code, detail, retry_after)), *self._end(code)]

    def lost(self) -> list[Effect]:
        """The socket is gone."""
        return [effect for effect in self._end(None) if not isinstance(effect, Close)]

    def drain(self) -> list[Effect]:
        """The node shuts down: another one, or this one again, will answer soon."""
        return self.fail(ErrorCode.DRAINING, "the node is shutting down", retry_after=1)

    def _end(self, code: ErrorCode | None) -> list[Effect]:
        if self.phase is Phase.CLOSED:
            return []
        self.phase, self._timer = Phase.CLOSED, None
        effects: list[Effect] = []
        if self.who is not None and self.who.fence is not None and code is not ErrorCode.SUPERSEDED:
            effects.append(CloseInbox(self.who.inbox, self.who.fence, self._handed))
        return [*effects, Close(code)]

    # ------------------------------------------------------------ timers

    def next_timer(self) -> Timestamp | None:
        """When :meth:`on_timer` wants to be called, monotonic seconds."""
        return self._timer

    def on_timer(self, now: Timestamp) -> list[Effect]:
        """The auth deadline has passed, or a failed read is due again."""
        if self._timer is None or now < self._timer:
            return []
        self._timer = None
        if self.phase is Phase.OPEN:
            return self._pump()
        if self.phase is Phase.OPENING:
            return self.fail(ErrorCode.STORAGE_UNAVAILABLE, "the login took too long here")
        return self.fail(ErrorCode.AUTH_REQUIRED, "no auth within 5 s")
