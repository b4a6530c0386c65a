"""Relays over real sockets: records spread, lies cost only the liar, relays learn of relays."""

from __future__ import annotations

import asyncio
import json

import pytest

from relay import clock
from relay.directory import gossip, pull
from relay.directory.model.anti_entropy import TOP_BITS, place
from relay.inbox.model.types import InboxLimits
from relay.protocol import jws, relay_info
from relay.protocol.did import parse_did
from relay.protocol.errors import ErrorCode, RelayError
from relay.protocol.frames import (
    Bye,
    Digest,
    Digests,
    Error,
    Gossip,
    Have,
    Resolve,
    Resolved,
    Submit,
    Submitted,
    View,
    Want,
)
from relay.reference.memory_store import MemoryStore
from tests.federation.linked_nodes import (
    held,
    now,
    peer,
    places,
    record_of,
    relay_at,
    until,
    until_held,
)
from tests.support.nodes import make_envelope, new_key, speaker

pytestmark = pytest.mark.timeout(60)

OPEN = {"federation": "open"}


def forged(compact: str) -> str:
    """A record with the signature of other bytes: every verifier refuses it."""
    head, payload, _ = compact.split(".")
    other = new_key()
    return f"{head}.{payload}.{jws.b64encode(other.sign(b'something else'))}"


def at_the_edge(compact: str) -> str:
    """The same with S + L: the same residue, which some verifiers take."""
    head, payload, signature = compact.split(".")
    raw = jws.b64decode(signature)
    order = 2**252 + 27742317777372353535851937790883648493
    high = (int.from_bytes(raw[32:], "little") + order).to_bytes(32, "little")
    return f"{head}.{payload}.{jws.b64encode(raw[:32] + high)}"


# ---------------------------------------------------------------- spreading


async def test_a_record_published_at_one_relay_is_held_by_the_others_at_once():
    a, b, c = places(3)
    agent = new_key()
    async with (
        relay_at(a, [b]) as first,
        relay_at(b, [a, c]) as middle,
        relay_at(c, [b]) as last,
    ):
        await until(lambda: len(middle.parts.links.live()) == 2)
        await until(first.parts.links.live)
        record = record_of(agent, a)
        async with speaker(first.url, agent, record=record):
            # c is no peer of a: b has verified it, stored it, and passed it on
            await until_held(last, agent, record)
        assert await held(middle, agent) == record


async def test_a_relay_that_was_offline_pulls_what_it_missed_and_is_asked_for_what_it_has():
    a, b = places(2)
    agents = [new_key() for _ in range(40)]
    made = {agent.did: record_of(agent, a if n % 2 else b) for n, agent in enumerate(agents)}
    store = MemoryStore(InboxLimits(), clock.now)
    async with relay_at(a, [b]) as first:
        async with relay_at(b, [a], store, federation="off") as second:
            for n, agent in enumerate(agents):
                node = first if n % 2 else second
                await node.parts.directory.publish(made[agent.did], only=agent.did)
        assert await held(first, agents[0]) is None, "nothing can have been pushed"
        async with relay_at(b, [a], store) as second:
            for agent in agents:
                await until_held(first, agent, made[agent.did], 20)
                await until_held(second, agent, made[agent.did], 20)


@pytest.mark.breaks("mesh", "relays pull what they missed")
async def test_without_pulls_what_was_published_during_a_partition_stays_unknown(monkeypatch):
    """The negative control of the test above: only the pull heals."""

    async def never(_: pull.PullLoop) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(pull.PullLoop, "pull", never)
    a, b = places(2)
    agent = new_key()
    async with relay_at(a, [b]) as first:
        record = record_of(agent, a)
        await first.parts.directory.publish(record, only=agent.did)
        first.parts.gossip.rumors.pop_frames([new_key().did], lambda peers, _: peers)
        async with relay_at(b, [a]) as second:
            await until(lambda: first.parts.links.live() and second.parts.links.live())
            with pytest.raises(TimeoutError):
                await until_held(second, agent, record, 2)


