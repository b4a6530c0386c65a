"""Whatever a peer answers, and however it hangs up: it ends its own link, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import pytest

from relay import metrics
from relay.directory.model.index import TOP_BITS
from relay.peering import link as link_module
from relay.protocol.errors import RelayError
from relay.protocol.frames import (
    Digest,
    Publish,
    Resolve,
    Status,
    StatusItem,
    Submit,
    Submitted,
    Want,
)
from tests.client.scripted_relay import LyingRelay, Talk, lying_relay, welcome
from tests.federation.linked_nodes import Place, places, record_of, relay_at, until, until_held
from tests.support.nodes import RunningNode, make_envelope, new_key, speaker

pytestmark = pytest.mark.timeout(60)

Falsify = dict[str, Any]
Lie = Callable[[Falsify], Sequence[object]]
"""From a frame that the node says to what the peer answers: frames, or raw text or bytes."""

HUGE = 2**64 - 1
HASH = "A" * 22
DEEP = "[" * 100_000
AGENT = "key:z6Mko9hTggMwjSTEaJaPUfE6tqcy2xvU6BnNq3e3o8qVBiyH"


def ref(reply: Falsify) -> object:
    return reply.get("ref", "1")


def bucket(reply: Falsify) -> tuple[object, object]:
    return reply.get("bits", TOP_BITS), reply.get("bucket", 0)


LIES: dict[str, Lie] = {
    "no JSON": lambda _: [b"\xff\x00", "", "nothing"],
    "deeper than any reader goes": lambda _: [DEEP],
    "no frame": lambda _: ["[]", "{}", "null", "1e999"],
    "an error without a ref": lambda _: [{"t": "error", "error": "internal", "detail": "x"}],
    "an error of another kind": lambda reply: [
        {"t": "error", "ref": ref(reply), "error": "moved", "detail": "x", "retry_after": HUGE}
    ],
    "a code that nobody knows": lambda reply: [
        {"t": "error", "ref": ref(reply), "error": "flat_tyre", "detail": "x"}
    ],
    "a goodbye for ever": lambda _: [
        {"t": "bye", "error": "draining", "detail": "x", "retry_after": HUGE}
    ],
    "digests that were not asked for": lambda reply: [
        {"t": "digests", "ref": ref(reply), "bits": 28, "items": [[2**28 - 1, HUGE, HASH]]}
    ],
    "digests of a depth that is none": lambda reply: [
        {"t": "digests", "ref": ref(reply), "bits": 3, "items": [[7, 1, HASH]]}
    ],
    "all buckets are full, and endlessly": lambda reply: [
        {
            "t": "digests", "ref": ref(reply), "bits": reply.get("bits", TOP_BITS),
            "items": [[one, HUGE, HASH] for one in reply.get("buckets") or range(1024)][:1024],
        }
        if reply["t"] == "digest"
        else {
            "t": "have", "ref": ref(reply), "bits": bucket(reply)[0], "bucket": bucket(reply)[1],
            "items": [[AGENT, HUGE, HUGE, HASH]], "more": True,
        }
    ],
    "records that are none": lambda reply: [
        {"t": "gossip", "ref": ref(reply), "records": ["x", "a.b.c", "\u0000"], "relays": ["a.b.c"]}
    ],
    "relays that are none": lambda reply: [
        {"t": "gossip", "ref": ref(reply), "relays": ["x", "..", "a.b.c"]}
    ],
    "a receipt of nobody": lambda reply: [
        {"t": "submitted", "refs": [ref(reply)], "receipt": "a.b.c", "rejected": []}
    ],
    "noes to what was not asked": lambda reply: [
        {
            "t": "submitted", "refs": [ref(reply)],
            "rejected": [{"ref": "x", "i": 9, "error": "blocked", "stored": "no", "detail": ""}],
        }
    ],
    "a record of somebody else": lambda reply: [
        {"t": "resolved", "ref": ref(reply), "state": "found", "record": "a.b.c", "stale": False}
    ],
    "a view with huge numbers": lambda reply: [
        {"t": "view", "ref": ref(reply), "state": "gone", "since": HUGE, "strikes": HUGE}
    ],
    "a digest receipt of nothing": lambda reply: [
        {"t": "migrated", "ref": ref(reply), "handoff": "x", "whole": "x", "next": HUGE}
    ],
    "what only an agent says": lambda _: [{"t": "ack", "epoch": "e", "upto": 1}],
    "what only a peer is asked": lambda reply: [{"t": "want", "ref": ref(reply), "relays": True}],
}  # fmt: skip


async def lie(talk: Talk, *, answer: Lie) -> None:
    """Log in as it should be, then answer every frame with lies."""
    await talk.log_in(said=welcome(inbox=False, epoch=None, session=None))
    async for data in talk.socket:
        talk.relay.talks += 1
        for reply in answer(json.loads(data)):
            await talk.socket.send(reply if isinstance(reply, str | bytes) else json.dumps(reply))


async def hang_up(talk: Talk, *, at: int) -> None:
    """End the connection: before the login, after it, or in the midst of a question."""
    if at > 0:
        await talk.log_in(said=welcome(inbox=False, epoch=None, session=None))
    if at > 1:
        await talk.socket.recv()
    talk.socket.transport.abort()


@contextlib.asynccontextmanager
async def met(*relays: LyingRelay) -> AsyncIterator[tuple[RunningNode, RunningNode, Place]]:
    """A node with these peers and an honest one, after all of them were talked to."""
    a, b = places(2)
    liars = [Place(one.key, int(one.url.rpartition(":")[2])) for one in relays]
    async with relay_at(b, [a]) as honest, relay_at(a, [b, *liars]) as node:
        await until(lambda: all(one.talks for one in relays), 20)
        await until(lambda: node.parts.links.to(b.did), 20)
        yield node, honest, b


async def goes_on(node: RunningNode, honest: RunningNode, b: Place) -> None:
    """Whatever a node does with its peers, it still does with the honest one."""
    agent = new_key()
    record = record_of(agent, b)
    await node.parts.exchange.exchange_peers()
    await node.parts.peers.refresh()
    await honest.parts.directory.publish(record, only=agent.did)
    await until_held(node, agent, record, 20)
    async with speaker(honest.url, agent), speaker(node.url) as sender:
        await sender.say(Publish("p", record_of(sender.key, node_place(node))))
        await sender.say(Submit("s", [json.loads(make_envelope(sender.key, agent.did).wire)]))
        assert (await sender.hear(Submitted)).receipt


def node_place(node: RunningNode) -> Place:
    return Place(node.parts.key, int(node.url.rpartition(":")[2]))


async def everything_asked(node: RunningNode, relay: LyingRelay) -> None:
    """Ask one peer all that a relay asks; only named errors come of it."""
    ask = (
        lambda ref: Resolve(ref, new_key().did),
        lambda ref: Status(ref, (StatusItem(new_key().did, "i", new_key().did),)),
        lambda ref: Want(ref, view=True),
        lambda ref: Want(ref, agents=(new_key().agent_key,)),
        lambda ref: Digest(ref, TOP_BITS),
    )
    for make in ask:
        with contextlib.suppress(RelayError):
            await (await node.parts.links.reach(relay.key.did, relay.url)).ask(make)
    with contextlib.suppress(RelayError):
        link = await node.parts.links.reach(relay.key.did, relay.url)
        await link.submit([make_envelope(new_key(), new_key().did).wire])


async def test_peers_that_answer_with_lies_end_their_own_links_and_nothing_else(monkeypatch):
    monkeypatch.setattr(link_module, "ASK_S", 0.3)
    monkeypatch.setattr(link_module, "SUBMIT_S", 0.3)
    bugs = metrics.INTERNAL._value.get()
    async with contextlib.AsyncExitStack() as stack:
        relays = [
            await stack.enter_async_context(lying_relay(partial(lie, answer=answer)))
            for answer in LIES.values()
        ]
        async with met(*relays) as (node, honest, b):
            async with asyncio.TaskGroup() as tasks:
                for relay in relays:
                    tasks.create_task(everything_asked(node, relay))
            assert all(one.talks > 1 for one in relays), "each has lied"
            await goes_on(node, honest, b)
    assert metrics.INTERNAL._value.get() == bugs, "and a lie is no bug of this relay"


async def test_peers_that_hang_up_wherever_they_can_end_nothing_else():
    bugs = metrics.INTERNAL._value.get()
    async with contextlib.AsyncExitStack() as stack:
        relays = [
            await stack.enter_async_context(lying_relay(partial(hang_up, at=at))) for at in range(3)
        ]
        async with met(*relays) as (node, honest, b):
            await goes_on(node, honest, b)
    assert metrics.INTERNAL._value.get() == bugs
