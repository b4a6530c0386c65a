"""What a node does by itself: heartbeats, polls, sweeps, bounces, guards.

Rules of the file: a turn that fails is counted and logged, and the next one comes; a loop never
ends by itself. Intervals are seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from relay import clock, log, metrics
from relay.core.ids import NodeId
from relay.service.bounces import BouncePump
from relay.service.isolation import isolated
from relay.service.node import Node

HEARTBEAT_TTL_S: Final = 15.0
POLL_S: Final = 4.0
SWEEP_S: Final = 5.0
BOUNCE_S: Final = 1.0
MEASURE_S: Final = 5.0
DISK_S: Final = 0.5
FOLLOW_S: Final = 1.0
PUSH_S: Final = 0.5
PULL_REST_S: Final = 1.0
"""A pull waits by itself; this is only between two."""
MEET_S: Final = 5.0
RETURN_REST_S: Final = 0.2
PEERS_S: Final = 5.0
HANDOFFS_S: Final = 5.0
RESTART_S: Final = 1.0
"""Some turns run for ever; this is the rest after a bug ended one."""


async def every(name: str, seconds: float, turn: Callable[[], Awaitable[object]]) -> None:
    """Take a turn, then rest, for ever."""
    while True:
        with isolated(name):
            await turn()
        await asyncio.sleep(seconds)


@dataclass(slots=True)
class Housekeeping:
    """The turns of a node's loops."""

    node: Node
    bounces: BouncePump
    _live: frozenset[NodeId] = field(default=frozenset())
    _said_doubt: str | None = None

    async def poll(self) -> None:
        """Say that this node lives, and make up for lost hints."""
        self._live = await self.node.store.heartbeat(self.node.node_id, HEARTBEAT_TTL_S)
        await self.node.delivery.poll(self.node.store)

    async def sweep(self) -> None:
        """Look at the clock; end what expired, and forget, if it is to be believed."""
        store, guard = self.node.store, self.node.clock_guard
        guard.sample(await store.time(), clock.monotonic())
        store.trust_clock(ok=guard.ok)
        if guard.doubt is not None:
            if guard.doubt != self._said_doubt:
                log.clock_suspended(guard.doubt)
            self._said_doubt = guard.doubt
            return
        self._said_doubt = None
        if not self.node.returning.is_over:
            # what waits for an agent that has moved does not end here
            return
        if not self._live:
            # whose sessions may have something in flight is not known yet
            return
        ended = await store.sweep(self.node.node_id, self._live)
        if ended:
            metrics.EXPIRED.inc(ended)
            log.swept(ended)
        await store.purge_records()

    async def measure(self) -> None:
        """See what waits for other relays."""
        waiting = await self.node.store.outboxes()
        metrics.OUTBOX_PEERS.set(len(waiting))
        metrics.OUTBOX_ENVELOPES.set(sum(count for _, count, _ in waiting))
        metrics.OUTBOX_BYTES.set(sum(size for _, _, size in waiting))

    async def handoffs(self) -> None:
        """Look at inboxes that change relays; a clock that is in doubt ends no wait of them."""
        await self.node.handoffs.refresh(clock_ok=self.node.clock_guard.ok)

    async def bounce(self) -> None:
        """Tell senders."""
        await self.bounces()