# ---------------------------------------------------------------- hostile peers


async def test_three_forged_records_and_a_peer_is_out_and_only_it():
    [a] = places(1)
    liar, honest = new_key(), new_key()
    async with relay_at(a, **OPEN) as node, peer(a.url, a.did, honest) as good:
        async with peer(a.url, a.did, liar) as bad:
            lies = [forged(record_of(new_key(), a)) for _ in range(3)]
            await bad.say(Gossip(tuple(lies)))
            await bad.say(Want("w", view=True))
            bye = await bad.hear(Bye, View)
            assert bye.error is ErrorCode.BLOCKED
            assert bye.retry_after
        with pytest.raises(RelayError) as caught:
            async with peer(a.url, a.did, liar):
                pass
        assert caught.value.code is ErrorCode.BLOCKED
        agent = new_key()
        record = record_of(agent, a)
        await good.say(Gossip((record,)))
        await until_held(node, agent, record)
        await good.say(Want("w", view=True))
        assert (await good.hear(View)).strikes == 0
        assert len(node.parts.gossip.changes.index) == 1, "no lie is held"


@pytest.mark.breaks("mesh", "records are verified")
async def test_without_the_signature_check_a_lie_is_held(monkeypatch):
    """The negative control: the check is what keeps lies out."""
    monkeypatch.setattr("relay.protocol.endpoint_record.jose.is_signed_by", lambda *_: True)
    [a] = places(1)
    agent = new_key()
    async with relay_at(a, **OPEN) as node, peer(a.url, a.did) as bad:
        lie = forged(record_of(agent, a))
        await bad.say(Gossip((lie,)))
        await until_held(node, agent, lie)


async def test_expired_old_and_repeated_records_are_held_against_nobody():
    [a] = places(1)
    agent, other = new_key(), new_key()
    async with relay_at(a, **OPEN) as node, peer(a.url, a.did) as there:
        newest = record_of(agent, a, seq=int(now() * 1000) + 5)
        older = record_of(agent, a)
        early = relay_info.jose.sign(
            {**json.loads(jws.b64decode(newest.split(".")[1])), "did": other.did,
             "iat": int(now()) + 4_000, "exp": int(now()) + 5_000},
            typ="agent-endpoints+jws", kid=other.kid, key=other.sign,
        )  # fmt: skip
        for _ in range(5):
            await there.say(Gossip((newest, older, newest, early)))
        await there.say(Want("w", view=True))
        assert (await there.hear(View)).strikes == 0
        assert await held(node, agent) == newest
        assert await held(node, other) is None


async def test_a_flood_is_dropped_unread_and_an_honest_peer_is_served_meanwhile():
    [a] = places(1)
    flood = [record_of(new_key(), a) for _ in range(1_000)]
    async with (
        relay_at(a, **OPEN) as node,
        peer(a.url, a.did) as bad,
        peer(a.url, a.did) as good,
    ):
        await bad.say(Gossip(tuple(flood[:500])))
        await bad.say(Gossip(tuple(flood[500:])))
        agent = new_key()
        record = record_of(agent, a)
        await good.say(Gossip((record,)))
        await until_held(node, agent, record, 4)
        await bad.say(Want("w", view=True))
        await bad.hear(View)
        assert len(node.parts.gossip.changes.index) < 700


@pytest.mark.alone
async def test_a_peer_that_floods_is_read_more_slowly_and_its_questions_wait():
    [a] = places(1)
    async with relay_at(a, **OPEN), peer(a.url, a.did) as bad, peer(a.url, a.did) as good:
        rubbish = Gossip(("x",) * 1_024)
        began = clock.monotonic()
        for _ in range(4):
            await bad.say(rubbish)
        await good.say(Want("w", view=True))
        await good.hear(View)
        assert clock.monotonic() - began < 1
        await bad.hear(Bye)
        assert clock.monotonic() - began > 0.4


