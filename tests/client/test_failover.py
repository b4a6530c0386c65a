"""An agent with several relays: where one is lost, the next is its home, too."""

from __future__ import annotations

import asyncio

import pytest

from relay.client import Agent, MovedError, SupersededError
from tests.client.support import Talk, lying_relay, new_key
from tests.support.nodes import running_node
from tests.support.servers import wait_until

pytestmark = pytest.mark.timeout(40)


async def test_where_a_relay_is_lost_the_next_is_a_home_and_both_go_on_being_homes(tmp_path):
    key, state = new_key(), tmp_path / "state"
    async with running_node() as two:
        async with running_node() as one:
            relays = [one.url, two.url]
            async with Agent.open(key, relays, state=state) as me:
                assert me.relay == one.built.node.key.did
                one.stop.set()
                await wait_until(lambda: me.relay == two.built.node.key.did, 15, "the next relay")
                async with Agent.open(new_key(), two.url) as alice:
                    await wait_until(lambda: me.is_connected, 5, "connected")
                    await alice.send(me.did, "here")
                    message = await anext(me.inbox())
                    assert message.text() == "here"
                    await message.ack()
                    found = await alice.resolve(me.did)
                    assert found.record is not None
                    assert [home.url for home in found.record.relays] == [two.url, one.url]
        # known there by now, and the record says so
        async with Agent.open(key, relays, state=state) as me:
            assert me.welcome is not None
            assert me.welcome.inbox


async def test_a_known_relay_becomes_a_home_only_if_it_is_named_beside_the_others(
    tmp_path,
):
    key, state = new_key(), tmp_path / "state"
    async with running_node() as one, running_node() as two:
        async with Agent.open(key, one.url, state=state):
            pass
        async with Agent.open(key, two.url, state=state):
            pass
        # a relay that the program did not name beside the other is no home by itself
        async with Agent.open(key, two.url, state=state) as me:
            with pytest.raises(MovedError):
                await anext(me.inbox())
        async with Agent.open(key, [two.url, one.url], state=state) as me:
            await me.send(me.did, "to myself")
            assert (await anext(me.inbox())).text() == "to myself"


async def test_a_superseded_agent_stops_and_never_tries_its_other_relay():
    async def script(talk: Talk) -> None:
        await talk.log_in()
        await talk.until_closed()

    key = new_key()
    async with (
        running_node() as one,
        lying_relay(script) as other,
        Agent.open(key, [one.url, other.url]) as me,
    ):
        taking = asyncio.ensure_future(anext(me.inbox()))
        async with Agent.open(key, one.url) as newer:
            with pytest.raises(SupersededError):
                await taking
            assert newer.is_connected
        assert other.talks == 0
