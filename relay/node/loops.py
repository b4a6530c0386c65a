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
from relay.files import is_file_left
from relay.health import ProblemReason
from relay.inbox.bounces import BouncePump
from relay.inbox.clock_guard import ClockGuard
from relay.inbox.ports import Store
from relay.isolation import isolated
from relay.node.node import Node
from relay.protocol.ids import NodeId

HEARTBEAT_TTL_S: Final = 15.0
POLL_S: Final = 4.0
SWEEP_S: Final = 5.0
BOUNCE_S: Final = 1.0
MEASURE_S: Final = 5.0
DISK_S: Final = 0.5
FILES_S: Final = 1.0
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
NO_FILES: Final = (
    "no more open files are allowed (EMFILE): new connections are dropped; raise the limit "
    "(ulimit -n), or lower RELAY_MAX_CONNECTIONS"
)


async def every(name: str, seconds: float, turn: Callable[[], Awaitable[object]]) -> None:
    """Take a turn, then rest, for ever."""
    while True:
        with isolated(name):
            await turn()
        await asyncio.sleep(seconds)


async def look_at_clocks(store: Store, guard: ClockGuard) -> None:
    """Compare the store's clock with the time that passed and with this node's; say what is wrong.

    Raises:
        RelayError: the store does not answer.
    """
    guard.sample(await store.time(), clock.monotonic())
    ahead_s = await store.clock_ahead_s()
    metrics.CLOCK_AHEAD.set(ahead_s)
    guard.compare(ahead_s)
    store.trust_clock(ok=guard.ok)
    guard.tell(store.health)


@dataclass(slots=True)
class Housekeeping:
    """The turns of a node's loops."""

    node: Node
    bounces: BouncePump
    _live: frozenset[NodeId] = field(default=frozenset())

    async def poll(self) -> None:
        """Say that this node lives, and make up for lost hints."""
        self._live = await self.node.store.heartbeat(self.node.node_id, HEARTBEAT_TTL_S)
        await self.node.delivery.poll(self.node.store)

    async def sweep(self) -> None:
        """Look at the clocks; end what expired, and forget, if they are to be believed."""
        store, guard = self.node.store, self.node.clock_guard
        await look_at_clocks(store, guard)
        if not guard.ok:
            return
        if not self.node.returning.is_over:
            # what waits for an agent that has moved does not end here
            return
        if not self._live:
            # whose sessions may have something in flight is not known yet
            return
        ended = await store.sweep(self.node.node_id, self._live)
        if ended:
            metrics.EXPIRED.inc(ended)
            log.event("swept", ended=ended)
        await store.purge_records()

    async def measure(self) -> None:
        """See what waits for other relays."""
        waiting = await self.node.store.outboxes()
        metrics.OUTBOX_PEERS.set(len(waiting))
        metrics.OUTBOX_ENVELOPES.set(sum(count for _, count, _ in waiting))
        metrics.OUTBOX_BYTES.set(sum(size for _, _, size in waiting))

    async def files(self) -> None:
        """See whether a connection could be accepted: below us it is dropped without a word."""
        problem = None if is_file_left() else NO_FILES
        self.node.store.health.found(ProblemReason.NO_FILES, problem)

    async def handoffs(self) -> None:
        """Look at inboxes that change relays; a clock that is in doubt ends no wait of them."""
        await self.node.handoffs.refresh(clock_ok=self.node.clock_guard.ok)

    async def bounce(self) -> None:
        """Tell senders."""
        await self.bounces()
