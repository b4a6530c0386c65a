"""Inboxes that change relays where somebody lies or floods, or where little is known."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time

import pytest

from relay import clock
from relay.client.errors import AgentError
from relay.inbox.model.types import InboxLimits
from relay.migration import digest_sender
from relay.migration import steps as service
from relay.migration.model.machine import GRACE_S, MAX_DIGEST_PAGES, MAX_MAYBE_SEEN_IDS
from relay.protocol import endpoint_record, migration_order
from relay.protocol import jws as jose
from relay.protocol.did import SigningKey, parse_did
from relay.protocol.endpoint_record import FormerHome, Home
from relay.protocol.errors import ErrorCode
from relay.protocol.frames import Error, Migrated, Ruled, Rules, Submitted
from relay.protocol.ids import Did, Timestamp
from relay.protocol.jws import b64encode
from relay.protocol.types import MovedRules
from relay.reference.memory_store import MemoryStore
from tests.federation.linked_nodes import now, places, record_of, relay_at
from tests.federation.test_handoff_peers import moving, to
from tests.federation.test_migration import _home, take_all, two, until_empty
from tests.support.migration_steps import Traveller
from tests.support.nodes import RunningNode, make_envelope, new_key, speaker
from tests.support.patience import within

pytestmark = pytest.mark.timeout(60)


# ---------------------------------------------------------------- little is known


async def test_an_agent_whose_first_record_names_its_new_home_loses_nothing():
    """It logged in without one: nobody can show that it ever lived here."""
    async with two() as world:
        agent = new_key()
        async with speaker(world.a.url, agent):
            pass
        made = [make_envelope(world.sender, agent.did, str(n).encode()) for n in range(3)]
        await world.submit(world.a, made)
        record = record_of(agent, world.b)
        async with speaker(world.b.url, agent, record=record) as one:
            found = await take_all(one, 3)
        assert sorted(eid for eid, _ in found) == sorted(envelope.eid for envelope in made)


async def test_a_first_record_that_says_what_was_left_lets_that_relay_hand_over():
    async with two() as world:
        agent = new_key()
        async with speaker(world.a.url, agent) as one:
            [seen] = [make_envelope(world.sender, agent.did)]
            await world.submit(world.a, [seen])
            assert await take_all(one, 1) == [(seen.eid, False)]
        left = FormerHome(world.a.did, world.a.url, int(now()) + 3600)
        record = endpoint_record.sign(agent, [_home(world.b)], now=now(), drain=[left])
        async with speaker(world.b.url, agent, record=record) as one:
            async with within(20):
                while await missing_at(world.at_b, agent):  # noqa: ASYNC110  any node
                    await asyncio.sleep(0.02)
            await world.submit(world.b, [seen])
            assert await take_all(one, 1) == [(seen.eid, True)]


async def missing_at(node: RunningNode, agent: SigningKey) -> frozenset[Did]:
    """Whose digests a relay waits for."""
    here = node.parts.handoffs
    row = await here.store.load(parse_did(agent.did).agent_key)
    return here.load_state(row).side.awaiting_digests


async def test_relays_that_a_first_record_says_were_left_are_asked_what_was_seen():
    async with two(federated=False) as world:
        left = FormerHome(world.a.did, world.a.url, int(now()) + 3600)
        record = endpoint_record.sign(world.agent, [_home(world.b)], now=now(), drain=[left],
                              newest_seq=endpoint_record.parse(world.record).seq)  # fmt: skip
        async with speaker(world.b.url, world.agent, record=record) as one:
            [made] = await world.write(world.b, 1)
            assert await take_all(one, 1) == [(made.eid, True)]


# ---------------------------------------------------------------- who may begin a move


async def test_no_order_makes_an_inbox_where_registration_is_closed():
    a, b = places(2)
    agent = new_key()
    async with relay_at(a, registration="allow", allow=(new_key().did,)):
        way = Traveller(agent, Home(a.did, a.url), Home(b.did, b.url), record_of(agent, a))
        await way.publish(way.source, way.newest)
        with pytest.raises(AgentError) as no:
            await way.freeze()
        assert no.value.code is ErrorCode.WRONG_STATE


async def test_only_so_many_inboxes_are_on_their_way_at_once(monkeypatch):
    monkeypatch.setattr(service, "MAX_OPEN", 1)
    async with moving() as move:
        other = new_key()
        source = Home(move.source.did, move.source.url)
        more = Traveller(other, source, move.way.target, record_of(other, move.source))
        with pytest.raises(AgentError) as no:
            await more.prepare()
        assert (no.value.code, no.value.retry_after) == (ErrorCode.OVERLOADED, 60)
        await move.way.prepare()


async def test_two_relays_are_done_with_each_other_after_a_week(monkeypatch):
    async with two(federated=False) as world:
        await world.write(world.a, 2)
        move = world.traveller()
        await move.move()
        async with speaker(world.b.url, world.agent) as one:
            await take_all(one, 2)
        await until_empty(move)
        for node, other in ((world.at_a, world.b), (world.at_b, world.a)):
            open_now = node.parts.handoffs
            await open_now.refresh()
            assert open_now.handoff_peers == {other.did}
        later = time.time() + GRACE_S + 60
        monkeypatch.setattr("relay.clock.now", lambda: Timestamp(later))
        for node in (world.at_a, world.at_b):
            doubts = node.parts.handoffs
            await doubts.refresh(clock_ok=False)
            assert doubts.handoff_peers
        for node in (world.at_a, world.at_b):
            done = node.parts.handoffs
            await done.refresh()
            assert done.handoff_peers == frozenset()
            assert await done.store.list_open() == []


# ---------------------------------------------------------------- a source that lies


async def test_a_page_that_makes_no_sense_is_refused_and_the_rest_goes_on():
    async with moving() as move, move.log_in() as there:
        for wrong in ({"agent": Did("garbage")}, {"awaiting_digests": (Did("x" * 500),)}):
            await there.say(move.page(**wrong))
            said = await there.hear()
            assert isinstance(said, Error)
            assert said.error is ErrorCode.BAD_FRAME
        await there.say(move.page())
        assert await there.hear() == Migrated("m", move.way.id, b64encode(bytes(32)), 1)
        assert (await move.way.state(move.way.target)).digest_received


async def test_rules_come_with_the_first_digest_alone():
    friend, foe = new_key(), new_key()
    async with moving() as move, move.log_in() as there:
        await there.say(move.page(rules=MovedRules(deny=(foe.agent_key,))))
        assert isinstance(await there.hear(), Migrated)
        await move.way.publish(move.way.target)
        later = move.page(
            rules=MovedRules(deny=(friend.agent_key,)), digest_id=b64encode(b"2" * 32)
        )
        await there.say(later)
        assert isinstance(await there.hear(), Migrated)
        async with speaker(move.target.url, move.agent) as one:
            await one.say(Rules("r"))
            assert (await one.hear(Ruled)).deny == (foe.did,)


async def test_a_relay_fills_no_store_by_handing_over():
    store = MemoryStore(InboxLimits(max_count=3), clock.now)
    async with moving(store=store) as move, move.log_in() as there:
        await there.say(move.submit(to(move.agent, 8)))
        answer = await there.hear(Submitted)
        assert {no.error for no in answer.rejected} == {ErrorCode.INBOX_FULL}
        assert len(answer.rejected) == 2


# ---------------------------------------------------------------- agents that lie


async def test_two_agents_that_say_one_id_do_not_hold_each_other_up():
    async with two() as world:
        other = new_key()
        record = record_of(other, world.a)
        async with speaker(world.a.url, other, record=record):
            pass
        moves = [world.traveller(), Traveller(other, _home(world.a), _home(world.b), record)]
        moves[1].order = as_if(moves[0], moves[1])
        for move in moves:
            made = [make_envelope(world.sender, move.key.did, str(n).encode()) for n in range(20)]
            await world.submit(world.a, made)
            await move.prepare()
            assert (await move.freeze()).digest_acked
        await asyncio.gather(*(move.publish(move.target) for move in moves))
        await asyncio.gather(*(move.publish(move.source) for move in moves))
        for move in moves:
            await until_empty(move)
            assert (await move.state(move.source)).counters.moved == 20


def as_if(one: Traveller, other: Traveller) -> str:
    """An order of the other under the id of the first."""
    order = migration_order.parse(other.order)
    payload = jose.loads_own(order.jws.payload)
    payload["mig_id"] = migration_order.parse(one.order).id
    return jose.sign(payload, typ=migration_order.TYP, kid=other.key.kid, key=other.key.sign)


# ---------------------------------------------------------------- what has no room


def test_of_more_ids_than_a_digest_has_room_for_the_oldest_are_forgotten():
    most = MAX_MAYBE_SEEN_IDS * MAX_DIGEST_PAGES
    ids = [n.to_bytes(4) + os.urandom(32) for n in range(most + 3, 0, -1)]
    said, floor = digest_sender._newest_ids(ids, 1)
    assert (len(said), floor) == (most * 36, 3)


async def test_a_target_that_lost_its_store_is_told_anew_though_nobody_added_it():
    async with contextlib.AsyncExitStack() as stack:
        world = await stack.enter_async_context(two(federated=False))
        third, agent = places(1)[0], world.agent
        made = await world.write(world.a, 5)
        target = Home(third.did, third.url)
        left = FormerHome(world.a.did, world.a.url, int(now()) + 3600)
        way = Traveller(agent, _home(world.a), target, world.record)
        way.record = endpoint_record.sign(
            agent,
            [target],
            now=now(),
            drain=[left],
            newest_seq=endpoint_record.parse(way.record).seq,
        )
        way.order = migration_order.sign(
            agent, way.source, target, way.record, now=now(), entropy=os.urandom
        )
        async with relay_at(third):
            await way.prepare()
            assert (await way.freeze()).digest_acked
        # its link is gone, and what it knew
        async with relay_at(third):
            await way.publish(way.source)
            async with speaker(third.url, agent, record=way.record) as one:
                found = await take_all(one, 5)
            # the digest came again, too: nobody was shown any of them
            assert sorted(found) == sorted((envelope.eid, False) for envelope in made)
            await until_empty(way)
