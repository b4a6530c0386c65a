"""Several nodes of one relay over one real store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.inbox.model.types import InboxLimits
from relay.protocol.errors import ErrorCode, StateError
from relay.protocol.frames import Ack, Acked, Bye, Deliver, Submit, Submitted
from relay.protocol.ids import NodeId, Seq
from relay.store.embedded import EmbeddedStore
from relay.store.redis import RedisStore
from tests.support.nodes import RunningNode, make_envelope, new_key, running_node, speaker

pytestmark = pytest.mark.timeout(30)


@contextlib.asynccontextmanager
async def pair(tmp_path: Path) -> AsyncIterator[tuple[RunningNode, RunningNode]]:
    """Two nodes with one key over one store."""
    embedded = EmbeddedStore(tmp_path / "store", maxmemory="64mb")
    (tmp_path / "store").mkdir()
    await embedded.start()
    key = new_key()
    try:
        async with (
            running_node(RedisStore(embedded.url, InboxLimits()), key=key) as one,
            running_node(RedisStore(embedded.url, InboxLimits()), key=key) as two,
            asyncio.TaskGroup() as tasks,
        ):
            runners = [tasks.create_task(node.parts.store.run()) for node in (one, two)]
            yield one, two
            for runner in runners:
                runner.cancel()
    finally:
        await embedded.stop()


@pytest.mark.alone
async def test_an_agent_at_one_node_gets_at_once_what_the_other_accepted(tmp_path):
    async with (
        pair(tmp_path) as (one, two),
        speaker(one.url) as alice,
        speaker(two.url) as bob,
    ):
        for number in range(5):
            await alice.say(Submit("r", [make_envelope(alice.key, bob.key.did).wire]))
            answer = await alice.hear(Submitted)
            assert answer.receipt
            # far below the poll interval: only the wake-up can have brought it
            async with asyncio.timeout(2):
                delivered = await bob.hear(Deliver)
            assert [i.seq for i in delivered.items] == [number + 1]
            await bob.say(Ack(delivered.epoch, upto=Seq(number + 1)))
            await bob.hear(Acked)


async def test_a_login_at_another_node_supersedes_the_session_here(tmp_path):
    bob = new_key()
    async with (
        pair(tmp_path) as (one, two),
        speaker(one.url, bob) as old,
        speaker(two.url, bob) as new,
    ):
        assert (await old.hear(Bye)).error is ErrorCode.SUPERSEDED
        assert new.ready.welcome.inbox


async def test_envelopes_of_two_nodes_arrive_in_seq_order(tmp_path):
    async with (
        pair(tmp_path) as (one, two),
        speaker(one.url) as alice,
        speaker(two.url) as carol,
        speaker(two.url) as bob,
    ):

        async def send(sender, count):
            for _ in range(count):
                await sender.say(Submit("r", [make_envelope(sender.key, bob.key.did).wire]))
                await sender.hear(Submitted)

        async def receive(count):
            seqs: list[int] = []
            while len(seqs) < count:
                delivered = await bob.hear(Deliver)
                seqs += [i.seq for i in delivered.items]
                assert not any(i.redelivered for i in delivered.items)
                await bob.say(Ack(delivered.epoch, upto=delivered.items[-1].seq))
            return seqs

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send(alice, 60))
            tasks.create_task(send(carol, 60))
            received = tasks.create_task(receive(120))
        assert received.result() == list(range(1, 121))


async def test_a_node_with_another_key_is_refused_at_start(tmp_path):
    async with pair(tmp_path) as (one, _):
        url = one.parts.store._client._url
        stranger = RedisStore(url, InboxLimits())
        with pytest.raises(StateError) as refused:
            await stranger.start(relay=new_key().did, node=NodeId("stranger"))
        await stranger.stop()
        assert refused.value.code is ErrorCode.WRONG_RELAY
