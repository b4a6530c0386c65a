"""An agent with several relays: a session at each home, and one that is lost does not matter."""

from __future__ import annotations

import asyncio
import time

import pytest

from relay.client import Agent, BlockedError, MovedError, SupersededError, UnreachableError
from relay.protocol import endpoint_record
from relay.protocol.errors import ErrorCode
from relay.protocol.frames import Acked, Bye
from relay.protocol.ids import Epoch, Seq, Timestamp
from tests.client.scripted_relay import Talk, deliver, envelope_of, lying_relay, new_key, welcome
from tests.support.nodes import RunningNode, running_node, speaker
from tests.support.patience import wait_until, within

pytestmark = pytest.mark.timeout(40)


def did(node: RunningNode) -> str:
    return node.parts.key.did


async def take(me: Agent, *, wait: bool = True) -> str:
    async with within(10):
        message = await anext(me.inbox())
        await message.ack(wait=wait)
    return message.text()


async def send_to(node: RunningNode, to: Agent, text: str) -> None:
    async with Agent.open(new_key(), node.url) as alice:
        await alice.send(to.did, text)


async def test_what_is_sent_to_any_home_is_delivered_by_one_inbox(tmp_path):
    async with running_node() as one, running_node() as two:
        relays = [one.url, two.url]
        async with Agent.open(new_key(), relays, state=tmp_path / "state") as me:
            for node in (one, two):
                await send_to(node, me, node.url)
                assert await take(me) == node.url
            async with Agent.open(new_key(), two.url) as alice:
                found = await alice.resolve(me.did)
                assert found.record is not None
                assert [(home.did, home.prio) for home in found.record.relays] == [
                    (did(one), 0),
                    (did(two), 1),
                ]


async def test_one_that_lies_at_two_homes_is_shown_once_and_acked_at_both():
    async def script(talk: Talk) -> None:
        await talk.log_in(said=welcome(head=1))
        await talk.say(deliver((1, envelope.wire)))
        while (await talk.hear()).upto < 1:
            pass
        acked.add(talk.relay.url)
        await talk.say(Acked(Epoch("e1"), Seq(1)))
        await talk.say(deliver((2, envelope_of(sender, me_key.did, talk.relay.url.encode()).wire)))
        await talk.until_closed()

    sender, me_key, acked = new_key(), new_key(), set()
    envelope = envelope_of(sender, me_key.did, b"once")
    async with (
        lying_relay(script) as one,
        lying_relay(script) as two,
        Agent.open(me_key, [one.url, two.url]) as me,
    ):
        texts = [await take(me, wait=n == 0) for n in range(3)]
        assert texts[0] == "once"
        assert {*texts[1:]} == acked == {one.url, two.url}


async def test_where_a_relay_is_lost_the_outbox_and_the_inbox_go_on_at_the_next(tmp_path):
    key, state = new_key(), tmp_path / "state"
    async with running_node() as two:
        async with running_node() as one:
            relays = [one.url, two.url]
            async with Agent.open(key, relays, state=state) as me:
                assert me.relay == did(one)
                one.stop.set()
                await wait_until(lambda: me.relay == did(two), 15, "the next relay")
                await send_to(two, me, "here")
                assert await take(me) == "here"
                assert (await me.send(me.did, "sent")).relay == did(two)
        # known there by now, and the record says so
        async with Agent.open(key, relays, state=state) as me:
            assert me.welcome is not None
            assert me.welcome.inbox


async def test_a_relay_becomes_a_home_only_if_it_is_named_beside_the_others(tmp_path):
    key, state = new_key(), tmp_path / "state"
    async with running_node() as one, running_node() as two:
        async with Agent.open(key, one.url, state=state):
            pass
        # a relay that the program did not name beside the other is no home by itself, but there is
        # a session at the home all the same: else what is sent there would lie where nobody looks
        async with Agent.open(key, two.url, state=state) as me:
            assert [home.did for home in me._parts.own_record.newest.relays] == [did(one)]
            await send_to(one, me, "to the home")
            assert await take(me) == "to the home"
        async with Agent.open(key, [two.url, one.url], state=state) as me:
            assert {home.did for home in me._parts.own_record.newest.relays} == {did(one), did(two)}
            await send_to(two, me, "to the other")
            assert await take(me) == "to the other"


async def test_two_addresses_of_one_relay_are_one_session():
    key = new_key()
    async with running_node(key=new_key()) as one:
        twin = one.url.replace("127.0.0.1", "localhost")
        async with Agent.open(key, [one.url, one.url]) as me:
            await send_to(one, me, "not superseded by itself")
            assert await take(me) == "not superseded by itself"
            assert len(me._parts.pool.channels) == 1
        assert twin != one.url


async def test_an_ack_for_a_home_that_is_gone_does_not_hold_up_the_others():
    async def leaves(talk: Talk) -> None:
        if talk.number > 1:
            return
        await talk.log_in(said=welcome(head=1))
        await talk.say(deliver((1, envelope_of(new_key(), me_key.did, b"one").wire)))
        await talk.until(shown)
        await talk.say(Bye(ErrorCode.DRAINING, "gone"))

    async def stays(talk: Talk) -> None:
        await talk.log_in(said=welcome(head=1))
        await talk.until(gone)
        await talk.say(deliver((1, envelope_of(new_key(), me_key.did, b"two").wire)))
        await talk.until_closed()

    me_key, shown, gone = new_key(), asyncio.Event(), asyncio.Event()
    async with (
        lying_relay(leaves) as one,
        lying_relay(stays) as two,
        Agent.open(me_key, [one.url, two.url]) as me,
    ):
        message = await anext(me.inbox())
        shown.set()
        await wait_until(lambda: me.relay == two.key.did, 5, "the other is the sender")
        with pytest.raises(UnreachableError):
            await asyncio.wait_for(message.ack(), 10)
        gone.set()
        assert (await anext(me.inbox())).text() == "two"


