"""The helpers of the SDK: task groups on every Python, signals, bounded maps, back-off."""

from __future__ import annotations

import asyncio

import pytest

from relay import clock
from relay.client._util import Backoff, BoundedDict, Signal, log_failure, task_group


async def fail() -> None:
    raise ConnectionError


async def one_fails() -> None:
    async with task_group() as tasks:
        tasks.create_task(asyncio.sleep(60))
        tasks.create_task(fail())


async def test_a_group_whose_child_failed_leaves_no_request_to_cancel():
    with pytest.raises(BaseExceptionGroup):
        await one_fails()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()


async def test_a_real_cancellation_stays():
    async def work() -> None:
        async with task_group() as tasks:
            tasks.create_task(asyncio.sleep(60))

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_signal_wakes_all_who_wait_and_who_took_the_event_before():
    signal = Signal()
    upcoming = signal.upcoming()
    waiting = [asyncio.ensure_future(signal.wait()) for _ in range(2)]
    await asyncio.sleep(0)
    signal.notify()
    await asyncio.gather(upcoming.wait(), *waiting)
    assert not signal.upcoming().is_set()


def test_a_bounded_dict_forgets_what_was_written_longest_ago():
    evicted: list[tuple[str, int]] = []
    memory: BoundedDict[str, int] = BoundedDict(2, lambda key, value: evicted.append((key, value)))
    memory["a"], memory["b"] = 1, 2
    memory["a"] = 3
    memory["c"] = 4
    assert dict(memory) == {"a": 3, "c": 4}
    assert evicted == [("b", 2)]


def test_pauses_double_up_to_the_maximum_and_begin_again_after_a_success(monkeypatch):
    monkeypatch.setattr(clock, "random_fraction", lambda: 1.0)
    pauses = Backoff(0.1, 0.5)
    assert [pauses.next_s() for _ in range(4)] == [0.1, 0.2, 0.4, 0.5]
    pauses.reset()
    assert pauses.next_s() == 0.1
    pauses.failures = 100_000
    assert pauses.next_s() == 0.5


async def test_a_failure_that_nobody_awaits_is_logged(caplog):
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.add_done_callback(log_failure("not written"))
    future.set_exception(OSError("the disk is full"))
    await asyncio.sleep(0)
    assert caplog.messages == ["not written: the disk is full"]
