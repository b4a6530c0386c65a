"""What a call of the SDK may come to: a result, or an error that is documented; and in time."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Mapping
from typing import Any

from relay.client import AgentError, KeyFileError

DOCUMENTED = (AgentError, KeyFileError)
LONGEST_S = 15.0
"""For a call that waits several times for a moment, on a busy machine."""


async def complaint(call: Awaitable[Any], longest_s: float = LONGEST_S) -> str | None:
    """Make a call; gives what is wrong unless it ends with a result or a documented error."""
    task = asyncio.ensure_future(call)
    done, _ = await asyncio.wait({task}, timeout=longest_s)
    if not done:
        task.cancel()
        await asyncio.wait({task})
        return "it does not end"
    if task.cancelled():
        return "it was cancelled, and by nobody here"
    return wrong(task.exception())


async def complaints(calls: Mapping[str, Awaitable[Any]]) -> dict[str, str]:
    """Make all these calls at once; gives what is wrong with them."""
    async with asyncio.TaskGroup() as tasks:
        made = {name: tasks.create_task(complaint(call)) for name, call in calls.items()}
    return {name: said for name, task in made.items() if (said := task.result()) is not None}


async def complaints_of_agent(
    calls: Mapping[str, Awaitable[Any]], endless: Mapping[str, Awaitable[Any]]
) -> dict[str, str]:
    """As :func:`complaints`; ``endless`` may wait as long as the agent lives, and are cancelled."""
    waiting = {name: asyncio.ensure_future(call) for name, call in endless.items()}
    found = await complaints(calls)
    for name, task in waiting.items():
        was_cancelled = task.done() and task.cancelled()
        task.cancel()
        await asyncio.wait({task})
        said = wrong(task.exception()) if not task.cancelled() else None
        if was_cancelled or said is not None:
            found[name] = said or "it was cancelled, and by nobody here"
    return found


def wrong(failure: BaseException | None) -> str | None:
    """What is wrong with how a call ended."""
    if failure is None or isinstance(failure, DOCUMENTED):
        return None
    return "".join(traceback.format_exception(failure))


def methods(kind: type) -> set[str]:
    """The public calls of a class, those of ``with`` among them."""
    blocks = {"__aenter__", "__aexit__", "__enter__", "__exit__"}
    return {
        name
        for one in kind.__mro__
        for name, value in vars(one).items()
        if one.__module__.startswith("relay.")
        and (name in blocks or not name.startswith("_"))
        and (callable(value) or isinstance(value, classmethod))
    }
