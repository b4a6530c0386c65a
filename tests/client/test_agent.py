"""The SDK against a real node: send, receive, ack, ask."""

from __future__ import annotations

import asyncio
import gc
import os
from base64 import urlsafe_b64encode as b64encode

import pytest

from relay.client import (
    Agent,
    Bounce,
    ClosedError,
    SigningKey,
    SupersededError,
    TooLargeError,
    UnavailableError,
    UnknownInboxError,
)
from relay.protocol import envelope as envelopes
from relay.protocol import jws
from relay.protocol.did import parse_did
from relay.protocol.sealing import CONTENT_TYPE
from relay.reference.memory_store import MemoryStore
from tests.client.scripted_relay import new_key
from tests.support.nodes import RunningNode, running_node
from tests.support.patience import wait_until


@pytest.fixture
async def node():
    async with running_node() as running:
        yield running


def agent(node: RunningNode, key: SigningKey | None = None, **options):
    return Agent.open(key or new_key(), node.url, **options)


def wires(node: RunningNode, did: str) -> list[bytes]:
    store = node.parts.store
    assert isinstance(store, MemoryStore)
    inbox = store.inboxes._state.inboxes[parse_did(did).agent_key]
    return [item.wire for item in inbox.live.values()]


async def test_what_is_sent_arrives_once_and_is_gone_after_the_ack(node):
    bob = new_key()
    async with agent(node) as alice, agent(node, bob) as me:
        sent = await alice.send(me.did, "good morning")
        message = await anext(me.inbox())
        assert (message.sender, message.text()) == (alice.did, "good morning")
        assert (message.eid, message.id) == (sent.eid, sent.id)
        assert not message.redelivered
        assert await alice.status(me.did, sent.id) == "stored"
        await message.ack()
        assert await alice.status(me.did, sent.id) == "acked"
    async with agent(node, bob) as me:
        assert me.welcome is not None
        assert (me.welcome.cursor, me.welcome.head, me.welcome.pending.count) == (1, 1, 0)


async def test_text_bytes_and_json_arrive_as_what_they_were(node):
    async with agent(node) as alice, agent(node) as bob:
        value = {"price": 1.5, "tags": ["a", None, True]}
        for body in ("naïve ✓", b"\x00\xff", value):
            await alice.send(bob.did, body, thid="t", pthid="p", type="https://example.org/x")
        text, raw, json = [await anext(bob.inbox()) for _ in range(3)]
        assert (text.text(), text.content_type) == ("naïve ✓", "text/plain; charset=utf-8")
        assert (raw.body, raw.content_type) == (b"\x00\xff", "application/octet-stream")
        assert (json.json(), json.content_type) == (value, "application/json")
        assert (json.thid, json.pthid, json.type) == ("t", "p", "https://example.org/x")


async def test_a_body_is_sealed_unless_the_sender_says_otherwise(node):
    async with agent(node) as alice, agent(node) as bob:
        await alice.send(bob.did, "SECRET-1", content_type="text/x-secret")
        await alice.send(bob.did, "OPEN-22222222", seal=False)
        sealed, plain = wires(node, bob.did)
        assert envelopes.parse(jws.loads(sealed)).content_type == CONTENT_TYPE
        for spelt in (b"SECRET-1", b64encode(b"SECRET-1"), b"x-secret", b64encode(b"x-secret")):
            assert spelt not in sealed
        first, second = [await anext(bob.inbox()) for _ in range(2)]
        assert (first.sealed, first.text(), first.content_type) == (
            True,
            "SECRET-1",
            "text/x-secret",
        )
        assert (second.sealed, second.text()) == (False, "OPEN-22222222")
        assert b64encode(b"OPEN-22222222").rstrip(b"=") in plain


async def test_one_message_after_the_other_keeps_its_order(node):
    async with agent(node) as alice, agent(node) as bob:
        for number in range(30):
            await alice.send(bob.did, number)
        assert [(await anext(bob.inbox())).json() for _ in range(30)] == list(range(30))


async def test_many_at_once_are_few_frames_and_all_get_their_own_receipt(node):
    async with agent(node) as alice, agent(node) as bob:
        sent = await asyncio.gather(*(alice.send(bob.did, n) for n in range(500)))
        assert len({item.eid for item in sent}) == 500
        # one signed receipt a commit, shared by the envelopes in it
        assert len({item.receipt for item in sent}) < 100
        seen = set()
        async for message in bob.inbox():
            seen.add(message.json())
            await message.ack(wait=False)
            if len(seen) == 500:
                break
        assert seen == set(range(500))
    async with agent(node, bob._parts.key) as again:
        assert again.welcome is not None
        assert again.welcome.pending.count == 0


async def test_a_recipient_without_an_inbox_is_a_definite_no(node):
    async with agent(node) as alice:
        with pytest.raises(UnknownInboxError) as caught:
            await alice.send(new_key().did, "x")
        assert (caught.value.stored, caught.value.code) == ("no", "unknown_inbox")
        assert caught.value.envelope is not None


async def test_submitting_an_envelope_again_is_a_duplicate_and_shown_once(node):
    async with agent(node) as alice, agent(node) as bob:
        envelope = alice.sign(bob.did, "once")
        first, second = await alice.submit(envelope), await alice.submit(envelope)
        assert (first.dup, second.dup, first.eid) == (False, True, second.eid)
        await alice.send(bob.did, "last")
        assert [(await anext(bob.inbox())).text() for _ in range(2)] == ["once", "last"]