@pytest.mark.alone
async def test_a_peer_that_asks_without_end_is_answered_at_a_rate():
    [a] = places(1)
    async with relay_at(a, **OPEN), peer(a.url, a.did) as there:
        began = clock.monotonic()
        for n in range(600):
            await there.say(Want(f"w{n}", view=True))
        for _ in range(600):
            await there.hear(View)
        # 400 at once, the other 200 within a second
        assert 0.8 < clock.monotonic() - began < 6


async def test_a_peer_that_asks_for_long_answers_without_end_pays_for_their_length():
    [a] = places(1)
    agents = [new_key() for _ in range(320)]
    owners = tuple(parse_did(agent.did).agent_key for agent in agents)
    async with relay_at(a, **OPEN) as node, peer(a.url, a.did) as there:
        for agent in agents:
            await node.parts.directory.publish(record_of(agent, a), owner=agent.did)
        began = clock.monotonic()
        for n in range(100):
            await there.say(Want(f"w{n}", agents=owners))
        for n in range(100):
            while (await there.hear(Gossip)).ref != f"w{n}":
                pass
        # 600 questions' worth: 400 at once, the other 200 within a second
        assert clock.monotonic() - began > 0.8


@pytest.mark.breaks("mesh", "a flood has an allowance")
async def test_without_an_allowance_the_whole_flood_is_taken(monkeypatch):
    """The negative control."""
    monkeypatch.setattr(gossip.TokenBuckets, "acquire_up_to", lambda _s, _peer, count, _now: count)
    [a] = places(1)
    flood = [record_of(new_key(), a) for _ in range(800)]
    async with relay_at(a, **OPEN) as node, peer(a.url, a.did) as bad:
        await bad.say(Gossip(tuple(flood)))
        await bad.say(Want("w", view=True))
        await bad.hear(View)
        assert len(node.parts.gossip.changes.index) == 800


@pytest.mark.parametrize(
    "data",
    [
        json.dumps({"t": "gossip", "records": ["x" * 5_000]}),
        json.dumps({"t": "gossip", "records": ["x"] * 2_000}),
        json.dumps({"t": "digest", "ref": "r", "bits": 10, "buckets": list(range(2_000))}),
    ],
    ids=["a record too large", "too many records", "too many buckets"],
)
async def test_an_oversize_frame_ends_its_own_conversation_and_no_other(data):
    [a] = places(1)
    async with (
        relay_at(a, **OPEN),
        peer(a.url, a.did) as bad,
        peer(a.url, a.did) as good,
    ):
        await bad.socket.send(data)
        assert (await bad.hear(Bye)).error is ErrorCode.BAD_FRAME
        await good.say(Want("w", view=True))
        assert (await good.hear(View)).state == "suspect"


async def test_a_signature_that_verifiers_judge_differently_is_held_against_nobody():
    [a] = places(1)
    agent = new_key()
    reply = relay_info.RelayDescription(
        "https://x.example", "s", "1", {}, 1, "open", "open", "fsync"
    )
    edge, relay = at_the_edge(record_of(agent, a)), relay_info.sign(new_key(), reply, now())
    async with relay_at(a, **OPEN) as node, peer(a.url, a.did) as there:
        for _ in range(4):
            await there.say(Gossip((edge,), (at_the_edge(relay),)))
        await there.say(Want("w", view=True))
        assert (await there.hear(View)).strikes == 0
        assert await held(node, agent) is None


