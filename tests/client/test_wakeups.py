"""What is put back to be submitted again is submitted again: whoever does that is woken."""

from __future__ import annotations

import asyncio
import time

import pytest

from relay.client import Agent
from relay.client.outbox.queue import ANSWER_S, MIN_RETRY_S, Outbox
from relay.protocol.errors import ErrorCode
from relay.protocol.frames import Rejection, Submitted
from relay.protocol.ids import Timestamp
from relay.store.embedded import find_server_binary
from tests.client.scripted_relay import Talk, envelope_of, lying_relay, new_key
from tests.support.patience import wait_until
from tests.support.ports import free_port
from tests.support.relay_process import relay_process
from tests.support.servers import redis_server

pytestmark = pytest.mark.timeout(60)

NOW = Timestamp(1000.0)


async def test_sends_go_on_after_an_outage_of_the_store(tmp_path):
    binary = str(find_server_binary().path)
    async with (
        redis_server(tmp_path / "redis", binary=binary, port=free_port()) as store,
        relay_process(tmp_path / "node", RELAY_REDIS_URL=store.url) as relay,
        Agent.open(new_key(), relay.url) as bob,
        Agent.open(new_key(), relay.url) as alice,
    ):
        await alice.send(bob.did, "before")
        store.kill()
        sending = asyncio.ensure_future(alice.send(bob.did, "during", deadline_s=40))
        # three tries are refused: from then on it is a detour that puts it back
        await wait_until(lambda: tries(alice) >= 3, 20, "it was refused three times")
        await store.start()
        began = time.monotonic()
        await sending
        # its longest pause is 5 s, the store is found again within one more; the deadline is 40
        assert time.monotonic() - began < 20
        messages = bob.inbox()
        assert [(await anext(messages)).text() for _ in range(2)] == ["before", "during"]


def tries(agent: Agent) -> int:
    return max((one.tries for one in agent._parts.sender.unanswered.values()), default=0)


async def test_one_that_a_detour_puts_back_is_submitted_again_by_itself():
    async def script(talk: Talk) -> None:
        await talk.log_in()
        for _ in range(4):
            frame, _ = await talk.submit()
            no = Rejection(frame.ref, 0, ErrorCode.STORAGE_UNAVAILABLE, "unknown")
            await talk.say(Submitted((frame.ref,), None, (no,)))
        await talk.accept()
        await talk.until_closed()

    async with lying_relay(script) as relay, Agent.open(new_key(), relay.url) as me:
        assert (await me.send(me.did, "x", deadline_s=15)).relay == relay.key.did


class Woken:
    """An outbox, and whether who submits was woken."""

    def __init__(self) -> None:
        self.count = 0
        self.outbox = Outbox(on_direct=lambda: None, wake=self._wake)

    def _wake(self) -> None:
        self.count += 1

    def __enter__(self) -> None:
        self.count = 0

    def __exit__(self, *_: object) -> None:
        assert self.count > 0


async def test_whatever_makes_something_ready_wakes_who_submits():
    mine = envelope_of(new_key(), new_key().did)
    woken = Woken()
    box = woken.outbox
    with woken:
        waiting = box.add(mine)
    submit = box.next_submit(NOW, channel_id="a")
    with woken:  # the connection is lost
        box.lost("a")
    submit = box.next_submit(NOW, channel_id="a")
    no = Rejection(submit.ref, 0, ErrorCode.DRAINING, "no")
    with woken:  # refused for now
        box.answered(Submitted((submit.ref,), None, (no,)), new_key().did, NOW, "a")
    later = Timestamp(NOW + MIN_RETRY_S)
    assert box.next_timer("a") == later
    box.route_all_direct(later)
    held = box.take_direct(mine.to)
    submit = box.submit_direct(held, later, "direct")
    with woken:  # room in flight again
        box.unanswered(submit.ref, maybe_stored=True)
    with woken:  # a detour found nothing
        box.return_direct(held, later, try_again=False)
    assert waiting.maybe_stored
    assert box.next_submit(Timestamp(later + ANSWER_S)) is not None
    waiting.answer.cancel()
