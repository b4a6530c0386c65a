"""A relay that is back at its address with a new key: accepted by its DID, or not at all."""

from __future__ import annotations

import asyncio

import pytest

from relay.client import (
    Agent,
    MovedError,
    SigningKey,
    UnreachableError,
    WrongRelayError,
    accept_relay,
    sync,
)
from relay.client.state import agent_state as states
from relay.client.state.journal import Journal
from relay.protocol import endpoint_record, jws
from relay.protocol.endpoint_record import Home
from relay.protocol.frames import Hello
from relay.protocol.ids import Did, Timestamp
from tests.cli.terminal import Terminal
from tests.client.scripted_relay import Talk, envelope_of, lying_relay, new_key
from tests.federation.linked_nodes import Place, now, places, until
from tests.support.nodes import RunningNode, running_node
from tests.support.patience import within

pytestmark = pytest.mark.timeout(60)


def at(place: Place, key: SigningKey | None = None, **values):
    """A relay with an empty store: the one that was there before has lost its volume."""
    return running_node(key=key or place.key, listen=f"127.0.0.1:{place.port}", **values)


def did(node: RunningNode) -> str:
    return node.parts.key.did


async def take(me: Agent) -> str:
    async with within(10):
        message = await anext(me.inbox())
        await message.ack()
    return message.text()


async def settled(place: Place, key: SigningKey, state) -> None:
    """The agent has lived at the relay that is lost."""
    async with at(place), Agent.open(key, place.url, state=state):
        pass


async def test_an_agent_accepts_its_relays_new_key_and_keeps_its_outbox_and_its_memory(tmp_path):
    [place] = places(1)
    bob, alice, state = new_key(), new_key(), tmp_path / "bob.state"
    seen, fresh = (envelope_of(alice, bob.did, text) for text in (b"seen", b"fresh"))
    left = envelope_of(bob, alice.did, b"left")
    async with at(place), Agent.open(bob, place.url, state=state) as me:
        async with Agent.open(alice, place.url) as other:
            await other.submit(seen)
        assert await take(me) == "seen"
    # what a crash leaves: in the outbox, and perhaps submitted
    journal = Journal.open(state)
    await journal.add_outgoing(left)
    journal.close()
    async with at(place, new_key()) as node, Agent.open(alice, _new(node)) as other:
        for _ in range(2):
            with pytest.raises(WrongRelayError) as caught:
                async with Agent.open(bob, place.url, state=state):
                    pass
            assert caught.value.found == did(node)
            assert f"relay accept {place.url} {did(node)}" in caught.value.detail
        record = await accept_relay(bob, place.url, did(node), state=state)
        assert record is not None
        assert [(home.did, home.url) for home in record.relays] == [(did(node), place.url)]
        async with Agent.open(bob, place.url, state=state) as me:
            await other.submit(seen)
            await other.submit(fresh)
            assert await take(me) == "fresh", "what it has acked is not shown again"
            outcome = await anext(me.outcomes())
            assert (outcome.eid, outcome.stored) == (left.eid, "yes")
        assert await take(other) == "left"
        # said again it changes nothing but the seq
        again = await accept_relay(bob, place.url, did(node), state=state)
        assert again is not None
        assert again.relays == record.relays


def _new(node: RunningNode) -> str:
    """The address of a relay, for agents of this process that know it under its new key."""
    states._pinned.pop(node.url, None)
    return node.url


async def test_only_the_relay_that_is_named_is_accepted(tmp_path):
    [place] = places(1)
    key, state = new_key(), tmp_path / "state"
    await settled(place, key, state)
    async with at(place, new_key()) as node:
        for wrong in (new_key().did, place.did):
            with pytest.raises(WrongRelayError) as caught:
                await accept_relay(key, place.url, wrong, state=state)
            assert caught.value.found == did(node)
        with pytest.raises(ValueError, match="DID"):
            await accept_relay(key, place.url, "did:web:relay.example", state=state)
        with pytest.raises(WrongRelayError):
            async with Agent.open(key, place.url, state=state):
                pass
    with pytest.raises(UnreachableError):
        await accept_relay(key, place.url, new_key().did, state=state)
    async with at(place), Agent.open(key, place.url, state=state) as me:
        assert me.relay == place.did, "the relay of before is still the one that is expected"


async def test_what_is_no_did_is_never_shown_in_a_command(tmp_path):
    async def script(talk: Talk) -> None:
        nonce = jws.b64encode(b"1" * 32)
        await talk.say(Hello(Did("x; rm -rf ~"), talk.relay.url, nonce, {}, int(now())))
        await talk.until_closed()

    async with lying_relay(script) as relay:
        state = tmp_path / "state"
        journal = Journal.open(state)
        journal.pin_relay(relay.url, new_key().did).result()
        journal.close()
        with pytest.raises(WrongRelayError) as caught:
            async with Agent.open(new_key(), relay.url, state=state):
                pass
    assert "found x; rm" in caught.value.detail
    assert "relay accept" not in caught.value.detail


async def test_a_program_without_an_event_loop_accepts_it_too(tmp_path):
    [place] = places(1)
    key, state = new_key(), tmp_path / "state"
    await settled(place, key, state)

    def work(relay: str) -> str | None:
        sync.accept_relay(key, place.url, relay, state=state)
        with sync.Agent.open(key, place.url, state=state) as me:
            return me.relay

    async with at(place, new_key()) as node:
        assert await asyncio.to_thread(work, did(node)) == did(node)


async def test_an_agent_without_a_state_file_accepts_it_for_its_process():
    [place] = places(1)
    key = new_key()
    async with at(place), Agent.open(key, place.url):
        pass
    async with at(place, new_key()) as node:
        with pytest.raises(WrongRelayError):
            async with Agent.open(key, place.url):
                pass
        await accept_relay(key, place.url, did(node))
        async with Agent.open(key, place.url) as me:
            assert me.relay == did(node)


