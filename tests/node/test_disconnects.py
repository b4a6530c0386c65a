"""A client hangs up at every turn of the event loop between its frame and the answer to it.

Node and client share a loop, and the store takes turns of it for each call. So at each moment at
which something of the node waits, one client here is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from relay import clock, metrics
from relay.inbox.model.types import InboxLimits
from relay.inbox.submit import SubmitStream
from relay.protocol import endpoint_record, frames
from relay.protocol.endpoint_record import Home
from relay.protocol.frames import (
    Ack,
    Acked,
    Deliver,
    Error,
    Frame,
    Publish,
    Published,
    Resolve,
    Resolved,
    Rules,
    Status,
    StatusItem,
    Submit,
    Submitted,
)
from relay.protocol.ids import Did, Seq
from relay.reference.memory_store import MemoryStore
from relay.store.ports import Store
from relay.ws.connection import Connection
from tests.support.nodes import (
    RunningNode,
    Speaker,
    dial,
    log_in,
    make_envelope,
    new_key,
    running_node,
    speaker,
)
from tests.support.patience import wait_until

TURNS = {"append": 16, "ack": 16}
"""Of the event loop, for a call of the store: commits outlast the end of a connection."""
MOST = 400


class SlowStore(MemoryStore):
    """Each of its calls gives way to all that is ready."""

    def __init__(self, limits: InboxLimits, now: Any) -> None:
        super().__init__(limits, now)
        for name in Store.__annotations__.keys() - {"health"}:
            setattr(self, name, SlowPort(getattr(self, name)))


class SlowPort:
    """One port of a slow store."""

    def __init__(self, port: Any) -> None:
        self._port = port

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._port, name)
        if not asyncio.iscoroutinefunction(found):
            return found

        async def slowly(*args: Any, **options: Any) -> Any:
            await turns(TURNS.get(name, 1))
            result = await found(*args, **options)
            await turns(TURNS.get(name, 1))
            return result

        return slowly


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@asynccontextmanager
async def watched_node() -> AsyncIterator[RunningNode]:
    """A node in which nothing may fail unnoticed."""
    before = metrics.INTERNAL._value.get()
    stray: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: stray.append(context))
    async with running_node(SlowStore(InboxLimits(), clock.now)) as node:
        yield node
        # nobody is left behind, and whoever comes now is served
        delivery = node.parts.dispatcher
        await wait_until(lambda: not delivery._listeners, 5, "nobody listens any more")
        async with speaker(node.url) as alice, speaker(node.url) as bob:
            envelope = make_envelope(alice.key, bob.key.did, b"still there?")
            await alice.say(Submit("r", [envelope.wire]))
            assert (await alice.hear(Submitted)).receipt
            assert (await bob.hear(Deliver)).items
    assert not stray
    assert metrics.INTERNAL._value.get() == before


Saying = Callable[[Speaker, Did], list[Frame]]


def to_nobody(me: Speaker, _: Did) -> list[Frame]:
    wires = [make_envelope(me.key, new_key().did).wire for _ in range(3)]
    return [Submit("a", wires), Submit("b", wires[:1])]


def to_myself(me: Speaker, _: Did) -> list[Frame]:
    return [Submit("r", [make_envelope(me.key, me.key.did).wire for _ in range(3)])]


def to_another(me: Speaker, other: Did) -> list[Frame]:
    return [Submit("r", [make_envelope(me.key, other).wire])]


def an_ack(me: Speaker, _: Did) -> list[Frame]:
    assert me.ready.welcome.epoch is not None
    return [Ack(me.ready.welcome.epoch, upto=Seq(0))]


def a_record(me: Speaker, _: Did) -> list[Frame]:
    home = Home(me.ready.relay, "http://127.0.0.1:1")
    return [Publish("r", endpoint_record.sign(me.key, [home], now=clock.now()))]


def questions(me: Speaker, other: Did) -> list[Frame]:
    item = StatusItem(other, make_envelope(me.key, other).id)
    return [Status("s", (item,)), Rules("t"), Resolve("u", me.key.did)]


@pytest.mark.parametrize(
    ("say", "last"),
    [
        (to_nobody, Submitted),
        (to_myself, Deliver),
        (to_another, Submitted),
        (an_ack, Acked),
        (a_record, Published),
        (questions, Resolved),
    ],
    ids=["to nobody", "to itself", "to another", "ack", "publish", "questions"],
)
@pytest.mark.timeout(30)
async def test_an_agent_that_hangs_up_at_any_turn_harms_nothing(say: Saying, last: type):
    async with watched_node() as node, speaker(node.url, max_queue=None) as other:
        for count in range(MOST):
            # what it says is signed before the first turn is counted
            if await hung_up_after(node.url, count, say, other.key.did, last):
                break
        else:
            pytest.fail(f"no answer within {MOST} turns")
        assert count > 4


async def test_work_for_a_connection_that_is_over_is_found_out(monkeypatch):
    def spawn(self: Connection, work: Coroutine[Any, Any, None]) -> None:
        if self._tasks is None:
            work.close()
            raise RuntimeError("the conversation is over")
        self._tasks.create_task(work)

    monkeypatch.setattr(Connection, "_spawn", spawn)
    monkeypatch.setattr(SubmitStream, "close", lambda _: None)
    before = metrics.INTERNAL._value.get()
    async with running_node(SlowStore(InboxLimits(), clock.now)) as node:
        for count in range(MOST):
            await hung_up_after(node.url, count, to_nobody, new_key().did, Submitted)
            if metrics.INTERNAL._value.get() > before:
                break
    assert metrics.INTERNAL._value.get() > before


async def hung_up_after(url: str, count: int, say: Saying, other: Did, last: type) -> bool:
    """Hang up ``count`` turns after the last frame; gives whether the answer was there by then."""
    key = new_key()
    socket = await dial(url)
    me = Speaker(key, socket, await log_in(socket, url, key))
    # so many look-ups from one address meet a limit, which is an answer, too
    answer = asyncio.ensure_future(me.hear(last, Error))
    for frame in say(me, other):
        await socket.send(frames.encode(frame).decode())
    await turns(count)
    was_answered = answer.done()
    socket.transport.abort()
    await socket.wait_closed()
    await asyncio.gather(answer, return_exceptions=True)
    return was_answered


@pytest.mark.timeout(30)
async def test_an_agent_that_hangs_up_at_any_turn_of_its_login_harms_nothing():
    async with watched_node() as node:
        for count in range(MOST):
            socket = await dial(node.url)
            login = asyncio.ensure_future(log_in(socket, node.url, new_key()))
            await turns(count)
            was_in = login.done()
            socket.transport.abort()
            await asyncio.gather(login, return_exceptions=True)
            if was_in:
                break
        else:
            pytest.fail(f"no login within {MOST} turns")
        assert count > 4
