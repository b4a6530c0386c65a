"""One inbox, two nodes of one relay, sessions with fences: every interleaving of the real code.

The code is that of ``inbox/model`` and the real ``Inbox`` (relay/reference). The search is
complete within its size: each step of the store, each answer and each hint is a move of its own,
and it tries every order of moves. Only the link is simpler than life: the agent receives whatever
was handed over. A hint, an answer or a clean end that is lost is one that stays under way.

::

    commit ──▶ store ──hint, perhaps from memory──▶ session at a node ──▶ socket ──▶ agent
                 ▲─────────read, then the page arrives───────┘                         │
                 └──────────────────────────────ack────────────────────────────────────┘
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest

from relay.inbox.model.conversation import ConversationPhase as Phase
from relay.inbox.model.delivery import InboxDelivery
from relay.inbox.model.effects import AckRequest, CloseInbox, Effect, Read
from relay.inbox.model.permissions import Identity
from relay.inbox.model.types import Accepted, InboxLimits, PageItem
from relay.protocol.client_session import Send
from relay.protocol.did import Did
from relay.protocol.errors import Refusal
from relay.protocol.frames import Ack, Acked, Auth, Deliver, Hello, Welcome, WelcomePending
from relay.protocol.ids import AgentKey, Epoch, NodeId, Seq, Timestamp
from relay.protocol.types import Window
from relay.reference.dedupe import Dedupe
from relay.reference.inbox import Inbox
from relay.reference.ranges import Ranges
from tests.protocol.test_session_pair import (
    AnyFence,
    AnyOrder,
    Deaf,
    Eager,
    Endless,
    Repeating,
    Restless,
    Stubborn,
    Trusting,
    Unfenced,
    Unmarked,
    Vague,
)
from tests.support.broken_rules import each
from tests.support.relay_side import RelaySide
from tests.unit.builders import entry

pytestmark = pytest.mark.timeout(120)  # a busy machine is no bug

ME, E0, T = AgentKey("key:me"), Epoch("e0"), Timestamp(0)
HELLO = Hello(Did("did:r"), "u", "n", {}, 0)
NODES = (NodeId("a"), NodeId("b"))
LIMITS = InboxLimits()
SIZE = 10


class NoMemory(Dedupe):
    """Every envelope here is a new one, so nothing need be remembered, or copied."""

    def find(self, hour, key):
        del hour, key

    def remember(self, hour, key, seen, expires_at):
        del hour, key, seen, expires_at


def copy_of(one: Any, **changes: Any) -> Any:
    """A shallow copy, faster than the library's: a search makes hundreds of thousands."""
    made = object.__new__(type(one))
    for name in SLOTS if isinstance(one, Inbox) else vars(one):
        setattr(made, name, getattr(one, name))
    for name, value in changes.items():
        setattr(made, name, value)
    return made


SLOTS = tuple(one.name for one in fields(Inbox))


@dataclass(frozen=True)
class Scope:
    """The size of a search, and its classes."""

    messages: int = 2
    sessions: int = 2
    window: int = 1
    delivery: type[InboxDelivery] = InboxDelivery
    inbox: type[Inbox] = Inbox


@dataclass
class Talk:
    """A real relay session at a node, and what is under way for it."""

    relay: RelaySide
    node: NodeId
    fence: int
    under_way: tuple[Any, ...] = ()
    handed: tuple[int, ...] = ()
    ended: frozenset[int] = frozenset()
    journal_used: bool = False
    told: int = 0

    def key(self) -> tuple[Any, ...]:
        one = self.relay.delivery
        return (
            self.relay.phase, self.fence, one._position, one._delivered_upto, one._head, one._room,
            one._reading, one._more, self.relay.next_timer(), tuple(one._outstanding),
            frozenset(one._ended_while_reading), self.under_way, self.handed, self.ended,
            self.journal_used, self.told,
        )  # fmt: skip


