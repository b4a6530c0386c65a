"""A newer session is told to the older one even where that reads nothing: its window is full."""

from __future__ import annotations

import pytest

from relay import clock
from relay.inbox.model.types import InboxLimits
from relay.protocol.did import SigningKey
from relay.protocol.errors import ErrorCode
from relay.protocol.frames import Bye, Deliver, Submit, Submitted
from relay.reference.memory_store import MemoryStore
from tests.support.nodes import Speaker, make_envelope, new_key, running_node, speaker

pytestmark = pytest.mark.timeout(20)
WINDOW = 2


async def fill_window(url: str, bob: SigningKey, old: Speaker) -> None:
    """Have more wait for Bob than one window holds."""
    async with speaker(url) as alice:
        wires = [make_envelope(alice.key, bob.did).wire for _ in range(2 * WINDOW)]
        await alice.say(Submit("r", wires))
        assert (await alice.hear(Submitted)).receipt
    assert len((await old.hear(Deliver)).items) == WINDOW


async def test_a_session_with_a_full_window_is_told_of_a_newer_one_at_this_node():
    bob = new_key()
    async with running_node(window_count=WINDOW) as node, speaker(node.url, bob) as old:
        await fill_window(node.url, bob, old)
        async with speaker(node.url, bob):
            assert (await old.hear(Bye)).error is ErrorCode.SUPERSEDED


async def test_a_session_with_a_full_window_is_told_of_a_newer_one_at_another_node():
    bob, key = new_key(), new_key()
    store = MemoryStore(InboxLimits(), clock.now)
    async with (
        running_node(store, key=key, window_count=WINDOW) as one,
        running_node(store, key=key, window_count=WINDOW) as two,
        speaker(one.url, bob) as old,
    ):
        await fill_window(one.url, bob, old)
        async with speaker(two.url, bob):
            # by the poll: there is no read that could find out
            assert (await old.hear(Bye)).error is ErrorCode.SUPERSEDED
