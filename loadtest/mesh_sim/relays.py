"""Simulate a relay around the real index, pulls, rumors, allowances, strikes and member table.

Only the shell is written here: timers, receivers of frames, and the order of events. The models of
``relay.directory`` and ``relay.peering`` decide everything else.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from loadtest.mesh_sim.light import Light
from relay.directory.gossip import push_allowance
from relay.directory.model.anti_entropy import Index, Pull, answer
from relay.directory.model.index import TOP_BITS
from relay.directory.model.rumors import Rumors, pack_records
from relay.peering.model.membership import MemberTable
from relay.peering.model.reputation import StrikeCounter, is_strike
from relay.protocol import frames
from relay.protocol.endpoint_record import RecordVersion
from relay.protocol.errors import ErrorCode
from relay.protocol.ids import Did, Timestamp

if TYPE_CHECKING:
    from loadtest.mesh_sim.world import World

PUSH_S: Final = 0.5
PULL_S: Final = 30.0
PULL_JITTER_S: Final = 10.0
ANSWER_S: Final = 1.0
TRIES: Final = 4
"""A question without an answer is asked again, as TCP would; then it is skipped."""


@dataclass(frozen=True, slots=True)
class Habits:
    """Behaviours of a relay; the negative controls switch them off, one by one."""

    pushes: bool = True
    pulls: bool = True
    passes_on: bool = True
    max_passed_on: int = 256
    fanout: int = 3


class Relay:
    """One relay.

    Args:
        did: who.
        world: clock, network, records.
        habits: what it does.
    """

    def __init__(self, did: Did, world: World, habits: Habits) -> None:
        self.did = did
        self.world = world
        self.habits = habits
        self.index = Index()
        self.members = MemberTable(did)
        self.rumors = Rumors(fanout=habits.fanout)
        self.allowance = push_allowance()
        self.strikes = StrikeCounter()
        self.links: set[Did] = set()
        self.pulls = 0
        self.is_pushing = False
        self._refs = (f"q{number}" for number in itertools.count())
        self._exchange: Exchange | None = None
        self._dial_at: float | None = None
        self._new_links: list[Did] = []
        self._held: set[str] = set()
        self._planned = object()
        self._busy_until = 0.0

    # ------------------------------------------------------------ records

    def publish(self, record: Light) -> None:
        """An agent of this relay published its record."""
        if self.take(record):
            self.tell(record, None)

    def take(self, record: Light) -> bool:
        """Merge one record by its order, as a store does; what is held already is known at once."""
        if record.text in self._held:
            return False
        self._held.add(record.text)
        if not self.index.put(record.agent, record.order):
            return False
        self.world.held(self, record)
        return True

    def tell(self, record: Light, not_to: Did | None) -> None:
        """Pass on what is new here, soon."""
        if not self.habits.pushes:
            return
        self.rumors.add(record.agent, record.text, not_to=not_to)
        if not self.is_pushing:
            self.is_pushing = True
            self.world.clock.later(self.world.chance.uniform(0, PUSH_S), self._push)

    def _push(self) -> None:
        linked = sorted(self.links)
        for peer, frame in self.rumors.pop_frames(linked, self.world.pick):
            self.world.send(self, peer, frame, lambda to, pushed=frame: to.pushed(self.did, pushed))
        self.is_pushing = bool(len(self.rumors) and linked)
        if self.is_pushing:
            self.world.clock.later(PUSH_S, self._push)

    def pushed(self, peer: Did, frame: frames.Gossip) -> None:
        """Take what a peer has pushed, as far as it may push."""
        now = self.now
        allowed = self.allowance.acquire_up_to(peer, len(frame.records), now)
        if self._is_out(peer):
            return
        for text in frame.records[:allowed]:
            record = self.judge(peer, text)
            if record is None and self._is_out(peer):
                return
            if record and self.take(record) and self.habits.passes_on:
                self.tell(record, peer)

    def judge(self, peer: Did, text: str) -> Light | None:
        """Return the record of a text, or count a strike."""
        record = self.world.catalogue.by_text.get(text)
        if record is None and is_strike(ErrorCode.BAD_SIGNATURE):
            self.strikes.add(peer, self.now)
        return record

    # ------------------------------------------------------------ links

    def dial_in(self, seconds: float) -> None:
        """Dial then, or sooner where that was planned."""
        at = self.world.clock.now + seconds
        if self._dial_at is None or at < self._dial_at:
            self._dial_at = at
            self.world.clock.later(seconds, lambda: self._dial(at))

    def _dial(self, planned: float) -> None:
        if planned != self._dial_at:
            return
        self._dial_at = None
        for did in self.members.due(self.now, self.links):
            if self.world.network.is_parted(self.did, did):
                self.members.on_dial_failed(did, self.now, self.world.chance.random())
            else:
                self.members.on_link_up(did, self.now)
                self.links.add(did)
                self.pull_from(did)
                self.world.relay(did).dialled(self.did)
        at = self.members.next_dial_at(self.now, self.links)
        if at is not None:
            self.dial_in(max(0.2, at - self.now))

    def dialled(self, by: Did) -> None:
        """A peer has logged in here: it can be reached again, so it is dialled soon."""
        if by not in self.links and self.members.on_inbound_login(by, self.now):
            self.dial_in(self.world.chance.uniform(0, 0.2))

    # ------------------------------------------------------------ anti-entropy

    def start_pulling(self) -> None:
        """The first pull comes soon, the others every 30 ± 10 s."""
        self._pull_in(self.world.chance.uniform(0, PULL_S))

    def pull(self) -> None:
        """Ask one partner what is missing here: one with a new link first, else a random one."""
        linked = [did for did in sorted(self.links) if not self._is_out(did)]
        peers = self._new_links or self.world.pick(linked, 1)
        if self._exchange or not self.habits.pulls:
            return
        if not peers:
            self._pull_later()
            return
        self.pulls += 1
        peer = peers.pop()
        first = self.world.chance.randrange(2**TOP_BITS)
        pull = Pull(self.index, self._refs.__next__, first=first)
        self._exchange = Exchange(self, peer, pull)
        self._exchange.start()

    def pull_from(self, did: Did) -> None:
        """Soon, since nobody knows for how long that one was away."""
        self._new_links.append(did)
        self._pull_in(self.world.chance.uniform(0, 1))

    def ended(self, peer: Did, gained: list[Light]) -> None:
        """A pull is over: the next comes at once while it makes progress.

        The relay passes on a few gained records; many are left to the pulls of others.
        """
        self._exchange = None
        if len(gained) <= self.habits.max_passed_on:
            for record in gained:
                self.tell(record, peer)
        if gained or self._new_links:
            self.pull()
        else:
            self._pull_later()

    def _pull_later(self) -> None:
        self._pull_in(PULL_S + self.world.chance.uniform(-PULL_JITTER_S, PULL_JITTER_S))

    def _pull_in(self, seconds: float) -> None:
        """Plan the next pull, instead of one that was planned for later."""
        planned = self._planned = object()
        self.world.clock.later(seconds, lambda: planned is self._planned and self.pull())

    def _is_out(self, did: Did) -> bool:
        return self.strikes.reputation(did, self.now).is_banned

    def asked(self, peer: Did, question: frames.Digest | frames.Want) -> None:
        """Answer a peer's question from what is held here."""
        for reply in self.answers(question):
            self.world.send(self, peer, reply, lambda to, frame=reply: to.answered(frame))

    def answers(
        self, question: frames.Digest | frames.Want
    ) -> list[frames.Digests | frames.Have | frames.Gossip]:
        """Return the answer to a question; only the first frame of a long one."""
        if isinstance(question, frames.Want) and question.agents:
            held = map(self.index.version, question.agents)
            texts = [self.text_of(order) for order in held if order]
            return [*pack_records(texts, question.ref)[:1]] or [frames.Gossip(ref=question.ref)]
        return [answer(self.index, question)]

    def text_of(self, order: RecordVersion) -> str:
        """The record of an order that is held."""
        return self.world.catalogue.by_order[order[2]].text

    def answered(self, frame: frames.Digests | frames.Have | frames.Gossip) -> None:
        """An answer arrived; one that nobody waits for any more is dropped by the link."""
        if self._exchange:
            self._exchange.take(frame)

    def working_s(self, records: int) -> float:
        """Return the seconds until so many requested records are verified on a part of a core."""
        begin = max(self._busy_until, self.world.clock.now)
        self._busy_until = begin + records * self.world.record_s
        return self._busy_until - self.world.clock.now

    @property
    def now(self) -> Timestamp:
        """The virtual time."""
        return Timestamp(self.world.clock.now)