async def test_a_superseded_agent_leaves_its_other_relays_for_good():
    ended = asyncio.Event()

    async def script(talk: Talk) -> None:
        await talk.log_in()
        await talk.until_closed()
        ended.set()

    key = new_key()
    async with (
        running_node() as one,
        lying_relay(script) as other,
        Agent.open(key, [one.url, other.url]) as me,
    ):
        assert other.talks == 1
        taking = asyncio.ensure_future(anext(me.inbox()))
        async with speaker(one.url, key):
            with pytest.raises(SupersededError):
                await taking
            await asyncio.wait_for(ended.wait(), 5)
            assert not me.is_connected
            assert other.talks == 1


async def test_rules_are_changed_at_every_home_that_is_connected():
    async with (
        running_node() as one,
        running_node() as two,
        Agent.open(new_key(), [one.url, two.url]) as me,
        Agent.open(new_key(), two.url) as mallory,
    ):
        await me.rules(deny=[mallory.did])
        with pytest.raises(BlockedError):
            await mallory.send(me.did, "denied at the second home, too")
        assert me.warnings == ()


async def test_a_relay_that_says_moved_leads_to_the_home_that_the_record_names():
    async def script(talk: Talk) -> None:
        await talk.log_in()
        await talk.say(Bye(ErrorCode.MOVED, "moved", record=record))
        await talk.until_closed()

    key = new_key()
    async with running_node() as home, lying_relay(script) as old:
        homes = [endpoint_record.Home(did(home), home.url)]
        record = endpoint_record.sign(key, homes, now=Timestamp(time.time() + 60))
        async with Agent.open(key, old.url) as me:
            await send_to(home, me, "to the new home")
            assert await take(me) == "to the new home"
            assert old.talks == 1


@pytest.mark.parametrize("signer", ["the agent", "somebody else"])
async def test_a_relay_that_says_moved_to_itself_or_lies_is_not_dialled_over_and_over(signer: str):
    async def script(talk: Talk) -> None:
        homes = [endpoint_record.Home(talk.relay.key.did, talk.relay.url)]
        by = key if signer == "the agent" else new_key()
        record = endpoint_record.sign(by, homes, now=Timestamp(time.time() + 60))
        await talk.log_in()
        await talk.say(Bye(ErrorCode.MOVED, "moved", record=record))
        await talk.until_closed()

    key = new_key()
    async with lying_relay(script) as old:
        with pytest.raises(MovedError):
            async with Agent.open(key, old.url) as me:
                await anext(me.inbox())
        assert old.talks <= 2


async def test_relays_that_say_moved_to_each_other_are_not_dialled_over_and_over():
    async def script(talk: Talk) -> None:
        await talk.log_in()
        await talk.say(Bye(ErrorCode.MOVED, "moved", record=record))
        await talk.until_closed()

    key, keys = new_key(), [new_key(), new_key()]
    async with lying_relay(script, keys[0]) as one, lying_relay(script, keys[1]) as two:
        homes = [endpoint_record.Home(relay.key.did, relay.url) for relay in (one, two)]
        record = endpoint_record.sign(key, homes, now=Timestamp(time.time() + 60))
        with pytest.raises(MovedError):
            async with Agent.open(key, one.url) as me:
                await anext(me.inbox())
        assert one.talks + two.talks <= 4


@pytest.mark.parametrize("says", ["before a proof", "without an inbox", "with an inbox"])
async def test_only_who_has_given_an_inbox_can_say_that_it_is_taken(says: str):
    async def script(talk: Talk) -> None:
        if says != "before a proof":
            has = says == "with an inbox"
            said = welcome() if has else welcome(inbox=False, session=None, epoch=None)
            await talk.log_in(said=said)
        await talk.say(Bye(ErrorCode.SUPERSEDED, "taken"))
        await talk.until_closed()

    async with running_node() as home, lying_relay(script) as liar:
        key = new_key()
        if says == "with an inbox":
            with pytest.raises(SupersededError):
                async with Agent.open(key, [home.url, liar.url]) as me:
                    await anext(me.inbox())
            return
        async with Agent.open(key, [home.url, liar.url]) as me:
            await wait_until(lambda: liar.talks > 1, 5, "the liar has said it")
            await send_to(home, me, "goes on")
            assert await take(me) == "goes on"


async def test_a_home_that_answers_no_ack_does_not_hold_up_the_others(monkeypatch):
    async def silent(talk: Talk) -> None:
        await talk.log_in(said=welcome(head=1))
        await talk.say(deliver((1, first.wire)))
        await talk.until_closed()

    async def honest(talk: Talk) -> None:
        await talk.log_in(said=welcome(head=1))
        await talk.until(shown)
        await talk.say(deliver((1, envelope_of(sender, me_key.did, b"two").wire)))
        await talk.until_closed()

    monkeypatch.setattr("relay.client.inbox.relay_inbox.ACK_TIMEOUT_S", 0.5)
    sender, me_key, shown = new_key(), new_key(), asyncio.Event()
    first = envelope_of(sender, me_key.did, b"one")
    async with (
        lying_relay(silent) as one,
        lying_relay(honest) as two,
        Agent.open(me_key, [one.url, two.url]) as me,
    ):
        message = await anext(me.inbox())
        with pytest.raises(UnreachableError):
            await asyncio.wait_for(message.ack(), 10)
        shown.set()
        assert (await anext(me.inbox())).text() == "two"
