"""Handlers: acked when they return, shown again when they fail, refused as poison at last."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest

from relay.client import Agent, Bounce, SupersededError
from relay.client.inbox import inbox
from relay.client.inbox.inbox import MAX_ATTEMPTS
from tests.client.scripted_relay import new_key
from tests.support.nodes import running_node
from tests.support.patience import wait_until

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
async def node():
    async with running_node() as running:
        yield running


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(inbox, "RETRY_PAUSE_S", 0.001)


async def until(condition, *served: asyncio.Future[None]) -> None:
    try:
        await wait_until(condition, 10, "the handler was called")
    finally:
        for task in served:
            task.cancel()
        await asyncio.gather(*served, return_exceptions=True)


@pytest.mark.parametrize("is_kept", [True, False])
async def test_a_poison_envelope_is_tried_5_times_then_refused_and_blocks_nobody(
    node, tmp_path, is_kept
):
    seen: list[tuple[str, bool]] = []

    async def handler(message) -> None:
        seen.append((message.text(), message.redelivered))
        if message.text() == "poison":
            raise ZeroDivisionError

    state = tmp_path / "state" if is_kept else None
    async with (
        Agent.open(new_key(), node.url, state=state) as bob,
        Agent.open(new_key(), node.url) as alice,
    ):
        poison, good = [await alice.send(bob.did, text) for text in ("poison", "good")]
        serving = asyncio.ensure_future(bob.serve(handler))
        sent = replace(poison)
        while sent.state == "stored":
            sent = replace(sent, state=await alice.status(bob.did, poison.id))
        await until(lambda: len(seen) == MAX_ATTEMPTS + 1, serving)
        assert (sent.state, await alice.status(bob.did, good.id)) == ("refused", "acked")
        marks = [again for text, again in seen if text == "poison"]
        assert marks == [False, True, True, True, True]
        await node.parts.housekeeping.bounces()
        bounce = await anext(alice.inbox())
        assert isinstance(bounce, Bounce)
        assert bounce.items[0].reason == "poison"


async def test_failures_are_counted_over_lives_where_there_is_a_state_file(node, tmp_path):
    key, state = new_key(), tmp_path / "state"
    async with Agent.open(key, node.url, state=state) as me:
        sent = await me.send(me.did, "poison")
    for _ in range(MAX_ATTEMPTS):
        async with Agent.open(key, node.url, state=state) as me:
            assert await me.status(me.did, sent.id) == "stored"
            message = await anext(me.inbox())
            with pytest.raises(ZeroDivisionError):
                async with message:
                    raise ZeroDivisionError
    async with Agent.open(key, node.url) as me:
        assert await me.status(me.did, sent.id) == "refused"


async def test_a_block_that_ends_well_acks_and_a_cancelled_one_is_no_failure(node):
    async with Agent.open(new_key(), node.url) as me:
        sent = await me.send(me.did, "x")
        message = await anext(me.inbox())
        with pytest.raises(asyncio.CancelledError):
            async with message:
                raise asyncio.CancelledError
        assert await me.status(me.did, sent.id) == "stored"
        async with message:
            pass
        assert await me.status(me.did, sent.id) == "acked"


async def test_serving_ends_with_the_reason_when_a_newer_session_takes_the_inbox(node):
    key = new_key()
    async with Agent.open(key, node.url) as me:
        serving = asyncio.ensure_future(me.serve(lambda _: asyncio.sleep(0)))
        async with Agent.open(key, node.url):
            with pytest.raises(SupersededError):
                await serving


async def test_as_many_are_under_way_as_was_asked_for(node):
    under_way = most = count = 0

    async def handler(_) -> None:
        nonlocal under_way, most, count
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        count += 1

    async with Agent.open(new_key(), node.url) as me:
        for _ in range(12):
            await me.send(me.did, "x")
        serving = asyncio.ensure_future(me.serve(handler, at_once=3))
        await until(lambda: count == 12, serving)
    assert most == 3


async def test_a_send_can_wait_for_the_ack(node):
    async with Agent.open(new_key(), node.url) as bob, Agent.open(new_key(), node.url) as alice:
        sending = asyncio.ensure_future(alice.send(bob.did, "x", wait="acked"))
        message = await anext(bob.inbox())
        assert not sending.done()
        await message.ack()
        assert (await sending).state == "acked"


async def test_a_send_that_waits_for_the_ack_says_how_it_ended_or_where_it_stands(node):
    async with Agent.open(new_key(), node.url) as bob, Agent.open(new_key(), node.url) as alice:
        waiting = await alice.send(bob.did, "x", wait="acked", deadline_s=0.4)
        assert waiting.state == "stored"
        await (await anext(bob.inbox())).ack()
        sending = asyncio.ensure_future(alice.send(bob.did, "y", wait="acked"))
        await (await anext(bob.inbox())).refuse()
        assert (await sending).state == "refused"


async def is_bounced(node, bob: Agent, alice: Agent) -> None:
    """Bob refuses what Alice sends, and her relay tells her so."""
    sent = await alice.send(bob.did, "no")
    await (await anext(bob.inbox())).refuse("unsupported")
    assert await alice.status(bob.did, sent.id) == "refused"
    await node.parts.housekeeping.bounces()


async def test_a_bounce_is_logged_and_acked_and_never_given_to_the_handler_of_messages(
    node, caplog
):
    seen: list[object] = []

    async def handler(message) -> None:
        seen.append(message.json()["n"])

    async with Agent.open(new_key(), node.url) as bob, Agent.open(new_key(), node.url) as alice:
        await is_bounced(node, bob, alice)
        await alice.send(alice.did, {"n": 1})
        serving = asyncio.ensure_future(alice.serve(handler))
        await until(lambda: seen, serving)
        assert seen == [1]
        assert [one.message.endswith("unsupported") for one in caplog.records] == [True]
    async with node_left_by(node, alice) as pending:
        assert pending.count == 0


@contextlib.asynccontextmanager
async def node_left_by(node, agent: Agent):
    """What waits at its relay for an agent that was closed."""
    async with Agent.open(agent._parts.key, node.url) as again:
        assert again.welcome is not None
        yield again.welcome.pending


async def test_a_bounce_whose_handler_fails_comes_again_and_again_and_is_never_refused(node):
    seen: list[Bounce] = []

    async def on_bounce(bounce) -> None:
        seen.append(bounce)
        if len(seen) <= MAX_ATTEMPTS + 1:
            raise ZeroDivisionError

    async with Agent.open(new_key(), node.url) as bob, Agent.open(new_key(), node.url) as alice:
        await is_bounced(node, bob, alice)
        serving = asyncio.ensure_future(alice.serve(never, on_bounce))
        await until(lambda: len(seen) == MAX_ATTEMPTS + 2, serving)
        assert {bounce.items for bounce in seen} == {seen[0].items}
        assert seen[0].items[0].reason == "unsupported"


async def never(_) -> None:
    raise AssertionError


async def test_a_handler_that_awaits_what_was_cancelled_has_failed_and_is_shown_it_again(node):
    seen: list[bool] = []

    async def handler(message) -> None:
        seen.append(message.redelivered)
        if len(seen) == 1:
            gone = asyncio.get_running_loop().create_future()
            gone.cancel()
            await gone

    async with Agent.open(new_key(), node.url) as me:
        await me.send(me.did, "x")
        serving = asyncio.ensure_future(me.serve(handler))
        await until(lambda: len(seen) == 2, serving)
        assert seen == [False, True]
