"""Agents on the SDK over relays that know each other: by DID, by handle, over a relay that dies."""

from __future__ import annotations

import asyncio
import time

import pytest

from relay.client import Agent, Bounce
from tests.client.scripted_relay import new_key
from tests.federation.linked_nodes import places, relay_at, until, until_held
from tests.support.nodes import RunningNode
from tests.support.patience import wait_until, within

pytestmark = pytest.mark.timeout(60)


async def take(me: Agent) -> str:
    async with within(10):
        message = await anext(me.inbox())
    await message.ack()
    return message.text()


async def until_known(node: RunningNode, agent: Agent) -> None:
    newest = agent._parts.own_record.newest
    assert newest is not None
    await until_held(node, agent._parts.key, newest.jws.compact)


async def test_an_envelope_travels_from_relay_to_relay_and_its_ack_is_told():
    a, c = places(2)
    async with (
        relay_at(a, [c]) as at_a,
        relay_at(c, [a]),
        Agent.open(new_key(), c.url) as bob,
        Agent.open(new_key(), a.url) as alice,
    ):
        await until_known(at_a, bob)
        serving = asyncio.ensure_future(take(bob))
        sent = await alice.send(bob.did, "over there", wait="acked")
        assert (sent.relay, sent.custody, sent.state) == (a.did, "outbox", "acked")
        assert await serving == "over there"


async def test_a_refusal_at_the_other_relay_comes_back_as_one_bounce():
    a, c = places(2)
    async with (
        relay_at(a, [c]) as at_a,
        relay_at(c, [a]) as at_c,
        Agent.open(new_key(), c.url) as bob,
        Agent.open(new_key(), a.url) as alice,
    ):
        await until_known(at_a, bob)
        await until_known(at_c, alice)
        sent = await alice.send(bob.did, "no, thank you")
        async with within(10):
            message = await anext(bob.inbox())
        await message.refuse("unsupported")
        async with within(20):
            bounce = await anext(alice.inbox())
        assert isinstance(bounce, Bounce)
        assert [(item.eid, item.reason) for item in bounce.items] == [(sent.eid, "unsupported")]
        assert (bounce.sender, alice.refused) == (c.did, 0)


async def test_a_handle_leads_over_two_relays():
    a, c = places(2)
    async with (
        relay_at(a, [c]) as at_a,
        relay_at(c, [a]),
        Agent.open(new_key(), c.url) as bob,
        Agent.open(new_key(), a.url) as alice,
    ):
        handle = f"bob@127.0.0.1:{c.port}"
        record = await bob.publish(handles=[handle])
        await until_held(at_a, bob._parts.key, record.jws.compact)
        found = await alice.resolve(handle)
        assert (found.state, found.did, found.verified) == ("found", bob.did, True)
        assert (await alice.send(handle, "by handle")).to == bob.did
        assert await take(bob) == "by handle"


async def test_with_the_own_relay_dead_it_goes_straight_to_the_recipients_home():
    a, c = places(2)
    async with relay_at(c, [a]), Agent.open(new_key(), c.url) as bob:
        async with relay_at(a, [c]) as at_a:
            alice_open = Agent.open(new_key(), a.url)
            alice = await alice_open.__aenter__()
            await until_known(at_a, bob)
            await alice.send(bob.did, "while it lives")
            assert await take(bob) == "while it lives"
            await until(lambda: bob.did in alice._parts.records._records)
        try:
            await wait_until(lambda: not alice.is_connected, 5, "gone")
            began = time.monotonic()
            sent = await alice.send(bob.did, "when it is dead")
            assert (sent.relay, sent.custody) == (c.did, "inbox")
            assert time.monotonic() - began < 10
            assert await take(bob) == "when it is dead"
        finally:
            await alice_open.__aexit__(None, None, None)
