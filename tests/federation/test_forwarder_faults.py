"""Couriers when things go wrong between any two steps: nothing is lost, nothing is told falsely."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import pytest

from relay import clock
from relay.inbox.model.types import Accepted, AckRequest, AckResult, InboxLimits
from relay.protocol.envelope import StoredEnvelope
from relay.protocol.errors import ErrorCode, Refusal
from relay.protocol.frames import Bye, Deliver
from relay.reference.memory_store import MemoryStore
from tests.federation.linked_nodes import places, relay_at, until_held
from tests.federation.test_forwarding import at_home, record_of_last, submit
from tests.support.nodes import make_envelope, new_key

pytestmark = pytest.mark.timeout(60)


class SlowStore(MemoryStore):
    """A store whose acks of couriers take until the test lets them through."""

    def __init__(self) -> None:
        super().__init__(InboxLimits(), clock.now)
        self.asked = asyncio.Event()
        self.may_ack = asyncio.Event()
        self._ack, self.inboxes.ack = self.inboxes.ack, self.ack

    async def ack(self, requests: Sequence[AckRequest]) -> list[AckResult | Refusal]:
        if any(request.ack.forwarded for request in requests):
            self.asked.set()
            await self.may_ack.wait()
        return await self._ack(requests)


class SilentStore(MemoryStore):
    """A store that does not come back from storing until the test lets it."""

    def __init__(self) -> None:
        super().__init__(InboxLimits(), clock.now)
        self.asked = asyncio.Event()
        self.may_store = asyncio.Event()
        self._append, self.inboxes.append = self.inboxes.append, self.append

    async def append(self, items: Sequence[StoredEnvelope]) -> list[Accepted | Refusal]:
        self.asked.set()
        await self.may_store.wait()
        return await self._append(items)


async def test_a_drain_waits_until_what_went_on_is_written_down():
    alice, bob = new_key(), new_key()
    a, c = places(2)
    store = SlowStore()
    async with (
        relay_at(c, [a]),
        relay_at(a, [c], store) as at_a,
        at_home(a, alice) as sender,
        at_home(c, bob) as receiver,
    ):
        await until_held(at_a, bob, record_of_last(bob))
        await submit(sender, make_envelope(alice, bob.did))
        await receiver.hear(Deliver)
        await store.asked.wait()
        draining = asyncio.create_task(at_a.parts.forwarding.drain())
        done, _ = await asyncio.wait({draining}, timeout=0.05)
        assert not done
        store.may_ack.set()
        await draining
        assert await store.outboxes.totals() == []


async def test_a_relay_that_does_not_answer_keeps_no_agent_from_its_goodbye():
    alice, bob = new_key(), new_key()
    a, c = places(2)
    silent = SilentStore()
    async with relay_at(c, [a], silent), contextlib.AsyncExitStack() as stack:
        at_a = await stack.enter_async_context(relay_at(a, [c], drain_s=1.0))
        sender = await stack.enter_async_context(at_home(a, alice))
        await stack.enter_async_context(at_home(c, bob))
        await until_held(at_a, bob, record_of_last(bob))
        await submit(sender, make_envelope(alice, bob.did))
        await silent.asked.wait()
        at_a.stop.set()
        assert (await sender.hear(Bye)).error is ErrorCode.DRAINING
        silent.may_store.set()