@dataclass
class World:
    """The store, the nodes' conversations, hints, and what the agent has seen."""

    scope: Scope
    inbox: Inbox
    talks: list[Talk] = field(default_factory=list)
    hints: tuple[tuple[NodeId, int, PageItem | None], ...] = ()
    first: tuple[int, ...] = ()
    unmarked: tuple[int, ...] = ()
    acked: frozenset[int] = frozenset()
    broken: str | None = None

    def key(self) -> tuple[Any, ...]:
        box = self.inbox
        return (
            box.last, tuple(box.live), box.cursor, tuple(box.ranges), box.fence, box.handed,
            box.session, tuple(sorted((talk.key() for talk in self.talks), key=lambda k: k[1])),
            tuple((node if news is None else "", fence, news) for node, fence, news in self.hints),
            tuple(talk.node for talk in self.talks), self.first, self.unmarked, self.acked,
        )  # fmt: skip

    def clone(self) -> World:
        box = copy_of(self.inbox)
        box.live = self.inbox.live.copy()
        box.ranges = Ranges(list(self.inbox.ranges))
        box.senders = dict(self.inbox.senders)
        talks = []
        for talk in self.talks:
            delivery = copy_of(talk.relay.delivery)
            delivery._outstanding = dict(delivery._outstanding)
            delivery._ended_while_reading = set(delivery._ended_while_reading)
            conversation = copy_of(talk.relay.conversation, delivery=delivery)
            relay = copy_of(talk.relay, conversation=conversation, delivery=delivery)
            talks.append(copy_of(talk, relay=relay))
        return copy_of(self, inbox=box, talks=talks)

    # ------------------------------------------------------------ what is promised

    def breaks(self, name: str) -> None:
        self.broken = self.broken or name

    def carry(self, talk: Talk, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.frame, Deliver):
                for item in effect.frame.items:
                    self.hand_over(talk, int(item.seq), marked=item.redelivered)
            elif isinstance(effect, Send) and isinstance(effect.frame, Acked):
                talk.told = max(talk.told, effect.frame.upto)
            elif isinstance(effect, Read | AckRequest | CloseInbox):
                talk.under_way = (*talk.under_way, effect)

    def hand_over(self, talk: Talk, seq: int, *, marked: bool) -> None:
        first, unmarked = self.first[seq - 1], self.unmarked[seq - 1]
        if unmarked > talk.fence or (not marked and 0 < first <= talk.fence):
            self.breaks("unmarked duplicate")
        if seq in talk.ended:
            self.breaks("acked and delivered again")
        if not first and any(not self.first[n - 1] for n in self.inbox.live if n < seq):
            self.breaks("out of order")
        if any(seq <= old for old in talk.handed):
            self.breaks("out of order")
        low, high = min(first or talk.fence, talk.fence), unmarked if marked else talk.fence
        self.first = (*self.first[: seq - 1], low, *self.first[seq:])
        self.unmarked = (*self.unmarked[: seq - 1], max(unmarked, high), *self.unmarked[seq:])
        talk.handed = (*talk.handed, seq)
        if sum(n in self.inbox.live for n in talk.handed) > self.scope.window:
            self.breaks("more than one window")

    # ------------------------------------------------------------ moves

    def commit(self, node: int) -> None:
        n = self.inbox.last + 1
        result = self.inbox.accept(entry(n, SIZE), LIMITS, T)
        assert isinstance(result, Accepted)
        self.first, self.unmarked = (*self.first, 0), (*self.unmarked, 0)
        if result.session is None:
            return
        mine = result.session.node == NODES[node]
        news = PageItem(result.seq, False, entry(n).eid, b"x" * SIZE) if mine else None
        hint = (result.session.node, int(result.session.fence) if mine else 0, news)
        self.hints = (*self.hints, hint)

    def open(self, node: int) -> None:
        window = Window(self.scope.window, 1_000)
        opened = self.inbox.open_session(NODES[node], window)
        relay = RelaySide(HELLO, window, T, self.scope.delivery)
        relay.receive(Auth("x"), T)
        talk = Talk(relay, NODES[node], opened.fence, ended=self.acked)
        self.talks.append(talk)
        welcome = Welcome(
            inbox=True,
            session=opened.fence,
            epoch=opened.epoch,
            cursor=opened.cursor,
            head=opened.head,
            pending=WelcomePending(),
            window_count=window.count,
            window_bytes=window.bytes,
            proof="p",
        )
        self.carry(talk, relay.opened(Identity(Did("did:a"), ME, opened.fence), welcome))

    def hint(self, which: int) -> None:
        node, fence, news = self.hints[which]
        self.hints = (*self.hints[:which], *self.hints[which + 1 :])
        for talk in self.talks:
            if talk.node == node:
                said = (
                    talk.relay.on_wakeup() if news is None else talk.relay.on_stored(fence, [news])
                )
                self.carry(talk, said)

    def advance(self, at: int, which: int) -> None:
        """An effect is carried out by the store, or its answer arrives."""
        talk = self.talks[at]
        one = talk.under_way[which]
        talk.under_way = (*talk.under_way[:which], *talk.under_way[which + 1 :])
        match one:
            case Read():
                page = self.inbox.read(one.fence, one.after, one.window, T)
                talk.under_way = (*talk.under_way, ("page", page))
            case AckRequest():
                talk.under_way = (*talk.under_way, ("acked", one.ack, self.ack_at_store(one)))
            case CloseInbox():
                if self.inbox.close_session(one.fence, one.delivered_upto):
                    self.superseded_changed(talk)
            case ("page", page):
                self.carry(talk, talk.relay.on_page(page, T))
            case ("acked", ack, result):
                if not isinstance(result, Refusal):
                    talk.ended |= {*result.seqs, *result.refused}
                self.carry(talk, talk.relay.on_acked(ack, result, T))

    def superseded_changed(self, talk: Talk) -> None:
        if talk.fence != self.inbox.fence:
            self.breaks("a superseded session changed the inbox")

    def ack_at_store(self, effect: AckRequest) -> Any:
        before = set(self.inbox.live)
        done = self.inbox.ack(effect.ack, T)
        gone = before - set(self.inbox.live)
        if gone and effect.ack.fence != self.inbox.fence:
            self.breaks("a superseded session changed the inbox")
        if any(not self.first[seq - 1] for seq in gone):
            self.breaks("acked and never delivered")
        self.acked |= gone
        return done if isinstance(done, Refusal) else done[0]

    def say(self, at: int, frame: Ack) -> None:
        talk = self.talks[at]
        if frame.seqs:
            talk.journal_used = True
        self.carry(talk, talk.relay.receive(frame, T))
        if talk.relay.phase is Phase.CLOSED:
            self.breaks("a fair ack was refused")

    def lose(self, at: int) -> None:
        talk = self.talks[at]
        self.carry(talk, talk.relay.lost())
        # answers reach nobody; what was asked of the store may still happen
        left = (one for one in talk.under_way if isinstance(one, AckRequest | CloseInbox))
        talk.under_way = tuple(left)

    def moves(self) -> Iterator[tuple[Any, ...]]:
        for node in range(len(NODES)):
            if node and not self.inbox.fence:
                continue  # until the first session opens, the nodes are alike
            if self.inbox.last < self.scope.messages:
                yield "commit", node
            if self.inbox.fence < self.scope.sessions:
                yield "open", node
        for which in range(len(self.hints)):
            yield "hint", which
        for at, talk in enumerate(self.talks):
            yield from self.moves_of(at, talk)

    def moves_of(self, at: int, talk: Talk) -> Iterator[tuple[Any, ...]]:
        for which in range(len(talk.under_way)):
            yield "advance", at, which
        if talk.relay.phase is not Phase.OPEN:
            return
        yield "lose", at
        if not any(isinstance(one, AckRequest) or one[0] == "acked" for one in talk.under_way
                   if not isinstance(one, Read | CloseInbox)):  # fmt: skip
            if any(seq in self.inbox.live for seq in talk.handed):
                yield "say", at, Ack(E0, Seq(max(talk.handed)))
            if talk.told > max(talk.handed, default=0):
                yield "say", at, Ack(E0, Seq(talk.told))
            may = talk.fence == self.inbox.fence and not talk.journal_used
            for seq in self.inbox.live:
                if may and self.first[seq - 1] and seq not in talk.handed:
                    yield "say", at, Ack(E0, seqs=(seq,))

    def is_stuck(self) -> bool:
        """At rest, no hint lost, and the newest session does not have all that fits."""
        if self.hints or any(talk.under_way for talk in self.talks):
            return False
        for talk in self.talks:
            if talk.fence == self.inbox.fence and talk.relay.phase is Phase.OPEN:
                waits = any(seq not in talk.handed for seq in self.inbox.live)
                held = sum(seq in self.inbox.live for seq in talk.handed)
                return waits and held < self.scope.window
        return False


