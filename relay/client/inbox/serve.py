"""A handler for every message: acked when it returns, retried when it fails, then refused.

Entry point: :func:`serve`. Invariants: a bounce never reaches the handler of messages, and no
failure of a handler refuses it: it is the only report of a lost envelope.
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
    """Log a bounce for which the program has no handler."""
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
    """Call the handlers; see :meth:`relay.client.Agent.serve`."""

    async def process(message: Message) -> None:
        if not isinstance(message, Bounce):
            await handler(message)
        elif on_bounce is not None:
            await on_bounce(message)
        else:
            log_bounce(message.items)

    slots = asyncio.Semaphore(at_once)
    failure: AgentError | None = None
    async with asyncio.TaskGroup() as tasks:
        running: set[asyncio.Task[None]] = set()
        try:
            await slots.acquire()
            async for message in messages:
                task = tasks.create_task(_handle(message, process, slots))
                running.add(task)
                task.add_done_callback(running.discard)
                await slots.acquire()
        except AgentError as exc:
            # raised below: from here it would come out wrapped in an exception group
            failure = exc
            for task in running:
                task.cancel()
    if failure is not None:
        raise failure


async def _handle(message: Message, process: Handler, slots: asyncio.Semaphore) -> None:
    try:
        async with message:
            await _uncancelled(process(message))
    except AgentError as exc:
        # of the ack: the iterator raises the end of the agent; after anything else it comes again
        _log.warning("%s: %s", message.eid, exc)
    except Exception:  # noqa: BLE001
        # the handler may raise anything; one message must not end the others
        _log.exception("the handler failed on %s of %s", message.eid, message.sender)
    finally:
        slots.release()


async def _uncancelled(work: Awaitable[None]) -> None:
    """Await ``work``.

    Raises:
        RuntimeError: ``work`` was cancelled, and this task was not.
    """
    try:
        await work
    except asyncio.CancelledError as exc:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise RuntimeError("the handler awaited what somebody cancelled") from exc
