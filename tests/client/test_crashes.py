"""Agents that are killed with kill -9: what they acked, had in hand, or had sent (R3, S2)."""

from __future__ import annotations

import asyncio

import pytest

from relay.client import Agent, OutcomeUnknownError, SignedEnvelope, SigningKey, UnknownInboxError
from relay.client.state.journal import Journal
from relay.protocol.frames import Ack, Submitted
from tests.client.agent_process import Identity
from tests.client.scripted_relay import Talk, deliver, envelope_of, lying_relay, new_key, welcome
from tests.support.nodes import RunningNode, running_node
from tests.support.patience import wait_until, within

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def bob(tmp_path) -> Identity:
    return Identity(new_key(), tmp_path / "bob.state")


@pytest.fixture
async def homes():
    async with running_node() as one, running_node() as two:
        yield one, two


async def settle(node: RunningNode, who: Identity) -> None:
    """Give an agent an inbox, from a place that knows nothing of its other ones."""
    async with Agent.open(who.key, node.url):
        pass


async def put(node: RunningNode, envelope: SignedEnvelope, sender: SigningKey) -> None:
    async with Agent.open(sender, node.url) as agent:
        await agent.submit(envelope)


async def test_one_whose_handler_ran_at_the_crash_comes_again_marked_from_any_home(homes, bob):
    one, two = homes
    alice = new_key()
    envelope = envelope_of(alice, bob.did, b"work")
    await settle(one, bob)
    await settle(two, bob)
    await put(one, envelope, alice)
    await put(two, envelope, alice)
    async with bob.alive(one.url, "show") as agent:
        assert await agent.says() == ["shown", "work", "False"]
    for home in (two, two):
        async with bob.alive(home.url, "show") as agent:
            assert await agent.says() == ["shown", "work", "True"]


async def test_an_acked_one_is_never_shown_again_by_no_home(homes, bob):
    one, two = homes
    alice = new_key()
    envelope = envelope_of(alice, bob.did, b"once")
    await settle(one, bob)
    await settle(two, bob)
    await put(one, envelope, alice)
    async with bob.alive(one.url, "ack") as agent:
        assert await agent.says() == ["shown", "once", "False"]
        assert await agent.says() == ["acked", "once"]
    await put(two, envelope, alice)
    await put(two, envelope_of(alice, bob.did, b"next"), alice)
    async with bob.alive(two.url, "ack") as agent:
        assert await agent.says() == ["shown", "next", "False"]
        assert await agent.says() == ["acked", "next"]
    async with Agent.open(bob.key, two.url) as me:
        assert me.welcome is not None
        assert me.welcome.pending.count == 0


async def test_without_its_journal_the_same_agent_is_shown_it_again(homes, bob):
    """Negative control: it is the file that remembers."""
    one, two = homes
    alice = new_key()
    envelope = envelope_of(alice, bob.did, b"once")
    await settle(one, bob)
    await settle(two, bob)
    await put(one, envelope, alice)
    async with bob.alive(one.url, "ack") as agent:
        await agent.says()
        assert await agent.says() == ["acked", "once"]
    await put(two, envelope, alice)
    for file in bob.state.parent.glob("bob.state*"):
        file.unlink()
    async with bob.alive(two.url, "ack") as agent:
        assert await agent.says() == ["shown", "once", "False"]


async def test_an_ack_is_in_the_journal_before_the_relay_hears_of_it(homes, bob):
    one, _ = homes
    alice = new_key()
    envelope = envelope_of(alice, bob.did, b"half")
    heard = asyncio.Event()

    async def script(talk: Talk) -> None:
        await talk.log_in(said=welcome(head=1))
        await talk.say(deliver((1, envelope.wire)))
        while not isinstance(await talk.hear(), Ack):
            pass
        heard.set()  # and never answers
        await talk.until_closed()

    async with lying_relay(script) as relay, bob.alive(relay.url, "ack-unsaid") as agent:
        assert await agent.says() == ["shown", "half", "False"]
        async with within(10):
            await heard.wait()
    await settle(one, bob)
    await put(one, envelope, alice)
    await put(one, envelope_of(alice, bob.did, b"next"), alice)
    async with bob.alive(one.url, "ack") as agent:
        assert await agent.says() == ["shown", "next", "False"]


async def test_what_was_sent_and_not_answered_is_submitted_again_the_same_bytes(homes, bob):
    one, _ = homes
    seen: list[list[object]] = []
    heard = asyncio.Event()

    async def script(talk: Talk) -> None:
        await talk.log_in()
        frame, _ = await talk.submit()
        seen.append([dict(item) for item in frame.envelopes])
        heard.set()
        await talk.until_closed()

    carol = new_key()
    async with lying_relay(script) as relay:
        async with bob.alive(relay.url, "send", carol.did, "hello") as agent, within(10):
            _, eid = await agent.says()
            await heard.wait()
        heard.clear()
        async with bob.alive(relay.url, "show"), within(10):
            await heard.wait()
    assert seen[0] == seen[1]
    # the relay that answers at last has it once, and it is submitted no more
    async with Agent.open(carol, one.url) as reader:
        async with Agent.open(bob.key, one.url, state=bob.state) as me:
            message = await anext(reader.inbox())
            assert (message.text(), message.eid) == ("hello", eid)
            await wait_until(lambda: me.unanswered == 0, 10, "the late answer")
        journal = Journal.open(bob.state, bob.did)
        assert await journal.outgoing() == []
        journal.close()


async def test_a_definite_no_is_never_submitted_again(homes, bob):
    one, _ = homes
    stranger = new_key()
    async with Agent.open(bob.key, one.url, state=bob.state) as me:
        with pytest.raises(UnknownInboxError):
            await me.send(stranger.did, "too early")
        journal = Journal.open(bob.state, bob.did)
        assert await journal.outgoing() == []
        journal.close()
    await settle(one, Identity(stranger, bob.state))
    async with Agent.open(bob.key, one.url, state=bob.state) as me:
        assert me.unanswered == 0


async def test_what_is_unknown_at_the_deadline_goes_on_by_itself_and_can_be_waited_for(bob):
    let_go = asyncio.Event()

    async def script(talk: Talk) -> None:
        await talk.log_in()
        frame, stored = await talk.submit()
        await talk.until(let_go)
        await talk.say(Submitted((frame.ref,), talk.receipt(stored)))
        await talk.until_closed()

    async with (
        lying_relay(script) as relay,
        Agent.open(bob.key, relay.url, state=bob.state) as me,
    ):
        with pytest.raises(OutcomeUnknownError) as caught:
            await me.send(new_key().did, "slow", deadline_s=0.3)
        assert caught.value.envelope is not None
        assert me.unanswered == 1
        again = asyncio.ensure_future(me.submit(caught.value.envelope))
        await asyncio.sleep(0)
        let_go.set()
        assert (await again).eid == caught.value.envelope.eid
        assert me.unanswered == 0
