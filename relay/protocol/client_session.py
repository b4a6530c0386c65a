"""The agent's side of a conversation with a relay (PROTOCOL.md §5).

Rules of the file: the same as the relay's side: inputs are frames and the clock, outputs are
effects; nothing awaits, and what a relay says is believed only where its signature says so.

::

    START ──hello──▶ PROVING ──welcome + proof──▶ OPEN ──bye, error──▶ CLOSED
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from relay.protocol import frames, handshake
from relay.protocol.did import SigningKey
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
    RelayError,
    error,
)
from relay.protocol.ids import (
    Did,
    Entropy,
    Timestamp,
)
from relay.protocol.jws import b64encode


@dataclass(frozen=True, slots=True)
class LoginOptions:
    """What the agent brings to a login.

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
class Ready:
    """The relay proved itself and the login holds."""

    relay: Did
    hello: frames.Hello
    welcome: frames.Welcome


@dataclass(frozen=True, slots=True)
class FrameReceived:
    """A frame for the application."""

    frame: (
        frames.Submitted
        | frames.Deliver
        | frames.Gap
        | frames.Acked
        | frames.Statuses
        | frames.Resolved
        | frames.Published
        | frames.Ruled
        | frames.Error
    )


@dataclass(frozen=True, slots=True)
class Failed:
    """The conversation is over; ``record`` comes with ``moved``."""

    error: RelayError
    record: str | None = None


@dataclass(frozen=True, slots=True)
class Send:
    """Write this frame."""

    frame: frames.Frame


@dataclass(frozen=True, slots=True)
class Close:
    """Close the socket with the close code of ``code``; None is a normal closure."""

    code: ErrorCode | None


Effect = Send | Ready | FrameReceived | Failed | Close


class ClientPhase(Enum):
    """Where a conversation stands."""

    START = "start"
    PROVING = "proving"
    OPEN = "open"
    CLOSED = "closed"


class ClientSession:
    """One conversation, as the agent sees it."""

    def __init__(
        self, key: SigningKey, login: LoginOptions, entropy: Entropy, role: handshake.Role = "agent"
    ) -> None:
        self.phase = ClientPhase.START
        self._role = role
        self._key = key
        self._login = login
        self._cnonce = b64encode(entropy(handshake.NONCE_BYTES))
        self._hello: frames.Hello | None = None
        self._claims: handshake.LoginClaims | None = None

    def receive(self, frame: frames.Frame, now: Timestamp) -> list[Effect]:
        """Take one frame from the relay; ``now`` is the wall clock, Unix seconds."""
        if self.phase is ClientPhase.CLOSED:
            return []
        try:
            return self._take(frame, now)
        except RelayError as exc:
            return self.fail(exc)

    def _take(self, frame: frames.Frame, now: Timestamp) -> list[Effect]:
        if isinstance(frame, frames.Bye):
            said = error(frame.error, frame.detail, retry_after=frame.retry_after)
            return self.fail(said, frame.record)
        if self.phase is ClientPhase.OPEN:
            return self._hear(frame)
        if isinstance(frame, frames.Hello) and self.phase is ClientPhase.START:
            return self._answer(frame, now)
        if isinstance(frame, frames.Welcome) and self.phase is ClientPhase.PROVING:
            return self._check(frame)
        if isinstance(frame, frames.Error):
            return self.fail(error(frame.error, frame.detail, retry_after=frame.retry_after))
        raise ProtocolError(ErrorCode.BAD_FRAME, f"{type(frame).__name__} before the login holds")

    def _answer(self, hello: frames.Hello, now: Timestamp) -> list[Effect]:
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

    def _check(self, welcome: frames.Welcome) -> list[Effect]:
        if self._claims is None or self._hello is None:
            raise ProtocolError(ErrorCode.BAD_FRAME, "welcome before hello")
        standing = handshake.InboxPosition(welcome.epoch, welcome.cursor, welcome.head)
        handshake.verify_proof(welcome.proof, self._claims, standing)
        self.phase = ClientPhase.OPEN
        return [Ready(self._claims.aud, self._hello, welcome)]

    @staticmethod
    def _hear(frame: frames.Frame) -> list[Effect]:
        match frame:
            case (
                frames.Submitted() | frames.Deliver() | frames.Gap() | frames.Acked()
                | frames.Statuses() | frames.Resolved() | frames.Published() | frames.Ruled()
                | frames.Error()
            ):  # fmt: skip
                return [FrameReceived(frame)]
            case _:
                detail = f"{type(frame).__name__} does not belong here"
                raise ProtocolError(ErrorCode.BAD_FRAME, detail)

    def fail(self, exc: RelayError, record: str | None = None) -> list[Effect]:
        """End the conversation: what the other side said cannot be gone on with."""
        self.phase = ClientPhase.CLOSED
        return [Failed(exc, record), Close(None)]
