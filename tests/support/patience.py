"""Deadlines of tests, scaled by one factor for slow or busy machines.

A deadline here is no measurement. It only turns a hang into a failure that says what did not come,
so it may grow with the load: ``TEST_SLOWNESS=3`` allows three times as long, everywhere. What a
test measures is never scaled.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

SLOWNESS = float(os.environ.get("TEST_SLOWNESS", "1"))
FIRST_PAUSE_S = 0.002
MAX_PAUSE_S = 0.05


def within(seconds: float) -> asyncio.Timeout:
    """Return a time limit of ``seconds``, times the slowness of this machine."""
    return asyncio.timeout(seconds * SLOWNESS)


async def wait_until(condition: Callable[[], T | Awaitable[T]], deadline_s: float, what: str) -> T:
    """Poll ``condition`` until it is true and return its value.

    Raises:
        AssertionError: it was not within ``deadline_s`` seconds; the text is ``what``.
    """
    loop = asyncio.get_running_loop()
    deadline, pause_s = loop.time() + deadline_s * SLOWNESS, FIRST_PAUSE_S
    while True:
        found = condition()
        value = await found if inspect.isawaitable(found) else found
        if value:
            return value
        if loop.time() >= deadline:
            raise AssertionError(f"not within {deadline_s * SLOWNESS:g} s: {what}")
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, MAX_PAUSE_S)