def explore(scope: Scope, until: str | None = None) -> tuple[int, str | None, list[Any]]:
    """Try every order of moves; return the number of worlds and a broken promise's story."""
    start = World(scope, scope.inbox(ME, E0, dedupe=NoMemory()))
    came_from: dict[Any, Any] = {start.key(): None}
    waiting = deque([start])
    while waiting:
        world = waiting.popleft()
        key = world.key()
        if world.is_stuck() and until in {None, "stuck"}:
            return len(came_from), "stuck", story(came_from, key)
        for name, *arguments in world.moves():
            after = world.clone()
            getattr(after, name)(*arguments)
            if after.broken and until in {None, after.broken}:
                return len(came_from), after.broken, [*story(came_from, key), (name, *arguments)]
            after.broken = None
            reached = after.key()
            if reached not in came_from:
                came_from[reached] = (key, (name, *arguments))
                waiting.append(after)
    return len(came_from), None, []


def story(came_from: dict[Any, Any], key: Any) -> list[Any]:
    told = []
    while came_from[key]:
        key, move = came_from[key]
        told.append(move)
    return told[::-1]


SIZES = [
    (Scope(messages=1), 3_000),
    (Scope(sessions=1), 300),
    (Scope(messages=3, sessions=1, window=2), 2_500),
    (Scope(), 80_000),
]
LARGER = [(Scope(window=2), 100_000), (Scope(messages=1, sessions=3), 250_000)]