class Exchange:
    """One pull under way, and what it has gained."""

    def __init__(self, relay: Relay, peer: Did, pull: Pull) -> None:
        self._relay, self._peer, self._pull = relay, peer, pull
        self._open: set[str] = set()
        self._gained: list[Light] = []

    def start(self) -> None:
        """Say the first question."""
        self._ask(self._pull.start())

    def take(self, frame: frames.Digests | frames.Have | frames.Gossip) -> None:
        """Take an answer; records are judged first, which takes a while."""
        if frame.ref not in self._open:
            return
        self._open.discard(frame.ref)
        if isinstance(frame, frames.Gossip) and frame.records:
            wait = self._relay.working_s(len(frame.records))
            self._relay.world.clock.later(wait, lambda: self._keep(frame))
        else:
            self._ask(self._pull.receive(frame))

    def _keep(self, frame: frames.Gossip) -> None:
        asked = frozenset(self._pull.agents_asked(frame.ref))
        before = len(self._gained)
        for text in frame.records:
            record = self._relay.judge(self._peer, text)
            if record and record.agent in asked and self._relay.take(record):
                self._gained.append(record)
        self._ask(self._pull.receive(frame, gained=len(self._gained) - before))

    def _ask(self, questions: list[frames.Digest | frames.Want]) -> None:
        for question in questions:
            self._open.add(question.ref)
            self._say(question, TRIES)
        if self._pull.is_done:
            self._relay.ended(self._peer, self._gained)

    def _say(self, question: frames.Digest | frames.Want, tries: int) -> None:
        if question.ref not in self._open:
            return
        if not tries:
            self._open.discard(question.ref)
            self._ask(self._pull.skip(question.ref))
            return
        world = self._relay.world
        world.send(
            self._relay, self._peer, question, lambda to: to.asked(self._relay.did, question)
        )
        world.clock.later(ANSWER_S, lambda: self._say(question, tries - 1))
