"""SessionPair: both ends of a conversation on a link that can fail, over one real inbox.

Nothing runs by itself. An effect of a state machine waits in ``todo`` until the test carries it
out. Its answer waits in ``results`` until the test brings it back. Frames wait on the link, and
hints in ``hints``. So a test (or dice) can delay, reorder and lose each of them. The world compares
whatever the relay hands over with the promises R1, R2 and R4, at that very moment.

::

    AgentSession ──frames── link ──frames── RelaySide ──todo──▶ Inbox
                                                 ▲◀──results──────────┘
                                                 └────hints (commits, wake-ups)
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from relay.inbox.model import effects as effects_
from relay.inbox.model.conversation import ConversationPhase as Phase
from relay.inbox.model.delivery import InboxDelivery
from relay.inbox.model.permissions import Identity
from relay.inbox.model.types import Accepted, InboxLimits, PageItem
from relay.inbox.model.types import AckResult as InboxAcked
from relay.protocol import frames as frames_
from relay.protocol import handshake
from relay.protocol.client_session import ClientPhase as AgentPhase
from relay.protocol.client_session import ClientSession, Failed, FrameReceived, Ready, Send
from relay.protocol.client_session import LoginOptions as AgentLogin
from relay.protocol.did import SigningKey
from relay.protocol.errors import ErrorCode, Refusal, error
from relay.protocol.frames import Ack, Acked, Deliver, Frame, Gap, Hello, Welcome, WelcomePending
from relay.protocol.ids import Epoch, NodeId, Seq, Timestamp
from relay.protocol.jws import b64encode
from relay.protocol.types import Reason, Window
from relay.reference.inbox import Inbox
from tests.support.relay_side import RelaySide
from tests.unit.builders import entry, numbered_entropy

ME, HOME = SigningKey(b"1" * 32), SigningKey(b"2" * 32)
URL = "https://relay.example"
WINDOW = Window(3, 200)
UNKNOWN = Refusal(ErrorCode.STORAGE_UNAVAILABLE, "no answer")
SETTLED = 2_000


class BrokenPromiseError(AssertionError):
    """A promise of GUARANTEES.md does not hold; the text begins with its name."""


@dataclass(eq=False)
class SessionPair:
    """One conversation: its two ends and all that is under way between them."""

    node: NodeId
    relay: RelaySide
    agent: ClientSession
    to_agent: deque[bytes] = field(default_factory=deque)
    to_relay: deque[bytes] = field(default_factory=deque)
    todo: list[effects_.Effect] = field(default_factory=list)
    results: list[Callable[[], list[effects_.Effect]]] = field(default_factory=list)
    is_up: bool = True
    fence: int = 0
    handed: dict[int, bool] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    heard: int = 0
    failure: ErrorCode | None = None

    @property
    def is_open(self) -> bool:
        """Both ends say so, and they can hear each other."""
        ends = (self.relay.phase, self.agent.phase)
        return self.is_up and ends == (Phase.OPEN, AgentPhase.OPEN)


class World:
    """One inbox, two nodes, one agent that follows its newest conversation."""

    delivery_class: type[InboxDelivery] = InboxDelivery
    inbox_class: type[Inbox] = Inbox
    watched: str | None = None
    """Only this promise counts; None: all do."""

    def __init__(self) -> None:
        self.inbox = self.inbox_class(ME.agent_key, Epoch("e0"))
        self.now = 1_000
        self.nodes = [NodeId("a0"), NodeId("b0")]
        self.pairs: list[SessionPair] = []
        self.mine: SessionPair | None = None
        self.hints: list[tuple[NodeId, int, PageItem | None]] = []
        self.entropy = numbered_entropy()
        self.wire: dict[int, bytes] = {}
        self.received: set[int] = set()
        self.first_fence: dict[int, int] = {}
        self.unmarked_fence: dict[int, int] = {}
        self.ended: dict[int, Reason] = {}
        self.may_be_behind = False

    def promise(self, name: str, kept: object, detail: object = "") -> None:
        if not kept and self.watched in {None, name}:
            raise BrokenPromiseError(f"{name}: {detail}")

    # ------------------------------------------------------------ senders

    def commit(self, node: int, size: int = 10, life: int = 100_000) -> None:
        """An envelope is stored by a node; news of it get under way."""
        n = self.inbox.last + 1
        wire = json.dumps({"n": n, "pad": "x" * size}, separators=(",", ":")).encode()
        item = entry(n, expires=self.now + life, created=self.now)._replace(wire=wire)
        result = self.inbox.accept(item, InboxLimits(), Timestamp(self.now))
        if not isinstance(result, Accepted):
            return
        self.wire[n] = wire
        if result.session is None:
            # marked, or nobody there; a poll will tell
            self.may_be_behind = True
        elif result.session.node == self.nodes[node]:
            news = PageItem(result.seq, False, item.eid, wire)
            self.hints.append((result.session.node, result.session.fence, news))
        else:
            self.hints.append((result.session.node, 0, None))

    # ------------------------------------------------------------ conversations

    def open(self, node: int) -> SessionPair:
        """The agent dials; what it had before, it no longer hears."""
        hello = Hello(HOME.did, URL, b64encode(self.entropy(32)), {}, self.now)
        relay = RelaySide(hello, WINDOW, Timestamp(self.now), self.delivery_class)
        agent = ClientSession(ME, AgentLogin(URL, HOME.did), self.entropy)
        pair = SessionPair(self.nodes[node], relay, agent)
        if self.mine:
            self.mine.to_relay.clear()
        self.pairs.append(pair)
        self.mine = pair
        self.carry(pair, relay.start())
        while pair.to_agent or pair.to_relay:  # hello and auth; the login itself may take its time
            self.hear(pair)
            self.tell(pair)
        return pair

    def carry(self, pair: SessionPair, effects: Sequence[effects_.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                if isinstance(effect.frame, Deliver):
                    self._handed_over(pair, effect.frame)
                if pair.is_up:
                    pair.to_agent.append(frames_.encode(effect.frame))
            elif not isinstance(effect, effects_.Close):
                pair.todo.append(effect)

    def hear(self, pair: SessionPair) -> None:
        """The agent takes the next frame."""
        if not pair.to_agent:
            return
        frame = frames_.parse(pair.to_agent.popleft(), "relay")
        for effect in pair.agent.receive(frame, Timestamp(self.now)):
            if isinstance(effect, Send):
                self.say(pair, effect.frame)
            elif isinstance(effect, FrameReceived) and pair is self.mine:
                self._heard(pair, effect.frame)
            elif isinstance(effect, Ready):
                pair.heard = effect.welcome.cursor
            elif isinstance(effect, Failed):
                pair.failure = effect.error.code

    def say(self, pair: SessionPair, frame: Frame) -> None:
        if pair.is_up:
            pair.to_relay.append(frames_.encode(frame))

    def tell(self, pair: SessionPair) -> None:
        """The relay takes the next frame."""
        if pair.to_relay:
            frame = frames_.parse(pair.to_relay.popleft(), "agent")
            self.carry(pair, pair.relay.receive(frame, Timestamp(self.now)))

    def _heard(self, pair: SessionPair, frame: Frame) -> None:
        if isinstance(frame, Gap):
            pair.heard = max([pair.heard, *(item.end for item in frame.ranges)])
        elif isinstance(frame, Acked):
            pair.heard = max(pair.heard, frame.upto)
        elif isinstance(frame, Deliver):
            for item in frame.items:
                self.promise(
                    "the right envelope",
                    json.dumps(item.envelope, separators=(",", ":")).encode()
                    == self.wire[item.seq],
                )
                fresh = item.redelivered or item.seq not in self.received
                self.promise("R1 unmarked duplicate", fresh, item.seq)
                self.received.add(item.seq)
                pair.heard = max(pair.heard, item.seq)

    # ------------------------------------------------------------ the store

    def execute(self, pair: SessionPair, which: int, fault: str = "") -> None:
        """Carry out an effect. ``lost``: it never happens; ``unknown``: it does, unheard."""
        effect = pair.todo.pop(which)
        if isinstance(effect, effects_.CloseInbox):
            if not fault:
                self.inbox.close_session(effect.fence, effect.delivered_upto)
            return
        step = {
            effects_.CheckLogin: self._log_in,
            effects_.Read: self._read,
            effects_.AckRequest: self._ack,
        }
        if type(effect) not in step:
            return
        answer, failed = step[type(effect)](pair, effect, happens=fault != "lost")
        pair.results.append(failed if fault else answer)

    def _log_in(
        self, pair: SessionPair, _: effects_.CheckLogin, *, happens: bool
    ) -> tuple[Any, Any]:
        unavailable = error(ErrorCode.STORAGE_UNAVAILABLE)
        failed = lambda: pair.relay.refused(unavailable)  # noqa: E731
        if not happens:
            return failed, failed
        opened = self.inbox.open_session(pair.node, WINDOW)
        if opened.previous:
            self.hints.append((opened.previous.node, 0, None))
        pair.fence, pair.ended = opened.fence, set(self.ended)
        claims = pair.agent._claims
        assert claims
        standing = handshake.InboxPosition(opened.epoch, opened.cursor, opened.head)
        welcome = Welcome(
            inbox=True,
            session=opened.fence,
            epoch=opened.epoch,
            cursor=opened.cursor,
            head=opened.head,
            pending=WelcomePending(),
            window_count=WINDOW.count,
            window_bytes=WINDOW.bytes,
            proof=handshake.sign_proof(HOME, claims, standing, Timestamp(self.now)),
        )
        who = Identity(ME.did, ME.agent_key, opened.fence)
        return (lambda: pair.relay.opened(who, welcome)), failed

    def _read(self, pair: SessionPair, read: effects_.Read, *, happens: bool) -> tuple[Any, Any]:
        now = Timestamp(self.now)
        failed = lambda: pair.relay.on_page(UNKNOWN, Timestamp(self.now))  # noqa: E731
        if not happens:
            return failed, failed
        page = self.inbox.read(read.fence, read.after, read.window, now)
        while not isinstance(page, Refusal) and page.expired:
            self._end(page.expired, Reason.EXPIRED)
            page = self.inbox.read(read.fence, read.after, read.window, now)
        if isinstance(page, Refusal):
            self.promise("R5 no false alarm", page.code is ErrorCode.SUPERSEDED, page)
        return (lambda: pair.relay.on_page(page, Timestamp(self.now))), failed

    def _ack(self, pair: SessionPair, effect: effects_.AckRequest, *, happens: bool) -> tuple:
        ack, now = effect.ack, Timestamp(self.now)
        failed = lambda: pair.relay.on_acked(ack, UNKNOWN, Timestamp(self.now))  # noqa: E731
        if not happens:
            return failed, failed
        before = set(self.inbox.live)
        done = self.inbox.ack(ack, now)
        gone = before - set(self.inbox.live)
        self.promise(
            "a superseded session changes nothing", not gone or ack.fence == self.inbox.fence
        )
        self.promise("R2 acked and never delivered", gone <= self.received, gone - self.received)
        refused = {seq for seq, _ in ack.refuse}
        for seq in gone:
            self.ended[seq] = Reason.REFUSED if seq in refused else Reason.ACKED
        result = done if isinstance(done, Refusal) else done[0]

        def answer() -> list[effects_.Effect]:
            if isinstance(result, InboxAcked):
                pair.ended |= {*result.seqs, *result.refused}
            return pair.relay.on_acked(ack, result, Timestamp(self.now))

        return answer, failed

    def _end(self, seqs: Sequence[Seq], reason: Reason) -> None:
        self.inbox.conclude(seqs, reason, Timestamp(self.now))
        self._ended({seq for seq in seqs if seq not in self.inbox.live}, reason)

    def _ended(self, gone: set[Seq], reason: Reason) -> None:
        alive = self.inbox.session and self.inbox.session.node in self.nodes
        for pair in self.pairs:
            if alive and pair.fence == self.inbox.fence:
                self.promise("R6 in flight is not expired", not gone & set(pair.handed), gone)
        self.ended.update(dict.fromkeys(gone, reason))

    def sweep(self) -> None:
        before = set(self.inbox.live)
        self.inbox.sweep(Timestamp(self.now), set(self.nodes))
        self._ended(before - set(self.inbox.live), Reason.EXPIRED)

    # ------------------------------------------------------------ what was handed over

    def _handed_over(self, pair: SessionPair, frame: Deliver) -> None:
        for item in frame.items:
            seq = int(item.seq)
            self.promise(
                "R4 ascending within a session", all(seq > old for old in pair.handed), seq
            )
            self.promise("R2 acked and handed over again", seq not in pair.ended, seq)
            self._check_mark(seq, pair.fence, marked=item.redelivered)
            waiting = [n for n in self.inbox.live if n < seq and n not in self.first_fence]
            self.promise(
                "R4 first deliveries in order", seq in self.first_fence or not waiting, waiting
            )
            self.first_fence[seq] = min(self.first_fence.get(seq, pair.fence), pair.fence)
            pair.handed[seq] = item.redelivered
        held = [len(self.wire[seq]) for seq in pair.handed if seq in self.inbox.live]
        fits = len(held) <= WINDOW.count and (sum(held) <= WINDOW.bytes or len(held) == 1)
        self.promise("no more than one window", fits, pair.handed)

    def _check_mark(self, seq: int, fence: int, *, marked: bool) -> None:
        """``redelivered: false`` means: no lower session was handed it, nor ever will be."""
        earlier = self.first_fence.get(seq, fence + 1) <= fence
        self.promise("R1 unmarked duplicate", marked or not earlier, seq)
        self.promise("R1 unmarked duplicate", self.unmarked_fence.get(seq, 0) <= fence, seq)
        if not marked:
            self.unmarked_fence[seq] = max(self.unmarked_fence.get(seq, 0), fence)

    # ------------------------------------------------------------ the agent acks

    def ack(self, kind: str, pick: int) -> None:
        pair = self.mine
        if not pair or not pair.is_open:
            return
        epoch = self.inbox.epoch
        journal = sorted(self.received - set(self.ended))
        one = Seq(journal[pick % len(journal)]) if journal else Seq(0)
        upto = Seq(max(0, pair.heard - pick % 4))
        frames: dict[str, Ack] = {
            "all": Ack(epoch, Seq(pair.heard)),
            "some": Ack(epoch, upto),
            "name": Ack(epoch, seqs=(one,)),
            "both": Ack(epoch, upto, (one,)),
            "refuse": Ack(epoch, upto, refuse=((one, "ugly"),)),
            "beyond": Ack(epoch, Seq(self.inbox.last + 1 + pick)),
            "of nothing": Ack(epoch, seqs=(Seq(self.inbox.last + 1 + pick),)),
            "foreign": Ack(Epoch("e9"), Seq(pair.heard)),
        }
        if kind not in {"name", "both", "refuse"} or one:
            self.say(pair, frames[kind])

    # ------------------------------------------------------------ trouble

    def cut(self, pair: SessionPair) -> None:
        """The link is gone; the relay does not know yet."""
        pair.is_up = False
        pair.to_agent.clear()
        pair.to_relay.clear()
        if pair is self.mine:
            self.mine = None

    def notice(self, pair: SessionPair) -> None:
        """The relay finds the socket gone."""
        if not pair.is_up:
            self.carry(pair, pair.relay.lost())

    def crash(self, node: int) -> None:
        """kill -9: nothing of it remains but what the store has."""
        for pair in [pair for pair in self.pairs if pair.node == self.nodes[node]]:
            self.cut(pair)
            self.pairs.remove(pair)
        self.hints = [hint for hint in self.hints if hint[0] != self.nodes[node]]
        name = self.nodes[node]
        self.nodes[node] = NodeId(f"{name[0]}{int(name[1:]) + 1}")

    def hint(self, which: int) -> None:
        """News arrive at a node."""
        node, fence, news = self.hints.pop(which)
        for pair in [pair for pair in self.pairs if pair.node == node]:
            if news is None:
                self.carry(pair, pair.relay.on_wakeup())
            else:
                self.carry(pair, pair.relay.on_stored(fence, [news]))

    def drop_hint(self, which: int) -> None:
        del self.hints[which]
        self.may_be_behind = True

    def poll(self) -> None:
        for pair in list(self.pairs):
            is_current = pair.relay.is_current(self.inbox.fence, self.inbox.last)
            if pair.relay.phase is Phase.OPEN and not is_current:
                self.carry(pair, pair.relay.on_wakeup())
        self.may_be_behind = False

    def fire_timers(self) -> None:
        for pair in list(self.pairs):
            due = pair.relay.next_timer()
            if due is not None:
                self.now = max(self.now, int(due) + 1)
                self.carry(pair, pair.relay.on_timer(Timestamp(self.now)))

    # ------------------------------------------------------------ small steps

    def steps(self) -> list[tuple[Any, ...]]:
        """Everything that is under way and may happen next."""
        found: list[tuple[Any, ...]] = [(self.hint, n) for n in range(len(self.hints))]
        for pair in self.pairs:
            found += [(self.execute, pair, n) for n in range(len(pair.todo))]
            found += [(self.result, pair, n) for n in range(len(pair.results))]
            found += [(self.hear, pair)] * bool(pair.to_agent)
            found += [(self.tell, pair)] * bool(pair.to_relay)
        return found

    def result(self, pair: SessionPair, which: int) -> None:
        """The store's answer arrives."""
        self.carry(pair, pair.results.pop(which)())

    def step(self, pick: int) -> None:
        found = self.steps()
        if found:
            call, *arguments = found[pick % len(found)]
            call(*arguments)

    def fault(self, pick: int) -> None:
        """One thing that is under way goes wrong."""
        faults: list[tuple[Any, ...]] = [(self.drop_hint, n) for n in range(len(self.hints))]
        for pair in self.pairs:
            for n in range(len(pair.todo)):
                faults += [(self.execute, pair, n, "lost"), (self.execute, pair, n, "unknown")]
            faults += [(self.cut, pair)] if pair.is_up else [(self.notice, pair)]
        if faults:
            call, *arguments = faults[pick % len(faults)]
            call(*arguments)

    # ------------------------------------------------------------ quiet times

    def settle(self) -> None:
        """Let everything that is under way happen; then nothing may be stuck."""
        for _ in range(SETTLED):
            if not self.steps():
                break
            self.step(0)
        else:
            self.promise("it comes to rest", False, "an endless conversation")
        pair = self.mine
        if pair and pair.is_open and not self.may_be_behind and pair.fence == self.inbox.fence:
            self._nothing_is_stuck(pair)

    def _nothing_is_stuck(self, pair: SessionPair) -> None:
        waiting = [seq for seq in self.inbox.live if seq not in pair.handed]
        # an ack whose answer was lost is for the agent to repeat; a failed read waits for its timer
        unsure = [seq for seq in pair.relay.delivery._outstanding if seq not in self.inbox.live]
        if not waiting or pair.relay.next_timer() is not None or unsure:
            return
        held = [len(self.wire[seq]) for seq in pair.handed if seq in self.inbox.live]
        fits = sum(held) + len(self.wire[waiting[0]]) <= WINDOW.bytes
        self.promise("nothing is stuck", held and (len(held) == WINDOW.count or not fits), waiting)

    def heal(self) -> None:
        """No more trouble: everything that was accepted arrives, or has ended by name."""
        for _ in range(60):
            self.settle()
            for pair in list(self.pairs):
                self.notice(pair)
            self.fire_timers()
            if not self.mine or not self.mine.is_open:
                self.open(0)
                self.settle()
            self.poll()
            self.settle()
            if not self.inbox.live and not self.steps():
                break
            self.ack("all", 0)
        self.promise("nothing is lost", not self.inbox.live, list(self.inbox.live))
        missing = set(self.wire) - self.received - set(self.ended)
        self.promise("accepted - delivered - ended is empty", not missing, missing)
        self.promise("every end has a name", set(self.ended) == set(self.wire))