async def test_a_peers_envelope_for_an_agent_here_is_stored_and_for_nobody_here_is_refused():
    [a] = places(1)
    alice, bob = new_key(), new_key()
    wire = json.loads(make_envelope(alice, bob.did).wire)
    misplaced = json.loads(make_envelope(alice, new_key().did).wire)
    async with (
        relay_at(a, **OPEN),
        speaker(a.url, bob) as there,
        peer(a.url, a.did) as relay,
    ):
        await relay.say(Submit("s", [wire, misplaced], (new_key().did,), (0,)))
        reply = await relay.hear(Submitted)
        assert reply.receipt
        assert [(no.i, no.error) for no in reply.rejected] == [(1, ErrorCode.UNKNOWN_INBOX)]
        deliver = await there.hear()
        while type(deliver).__name__ != "Deliver":
            deliver = await there.hear()
        assert deliver.items[0].redelivered, "its relay said that it may have been handed over"


# ---------------------------------------------------------------- answers


async def test_a_peer_gets_digests_lists_records_and_where_agents_live():
    [a] = places(1)
    agent = new_key()
    async with relay_at(a, **OPEN) as node, peer(a.url, a.did) as there:
        record = record_of(agent, a)
        await node.parts.directory.publish(record, only=agent.did)
        bucket = place(agent.agent_key.encode(), TOP_BITS)
        await there.say(Digest("d", TOP_BITS))
        [one] = (await there.hear(Digests)).items
        assert (one.bucket, one.records) == (bucket, 1)
        await there.say(Want("h", bits=TOP_BITS, bucket=bucket))
        [item] = (await there.hear(Have)).items
        assert item.agent == agent.agent_key
        await there.say(Want("a", agents=(agent.agent_key, new_key().agent_key)))
        assert await there.hear(Gossip) == Gossip((record,), (), "a")
        await there.say(Resolve("r", agent.did))
        assert (await there.hear(Resolved)).record == record
        await there.say(Digest("x", 11, (0,)))
        assert (await there.hear(Error)).error is ErrorCode.BAD_FRAME


# ---------------------------------------------------------------- relays learn of relays


async def test_in_an_open_mesh_one_live_relay_is_enough_to_be_linked_to_all():
    a, b, c = places(3)
    async with (
        relay_at(a, **OPEN),
        relay_at(b, [a], **OPEN) as second,
        relay_at(c, [a], **OPEN) as third,
    ):

        def linked(node, place):
            return place.did in {link.peer for link in node.parts.links.live()}

        await until(lambda: linked(third, b) and linked(second, c), 30)


async def test_in_closed_federation_a_relay_that_others_named_is_known_and_not_dialled():
    a, b, c = places(3)
    async with (
        relay_at(a, [b, c]) as first,
        relay_at(b, [a]),
        relay_at(c, [a]) as third,
    ):
        peers = third.parts.peers
        await until(lambda: b.did in peers.rows, 30)
        assert peers.rows[b.did].standing == "learned"
        assert b.did not in peers.members
        assert len(first.parts.peers.members) == 2


async def test_forged_relay_information_is_a_lie_like_any_other():
    [a] = places(1)
    reply = relay_info.RelayDescription(
        "https://x.example", "s", "1", {}, 1, "open", "open", "fsync"
    )
    lie = forged(relay_info.sign(new_key(), reply, now()))
    async with relay_at(a, **OPEN) as node, peer(a.url, a.did) as bad:
        for _ in range(3):
            await bad.say(Gossip(relays=(lie,)))
        await bad.say(Want("w", view=True))
        assert (await bad.hear(Bye, View)).error is ErrorCode.BLOCKED
        assert node.parts.peers.rows == {}


async def test_an_agent_that_lives_elsewhere_is_resolved_from_what_was_gossiped():
    a, b = places(2)
    agent = new_key()
    async with relay_at(a, [b]) as first, relay_at(b, [a]) as second:
        await until(lambda: first.parts.links.live() and second.parts.links.live())
        async with speaker(first.url, agent, record=record_of(agent, a)):
            record = record_of(agent, a, seq=int(now() * 1000) + 1)
            await first.parts.directory.publish(record, owner=agent.did)
            await until_held(second, agent, record)
