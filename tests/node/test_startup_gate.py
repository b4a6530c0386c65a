"""The startup gate: which peers it asks, what counts as an answer, and when it opens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import pytest

from relay import clock
from relay.directory import startup_gate
from relay.directory.answers import PeerQuestions
from relay.directory.change_log import RecordChangeReader
from relay.directory.gossip import RecordGossip
from relay.directory.model import anti_entropy
from relay.directory.model.anti_entropy import Index
from relay.directory.publish import Directory
from relay.directory.startup_gate import StartupGate
from relay.inbox.keys import DidKeys
from relay.inbox.model.types import InboxLimits, OpenedSession
from relay.inbox.ports import OpenRequest
from relay.peering.exchange import PeerExchange
from relay.peering.peers import Peers
from relay.peering.ports import PeerRow
from relay.protocol import endpoint_record
from relay.protocol.client_session import PeerAnswer, PeerQuestion
from relay.protocol.did import SigningKey
from relay.protocol.errors import ErrorCode, UnavailableError
from relay.protocol.frames import Digest, Digests, Gossip, Want
from relay.protocol.ids import Did, NodeId
from relay.protocol.types import Window
from relay.reference.memory_store import MemoryStore
from tests.federation.linked_nodes import now, until
from tests.support.nodes import new_key
from tests.support.patience import within

NODE = NodeId("a")


@dataclass
class Peer:
    """The link to a relay, as the asking side sees it."""

    key: SigningKey = field(default_factory=new_key)
    knows: dict[str, str] = field(default_factory=dict)
    is_silent: bool = False
    is_broken: bool = False
    """What it says meets a bug of this relay."""
    adds: tuple[str, ...] = ()
    """Records that it tells of, unasked."""
    asked: list[PeerQuestion] = field(default_factory=list)
    index: Index = field(default_factory=Index)

    @property
    def peer(self) -> Did:
        return self.key.did

    def learn(self, agent: SigningKey, compact: str) -> None:
        self.knows[agent.agent_key] = compact
        self.index.put(agent.agent_key, endpoint_record.parse(compact).version)

    async def ask(self, make: Callable[[str], PeerQuestion]) -> PeerAnswer:
        question = make("ref")
        self.asked.append(question)
        if self.is_silent:
            await asyncio.Event().wait()
        if self.is_broken:
            raise ZeroDivisionError
        await asyncio.sleep(0)
        match question:
            case Want(agents=(_, *_) as agents):
                receivers = [self.knows[one] for one in agents if one in self.knows]
                return Gossip((*receivers, *self.adds), ref="ref")
            case Digest() | Want():
                return anti_entropy.answer(self.index, question)
        raise AssertionError(question)


@dataclass
class Links:
    """The links of a node that stand."""

    standing: list[Peer] = field(default_factory=list)

    def live(self) -> Sequence[Peer]:
        return self.standing


@dataclass
class World:
    """A node that has started."""

    own: SigningKey
    store: MemoryStore
    links: Links
    gate: StartupGate

    async def is_home(self, agent: SigningKey) -> bool:
        request = OpenRequest(agent.agent_key, NODE, Window(), create=False)
        return isinstance(await self.store.inboxes.open(request), OpenedSession)


HERE, THERE = "https://a.example", "https://b.example"


@contextlib.asynccontextmanager
async def started(
    *peers: Peer, agents: Sequence[SigningKey] = (), wait_s: float = 60.0, linked: bool = True
) -> AsyncIterator[World]:
    """A node that knows these peers, and at which these agents have an inbox."""
    own, store, links = new_key(), MemoryStore(InboxLimits(), clock.now), Links()
    for agent in agents:
        await store.inboxes.open(OpenRequest(agent.agent_key, NODE, Window()))
    for peer in peers:
        await store.peers.put(PeerRow(peer.peer, THERE, "added", 0))
    known = Peers(own.did, "closed", frozenset(), store.peers)
    await known.load()
    directory = Directory(own.did, store.records, DidKeys())
    exchange = PeerExchange(known, links, lambda: "info")  # type: ignore[arg-type]
    gossip = RecordGossip(directory, RecordChangeReader(store.records), exchange)
    directory.on_published.append(gossip.on_published)
    gate = StartupGate(gossip, store.inboxes, store.records, wait_s)
    await gate.begin()
    if linked:
        links.standing += peers
    turn = asyncio.create_task(gate.run())
    try:
        yield World(own, store, links, gate)
    finally:
        turn.cancel()
        await asyncio.wait([turn])
        if not turn.cancelled():
            turn.result()


def moved(agent: SigningKey, to: Peer) -> str:
    home = endpoint_record.Home(to.peer, THERE)
    return endpoint_record.sign(agent, [home], now=now())


# ---------------------------------------------------------------- what is asked


async def test_where_the_directories_are_the_same_one_question_is_enough():
    agent, peer = new_key(), Peer()
    record = moved(agent, peer)
    peer.learn(agent, record)
    async with started(peer, agents=[agent], linked=False) as world:
        held = await world.gate._gossip.directory.merge_from_peer([record], peer.peer)
        assert held[0].is_new
        world.links.standing.append(peer)
        await until(lambda: world.gate.is_open)
    assert [type(question) for question in peer.asked] == [Digest]


async def test_a_bug_about_one_peer_does_not_keep_another_from_telling():
    agent, broken, peer = new_key(), Peer(is_broken=True), Peer()
    peer.learn(agent, moved(agent, peer))
    async with started(broken, peer, agents=[agent]) as world:
        await until(lambda: world.gate.is_open)
        assert not await world.is_home(agent)


async def test_an_agent_without_a_record_here_is_asked_about_and_others_are_not():
    mine, other, peer = new_key(), new_key(), Peer()
    peer.learn(mine, moved(mine, peer))
    peer.learn(other, moved(other, peer))
    async with started(peer, agents=[mine]) as world:
        await until(lambda: world.gate.is_open)
        assert not await world.is_home(mine)
        assert await world.store.records.get(other.agent_key) is None
    wanted = [one.agents for one in peer.asked if isinstance(one, Want)]
    assert wanted == [(mine.agent_key,)]


async def test_thousands_are_asked_about_in_questions_that_can_be_answered():
    agents, peer = [new_key() for _ in range(600)], Peer()
    for agent in agents:
        peer.learn(agent, moved(agent, peer))
    async with started(peer, agents=agents) as world:
        await until(lambda: world.gate.is_open)
        assert not any([await world.is_home(agent) for agent in agents])
    sizes = [len(one.agents) for one in peer.asked if isinstance(one, Want)]
    assert sizes == [250, 250, 100]


async def test_no_more_than_three_are_asked():
    agent, peers = new_key(), [Peer() for _ in range(5)]
    async with started(*peers, agents=[agent]) as world:
        await until(lambda: world.gate.is_open)
        assert await world.is_home(agent)
    assert sum(bool(peer.asked) for peer in peers) == 3


# ---------------------------------------------------------------- who is believed, and how long


async def test_a_peer_that_withholds_does_not_keep_another_from_telling():
    agent, liar, honest = new_key(), Peer(), Peer()
    honest.learn(agent, moved(agent, honest))
    async with started(liar, honest, agents=[agent], linked=False) as world:
        world.links.standing.append(liar)
        await until(lambda: liar.asked)
        await asyncio.sleep(0)
        assert not world.gate.is_open
        world.links.standing.append(honest)
        await until(lambda: world.gate.is_open)
        assert not await world.is_home(agent)


async def test_a_peer_that_says_nothing_holds_up_nobody_for_long(monkeypatch):
    monkeypatch.setattr(startup_gate, "GRACE_S", 0.2)
    agent, silent, honest = new_key(), Peer(is_silent=True), Peer()
    honest.learn(agent, moved(agent, honest))
    async with started(silent, honest, agents=[agent]) as world:
        await until(lambda: world.gate.is_open)
        assert not await world.is_home(agent)
    assert silent.asked


async def test_a_peer_that_sends_what_was_not_asked_has_not_answered(monkeypatch):
    monkeypatch.setattr(startup_gate, "RETRY_S", 0.05)
    agent, other, liar = new_key(), new_key(), Peer()
    liar.learn(agent, moved(agent, liar))
    liar.adds = (moved(other, liar),)
    async with started(liar, agents=[agent]) as world:
        await until(lambda: len(liar.asked) > 4)
        assert not world.gate.is_open
        liar.adds = ()
        await until(lambda: world.gate.is_open)
        assert not await world.is_home(agent)
        assert await world.store.records.get(other.agent_key) is None


async def test_a_record_that_nobody_signed_moves_nobody():
    agent, liar = new_key(), Peer()
    head, payload, _ = moved(agent, liar).split(".")
    forged = f"{head}.{payload}.{moved(new_key(), liar).split('.')[2]}"
    liar.knows[agent.agent_key] = forged
    liar.index.put(agent.agent_key, endpoint_record.parse(forged).version)
    async with started(liar, agents=[agent]) as world:
        await until(lambda: world.gate.is_open)
        assert await world.is_home(agent)
        assert world.gate._gossip.exchange.peers.reputation(liar.peer).strikes == 1


async def test_the_wait_has_an_end_and_the_asking_goes_on():
    agent, late = new_key(), Peer()
    late.learn(agent, moved(agent, late))
    async with started(late, agents=[agent], wait_s=0.2, linked=False) as world:
        with pytest.raises(UnavailableError) as caught:
            world.gate.check()
        assert (caught.value.code, caught.value.retry_after) == (ErrorCode.DRAINING, 1)
        await until(lambda: world.gate.is_open)
        assert await world.is_home(agent)
        world.links.standing.append(late)
        await until(lambda: late.asked)
        async with within(8):
            while await world.is_home(agent):  # noqa: ASYNC110  what the store says
                await asyncio.sleep(0.01)


async def test_an_answer_before_the_store_went_back_does_not_count_after():
    agent, peer = new_key(), Peer()
    async with started(peer, agents=[agent]) as world:
        await until(lambda: world.gate.is_open)
        peer.learn(agent, moved(agent, peer))
        world.gate.close()
        assert not world.gate.is_open
        turn = asyncio.create_task(world.gate.run())
        await until(lambda: world.gate.is_open)
        await turn
        assert not await world.is_home(agent)


async def test_a_node_that_has_just_started_does_not_say_that_it_holds_nothing():
    agent, peer = new_key(), Peer()
    async with started(peer, linked=False) as world:
        gossip = world.gate._gossip
        await gossip.directory.merge_from_peer([moved(agent, peer)], peer.peer)
        assert not gossip.changes.is_current
        answer = await PeerQuestions(gossip.changes, gossip.exchange).answer(
            peer.peer, Digest("r", 10)
        )
        assert isinstance(answer, Digests)
        assert [item.records for item in answer.items] == [1]