async def test_one_that_has_lost_its_pin_is_told_the_same_where_others_bring_its_old_record(
    tmp_path,
):
    place, other = places(2)
    key, state = new_key(), tmp_path / "state"
    homes = [Home(place.did, place.url), Home(other.did, other.url)]
    old = endpoint_record.sign(key, homes, now=now())
    async with at(place, new_key()) as node:
        await node.parts.directory.merge_from_peer([old], new_key().did)
        async with Agent.open(key, _new(node), state=state) as me:
            with pytest.raises(MovedError) as caught:
                await anext(me.inbox())
        assert f"relay accept {place.url} {did(node)}" in caught.value.detail
        await accept_relay(key, place.url, did(node), state=state)
        async with Agent.open(key, place.url, state=state) as me:
            assert me.welcome is not None
            assert me.welcome.inbox


async def test_one_that_has_taken_the_new_key_for_a_further_home_names_it_once(tmp_path):
    [place] = places(1)
    key, state = new_key(), tmp_path / "state"
    old = endpoint_record.sign(key, [Home(place.did, place.url)], now=now())
    async with at(place, new_key()) as node:
        await node.parts.directory.merge_from_peer([old], new_key().did)
        async with Agent.open(key, _new(node), state=state) as me:
            await until(lambda: any(isinstance(one, WrongRelayError) for one in me.warnings))
        record = await accept_relay(key, place.url, did(node), state=state)
        assert record is not None
        assert [home.did for home in record.relays] == [did(node)]


async def test_a_crash_between_the_record_and_the_pin_leads_to_the_new_relay(tmp_path):
    [place] = places(1)
    key, state = new_key(), tmp_path / "state"
    await settled(place, key, state)
    async with at(place, new_key()) as node:
        journal = Journal.open(state)
        newest = journal.load().record
        assert newest is not None
        half = endpoint_record.sign(
            key,
            [Home(node.parts.key.did, place.url)],
            now=Timestamp(now() + 1),
            newest_seq=endpoint_record.parse(newest).seq,
        )
        journal.save_record(half).result()
        journal.close()
        async with Agent.open(key, place.url, state=state) as me:
            assert me.relay == did(node)
            assert me.welcome is not None
            assert me.welcome.inbox


async def test_an_agent_with_another_home_goes_on_there_and_is_warned(tmp_path):
    first, second = places(2)
    key, state = new_key(), tmp_path / "state"
    urls = [first.url, second.url]
    async with at(second):
        async with at(first), Agent.open(key, urls, state=state):
            pass
        async with at(first, new_key()) as node:
            async with Agent.open(key, urls, state=state) as me:
                assert me.relay == second.did
                [warning] = [one for one in me.warnings if isinstance(one, WrongRelayError)]
                assert warning.found == did(node)
            record = await accept_relay(key, first.url, did(node), state=state)
            assert record is not None
            assert [home.did for home in record.relays] == [did(node), second.did]
            async with Agent.open(key, urls, state=state) as me:
                assert me.relay == did(node)
                assert me.warnings == ()


async def test_a_relay_that_is_no_home_is_pinned_and_nothing_is_published(tmp_path):
    home, other = places(2)
    key, state = new_key(), tmp_path / "state"
    await settled(home, key, state)
    async with at(home), at(other, new_key()) as node:
        assert await accept_relay(key, other.url, did(node), state=state) is None
    assert Journal.open(state).load().relays[other.url] == did(node)


# ---------------------------------------------------------------- by command


async def test_the_command_accepts_the_did_that_it_is_given_and_no_other(tmp_path):
    [place] = places(1)
    me = Terminal(tmp_path, place.url)
    async with at(place):
        assert (await me.run("inbox")).code == 0
    async with at(place, new_key()) as node:
        refused = await me.run("inbox")
        assert (refused.code, "wrong_relay" in refused.err) == (3, True)
        advice = f"relay accept {place.url} {did(node)}"
        assert advice in refused.err
        wrong = await me.run("accept", place.url, new_key().did)
        assert (wrong.code, "wrong_relay" in wrong.err) == (3, True)
        sent = await me.run("send", new_key().did, "hello", "--timeout", "5")
        assert "wrong_relay" not in sent.out
        done = await me.run(*advice.split()[1:], "--json")
        assert (done.code, done.json["accepted"], done.json["home"]) == (0, did(node), True)
        assert (await me.run("inbox")).code == 0


async def test_giving_the_old_relay_up_accepts_whom_its_user_was_shown_and_nobody_else(tmp_path):
    [place] = places(1)
    me = Terminal(tmp_path, place.url)
    give_up = ("migrate", "--to", place.url, "--dead-source", "--timeout", "5")
    async with at(place):
        assert (await me.run("inbox")).code == 0
    async with at(place, new_key()) as node:
        unseen = await me.run(*give_up)
        assert (unseen.code, "lives at" in unseen.err) == (3, True)
        assert (await me.run("inbox")).code == 3
    async with at(place, new_key()):
        assert (await me.run("inbox")).code == 3
        # two were shown: which one does its user mean?
        assert (await me.run(*give_up)).code == 3
    async with at(place, new_key()) as node:
        done = await me.run("accept", place.url, did(node))
        assert (done.code, "is accepted" in done.out) == (0, True)
    newest = new_key()
    async with at(place, newest):
        assert (await me.run("inbox")).code == 3
        done = await me.run(*give_up)
        assert (done.code, f"{newest.did}  is accepted" in done.out) == (0, True)
        assert (await me.run("inbox")).code == 0