async def test_a_refused_message_comes_back_to_its_sender_as_a_bounce(node):
    async with agent(node) as alice, agent(node) as bob:
        sent = await alice.send(bob.did, "poison")
        await (await anext(bob.inbox())).refuse("unsupported")
        assert await alice.status(bob.did, sent.id) == "refused"
        await node.parts.housekeeping.bounces()
        bounce = await anext(alice.inbox())
        assert isinstance(bounce, Bounce)
        [item] = bounce.items
        assert (item.eid, item.to, item.reason) == (sent.eid, bob.did, "unsupported")
        assert item.maybe_delivered
        assert bounce.sender == alice.relay
        await bounce.ack()


async def test_a_newer_session_ends_the_older_agent_for_good(node):
    bob = new_key()
    async with agent(node) as alice, agent(node, bob) as old:
        waiting = asyncio.ensure_future(anext(old.inbox()))
        async with agent(node, bob) as new:
            with pytest.raises(SupersededError):
                await waiting
            with pytest.raises(SupersededError) as caught:
                await old.send(alice.did, "too late")
            assert caught.value.stored == "no"
            # and it does not come back to fight
            await alice.send(bob.did, "for the new one")
            assert (await anext(new.inbox())).text() == "for the new one"
        assert not old.is_connected


async def test_an_ack_that_is_not_awaited_is_flushed_at_the_end(node):
    bob = new_key()
    async with agent(node) as alice:
        async with agent(node, bob) as me:
            await alice.send(me.did, "x")
            await (await anext(me.inbox())).ack(wait=False)
        async with agent(node, bob) as me:
            assert me.welcome is not None
            assert me.welcome.pending.count == 0


async def test_without_an_ack_the_next_session_gets_it_again_marked(node):
    bob = new_key()
    async with agent(node) as alice, agent(node, bob) as me:
        await alice.send(me.did, "x")
        assert not (await anext(me.inbox())).redelivered
    async with agent(node, bob) as me:
        message = await anext(me.inbox())
        assert (message.text(), message.redelivered) == ("x", True)


async def test_a_cancelled_send_leaves_nothing_behind(node):
    async with agent(node) as alice, agent(node) as bob:
        sending = asyncio.ensure_future(alice.send(bob.did, "never mind"))
        await asyncio.sleep(0)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        # the conversation goes on, and nothing of the cancelled one is in its way
        sent = await alice.send(bob.did, "this one")
        assert sent.to == bob.did
        texts = set()
        async for message in bob.inbox():
            texts.add(message.text())
            if "this one" in texts:
                break
        assert texts <= {"never mind", "this one"}


async def test_the_record_names_the_relay_and_comes_with_the_next_login(node, tmp_path):
    bob, state = new_key(), tmp_path / "state"
    async with agent(node, bob, state=state) as me:
        found = await me.resolve(bob.did)
        assert found.state == "found"
        assert found.record is not None
        [home] = found.record.relays
        assert (home.did, home.url) == (me.relay, node.url)
        assert (await me.resolve(new_key().did)).state == "absent"
    async with agent(node, bob, state=state) as me:
        line = me._parts.pool.active.connection
        assert line is not None
        assert line.login.record == found.record.jws.compact
        assert (await me.resolve(bob.did)).record == found.record


async def test_leaving_the_block_ends_every_wait(node):
    async with agent(node) as me:
        taking = asyncio.ensure_future(_drained(me))
        await asyncio.sleep(0)
    assert await taking == []
    with pytest.raises(ClosedError):
        await me.send(me.did, "x")
    with pytest.raises(ClosedError):
        await me.status(me.did, "x")


async def _drained(me: Agent) -> list[str]:
    return [message.text() async for message in me.inbox()]


async def test_an_exception_in_the_block_comes_out_as_it_was(node):
    with pytest.raises(ZeroDivisionError):
        async with agent(node):
            raise ZeroDivisionError


async def test_a_cancelled_program_ends_as_cancelled(node):
    inside = asyncio.Event()

    async def program() -> None:
        async with agent(node):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(program())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_no_task_is_left_behind(node):
    before = asyncio.all_tasks()
    async with agent(node) as me:
        await me.send(me.did, "to myself")
        message = await anext(me.inbox())
        await message.ack()
    await wait_until(lambda: asyncio.all_tasks() <= before, 5, "all tasks of the agent are gone")
    gc.collect()


async def test_a_body_over_the_limit_is_refused_before_it_is_sent(node):
    async with agent(node) as alice:
        with pytest.raises(TooLargeError) as caught:
            await alice.send(alice.did, os.urandom(300_000))
        assert caught.value.stored == "no"


async def test_a_recipient_that_is_no_did_is_an_error_of_the_program(node):
    async with agent(node) as alice:
        with pytest.raises(ValueError, match="not a DID"):
            await alice.send("bob", "x")


async def test_no_relay_there_is_said_in_time():
    with pytest.raises(UnavailableError) as caught:
        async with Agent.open(new_key(), "http://127.0.0.1:1", open_timeout_s=0.5):
            pass
    assert caught.value.code == "peer_unreachable"
    assert "127.0.0.1:1" in caught.value.detail


async def test_the_first_relay_that_answers_is_taken(node):
    async with Agent.open(new_key(), ["http://127.0.0.1:1", node.url]) as me:
        assert me.relay == node.parts.key.did
