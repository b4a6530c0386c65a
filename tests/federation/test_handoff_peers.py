"""Relays that deal with each other for a hand-off alone: what they may say, and what goes to them.

The source is a relay by hand; the target is a real one, of closed federation, that has taken the
agent's order.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest

from relay import clock
from relay.client.errors import AgentError
from relay.inbox.model.types import InboxLimits
from relay.peering.exchange import PeerExchange
from relay.peering.link import Link, log_in
from relay.peering.links import Links
from relay.peering.peers import Peers
from relay.peering.ports import PeerRow
from relay.protocol import frames
from relay.protocol import jws as jose
from relay.protocol.did import SigningKey
from relay.protocol.endpoint_record import Home
from relay.protocol.envelope import SignedEnvelope, eid_of
from relay.protocol.errors import ErrorCode, ProtocolError, RejectedError, RelayError
from relay.protocol.frames import (
    Bye,
    Digest,
    Digests,
    Error,
    Frame,
    Gossip,
    Migrate,
    Migrated,
    Resolve,
    Resolved,
    Status,
    StatusItem,
    Submit,
    Submitted,
    Want,
)
from relay.protocol.ids import Did, Epoch, Timestamp
from relay.protocol.jws import b64encode
from relay.protocol.receipts import ReceiptItem, sign_receipt, verify_receipt
from relay.reference.memory_store import MemoryStore
from tests.federation.linked_nodes import (
    Chooser,
    Dialler,
    Peer,
    Place,
    held,
    peer,
    places,
    record_of,
    relay_at,
    running_links,
    until,
)
from tests.federation.test_pull import Linked, Other
from tests.support.migration_steps import Traveller
from tests.support.nodes import RunningNode, dial, make_envelope, new_key, running_node, speaker
from tests.support.patience import within

pytestmark = pytest.mark.timeout(60)


@dataclass
class Move:
    """An agent that moves from a relay by hand to a real one."""

    source: Place
    target: RunningNode
    agent: SigningKey
    way: Traveller

    @property
    def did(self) -> Did:
        return self.target.parts.key.did

    @contextlib.asynccontextmanager
    async def log_in(self, key: SigningKey | None = None) -> AsyncIterator[Peer]:
        async with peer(self.target.url, self.did, key or self.source.key) as there:
            yield there

    def page(self, **values) -> Migrate:
        reply = {"ref": "m", "agent": self.agent.did, "handoff": self.way.id,
                "authorization": self.way.order, "digest_id": b64encode(bytes(32)), "number": 0,
                "total": 1, **values}  # fmt: skip
        return Migrate(**reply)

    def submit(self, made: Sequence[SignedEnvelope], ref: str = "s", handoff: str | None = None):
        named = self.way.id if handoff is None else handoff
        return Submit(ref, [one.wire for one in made], (self.source.did,), (), named)


@contextlib.asynccontextmanager
async def moving(*, is_prepared: bool = True, **values) -> AsyncIterator[Move]:
    a, b = places(2)
    agent = new_key()
    async with relay_at(b, **{"federation": "closed", **values}) as target:
        way = Traveller(agent, Home(a.did, a.url), Home(b.did, b.url), record_of(agent, a))
        if is_prepared:
            await way.prepare()
        yield Move(a, target, agent, way)


def to(agent: SigningKey, count: int = 1, sender: SigningKey | None = None) -> list[SignedEnvelope]:
    sender = sender or new_key()
    return [make_envelope(sender, agent.did, str(n).encode()) for n in range(count)]


# ---------------------------------------------------------------- who is let in


async def test_only_the_agents_order_lets_a_relay_in_that_nobody_added():
    async with moving(is_prepared=False) as move:
        with pytest.raises(RelayError) as caught:
            async with move.log_in():
                pass
        assert caught.value.code is ErrorCode.NOT_FEDERATED
        await move.way.prepare()
        async with move.log_in() as there:
            assert there.ready.welcome.inbox is False
        with pytest.raises(RelayError) as caught:
            async with move.log_in(new_key()):
                pass
        assert caught.value.code is ErrorCode.NOT_FEDERATED


@pytest.mark.parametrize(
    ("values", "code"),
    [({"federation": "off"}, ErrorCode.NOT_FEDERATED), ({}, ErrorCode.BLOCKED)],
    ids=["off", "blocked"],
)
async def test_no_order_lets_a_relay_in_that_the_operator_wants_nothing_of(values, code):
    async with moving(is_prepared=False, **values) as move:
        peers = move.target.parts.peers
        if code is ErrorCode.BLOCKED:
            await peers.block(move.source.did)
        with pytest.raises(AgentError) as caught:
            await move.way.prepare()
        assert caught.value.code is code
        peers.handoff_peers = frozenset({move.source.did})
        with pytest.raises(RelayError) as refused:
            async with move.log_in():
                pass
        assert refused.value.code is code


async def test_a_handoff_peer_is_dismissed_once_nothing_more_is_handed_over():
    async with moving() as move, move.log_in() as there:
        peers = move.target.parts.peers
        await until(lambda: peers.inbound)
        peers.handoff_peers = frozenset()
        await peers.refresh()
        assert (await there.hear(Bye)).error is ErrorCode.NOT_FEDERATED


# ---------------------------------------------------------------- what it may say

ELSE: list[Frame] = [
    Submit("x", [{"jws": "a.b.c", "body": ""}], (new_key().did,)),
    Status("x", (StatusItem(new_key().did, "i", new_key().did),)),
    Resolve("x", new_key().did),
    Digest("x", 10),
    Want("x", relays=True),
    Want("x", view=True),
]


@pytest.mark.parametrize("frame", ELSE, ids=lambda frame: type(frame).__name__)
async def test_what_has_nothing_to_do_with_the_hand_off_is_refused_and_the_rest_goes_on(frame):
    async with moving() as move, move.log_in() as there:
        await there.say(frame)
        reply = await there.hear()
        assert isinstance(reply, Error)
        assert (reply.error, reply.ref) == (ErrorCode.NOT_FEDERATED, "x")
        await there.say(move.page())
        assert await there.hear() == Migrated("m", move.way.id, b64encode(bytes(32)), 1)


async def test_gossip_of_a_handoff_peer_is_ignored_and_ends_the_conversation():
    stranger = new_key()
    async with moving() as move, move.log_in() as there:
        await there.say(Gossip((record_of(stranger, move.source),)))
        assert (await there.hear()).error is ErrorCode.NOT_FEDERATED
        await there.socket.wait_closed()
        assert there.socket.close_code == 4008
        found = await move.target.parts.directory.resolve(stranger.did)
        assert found.state == "absent"


async def test_a_relay_that_the_operator_added_may_say_all_that_a_peer_may():
    a, b = places(2)
    async with relay_at(b, [a], federation="closed"), peer(b.url, b.did, a.key) as there:
        await there.say(Digest("d", 10))
        assert isinstance(await there.hear(), Digests)
        await there.say(Resolve("r", new_key().did))
        assert isinstance(await there.hear(), Resolved)


async def test_an_agent_hands_no_inbox_over():
    async with moving() as move, speaker(move.target.url) as agent:
        await agent.say(move.page())
        assert (await agent.hear(Bye)).error is ErrorCode.BAD_FRAME
    async with moving() as move, speaker(move.target.url) as agent:
        await agent.say(move.submit(to(move.agent)))
        assert (await agent.hear(Bye)).error is ErrorCode.BAD_FRAME


# ---------------------------------------------------------------- submits of a hand-off


RATES = {"sender_rate": 1, "stranger_rate": 1, "peer_stranger_rate": 1}


async def test_without_a_hand_off_the_same_meets_the_rates():
    """The negative control of what follows."""
    async with moving(**RATES) as move:
        await move.target.parts.peers.add(move.source.did, move.source.url)
        async with move.log_in() as there:
            await there.say(move.submit(to(move.agent, 40), handoff=""))
            answer = await there.hear(Submitted)
            assert ErrorCode.RATE_LIMITED in {no.error for no in answer.rejected}


async def test_what_is_handed_over_is_past_rates_and_its_receipt_names_the_hand_off():
    async with moving(**RATES) as move:
        made = to(move.agent, 40)
        async with move.log_in() as there:
            await there.say(move.submit(made))
            answer = await there.hear(Submitted)
        assert answer.rejected == ()
        receipt = verify_receipt(answer.receipt, move.did)
        assert receipt.handoff == move.way.id
        assert [(item.eid, item.custody) for item in receipt.items] == [
            (one.eid, "inbox") for one in made
        ]


@pytest.mark.parametrize("is_added", [False, True], ids=["partner", "added"])
async def test_nothing_is_taken_under_a_hand_off_of_another_inbox(is_added):
    async with moving() as move:
        node = move.target.parts
        if is_added:
            await node.peers.add(move.source.did, move.source.url)
        other = new_key()
        async with speaker(move.target.url, other):
            pass
        async with move.log_in() as there:
            await there.say(move.submit(to(other)))
            reply = await there.hear()
            code = ErrorCode.WRONG_STATE if is_added else ErrorCode.NOT_FEDERATED
            assert isinstance(reply, Error)
            assert (reply.error, reply.ref) == (code, "s")
            await there.say(move.submit(to(move.agent)))
            assert (await there.hear()).receipt


async def test_a_single_envelope_for_somebody_else_is_rejected_alone():
    async with moving() as move, move.log_in() as there:
        other = new_key()
        async with speaker(move.target.url, other):
            pass
        made = [*to(move.agent), *to(other), *to(move.agent)]
        await there.say(move.submit(made))
        answer = await there.hear(Submitted)
        assert [(no.i, no.error, no.stored) for no in answer.rejected] == [
            (1, ErrorCode.WRONG_STATE, "no")
        ]
        items = verify_receipt(answer.receipt, move.did).items
        assert [item.eid for item in items] == [made[0].eid, made[2].eid]


async def test_what_cannot_be_read_is_rejected_one_by_one_and_nothing_is_stored():
    async with moving() as move, move.log_in() as there:
        await there.say(Submit("s", [{"jws": "a.b.c", "body": ""}] * 2, handoff=move.way.id))
        answer = await there.hear(Submitted)
        assert [no.error for no in answer.rejected] == [ErrorCode.BAD_ENVELOPE] * 2
        assert answer.receipt is None


async def test_a_receipt_is_of_one_hand_off_or_of_none():
    async with moving() as move:
        other = new_key()
        await move.target.parts.peers.add(move.source.did, move.source.url)
        async with speaker(move.target.url, other), move.log_in() as there:
            for n, made in enumerate([to(move.agent), to(other), to(move.agent), to(move.agent)]):
                handoff = "" if n == 1 else None
                await there.say(move.submit(made, str(n), handoff))
            handoffs: dict[str, str] = {}
            while len(handoffs) < 4:
                answer = await there.hear(Submitted)
                assert not answer.rejected
                receipt = verify_receipt(answer.receipt, move.did)
                handoffs |= dict.fromkeys(answer.refs, receipt.handoff)
        named = move.way.id
        assert handoffs == {"0": named, "1": "", "2": named, "3": named}


# ---------------------------------------------------------------- the side that dials


class Partly(Chooser):
    """A policy that deals with one relay for a hand-off alone."""

    def __init__(self, handoff_peer: Did) -> None:
        super().__init__()
        self.handoff_peer = handoff_peer
        self.is_full_now = False

    def require_contact(self, did: Did) -> None:
        if not self.may_contact(did):
            raise RejectedError(ErrorCode.NOT_FEDERATED)

    def require_federated(self, did: Did) -> None:
        if not self.is_federated(did):
            raise RejectedError(ErrorCode.NOT_FEDERATED)

    def may_contact(self, did: Did) -> bool:
        return did == self.handoff_peer

    def is_federated(self, did: Did) -> bool:
        return self.is_full_now and did == self.handoff_peer

    def is_handoff_peer(self, did: Did) -> bool:
        return did == self.handoff_peer


async def test_a_link_to_a_handoff_peer_serves_hand_offs_and_nothing_else():
    async with moving() as move:
        policy = Partly(move.did)
        async with running_links(Links(move.source.key, Dialler(), policy)) as links:
            assert not links.allows(move.did)
            with pytest.raises(RejectedError):
                await links.reach(move.did, move.target.url)
            link = await links.reach(move.did, move.target.url, handoff=True)
            assert links.live() == []
            with pytest.raises(RejectedError):
                await links.reach(move.did, move.target.url)
            answer = await link.ask(lambda ref: move.page(ref=ref))
            assert isinstance(answer, Migrated)
            [made] = to(move.agent)
            taken = await link.submit([made.wire], handoff=move.way.id)
            assert taken.receipt is not None
            assert taken.receipt.handoff == move.way.id
            policy.is_full_now = True
            assert links.live() == [link]
            assert await links.reach(move.did, move.target.url) is link


async def test_two_relays_that_move_an_inbox_tell_each_other_of_nothing_else():
    a, b = places(2)
    agent, other = new_key(), new_key()
    async with relay_at(a) as at_a, relay_at(b) as at_b:
        newest = record_of(agent, a)
        async with speaker(a.url, agent, record=newest), speaker(a.url) as sender:
            await at_a.parts.directory.publish(record_of(other, a), only=other.did)
            await sender.say(Submit("s", [one.wire for one in to(agent, 5)]))
            assert (await sender.hear(Submitted)).receipt
        way = Traveller(agent, Home(a.did, a.url), Home(b.did, b.url), newest)
        await way.move()
        async with within(20):
            while (await way.state(way.source)).counters.waiting:  # noqa: ASYNC110  a relay's word
                await asyncio.sleep(0.05)
        link = at_a.parts.links.to(b.did)
        assert link is not None
        assert list(at_a.parts.links.live()) == []
        await at_a.parts.gossip.push()
        await at_a.parts.exchange.exchange_peers()
        # the pushes before this answer have arrived by now
        with pytest.raises(RelayError):
            await link.ask(lambda ref: Resolve(ref, other.did))
        assert await held(at_b, other) is None
        assert (await way.state(way.target)).counters.kept == 5


async def test_a_handoff_peer_that_does_not_answer_is_dialled_again_within_seconds(monkeypatch):
    """For whom no hand-off waits, the pause grows to minutes."""
    monkeypatch.setattr(clock, "random_fraction", lambda: 1.0)
    relay, other, url = new_key().did, new_key().did, "http://127.0.0.1:1"
    links = Links(new_key(), Dialler(), Partly(relay))
    no = RejectedError(ErrorCode.NOT_FEDERATED)
    for _ in range(12):
        links._put_failure(relay, url, f"{relay}@{url}", no)
        links._put_failure(other, url, f"{other}@{url}", no)
    waits = [links.backoff(did, url) for did in (relay, other)]
    assert all(wait is not None for wait in waits)
    assert waits[0][0] <= 15 < waits[1][0]


async def test_no_gossip_goes_to_a_handoff_peer():
    own, store, handoff_peer, friend = new_key().did, MemoryStore(InboxLimits(), clock.now), *pair()
    peers = Peers(own, "closed", frozenset(), store.peers)
    await peers.load([(friend.peer, "http://127.0.0.1:1")])
    peers.handoff_peers = frozenset({handoff_peer.peer})
    exchange = PeerExchange(peers, Linked(), lambda: "info")
    for link in (handoff_peer, friend):
        exchange.on_link_up(link)
    assert (handoff_peer.pushed, friend.pushed) == ([], [Gossip(relays=("info",))])
    assert list(exchange.new_links) == [friend.peer]


def pair() -> tuple[Answers, Answers]:
    return Answers(), Answers()


class Answers(Other):
    """A link that keeps what is pushed."""

    def __init__(self) -> None:
        super().__init__()
        self.pushed: list[Gossip] = []

    def push(self, gossip: Gossip) -> bool:
        self.pushed.append(gossip)
        return True


async def test_a_handoff_peer_has_no_desired_link_and_is_nobodys_peer():
    handoff_peer, own = new_key().did, new_key().did
    store = MemoryStore(InboxLimits(), clock.now)
    await store.peers.put(PeerRow(handoff_peer, "http://127.0.0.1:1", "learned", 1))
    peers = Peers(own, "closed", frozenset(), store.peers)
    peers.handoff_peers = frozenset({handoff_peer})
    await peers.load()
    assert peers.may_contact(handoff_peer)
    assert not peers.is_federated(handoff_peer)
    assert (peers.desired_links(), list(peers.members)) == ([], [])
    await peers.add(handoff_peer, "http://127.0.0.1:1")
    assert peers.is_federated(handoff_peer)
    assert peers.desired_links() == [(handoff_peer, "http://127.0.0.1:1")]


# ---------------------------------------------------------------- receipts that lie


class Answering:
    """A connection whose other side signs a receipt that names ``handoff``, for whatever comes."""

    def __init__(self, key: SigningKey, handoff: str) -> None:
        self.transport = self
        self._key, self._handoff = key, handoff
        self._reply: asyncio.Queue[bytes] = asyncio.Queue()

    async def send(self, data: bytes, *, text: bool) -> None:
        assert text
        submit = frames.parse(data, "agent")
        assert isinstance(submit, Submit)
        items = [
            ReceiptItem(eid_of(jose.dumps(one)), self._key.did, Epoch("e"), "p", 1)
            for one in submit.envelopes
        ]
        at = Timestamp(time.time())
        receipt = sign_receipt(self._key, items, durability="fsync", now=at, handoff=self._handoff)
        self._reply.put_nowait(frames.encode(Submitted((submit.ref,), receipt)))

    async def recv(self, *, decode: bool) -> bytes:
        assert not decode
        return await self._reply.get()

    async def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


@pytest.mark.parametrize(
    ("asked", "named"), [("m", "m"), ("", ""), ("m", ""), ("m", "n"), ("", "m")]
)
async def test_a_receipt_of_another_hand_off_is_no_receipt_and_ends_the_link(asked, named):
    async with running_node(federation="open") as node:
        key = node.parts.key
        socket = await dial(node.url)
        link: Link = await log_in(socket, new_key(), node.url, key.did)
        link._socket = Answering(key, named)
        running = asyncio.create_task(link.run())
        [made] = to(new_key())
        if asked == named:
            taken = await link.submit([made.wire], handoff=asked)
            assert taken.receipt is not None
            assert taken.receipt.handoff == named
            link.close()
        else:
            with pytest.raises(RelayError) as caught:
                await link.submit([made.wire], handoff=asked)
            assert caught.value.code is ErrorCode.PEER_UNREACHABLE
            assert isinstance(await running, ProtocolError)
        await running
        await socket.close()
