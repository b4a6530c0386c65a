"""Use cases that have rules of their own: group commit, rates, the clock guard, bounces."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import clock
from relay.inbox.bounces import bounce_envelope
from relay.inbox.clock_guard import ClockGuard
from relay.inbox.dispatch import Dispatcher
from relay.inbox.group_commit import Bounds, GroupCommit
from relay.inbox.model import admission
from relay.inbox.model.types import InboxLimits, PendingBounce
from relay.inbox.ports import BounceBatch, OpenRequest
from relay.node.loops import run_every
from relay.protocol import envelope as envelopes
from relay.protocol.envelope import StoredEnvelope
from relay.protocol.errors import ErrorCode, Refusal, UnavailableError
from relay.protocol.ids import Did, Eid, Epoch, Fence, NodeId, Timestamp
from relay.protocol.jws import loads
from relay.protocol.types import Window
from relay.reference.memory_store import MemoryStore
from tests.support.nodes import make_envelope, new_key


class Collector:
    """A source that remembers what it hears."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[int, object]]] = []
        self.news = asyncio.Event()

    def on_committed(self, results):
        self.calls.append(list(results))
        self.news.set()


async def run_commits(sources: list[tuple[Collector, list[int]]], bounds: Bounds):
    batches: list[list[int]] = []

    async def commit(items):
        batches.append(list(items))
        await asyncio.sleep(0)
        return [-item for item in items]

    group: GroupCommit[int, int] = GroupCommit(commit, lambda item: item % 100, bounds)
    for source, items in sources:
        group.put(source, items)
    runner = asyncio.ensure_future(group.run())
    await group.idle()
    runner.cancel()
    return batches


async def test_each_source_hears_each_commit_once_in_its_own_order():
    one, two = Collector(), Collector()
    batches = await run_commits([(one, [1, 2, 3]), (two, [4])], Bounds(items=10))
    assert [sorted(batch) for batch in batches] == [[1, 2, 3, 4]]
    assert one.calls == [[(1, -1), (2, -2), (3, -3)]]
    assert two.calls == [[(4, -4)]]


async def test_a_flood_from_one_source_does_not_starve_another():
    flood, single = Collector(), Collector()
    batches = await run_commits([(flood, list(range(1, 100))), (single, [7])], Bounds(items=8))
    assert 7 in batches[0]
    assert all(len(batch) <= 8 for batch in batches)
    assert Counter(item for batch in batches for item in batch)[7] == 2


async def test_a_commit_is_bounded_in_bytes_but_takes_at_least_one():
    source = Collector()
    batches = await run_commits([(source, [60, 60, 99, 10])], Bounds(items=10, bytes=70))
    assert batches == [[60], [60], [99], [10]]


async def test_a_failed_commit_decides_too():
    source = Collector()

    async def commit(_):
        raise UnavailableError(ErrorCode.STORAGE_UNAVAILABLE, "gone")

    group: GroupCommit[int, int] = GroupCommit(commit, lambda _: 1)
    group.put(source, [1, 2])
    runner = asyncio.ensure_future(group.run())
    await group.idle()
    runner.cancel()
    assert [(i, r.code) for i, r in source.calls[0]] == [
        (1, ErrorCode.STORAGE_UNAVAILABLE),
        (2, ErrorCode.STORAGE_UNAVAILABLE),
    ]
    assert all(isinstance(r, Refusal) and r.stored == "unknown" for _, r in source.calls[0])


async def test_a_bug_in_a_commit_is_answered_and_the_next_commit_goes_on():
    source = Collector()
    calls: list[int] = []

    async def commit(items):
        calls.append(len(items))
        if len(calls) == 1:
            raise ZeroDivisionError
        return [-item for item in items]

    group: GroupCommit[int, int] = GroupCommit(commit, lambda _: 1, Bounds(items=1))
    group.put(source, [1, 2])
    runner = asyncio.ensure_future(group.run())
    await group.idle()
    runner.cancel()
    (first,), (second,) = source.calls
    assert (first[1].code, first[1].stored) == (ErrorCode.INTERNAL, "unknown")
    assert second == (2, -2)


async def test_a_source_that_fails_while_it_hears_takes_nothing_from_the_others():
    class Broken(Collector):
        def on_committed(self, results):
            super().on_committed(results)
            raise RuntimeError("its connection is over")

    broken, sound = Broken(), Collector()
    batches = await run_commits([(broken, [1, 2]), (sound, [3, 4])], Bounds(items=2))
    assert len(batches) == 2
    assert broken.calls == [[(1, -1)], [(2, -2)]]
    assert sound.calls == [[(3, -3)], [(4, -4)]]


async def test_a_commit_that_forgets_an_item_is_a_bug_that_ends_nothing():
    source = Collector()

    async def commit(items):
        return [-item for item in items[1:]]

    group: GroupCommit[int, int] = GroupCommit(commit, lambda _: 1)
    group.put(source, [1, 2])
    runner = asyncio.ensure_future(group.run())
    await group.idle()
    runner.cancel()
    assert [result.code for _, result in source.calls[0]] == [ErrorCode.INTERNAL] * 2


