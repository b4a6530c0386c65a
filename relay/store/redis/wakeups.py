"""Hints from other nodes, over sharded pub/sub: one subscription per primary.

Rules of the file: a hint may be lost, so after every (re)subscription the callback is told to look
at everything; a subscription that breaks, or whose slots move, is simply made again.

::

    connect ──▶ subscribe to all channels of this primary ──▶ callback(()) ──▶ hints ...
       ▲                                                                         │ any error, or
       └──────────────── pause ◀── callback later ◀───────────────────────────────┘ slots moved
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from relay.clock import jitter
from relay.inbox.ports import OnWake
from relay.protocol.errors import RelayError
from relay.protocol.ids import AgentKey
from relay.store.redis import keys
from relay.store.redis.client import translated
from relay.store.redis.partitions import Partitions
from relay.tasks import isolated

RESUBSCRIBE_S: Final = 0.5
_PING_S: Final = 15.0
_MOVED: Final = frozenset({"sunsubscribe", "unsubscribe"})


class RedisWakeups:
    """Listens for this node's hints; see :class:`relay.inbox.ports.WakeupSource`."""

    def __init__(self) -> None:
        self._callbacks: list[OnWake] = []
        self._on_renewal: Callable[[], None] = lambda: None

    def on_wake(self, callback: OnWake) -> None:
        """Call ``callback`` with the inboxes that have news; with none: look at all of them."""
        self._callbacks.append(callback)

    def on_renewal(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once a partition is seen to be another one than it was."""
        self._on_renewal = callback

    def renewed(self) -> None:
        """Report that a partition is another one than it was."""
        self._on_renewal()

    def _tell(self, inboxes: Sequence[AgentKey]) -> None:
        for callback in self._callbacks:
            with isolated("wakeups"):
                callback(inboxes)

    async def run(self, partitions: Partitions) -> None:
        """Listen until cancelled."""
        while True:
            # a store that is away is no news here: every call says so itself
            with isolated("wakeups"), contextlib.suppress(RelayError):
                await self._listen_everywhere(partitions)
            await asyncio.sleep(jitter(RESUBSCRIBE_S))

    async def _listen_everywhere(self, partitions: Partitions) -> None:
        await partitions.client.refresh()
        channels: dict[str, list[str]] = {}
        for part in partitions.all():
            name = partitions.client.owner_of(part)
            channels.setdefault(name, []).append(keys.wake(part, partitions.node))
        # one that ends ends all: the map of slots is read anew, which is rare and cheap
        listeners = [self._listen(partitions, name, of) for name, of in channels.items()]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(listener) for listener in listeners]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()

    async def _listen(self, partitions: Partitions, name: str, channels: list[str]) -> None:
        redis = partitions.client.listener(name)
        try:
            with contextlib.suppress(RelayError), translated():
                await self._subscribed(redis, channels, partitions.client.timeout_s)
        finally:
            with contextlib.suppress(RelayError), translated():
                await redis.aclose()

    async def _subscribed(self, redis: Redis, channels: list[str], timeout_s: float) -> None:
        async with redis.pubsub() as pubsub:
            async with asyncio.timeout(timeout_s):
                for channel in channels:
                    await pubsub.ssubscribe(channel)
                for _ in channels:
                    await pubsub.get_message(timeout=timeout_s)
            self._tell(())
            while True:
                if not await self._next(pubsub, timeout_s):
                    return

    async def _next(self, pubsub: PubSub, timeout_s: float) -> bool:
        said: dict[str, Any] | None = await pubsub.get_message(timeout=_PING_S)
        if said is None:
            # silence: is the other side still there?
            async with asyncio.timeout(timeout_s):
                await pubsub.ping()
            return True
        if said["type"] in _MOVED:
            return False
        if said["type"] == "smessage":
            names = said["data"].decode().split("\n")
            self._tell([AgentKey(name) for name in names])
        return True
