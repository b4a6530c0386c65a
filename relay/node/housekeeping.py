"""The steps that a node takes by itself; :mod:`relay.node.loops` says how often."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from relay import clock, log, metrics
from relay.directory.startup_gate import StartupGate
from relay.files import is_file_left
from relay.health import ProblemReason
from relay.inbox.bounces import BouncePump
from relay.inbox.clock_guard import ClockGuard
from relay.inbox.dispatch import Dispatcher
from relay.migration.steps import MigrationSteps
from relay.node.open_store import OpenedStore
from relay.protocol.ids import NodeId
from relay.store.ports import Store

HEARTBEAT_TTL_S: Final = 15.0
NO_FILES: Final = (
    "no more open files are allowed (EMFILE): new connections are dropped; raise the limit "
    "(ulimit -n), or lower RELAY_MAX_CONNECTIONS"
)


async def look_at_clocks(store: Store, guard: ClockGuard) -> None:
    """Compare the store's clock with this node's and with the time that passed; report to health.

    Raises:
        RelayError: the store does not answer.
    """
    guard.sample(await store.clock.time(), clock.monotonic())
    ahead_s = await store.clock.ahead_s()
    metrics.CLOCK_AHEAD.set(ahead_s)
    guard.compare(ahead_s)
    store.clock.trust(ok=guard.ok)
    guard.tell(store.health)


@dataclass(slots=True)
class Housekeeping:
    """The steps that a node takes by itself, each at its own interval.

    Args:
        opened: the store.
        dispatcher: the sessions of this node.
        clock_guard: whether the store's clock is believed.
        startup_gate: whether peers have been asked where agents live.
        handoffs: inboxes that move.
        bounces: sends bounces.
    """

    opened: OpenedStore
    dispatcher: Dispatcher
    clock_guard: ClockGuard
    startup_gate: StartupGate
    handoffs: MigrationSteps
    bounces: BouncePump
    _live: frozenset[NodeId] = field(default=frozenset())

    async def poll(self) -> None:
        """Write the heartbeat of this node, then look for inboxes whose wake-ups were lost."""
        store = self.opened.store
        self._live = await store.nodes.heartbeat(self.opened.node_id, HEARTBEAT_TTL_S)
        await self.dispatcher.poll(store.inboxes)

    async def sweep(self) -> None:
        """Compare the clocks; if they agree, end what expired and purge old records.

        Nothing ends before the startup gate opens: mail for an agent that has moved must not
        expire here. Nothing ends before the first heartbeat, either: until then this node does not
        know which sessions may have mail in flight.
        """
        store, guard = self.opened.store, self.clock_guard
        await look_at_clocks(store, guard)
        if not guard.ok or not self.startup_gate.is_open or not self._live:
            return
        ended = await store.expiry.sweep(self.opened.node_id, self._live)
        if ended:
            metrics.EXPIRED.inc(ended)
            log.event("swept", ended=ended)
        await store.records.purge()

    async def measure(self) -> None:
        """Set the gauges of mail that waits for other relays."""
        waiting = await self.opened.store.outboxes.totals()
        metrics.OUTBOX_PEERS.set(len(waiting))
        metrics.OUTBOX_ENVELOPES.set(sum(count for _, count, _ in waiting))
        metrics.OUTBOX_BYTES.set(sum(size for _, _, size in waiting))

    async def files(self) -> None:
        """Test whether one more file opens: else the system drops connections silently."""
        problem = None if is_file_left() else NO_FILES
        self.opened.store.health.found(ProblemReason.NO_FILES, problem)

    async def refresh_handoffs(self) -> None:
        """Look at inboxes that change relays; no wait ends by a clock that is not believed."""
        await self.handoffs.refresh(clock_ok=self.clock_guard.ok)
