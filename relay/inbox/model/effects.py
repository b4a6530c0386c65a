"""What a conversation asks its shell to do: the effects of ``inbox/model/session.py``.

Rules of the file: an effect is a value, in an order that matters; each names the method of the
session that wants to hear of its result.
"""

from __future__ import annotations

from dataclasses import dataclass

from relay.inbox.model.types import (
    Ack as InboxAck,
)
from relay.protocol import frames
from relay.protocol.client_session import Close, Send
from relay.protocol.ids import (
    AgentKey,
    Fence,
    Seq,
)
from relay.protocol.types import Window

Question = (
    frames.Status
    | frames.Resolve
    | frames.Publish
    | frames.Rules
    | frames.Digest
    | frames.Want
    | frames.Migrate
)
"""What a dialler asks; each has its own answer, under its ``ref``."""


@dataclass(frozen=True, slots=True)
class Login:
    """Check this ``auth``, open the inbox, then call :meth:`RelaySession.opened` or ``refused``."""

    auth: frames.Auth
    nonce: str


@dataclass(frozen=True, slots=True)
class Store:
    """Verify, admit and store; the answer is a ``submitted`` frame of its own."""

    submit: frames.Submit


@dataclass(frozen=True, slots=True)
class Read:
    """Read the inbox after ``after``, then call :meth:`RelaySession.page`."""

    inbox: AgentKey
    fence: Fence
    after: Seq
    window: Window


@dataclass(frozen=True, slots=True)
class AckInbox:
    """Ack durably, then call :meth:`RelaySession.acked`."""

    inbox: AgentKey
    ack: InboxAck


@dataclass(frozen=True, slots=True)
class Ask:
    """Answer a question with one frame."""

    question: Question


@dataclass(frozen=True, slots=True)
class Hear:
    """A peer passes on what it has heard; there is no answer."""

    gossip: frames.Gossip


@dataclass(frozen=True, slots=True)
class CloseInbox:
    """End the inbox session cleanly: exactly this was handed over."""

    inbox: AgentKey
    fence: Fence
    last_handed: Seq


Effect = Send | Login | Store | Read | AckInbox | Ask | Hear | CloseInbox | Close
