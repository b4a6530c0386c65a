"""PeerPair: two relays' state machines against each other, one dialled by the other.

Nothing runs by itself. Frames wait on the link as bytes until the test moves them, so it can lose,
alter and reorder them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from relay.inbox.model import effects
from relay.inbox.model.conversation import ConversationPhase as Phase
from relay.inbox.model.permissions import Identity
from relay.protocol import client_session, frames, handshake
from relay.protocol.client_session import ClientPhase as DiallerPhase
from relay.protocol.client_session import ClientSession, Failed, FrameReceived, LoginOptions, Ready
from relay.protocol.did import SigningKey, parse_did
from relay.protocol.errors import ErrorCode, ProtocolError, RejectedError
from relay.protocol.frames import Error, Frame, Gossip, Hello, Submit, Submitted, Welcome
from relay.protocol.frames import WelcomePending as Pending
from relay.protocol.ids import Seq, Timestamp
from relay.protocol.jws import b64encode
from relay.protocol.types import Window
from tests.support.relay_side import RelaySide
from tests.unit.builders import numbered_entropy

DIALLER, DIALLED = SigningKey(b"3" * 32), SigningKey(b"4" * 32)
URL = "https://dialled.example"
NOW = Timestamp(1_800_000_000)
WINDOW = Window(8, 4096)


@dataclass
class PeerPair:
    """One conversation between relays.

    Args:
        expected: whom the dialler expects.
        admitted: whether the other side deals with it.
        partner: whether it does so for a hand-off alone.
    """

    expected: SigningKey = DIALLED
    admitted: bool = True
    partner: bool = False
    to_dialler: deque[bytes] = field(default_factory=deque)
    to_dialled: deque[bytes] = field(default_factory=deque)
    heard: list[Frame] = field(default_factory=list)
    gossip: list[Gossip] = field(default_factory=list)
    stored: list[Submit] = field(default_factory=list)
    asked: list[effects.QuestionFrame] = field(default_factory=list)
    failure: ErrorCode | None = None
    ready: Ready | None = None

    def __post_init__(self) -> None:
        hello = Hello(DIALLED.did, URL, b64encode(b"n" * 32), {}, int(NOW))
        self.dialler = ClientSession(
            DIALLER, LoginOptions(URL, self.expected.did), numbered_entropy(), "peer"
        )
        self.dialled = RelaySide(hello, WINDOW, Timestamp(0))
        self._carry(self.dialled.start())

    @property
    def is_open(self) -> bool:
        ends = (self.dialler.phase, self.dialled.phase)
        return ends == (DiallerPhase.OPEN, Phase.OPEN)

    def say(self, frame: Frame) -> None:
        """The dialler says something."""
        self.to_dialled.append(frames.encode(frame))

    def answer(self, frame: Frame) -> None:
        """The dialled relay says something."""
        self.to_dialler.append(frames.encode(frame))

    def settle(self) -> PeerPair:
        """Move everything that is under way."""
        while self.to_dialler or self.to_dialled:
            if self.to_dialler:
                self.hear(self.to_dialler.popleft())
            if self.to_dialled:
                self.tell(self.to_dialled.popleft())
        return self

    def hear(self, data: bytes) -> None:
        """The dialler takes a frame."""
        for effect in self.dialler.receive(frames.parse(data, "relay"), NOW):
            match effect:
                case client_session.Send(frame):
                    self.say(frame)
                case FrameReceived(frame):
                    self.heard.append(frame)
                case Failed(why):
                    self.failure = why.code
                case Ready():
                    self.ready = effect
                case _:
                    pass

    def tell(self, data: bytes) -> None:
        """The dialled relay takes a frame."""
        frame = frames.parse(data, "agent")
        self._carry(self.dialled.receive(frame, Timestamp(1), is_handoff_peer=self.partner))

    def _carry(self, done: list[effects.Effect]) -> None:
        for effect in done:
            match effect:
                case client_session.Send(frame):
                    self.answer(frame)
                case effects.CheckLogin():
                    self._log_in(effect)
                case effects.HandleGossip(gossip):
                    self.gossip.append(gossip)
                case effects.StoreEnvelopes(submit):
                    self.stored.append(submit)
                    self.answer(Submitted((submit.ref,), None))
                case effects.AnswerQuestion(question):
                    self.asked.append(question)
                    self.answer(Error(ErrorCode.UNSUPPORTED, "", None, question.ref))
                case client_session.Close():
                    pass
                case _:
                    raise AssertionError(f"no peer makes a relay do {effect}")

    def _log_in(self, login: effects.CheckLogin) -> None:
        parsed = handshake.parse_auth(login.auth.jws)
        key = parse_did(parsed[1].subject)
        claims = handshake.verify_auth(parsed, key, relay=DIALLED.did, url=URL, now=NOW)
        if claims.nonce != login.nonce:
            self._carry(self.dialled.refused(ProtocolError(ErrorCode.BAD_SIGNATURE)))
            return
        if not self.admitted or claims.role != "peer":
            self._carry(self.dialled.refused(RejectedError(ErrorCode.NOT_FEDERATED)))
            return
        proof = handshake.sign_proof(DIALLED, claims, handshake.InboxPosition(None, 0, 0), NOW)
        welcome = Welcome(
            inbox=False, session=None, epoch=None, cursor=Seq(0), head=Seq(0), pending=Pending(),
            window_count=WINDOW.count, window_bytes=WINDOW.bytes, proof=proof,
        )  # fmt: skip
        who = Identity(key.did, key.agent_key, None, "peer")
        self._carry(self.dialled.opened(who, welcome))
