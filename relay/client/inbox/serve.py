"""A handler for every message: acked when it returns, shown again when it fails, then refused.

Rules of the file: a bounce never reaches the handler of messages, and no failure of a handler
refuses it: it is the only word on an envelope that was lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Final

from relay.client.errors import AgentError
from relay.client.message import Bounce, Message
from relay.protocol.receipts import BounceItem

Handler = Callable[[Message], Awaitable[None]]
BounceHandler = Callable[[Bounce], Awaitable[None]]

_log: Final = logging.getLogger("relay.client")


def log_bounce(items: Iterable[BounceItem]) -> None:
    """What is done with a bounce where the program has no handler for it."""
    for item in items:
        before = "perhaps after a delivery" if item.maybe_delivered else "undelivered"
        _log.warning("%s to %s ended %s: %s", item.eid, item.to, before, item.reason)


async def serve(
    messages: AsyncIterator[Message],
    handler: Handler,
    on_bounce: BounceHandler | None,
    *,
    at_once: int,
) -> None:
    """See :meth:`relay.client.Agent.serve`."""

    async def process(message: Message) -> None:
        if not isinstance(message, Bounce):
            await handler(message)
        elif on_bounce is not None:
            await on_bounce(message)
        else:
            log_bounce(message.items)

    room = asyncio.Semaphore(at_once)
    failure: AgentError | None = None
    async with asyncio.TaskGroup() as tasks:
        running: set[asyncio.Task[None]] = set()
        try:
            await room.acquire()
            async for message in messages:
                task = tasks.create_task(_handle(message, process, room))
                running.add(task)
                task.add_done_callback(running.discard)
                await room.acquire()
        except AgentError as exc:
            # raised below: from here it would come out wrapped in an exception group
            failure = exc
            for task in running:
                task.cancel()
    if failure is not None:
        raise failure


async def _handle(message: Message, process: Handler, room: asyncio.Semaphore) -> None:
    try:
        async with message:
            await _uncancelled(process(message))
    except AgentError as exc:
        # of the ack: the end of the agent is told by the inbox, anything else makes it come again
        _log.warning("%s: %s", message.eid, exc)
    except Exception:  # noqa: BLE001
        # whatever a program raises is its own; one message must not end the others
        _log.exception("the handler failed on %s of %s", message.eid, message.sender)
    finally:
        room.release()


async def _uncancelled(work: Awaitable[None]) -> None:
    """Await ``work``; where a task that it awaits was cancelled, and not this one, it has failed.

    Raises:
        RuntimeError: it did.
    """
    try:
        await work
    except asyncio.CancelledError as exc:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise RuntimeError("the handler awaited what somebody cancelled") from exc
