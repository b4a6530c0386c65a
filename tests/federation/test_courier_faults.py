"""Couriers when things go wrong between any two steps: nothing is lost, nothing is told falsely."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from relay import clock
from relay.core.errors import Refusal
from relay.core.frames import Deliver
from relay.core.inbox_values import Acked, InboxLimits
from relay.ports import AckRequest
from relay.store.memory import MemoryStore
from tests.federation.relays import places, relay_at, until_held
from tests.federation.test_forwarding import at_home, record_of_last, submit
from tests.support.nodes import make_envelope, new_key

pytestmark = pytest.mark.timeout(60)


class SlowStore(MemoryStore):
    """A store whose acks of couriers take until the test lets them through."""

    def __init__(self) -> None:
        super().__init__(InboxLimits(), clock.now)
        self.asked = asyncio.Event()
        self.may_ack = asyncio.Event()

    async def ack(self, requests: Sequence[AckRequest]) -> list[Acked | Refusal]:
        if any(request.ack.forwarded for request in requests):
            self.asked.set()
            await self.may_ack.wait()
        return await super().ack(requests)


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
        draining = asyncio.create_task(at_a.built.node.forwarding.drain())
        done, _ = await asyncio.wait({draining}, timeout=0.05)
        assert not done
        store.may_ack.set()
        await draining
        assert await store.outboxes() == []
