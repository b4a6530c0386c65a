"""A task group that leaves its task as it found it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """``asyncio.TaskGroup``, but the failure of a child leaves no request to cancel behind.

    Until Python 3.13 a group whose child fails while the block is being left cancels its own task
    and never takes that back. In Python 3.11.2, which is Debian 12's, the next ``asyncio.timeout``
    that expires in that task then ends it: cancelled, without a word to anybody.

    Raises:
        BaseExceptionGroup: as the group of asyncio does.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except BaseExceptionGroup:
        if task is not None and task.cancelling() > before:
            task.uncancel()
        raise
