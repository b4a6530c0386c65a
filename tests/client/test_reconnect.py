"""The SDK over a relay that is killed, and over a wire that is cut at the worst moment."""

from __future__ import annotations

import asyncio

import pytest

from relay.client import Agent, UnavailableError
from relay.client.agent import sign
from relay.client.http.origin import parse
from relay.client.sessionless import SessionlessAgent
from relay.client.state.agent_state import AgentState
from tests.client.scripted_relay import new_key, wire
from tests.support.nodes import running_node
from tests.support.patience import wait_until
from tests.support.ports import free_port
from tests.support.relay_process import relay_process


@pytest.fixture
async def cuttable():
    """A real node whose agents come over a wire that can be cut."""
    near, far = free_port(), free_port()
    async with (
        running_node(listen=f"127.0.0.1:{far}", public_url=f"http://127.0.0.1:{near}"),
        wire(("127.0.0.1", near), ("127.0.0.1", far)) as made,
    ):
        yield made


async def test_a_lost_receipt_is_asked_for_with_the_same_bytes_and_comes_as_a_duplicate(cuttable):
    async with Agent.open(new_key(), cuttable.url) as bob:
        async with Agent.open(new_key(), cuttable.url) as alice:
            envelope = alice.sign(bob.did, "exactly once")
            cuttable.deaf = True
            sent = await alice.submit(envelope)
            assert cuttable.cuts == 1
            assert (sent.dup, sent.eid) == (True, envelope.eid)
        assert (await anext(bob.inbox())).text() == "exactly once"


async def test_an_ack_whose_answer_is_lost_is_durable_once_and_not_shown_again(cuttable):
    key = new_key()
    async with Agent.open(key, cuttable.url) as me:
        await me.send(me.did, "first")
        message = await anext(me.inbox())
        cuttable.deaf = True
        await message.ack()
        assert cuttable.cuts == 1
        await me.send(me.did, "second")
        assert (await anext(me.inbox())).text() == "second"


async def test_what_is_in_the_programs_hands_is_not_shown_twice_over_a_cut(cuttable):
    async with Agent.open(new_key(), cuttable.url) as me:
        await me.send(me.did, "in work")
        message = await anext(me.inbox())
        before = me.welcome
        cuttable.cut()
        await wait_until(lambda: me.welcome is not before and me.is_connected, 5, "connected again")
        await me.send(me.did, "next")
        assert (await anext(me.inbox())).text() == "next"
        await message.ack()


async def test_a_lost_http_answer_is_asked_for_with_the_same_bytes(cuttable):
    async with Agent.open(new_key(), cuttable.url) as bob:
        alice = new_key()
        envelope, state = sign(alice, bob.did, "by post"), AgentState()
        cuttable.deaf = True
        sent = await SessionlessAgent(parse(cuttable.url), state).submit(envelope, deadline_s=5)
        assert (sent.dup, sent.eid) == (True, envelope.eid)
        assert state.relay_at(cuttable.url) == bob.relay
        assert (await anext(bob.inbox())).text() == "by post"


@pytest.mark.timeout(40)
async def test_a_relay_killed_in_mid_send_loses_nothing_and_doubles_nothing(tmp_path):
    async with relay_process(tmp_path) as relay:
        listen = relay.url.removeprefix("http://")
        async with (
            Agent.open(new_key(), relay.url) as alice,
            Agent.open(new_key(), relay.url) as bob,
        ):
            sending = [asyncio.ensure_future(alice.send(bob.did, n)) for n in range(300)]
            await wait_until(lambda: any(task.done() for task in sending), 5, "a first receipt")
            relay.kill()
            await relay.process.wait()
            async with relay_process(tmp_path, listen=listen):
                sent = await asyncio.gather(*sending)
                assert len({item.eid for item in sent}) == 300
                seen = []
                async for message in bob.inbox():
                    seen.append(message.json())
                    await message.ack(wait=False)
                    if len(seen) == 300:
                        break
                assert sorted(seen) == list(range(300))
                states = await asyncio.gather(
                    *(alice.status(bob.did, item.id) for item in sent[::50])
                )
                assert set(states) <= {"stored", "acked"}


@pytest.mark.timeout(40)
async def test_a_relay_that_stays_dead_is_said_at_the_deadline_and_the_envelope_can_be_resent(
    tmp_path,
):
    bob, alice = new_key(), new_key()
    async with relay_process(tmp_path) as relay:
        listen = relay.url.removeprefix("http://")
        async with Agent.open(bob, relay.url):
            pass
        async with Agent.open(alice, relay.url) as agent:
            first = await agent.send(bob.did, "first")
            relay.kill()
            await relay.process.wait()
            with pytest.raises(UnavailableError) as caught:
                await agent.send(bob.did, "second", deadline_s=0.5)
            assert caught.value.envelope is not None
            async with relay_process(tmp_path, listen=listen):
                sent = await agent.submit(caught.value.envelope, deadline_s=20)
                assert not sent.dup
                assert await agent.status(bob.did, first.id) == "stored"