@pytest.mark.parametrize(
    ("scope", "at_least"),
    [*SIZES, *(pytest.param(*one, marks=pytest.mark.slow) for one in LARGER)],
)
def test_no_order_of_moves_breaks_a_promise(scope: Scope, at_least: int):
    worlds, broken, told = explore(scope)
    assert broken is None, "\n".join(map(str, told))
    assert worlds > at_least  # a search that goes nowhere proves nothing


class Forgetful(InboxDelivery):
    """A commit during an empty page is left to the next hint."""

    def _nothing_new(self, page, now):
        return self._retry(now) if page.head > page.upto else []


class ReadsForAny(Inbox):
    """Reads for any session, not for the newest alone."""

    def read(self, fence, *rest, **options):
        del fence
        return super().read(self.fence, *rest, **options)


class AcksForAny(Inbox):
    """Takes an ack of any session, not of the newest alone."""

    def ack(self, request, now):
        return super().ack(replace(request, fence=self.fence), now)


class ClosesForAny(Inbox):
    """Takes a clean end of any session, not of the newest alone."""

    def close_session(self, fence, *rest):
        del fence
        return super().close_session(self.fence, *rest)


SUPERSEDED = "a superseded session changed the inbox"
MUTANTS: list[tuple[type, str, Scope]] = [
    (AnyOrder, "out of order", Scope()),
    (AnyFence, "unmarked duplicate", Scope()),
    (Restless, "unmarked duplicate", Scope(sessions=1)),
    (Endless, "more than one window", Scope(sessions=1)),
    (Eager, "more than one window", Scope(sessions=1)),
    (Deaf, "stuck", Scope(messages=3, sessions=1, window=2)),
    (Forgetful, "stuck", Scope(messages=3, sessions=1, window=3)),
    (Repeating, "acked and delivered again", Scope()),
    (Trusting, "acked and never delivered", Scope(messages=2)),
    (Vague, "unmarked duplicate", Scope()),
    (Stubborn, "a fair ack was refused", Scope()),
    (Unmarked, "unmarked duplicate", Scope()),
    (Unfenced, SUPERSEDED, Scope()),
    (ReadsForAny, "unmarked duplicate", Scope()),
    (AcksForAny, SUPERSEDED, Scope()),
    (ClosesForAny, SUPERSEDED, Scope()),
]


@each("two nodes, the real code", ("mutant", "promise", "scope"), MUTANTS)
def test_without_a_rule_a_promise_breaks(mutant: type, promise: str, scope: Scope):
    kind = "delivery" if issubclass(mutant, InboxDelivery) else "inbox"
    worlds, broken, told = explore(replace(scope, **{kind: mutant}), until=promise)
    assert broken == promise, f"{worlds} worlds and nothing broke"
    assert told
