"""The effects of a conversation and of a delivery: what they ask their shell to do, in order.

``relay/ws/connection.py`` has the table of who carries out which.
"""

from __future__ import annotations

from dataclasses import dataclass

from relay.inbox.model.types import AckRequest
from relay.protocol import frames
from relay.protocol.client_session import Close, Send
from relay.protocol.errors import Refusal
from relay.protocol.ids import AgentKey, Fence, Seq
from relay.protocol.types import Window

QuestionFrame = (
    frames.Status
    | frames.Resolve
    | frames.Publish
    | frames.Rules
    | frames.Digest
    | frames.Want
    | frames.Migrate
)
"""The questions of a dialler; each has its own answer, under its ``ref``."""


@dataclass(frozen=True, slots=True)
class CheckLogin:
    """Check this ``auth``, open the inbox, then call ``Conversation.opened`` or ``refused``."""

    auth: frames.Auth
    nonce: str


@dataclass(frozen=True, slots=True)
class StoreEnvelopes:
    """Verify, admit and store; the answer is a ``submitted`` frame of its own."""

    submit: frames.Submit


@dataclass(frozen=True, slots=True)
class Read:
    """Read the inbox after ``after``, then call ``InboxDelivery.on_page``."""

    inbox: AgentKey
    fence: Fence
    after: Seq
    window: Window


@dataclass(frozen=True, slots=True)
class AnswerQuestion:
    """Answer a question with one frame."""

    question: QuestionFrame


@dataclass(frozen=True, slots=True)
class HandleGossip:
    """Take in what a peer passes on; there is no answer."""

    gossip: frames.Gossip


@dataclass(frozen=True, slots=True)
class CloseInbox:
    """End the inbox session cleanly: each seq up to this one was delivered."""

    inbox: AgentKey
    fence: Fence
    delivered_upto: Seq


@dataclass(frozen=True, slots=True)
class EndSession:
    """End: the store no longer serves this inbox session."""

    refusal: Refusal


Effect = (
    Send
    | CheckLogin
    | StoreEnvelopes
    | Read
    | AckRequest
    | AnswerQuestion
    | HandleGossip
    | CloseInbox
    | EndSession
    | Close
)
"""An :class:`AckRequest` acks durably; then call ``InboxDelivery.on_acked``."""
