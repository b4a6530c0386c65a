"""A handler for every message: acked when it returns, shown again when it fails, then refused."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from relay.client.errors import AgentError
from relay.client.message import Message

Handler = Callable[[Message], Awaitable[None]]

_log: Final = logging.getLogger("relay.client")


async def serve(messages: AsyncIterator[Message], handler: Handler, *, at_once: int) -> None:
    """See :meth:`relay.client.Agent.serve`."""
    room = asyncio.Semaphore(at_once)
    failure: AgentError | None = None
    async with asyncio.TaskGroup() as tasks:
        running: set[asyncio.Task[None]] = set()
        try:
            await room.acquire()
            async for message in messages:
                task = tasks.create_task(_handle(message, handler, room))
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


async def _handle(message: Message, handler: Handler, room: asyncio.Semaphore) -> None:
    try:
        async with message:
            await handler(message)
    except AgentError as exc:
        # of the ack: the end of the agent is told by the inbox, anything else makes it come again
        _log.warning("%s: %s", message.eid, exc)
    except Exception:  # noqa: BLE001
        # whatever a program raises is its own; one message must not end the others
        _log.exception("the handler failed on %s of %s", message.eid, message.sender)
    finally:
        room.release()
