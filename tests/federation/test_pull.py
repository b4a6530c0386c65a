"""Pulls: no peer can keep this relay from comparing its directory with the others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import pytest

from relay import clock, metrics
from relay.directory import pull
from relay.directory.change_log import RecordChangeReader
from relay.directory.gossip import RecordGossip
from relay.directory.model import anti_entropy
from relay.directory.model.anti_entropy import Index
from relay.directory.publish import Directory
from relay.directory.pull import PullLoop
from relay.inbox.keys import DidKeys
from relay.inbox.model.types import InboxLimits
from relay.peering.exchange import PeerExchange
from relay.peering.peers import Peers
from relay.protocol import endpoint_record
from relay.protocol.client_session import PeerAnswer, PeerQuestion
from relay.protocol.did import SigningKey, parse_did
from relay.protocol.frames import Digest, Gossip, Want
from relay.protocol.ids import AgentKey, Did
from relay.reference.memory_store import MemoryStore
from tests.federation.linked_nodes import now, until
from tests.support.nodes import new_key
from tests.support.patience import within

pytestmark = pytest.mark.timeout(60)


@dataclass
class Other:
    """The link to a relay with a directory of its own, as the asking side sees it."""

    key: SigningKey = field(default_factory=new_key)
    is_silent: bool = False
    is_broken: bool = False
    """What it says meets a bug of this relay."""
    is_endless: bool = False
    """Each time that it is asked anew, it has one record more."""
    asked: int = 0
    _index: Index = field(default_factory=Index)
    _held: dict[AgentKey, str] = field(default_factory=dict)

    @property
    def peer(self) -> Did:
        return self.key.did

    def add(self) -> None:
        agent = new_key()
        compact = endpoint_record.sign(
            agent, [endpoint_record.Home(self.peer, "https://b.example")], now=now()
        )
        owner = parse_did(agent.did).agent_key
        self._held[owner] = compact
        self._index.put(owner, endpoint_record.parse(compact).version)

    def push(self, gossip: Gossip) -> bool:
        return bool(gossip)

    async def ask(self, make: Callable[[str], PeerQuestion]) -> PeerAnswer:
        question = make("ref")
        self.asked += 1
        if self.is_silent:
            await asyncio.Event().wait()
        if self.is_broken:
            raise ZeroDivisionError
        await asyncio.sleep(0)
        match question:
            case Want(agents=(_, *_) as agents):
                return Gossip(tuple(self._held[one] for one in agents), ref="ref")
            case Digest() | Want():
                if self.is_endless and isinstance(question, Digest):
                    self.add()
                return anti_entropy.answer(self._index, question)
        raise AssertionError(question)


class Linked:
    """The links of a node that stand."""

    def __init__(self) -> None:
        self.others: list[Other] = []

    def live(self) -> Sequence[Other]:
        return self.others


@contextlib.asynccontextmanager
async def pulling(*others: Other) -> AsyncIterator[tuple[PullLoop, asyncio.Task[None]]]:
    """One turn of pulls, from these, under way."""
    own, store, links = new_key().did, MemoryStore(InboxLimits(), clock.now), Linked()
    peers = Peers(own, "open", frozenset(), store.peers)
    directory = Directory(own, store.records, DidKeys())
    exchange = PeerExchange(peers, links, lambda: "info")  # type: ignore[arg-type]
    pulls = PullLoop(RecordGossip(directory, RecordChangeReader(store.records), exchange))
    for other in others:
        link(pulls, other)
    turn = asyncio.create_task(pulls.pull())
    try:
        yield pulls, turn
    finally:
        turn.cancel()
        await asyncio.wait([turn])


def link(pulls: PullLoop, other: Other) -> None:
    exchange = pulls.gossip.exchange
    exchange.links.others.append(other)  # type: ignore[attr-defined]
    exchange.on_link_up(other)  # type: ignore[arg-type]


async def test_a_peer_that_comes_while_another_lets_a_pull_lie_is_asked_at_once():
    silent, back = Other(is_silent=True), Other()
    for _ in range(3):
        back.add()
    async with pulling(silent) as (pulls, turn):
        await until(lambda: silent.asked)
        link(pulls, back)
        await until(lambda: len(pulls.gossip.changes.index) == 3)
        assert not turn.done()


async def test_a_bug_about_one_peer_ends_neither_the_pulls_nor_the_questions_to_others():
    broken, other = Other(is_broken=True), Other()
    for _ in range(3):
        other.add()
    bugs = metrics.INTERNAL._value.get()
    async with pulling(broken, other) as (pulls, turn), within(8):
        await turn
        assert len(pulls.gossip.changes.index) == 3
        asked = other.asked
        await pulls.gossip.exchange.exchange_peers()
        assert other.asked > asked
    assert metrics.INTERNAL._value.get() == bugs + 2


async def test_a_peer_that_always_has_more_does_not_delay_the_others(monkeypatch):
    monkeypatch.setattr(pull, "MAX_REPEAT_S", 0.3)
    endless = Other(is_endless=True)
    async with pulling(endless) as (pulls, turn), within(8):
        await turn
        assert len(pulls.gossip.changes.index) > 1


@pytest.mark.breaks("mesh", "a pull is bounded")
async def test_without_a_bound_it_would_be_asked_for_ever(monkeypatch):
    """The negative control."""
    monkeypatch.setattr(pull, "MAX_REPEAT_S", 3600.0)
    endless = Other(is_endless=True)
    async with pulling(endless) as (pulls, turn):
        await until(lambda: len(pulls.gossip.changes.index) > 20)
        assert not turn.done()
