"""What a conversation asks its shell to do: the effects of ``inbox/model/session.py``.

Rules of the file: an effect is a value, in an order that matters; each names the method of the
session that wants to hear of its result.
"""

from __future__ import annotations

from dataclasses import dataclass

from relay.inbox.model.types import (
    Ack as InboxAck,
)
from relay.protocol.client_session import Close, Send
from relay.protocol.frames.frames import (
    Auth,
    Digest,
    Gossip,
    Publish,
    Resolve,
    Rules,
    Status,
    Submit,
    Want,
)
from relay.protocol.frames.frames_migrate import Migrate
from relay.protocol.ids import (
    AgentKey,
    Fence,
    Seq,
)
from relay.protocol.types import Window

Question = Status | Resolve | Publish | Rules | Digest | Want | Migrate
"""What a dialler asks; each has its own answer, under its ``ref``."""


@dataclass(frozen=True, slots=True)
class Login:
    """Check this ``auth``, open the inbox, then call :meth:`RelaySession.opened` or ``refused``."""

    auth: Auth
    nonce: str


@dataclass(frozen=True, slots=True)
class Store:
    """Verify, admit and store; the answer is a ``submitted`` frame of its own."""

    submit: Submit


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

    gossip: Gossip


@dataclass(frozen=True, slots=True)
class CloseInbox:
    """End the inbox session cleanly: exactly this was handed over."""

    inbox: AgentKey
    fence: Fence
    last_handed: Seq


Effect = Send | Login | Store | Read | AckInbox | Ask | Hear | CloseInbox | Close
