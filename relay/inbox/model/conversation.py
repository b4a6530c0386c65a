"""The relay's side of a conversation: login, frames, end (PROTOCOL.md §5).

Inputs are frames and the clock; outputs are effects, in order. Bad input never raises: the answer
is an error or the end. What an open inbox delivers is in :mod:`relay.inbox.model.delivery`.

::

    HELLO ──auth──▶ OPENING ──opened──▶ OPEN ──bye, lost, fail, drain──▶ CLOSED

Example::

    start()                    Send hello
    receive(auth)              Login: the shell checks it and opens the inbox
    opened(identity, welcome)  Send welcome; the delivery begins
    receive(submit)            StoreEnvelopes
    receive(bye)               CloseInbox, Close
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from relay.inbox.model import permissions
from relay.inbox.model.delivery import InboxDelivery
from relay.inbox.model.effects import (
    AnswerQuestion,
    CheckLogin,
    CloseInbox,
    Effect,
    HandleGossip,
    QuestionFrame,
    StoreEnvelopes,
)
from relay.inbox.model.permissions import Identity
from relay.protocol import frames
from relay.protocol.client_session import Close, Send
from relay.protocol.errors import CLOSES, ErrorCode, RelayError
from relay.protocol.ids import Epoch, Seq, Timestamp

AUTH_DEADLINE_S: Final = 5.0


class ConversationPhase(Enum):
    """The phases of a conversation."""

    HELLO = "hello"
    OPENING = "opening"
    OPEN = "open"
    CLOSED = "closed"


class Conversation:
    """One conversation, as the relay sees it.

    Args:
        hello: the first frame.
        delivery: of the inbox that the login may open.
        now: monotonic seconds; the auth deadline runs from here.
    """

    def __init__(self, hello: frames.Hello, delivery: InboxDelivery, now: Timestamp) -> None:
        self.phase = ConversationPhase.HELLO
        self.who: Identity | None = None
        self.delivery = delivery
        self._hello = hello
        self._timer: Timestamp | None = Timestamp(now + AUTH_DEADLINE_S)

    def start(self) -> list[Effect]:
        """Say hello."""
        return [Send(self._hello)]

    # ------------------------------------------------------------ frames

    def receive(self, frame: frames.Frame, *, is_handoff_peer: bool = False) -> list[Effect]:
        """Take one frame from the dialler.

        Args:
            frame: what it sent.
            is_handoff_peer: this relay accepts nothing but a hand-off from it (§5.12).
        """
        if self.phase is ConversationPhase.CLOSED:
            return []
        if isinstance(frame, frames.Bye | frames.Auth):
            return self._auth(frame) if isinstance(frame, frames.Auth) else self._end(None)
        if self.phase is not ConversationPhase.OPEN or self.who is None:
            return self.fail(ErrorCode.AUTH_REQUIRED, "auth comes first")
        detail = permissions.why_forbidden(frame, self.who.role)
        if detail is not None:
            return self.fail(ErrorCode.BAD_FRAME, detail)
        refusal = permissions.refuse_handoff_peer(frame) if is_handoff_peer else None
        if refusal is not None:
            return [Send(refusal)] if refusal.ref else self.fail(refusal.error, refusal.detail)
        return self._allowed(frame)

    def _allowed(self, frame: frames.Frame) -> list[Effect]:
        match frame:
            case frames.Submit():
                return self._submit(frame)
            case frames.Ack():
                if not self.delivery.is_open:
                    return self.fail(ErrorCode.BAD_FRAME, "a send-only session has nothing to ack")
                return self.delivery.ack(frame)
            case frames.Gossip():
                return [HandleGossip(frame)]
            case _:
                return self._question(frame) if isinstance(frame, QuestionFrame) else []

    def _submit(self, submit: frames.Submit) -> list[Effect]:
        if permissions.exceeds_hops(submit, self._hello.relay):
            detail = "these envelopes have been here, or at too many relays"
            return [Send(frames.Error(ErrorCode.TOO_MANY_HOPS, detail, None, submit.ref))]
        return [StoreEnvelopes(submit)]

    def _question(self, question: QuestionFrame) -> list[Effect]:
        if isinstance(question, frames.Rules) and not self.delivery.is_open:
            detail = "a send-only session has no inbox here"
            return [Send(frames.Error(ErrorCode.UNKNOWN_INBOX, detail, None, question.ref))]
        return [AnswerQuestion(question)]

    # ------------------------------------------------------------ login

    def _auth(self, frame: frames.Auth) -> list[Effect]:
        if self.phase is not ConversationPhase.HELLO:
            return self.fail(ErrorCode.BAD_FRAME, "auth is sent once")
        self.phase = ConversationPhase.OPENING
        return [CheckLogin(frame, self._hello.nonce)]

    def opened(self, who: Identity, welcome: frames.Welcome) -> list[Effect]:
        """Open: the login is right. One that comes too late closes its inbox again."""
        if self.phase is not ConversationPhase.OPENING:
            return [CloseInbox(who.inbox, who.fence, Seq(0))] if who.fence else []
        self.phase, self.who, self._timer = ConversationPhase.OPEN, who, None
        effects: list[Effect] = [Send(welcome)]
        if who.fence is not None:
            epoch = welcome.epoch or Epoch("")
            effects += self.delivery.open(who.inbox, who.fence, epoch, welcome.cursor, welcome.head)
        return effects

    def refused(self, exc: RelayError) -> list[Effect]:
        """End: the login is refused."""
        return self.fail(exc.code, exc.detail, retry_after=exc.retry_after)

    # ------------------------------------------------------------ ends

    def fail(self, code: ErrorCode, detail: str, *, retry_after: int | None = None) -> list[Effect]:
        """End the conversation from this side with a named reason."""
        if self.phase is ConversationPhase.CLOSED:
            return []
        if code not in CLOSES:
            # an error frame has the code; the close code is the nearest one that has a number
            error = Send(frames.Error(code, detail, retry_after))
            return [error, *self.fail(ErrorCode.AUTH_REQUIRED, detail)]
        return [Send(frames.Bye(code, detail, retry_after)), *self._end(code)]

    def lost(self) -> list[Effect]:
        """End: the socket is gone."""
        return [effect for effect in self._end(None) if not isinstance(effect, Close)]

    def drain(self) -> list[Effect]:
        """End: the node shuts down, and another one, or this one again, will answer soon."""
        return self.fail(ErrorCode.DRAINING, "the node is shutting down", retry_after=1)

    def _end(self, code: ErrorCode | None) -> list[Effect]:
        if self.phase is ConversationPhase.CLOSED:
            return []
        self.phase, self._timer = ConversationPhase.CLOSED, None
        closing = self.delivery.close()
        # a superseded session changes nothing
        return [*([] if code is ErrorCode.SUPERSEDED else closing), Close(code)]

    # ------------------------------------------------------------ timers

    def next_timer(self) -> Timestamp | None:
        """Return when to call :meth:`on_timer`, monotonic seconds."""
        return self._timer or self.delivery.next_timer()

    def on_timer(self, now: Timestamp) -> list[Effect]:
        """End at the auth deadline; once open, repeat a failed read."""
        if self._timer is None:
            return self.delivery.on_timer(now)
        if now < self._timer:
            return []
        self._timer = None
        if self.phase is ConversationPhase.OPENING:
            return self.fail(ErrorCode.STORAGE_UNAVAILABLE, "the login took too long here")
        return self.fail(ErrorCode.AUTH_REQUIRED, "no auth within 5 s")