def stored_envelope(to: Did) -> StoredEnvelope:
    wire = make_envelope(new_key(), to).wire
    return envelopes.stored(admission.admit_own(envelopes.parse(loads(wire))))


class Listening:
    """A listener that notes what it is told."""

    epoch = Epoch("e")

    def __init__(self, fence: Fence) -> None:
        self.fence = fence
        self.told: list[str] = []

    def on_stored(self, fence, items):
        self.tell(f"committed {len(items)} under {fence}")

    def on_wakeup(self):
        self.tell("woken")

    def tell(self, what: str) -> None:
        self.told.append(what)


class Failing(Listening):
    """A listener whose every call fails."""

    def tell(self, what: str) -> None:
        super().tell(what)
        raise RuntimeError(what)


async def test_a_listener_that_fails_takes_nothing_from_the_others():
    node, store = NodeId("n"), MemoryStore(InboxLimits(), clock.now)
    delivery, listeners, keys = Dispatcher(node), [], [new_key(), new_key()]
    await store.start(relay=new_key().did, node=node)
    for key, kind in zip(keys, (Failing, Listening), strict=True):
        opened = await store.inboxes.open(
            OpenRequest(key.agent_key, node, Window(8, 8_000), create=True)
        )
        listeners.append(kind(opened.fence))
        delivery.attach(key.agent_key, listeners[-1])
    items = [stored_envelope(key.did) for key in keys]
    # the commit is answered, and tells those who can hear
    assert [result.seq for result in await delivery.store_and_dispatch(store.inboxes, items)] == [
        1,
        1,
    ]
    delivery.wake([])
    for listener in listeners:
        assert listener.told == [f"committed 1 under {listener.fence}", "woken"]


async def test_a_loop_outlives_every_kind_of_failure_of_a_turn():
    turns: list[int] = []
    enough = asyncio.Event()
    stray = asyncio.get_running_loop().create_future()
    stray.cancel()

    async def turn() -> None:
        turns.append(len(turns))
        match len(turns):
            case 1:
                raise UnavailableError(ErrorCode.STORAGE_UNAVAILABLE, "away")
            case 2:
                raise ZeroDivisionError
            case 3:
                raise BaseExceptionGroup("of a task group", [OSError("a disk")])
            case 4:
                # something that the turn awaits was cancelled; nobody cancels the loop
                await stray
            case _:
                enough.set()

    loop = asyncio.ensure_future(run_every("test", 0, turn))
    async with asyncio.timeout(5):
        await enough.wait()
    assert not loop.done()
    loop.cancel()
    await asyncio.wait([loop])
    assert loop.cancelled()


@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-"], ids=["full", "closed"])
async def test_log_lines_that_cannot_be_written_end_nothing(where):
    program = (
        "from relay.cli import streams; streams.install(); "
        "from relay import log; log.configure('info'); "
        "log.event('draining', connections=1); log.event('swept', ended=1)"
    )
    shell = f'"$0" -c "{program}; print(1)" {where}'
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", shell, sys.executable, stdout=asyncio.subprocess.PIPE
    )
    assert (await process.communicate())[0] == b"1\n"
    assert process.returncode == 0


@given(
    drift=st.floats(-299, 299),
    steps=st.lists(st.floats(0.1, 10_000), min_size=1, max_size=20),
)
def test_a_clock_that_keeps_pace_is_believed(drift, steps):
    guard = ClockGuard()
    monotonic, store = 0.0, 1_000_000.0
    for number, step in enumerate(steps):
        monotonic, store = monotonic + step, store + step + (drift if number == 0 else 0)
        guard.sample(Timestamp(store), Timestamp(monotonic))
    assert guard.ok


def test_a_step_or_a_long_gap_is_in_doubt_until_confirmed():
    guard = ClockGuard()
    guard.sample(Timestamp(1000.0), Timestamp(0.0))
    guard.sample(Timestamp(1000.0 + 400), Timestamp(1.0))
    assert not guard.ok
    guard.sample(Timestamp(1401.0), Timestamp(2.0))
    assert not guard.ok
    guard.confirm()
    assert guard.ok
    for last, now, trusted, ok in (
        (None, 5e9, False, True),
        (1e9, 1e9 + 3599, False, True),
        (1e9, 1e9 + 3601, False, False),
        (1e9, 1e9 + 3601, True, True),
    ):
        guard = ClockGuard()
        guard.begin(None if last is None else Timestamp(last), Timestamp(now), trusted=trusted)
        assert guard.ok is ok


def test_a_bounce_made_again_from_its_batch_is_the_same_bytes():
    relay, sender = new_key(), new_key()
    intents = tuple(
        PendingBounce(sender.agent_key, Eid("A" * 43), new_key().agent_key, "expired", n == 1, 5)
        for n in range(3)
    )
    batch = BounceBatch(sender.agent_key, os.urandom(16), 1_700_000_000, intents)
    one, two = bounce_envelope(relay, batch), bounce_envelope(relay, batch)
    assert one == two
    assert not one.bounces
    other = BounceBatch(sender.agent_key, os.urandom(16), 1_700_000_000, intents)
    assert bounce_envelope(relay, other).eid != one.eid
