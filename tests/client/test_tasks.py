"""A conversation that fails leaves the agent's task as it was, on every Python."""

from __future__ import annotations

import asyncio

import pytest

from relay.client.tasks import task_group


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
