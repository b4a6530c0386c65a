"""The conversation as the side that dialled sees it: an agent or a relay (PROTOCOL.md §5).

Inputs are frames and the clock, outputs are effects; nothing awaits. What the other relay claims
counts only where its signature holds. After the login, role decides which frames it may send: see
``frames.SENT_TO_DIALER``. Between relays, only the side that dialled asks (§5.10).

::

    START ──hello──▶ PROVING ──welcome + proof──▶ OPEN ──bye, a wrong frame──▶ CLOSED

An example: ``hello`` makes the session send ``auth``; ``welcome``, with a proof that answers this
``auth``, makes it :class:`Ready`; every ``deliver`` after that is :class:`FrameReceived`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from relay.protocol import frames, handshake
from relay.protocol.did import SigningKey
from relay.protocol.errors import ErrorCode, ProtocolError, RelayError, error
from relay.protocol.ids import Did, Eid, Entropy, Timestamp
from relay.protocol.jws import b64encode
from relay.protocol.receipts import Receipt, ReceiptItem

PeerQuestion = frames.Status | frames.Resolve | frames.Digest | frames.Want | frames.Migrate
"""The frames in which a relay asks a peer that it dialled."""
PeerAnswer = (
    frames.Submitted | frames.Statuses | frames.Resolved | frames.Digests | frames.Have
    | frames.Gossip | frames.View | frames.Migrated | frames.Error
)  # fmt: skip
"""The frames that a peer sends to the relay that dialled it."""
AgentFrame = (
    frames.Submitted | frames.Deliver | frames.Gap | frames.Acked | frames.Statuses
    | frames.Resolved | frames.Published | frames.Ruled | frames.Error
)  # fmt: skip
"""The frames that a relay sends to an agent that dialled it."""


class ClientPhase(Enum):
    """The phases of a conversation."""

    START = "start"
    PROVING = "proving"
    OPEN = "open"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class LoginOptions:
    """The dialler's part of a login.

    Args:
        url: the origin that was dialled.
        relay: the relay DID expected there; None on first contact.
        record: the agent's newest endpoint record.
        invite: an invitation, where the relay asks for one.
    """

    url: str
    relay: Did | None = None
    record: str | None = None
    invite: str | None = None


@dataclass(frozen=True, slots=True)
class Send:
    """Write this frame."""

    frame: frames.Frame


@dataclass(frozen=True, slots=True)
class Close:
    """Close the socket with the close code of ``code``; None is a normal closure."""

    code: ErrorCode | None


@dataclass(frozen=True, slots=True)
class Ready:
    """The relay proved itself and the login holds."""

    relay: Did
    hello: frames.Hello
    welcome: frames.Welcome


@dataclass(frozen=True, slots=True)
class FrameReceived:
    """A frame for the application: an ``AgentFrame`` or a ``PeerAnswer``, by the role."""

    frame: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """The conversation is over; ``record`` comes with ``moved``."""

    error: RelayError
    record: str | None = None


ClientEffect = Send | Ready | FrameReceived | Failed | Close


class ClientSession:
    """One conversation, as the side that dialled sees it.

    Args:
        key: the dialler's own.
        login: what it brings.
        entropy: random bytes.
        role: whether it logs in as an agent or as a peer.
    """

    def __init__(
        self, key: SigningKey, login: LoginOptions, entropy: Entropy, role: handshake.Role = "agent"
    ) -> None:
        self.phase = ClientPhase.START
        self._role: handshake.Role = role
        self._key = key
        self._login = login
        self._cnonce = b64encode(entropy(handshake.NONCE_BYTES))
        self._hello: frames.Hello | None = None
        self._claims: handshake.LoginClaims | None = None

    def receive(self, frame: frames.Frame, now: Timestamp) -> list[ClientEffect]:
        """Take one frame from the relay; ``now`` is the wall clock, Unix seconds."""
        if self.phase is ClientPhase.CLOSED:
            return []
        try:
            return self._handle(frame, now)
        except RelayError as exc:
            return self.fail(exc)

    def fail(self, exc: RelayError, record: str | None = None) -> list[ClientEffect]:
        """End the conversation: the other side sent something that cannot be accepted."""
        self.phase = ClientPhase.CLOSED
        return [Failed(exc, record), Close(None)]

    def _handle(self, frame: frames.Frame, now: Timestamp) -> list[ClientEffect]:
        if isinstance(frame, frames.Bye):
            reason = error(frame.error, frame.detail, retry_after=frame.retry_after)
            return self.fail(reason, frame.record)
        if self.phase is ClientPhase.OPEN:
            return self._on_frame(frame)
        if isinstance(frame, frames.Hello) and self.phase is ClientPhase.START:
            return self._authenticate(frame, now)
        if isinstance(frame, frames.Welcome) and self.phase is ClientPhase.PROVING:
            return self._check(frame)
        if isinstance(frame, frames.Error):
            return self.fail(error(frame.error, frame.detail, retry_after=frame.retry_after))
        raise ProtocolError(ErrorCode.BAD_FRAME, f"{type(frame).__name__} before the login holds")

    def _authenticate(self, hello: frames.Hello, now: Timestamp) -> list[ClientEffect]:
        if hello.url != self._login.url:
            detail = f"dialled {self._login.url}, but the relay there says it is {hello.url}"
            raise ProtocolError(ErrorCode.WRONG_RELAY, detail)
        expected = self._login.relay or hello.relay
        if hello.relay != expected:
            detail = f"expected {expected}, found {hello.relay}"
            raise ProtocolError(ErrorCode.WRONG_RELAY, detail)
        self._hello = hello
        self._claims = handshake.LoginClaims(
            subject=self._key.did,
            aud=expected,
            url=self._login.url,
            nonce=hello.nonce,
            cnonce=self._cnonce,
            role=self._role,
        )
        self.phase = ClientPhase.PROVING
        signed = handshake.sign_auth(self._key, self._claims, now)
        return [Send(frames.Auth(signed, self._login.record, self._login.invite))]

    def _check(self, welcome: frames.Welcome) -> list[ClientEffect]:
        if self._claims is None or self._hello is None:
            raise ProtocolError(ErrorCode.BAD_FRAME, "welcome before hello")
        position = handshake.InboxPosition(welcome.epoch, welcome.cursor, welcome.head)
        handshake.verify_proof(welcome.proof, self._claims, position)
        self.phase = ClientPhase.OPEN
        return [Ready(self._claims.aud, self._hello, welcome)]

    def _on_frame(self, frame: frames.Frame) -> list[ClientEffect]:
        if type(frame) not in frames.SENT_TO_DIALER[self._role]:
            detail = f"a relay does not send {type(frame).__name__} to this side"
            raise ProtocolError(ErrorCode.BAD_FRAME, detail)
        return [FrameReceived(frame)]


Outcome = frames.Rejection | ReceiptItem


def match(
    frame: frames.Submitted,
    receipt: Receipt | None,
    asked: Mapping[str, Sequence[Eid]],
    handoffs: Mapping[str, str] | None = None,
) -> dict[str, list[Outcome]]:
    """Give each submitted envelope its rejection, else the next item of the receipt.

    Args:
        frame: the answer.
        receipt: the one in it, verified.
        asked: the eids of every submit that waits, by ref.
        handoffs: by ref, the hand-offs of those that are a part of one.

    Raises:
        ProtocolError: ``bad_frame``: it answers something else.
    """
    named = handoffs or {}
    if receipt and any(named.get(ref, "") != receipt.handoff for ref in frame.refs):
        raise ProtocolError(ErrorCode.BAD_FRAME, "the receipt is of another hand-off")
    rejected = {(item.ref, item.i): item for item in frame.rejected}
    left = iter(receipt.items if receipt else ())
    outcomes: dict[str, list[Outcome]] = {}
    for ref in frame.refs:
        found: list[Outcome] = []
        for i, eid in enumerate(asked.get(ref, ())):
            outcome = rejected.pop((ref, i), None) or next(left, None)
            if outcome is None or (isinstance(outcome, ReceiptItem) and outcome.eid != eid):
                raise ProtocolError(ErrorCode.BAD_FRAME, "the receipt is of something else")
            found.append(outcome)
        outcomes[ref] = found
    unknown = [ref for ref in frame.refs if ref not in asked]
    if unknown or rejected or next(left, None) or len(outcomes) < len(frame.refs):
        raise ProtocolError(ErrorCode.BAD_FRAME, "an answer to what was not asked")
    return outcomes
