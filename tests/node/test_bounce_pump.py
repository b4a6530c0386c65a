"""Bounces whose sender cannot be found: they wait, expire, and hold up no other bounce."""

from __future__ import annotations

import asyncio
from typing import Any

from relay import clock
from relay.directory.publish import Directory
from relay.directory.resolve import RecordResolver
from relay.forwarding.routing import Routing
from relay.inbox.bounces import BouncePump
from relay.inbox.dispatch import Dispatcher
from relay.inbox.keys import DidKeys
from relay.inbox.model.types import InboxLimits, PendingBounce
from relay.inbox.ports import OpenRequest
from relay.peering.link import Link
from relay.protocol.errors import ErrorCode, UnavailableError
from relay.protocol.ids import NodeId, Timestamp
from relay.protocol.types import Window
from relay.reference.memory_store import MemoryStore
from tests.node.test_resolve import Links
from tests.support.nodes import make_envelope, new_key

ME, BOB = new_key(), new_key()
LIFETIME_S = 7 * 24 * 3600


class NoNames:
    async def resolve(self, handle):
        raise NotImplementedError


class Mesh(Links):
    """No peer says anything until the gate opens."""

    async def reach(self, relay, url, *, handoff=False) -> Link:
        assert not handoff
        raise UnavailableError(ErrorCode.PEER_UNREACHABLE, f"{relay} at {url}")


def pump_of(now: list[float], links: Links) -> tuple[BouncePump, MemoryStore]:
    store = MemoryStore(InboxLimits(), lambda: Timestamp(now[0]))
    directory = Directory(ME.did, store.records, DidKeys())

    async def keep(compact, peer):
        raise NotImplementedError

    resolving = RecordResolver(ME.did, directory, links, keep, NoNames())
    ports = store.inboxes, store.bounces, store.clock
    return BouncePump(ME, *ports, Dispatcher(NodeId("n")), Routing(resolving, links)), store


def intend(store: MemoryStore, *senders) -> None:
    now = int(store.state.now())
    intents = [
        PendingBounce(one.agent_key, make_envelope(one, BOB.did).eid, BOB.agent_key, "expired",
                     maybe_delivered=False, due_at=now)
        for one in senders
    ]  # fmt: skip
    bounces: Any = store.bounces
    bounces.intend(intents)


async def test_a_bounce_whose_sender_nobody_can_find_ends_when_it_expires():
    now, links = [clock.now()], Mesh()
    links.missing = 1  # a peer that is away may know where the sender lives
    pump, store = pump_of(now, links)
    intend(store, new_key())
    assert await pump() == 0
    assert await store.bounces.claim(), "tried again"
    now[0] += LIFETIME_S + 1
    assert await pump() == 1
    assert await store.bounces.claim() == []


async def test_a_sender_who_cannot_be_found_just_now_keeps_no_other_from_its_bounce():
    gate, asked = asyncio.Event(), new_key()
    links = Links(**{new_key().did: None})
    links.gate = gate
    here = new_key()
    now = [clock.now()]
    pump, store = pump_of(now, links)
    await store.inboxes.open(OpenRequest(here.agent_key, NodeId("n"), Window()))
    intend(store, asked, here)
    running = asyncio.ensure_future(pump())
    await links.was_asked.wait()
    head = (await store.inboxes.heads([here.agent_key]))[0]
    assert head is not None
    assert head.head == 1, "its bounce is there while the other is looked for"
    gate.set()
    assert await running == 1
