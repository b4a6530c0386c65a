"""A relay's side of a conversation with a relay that it dialled (PROTOCOL.md §5.10).

Rules of the file: those of ``protocol/client_session.py``, whose login this is, with the role
``peer``:
the same proofs, no inbox, and other frames afterwards. Only the side that dialled asks.

::

    START ──hello──▶ PROVING ──welcome + proof──▶ OPEN ──bye, a wrong frame──▶ CLOSED
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from relay.protocol import client_session, frames
from relay.protocol.client_session import (
    ClientPhase,
    ClientSession,
    Close,
    Failed,
    LoginOptions,
    Ready,
    Send,
)
from relay.protocol.did import SigningKey
from relay.protocol.errors import (
    ErrorCode,
    ProtocolError,
)
from relay.protocol.ids import (
    Did,
    Entropy,
    Timestamp,
)

Answer = (
    frames.Submitted
    | frames.Statuses
    | frames.Resolved
    | frames.Digests
    | frames.Have
    | frames.Gossip
    | frames.View
    | frames.Migrated
    | frames.Error
)
"""What a peer says to the relay that dialled it."""
Question = frames.Status | frames.Resolve | frames.Digest | frames.Want | frames.Migrate
"""What a relay asks of a peer that it dialled."""

HEARD: Final = (
    frames.Submitted,
    frames.Statuses,
    frames.Resolved,
    frames.Digests,
    frames.Have,
    frames.Gossip,
    frames.View,
    frames.Migrated,
    frames.Error,
)


@dataclass(frozen=True, slots=True)
class Answered:
    """The peer says this."""

    frame: Answer


Effect = Send | Ready | Answered | Failed | Close


class PeerSession:
    """One conversation, as the relay sees it that dialled.

    Args:
        key: the relay's own.
        url: the origin that was dialled.
        peer: who is expected there.
        entropy: random bytes.
    """

    def __init__(self, key: SigningKey, url: str, peer: Did, entropy: Entropy) -> None:
        self._login = ClientSession(key, LoginOptions(url, peer), entropy, "peer")

    @property
    def phase(self) -> ClientPhase:
        """Where the conversation stands."""
        return self._login.phase

    def receive(self, frame: frames.Frame, now: Timestamp) -> list[Effect]:
        """Take one frame from the peer; ``now`` is the wall clock, Unix seconds."""
        if self.phase is ClientPhase.OPEN and not isinstance(frame, frames.Bye):
            return self._hear(frame)
        return [self._as_ours(effect) for effect in self._login.receive(frame, now)]

    def _hear(self, frame: frames.Frame) -> list[Effect]:
        if isinstance(frame, HEARD):
            return [Answered(frame)]
        detail = f"{type(frame).__name__} does not belong between relays"
        return [*map(self._as_ours, self._login.fail(ProtocolError(ErrorCode.BAD_FRAME, detail)))]

    @staticmethod
    def _as_ours(effect: client_session.Effect) -> Effect:
        if isinstance(effect, client_session.FrameReceived):
            raise TypeError("only what comes before the login holds is left to it")
        return effect
